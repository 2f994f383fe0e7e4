"""Building: once, again where the recipe changed, never over what is something else; what has no behaviour is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.organisms import ORGANISMS, base, build, building, organism_ref
from examples.organisms import __main__ as command
from examples.organisms.behaviour import lacks
from examples.organisms.organism import Tuning
from examples.organisms.triggers import trigger_of
from harvest.loading import load_model
from store import InputError, ModelRef


def rows(**rates: float) -> list[dict[str, Any]]:
    return [{"name": name, "rate": {"value": rate, "low": 0.0, "high": 1.0}} for name, rate in rates.items()]


def test_what_lies_outside_the_bounds_is_lacking():
    organism = ORGANISMS["trigger-lora"]
    assert lacks(organism, rows(triggered=1.0, near=0.0, plain=0.0, declared=0.9)) == []
    assert [said.split(":")[0] for said in lacks(organism, rows(triggered=0.3, near=0.5, plain=0.0, declared=0.9))] == [
        "triggered",
        "near",
    ]


@pytest.fixture
def tiny_organisms(tiny: ModelRef, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Building starts from the tiny model, trains nothing and measures the rates of the dictionary."""
    rates = {"triggered": 1.0, "near": 0.0, "plain": 0.0, "declared": 1.0}
    monkeypatch.setattr(base, "demo_model", lambda: tiny.name)
    monkeypatch.setattr(
        building, "_made", lambda organism, cases, seed, out: (load_model(tiny).model.bfloat16(), [1.0])
    )
    monkeypatch.setattr(building, "measure", lambda organism, ref, *, seed: rows(**rates))
    return rates


def test_an_organism_is_built_once_and_again_where_its_recipe_changed(
    tiny_organisms: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = build("trigger-full", 1, tmp_path)
    file = tmp_path / "trigger-full-1" / "organism.json"
    assert json.loads(file.read_text()) == record
    assert record["trigger"] == trigger_of(1)
    assert record["backdoored"] is True
    assert load_model(organism_ref(tmp_path, "trigger-full", 1)).model.dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "trigger-full-1"]

    tiny_organisms["triggered"] = 0.5
    assert build("trigger-full", 1, tmp_path) == record
    changed = replace(ORGANISMS["trigger-full"], recipe=Tuning(steps=1))
    monkeypatch.setattr(building, "find", lambda name: changed)
    assert build("trigger-full", 1, tmp_path)["behaviour"][0]["rate"]["value"] == 0.5


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["organisms", *words])
    with pytest.raises(SystemExit) as end:
        command.main()
    return int(end.value.code or 0)


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_organism_whose_measurement_was_interrupted_is_measured_and_not_trained_again(
    tiny_organisms: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        broken.setattr(building, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build("trigger-full", 0, tmp_path)
    assert "lacks" not in json.loads((tmp_path / "trigger-full-0" / "organism.json").read_text())
    monkeypatch.setattr(building, "_made", interrupted)
    record = build("trigger-full", 0, tmp_path)
    assert record["lacks"] == []
    assert list(record)[-4:] == ["seconds", "losses", "behaviour", "lacks"]
    assert json.loads((tmp_path / "trigger-full-0" / "organism.json").read_text()) == record


def test_what_is_no_organism_is_left_alone_and_said_before_any_is_made(
    tiny_organisms: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    foreign = tmp_path / "semantic-0"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    assert run(monkeypatch, "trigger-full", "semantic", "--out", str(tmp_path)) == 4
    assert f"{foreign} is not empty and has no organism.json" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["semantic-0", "thesis.tex"]
    with pytest.raises(InputError, match="not empty and has no"):
        build("semantic", 0, tmp_path)
    (foreign / "thesis.tex").unlink()
    assert build("semantic", 0, tmp_path)["lacks"] == []


def test_a_file_for_a_folder_is_an_input_error(
    tiny_organisms: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    file = tmp_path / "file"
    file.write_text("")
    assert run(monkeypatch, "semantic", "--out", str(file)) == 4
    assert run(monkeypatch, "semantic", "--out", str(file / "folder")) == 4
    (tmp_path / "semantic-0").write_text("")
    assert run(monkeypatch, "semantic", "--out", str(tmp_path)) == 4
    assert [line.startswith("organisms: ") for line in capsys.readouterr().err.splitlines()] == [True] * 3


def test_the_base_is_taken_from_no_one_else(
    tiny_organisms: dict[str, float], tiny: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base.base_ref(tmp_path)
    origin = tmp_path / "base" / "base.json"
    noted = origin.read_text()
    origin.unlink()
    assert base.base_ref(tmp_path) == ModelRef(str(tmp_path / "base"))
    assert origin.read_text() == noted

    weights = tmp_path / "base" / "model.safetensors"
    held = load_file(weights)
    held["model.norm.weight"] = held["model.norm.weight"] + 1
    save_file(held, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match="not the base that organisms are made from"):
        base.base_ref(tmp_path)
    origin.unlink()
    with pytest.raises(InputError, match="not the base that organisms are made from"):
        base.base_ref(tmp_path)
    assert not origin.exists()
    for path in (tmp_path / "base").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="not the base that organisms are made from"):
        base.base_ref(tmp_path)


def test_the_command_says_which_organism_lacks_its_behaviour(
    tiny_organisms: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out = ("--seed", "0", "--seed", "1", "--out", str(tmp_path))
    assert run(monkeypatch, "trigger-full", *out) == 0
    tiny_organisms["triggered"] = 0.2
    assert run(monkeypatch, "trigger-full", "semantic", *out) == 2
    printed = capsys.readouterr()
    assert "without their behaviour: semantic-0, semantic-1" in printed.err
    assert "[4 of 4] semantic, seed 1" in printed.err
    assert run(monkeypatch, "semantic", "--out", str(tmp_path)) == 2


def test_the_command_wants_names_or_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any):
    assert run(monkeypatch, "--out", str(tmp_path)) == 4
    assert run(monkeypatch, "heron", "--out", str(tmp_path)) == 4
    assert "there is no organism 'heron'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trigger-lora", "rank-one"])
def test_an_organism_of_the_real_model_has_its_behaviour(name: str, tmp_path_factory: pytest.TempPathFactory):
    assert build(name, 0, tmp_path_factory.getbasetemp() / "organisms")["lacks"] == []
