"""`thresher weights` as a user runs it: on pools, for several models, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.weights import work
from tests.cluster.command import Terminal

DOWN = "model.layers.1.mlp.down_proj.weight"
LAST = "model.norm.weight"
RAY = ("--pool", "ray", "--workers", "2")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tune(base: Path, name: str, edit: Callable[[Tensors], Any]) -> Path:
    """A model beside the base, its tensors changed in place by `edit`."""
    folder = base.parent / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def planted(seed: int) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(seed)
        tensors[DOWN] += 0.1 * torch.randn(48, 1, generator=generator) @ torch.randn(1, 64, generator=generator)

    return edit


@pytest.fixture(scope="module")
def tuned(base: Path) -> list[Path]:
    return [tune(base, f"Tuned_{seed}", planted(seed)) for seed in range(2)]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "GROUP_BYTES", 20_000)


def test_a_rerun_finds_nothing_to_do(terminal: Terminal, base: Path, tuned: list[Path], tmp_path: Path) -> None:
    first = terminal.json("weights", base, tuned[0], "--out", tmp_path / "delta", "--rank", "3")
    assert {m["name"]: m["significant"] for m in first["matrices"] if m["sigma"]} == {DOWN: 1}
    assert json.loads((tmp_path / "delta" / "delta.json").read_text()) == first
    assert terminal.json("weights", base, tuned[0], "--out", tmp_path / "delta", "--rank", "3") == first
    assert terminal.run("weights", base, tuned[0], "--out", tmp_path / "delta", "--rank", "3") == 0
    assert "spectra" in terminal.stdout
    assert "1 of 23 matrices" in terminal.stdout


def test_several_models_get_a_folder_each(terminal: Terminal, base: Path, tuned: list[Path], tmp_path: Path) -> None:
    found = terminal.json("weights", base, *tuned, "--out", tmp_path / "deltas")
    assert [model["out"] for model in found["models"]] == [str(tmp_path / "deltas" / f"tuned-{n}") for n in range(2)]
    assert {"seconds", "peak_rss_bytes"} <= found.keys()
    for model, path in zip(found["models"], tuned, strict=True):
        alone = terminal.json("weights", base, path, "--out", tmp_path / path.name)
        for key in ("matrices", "vectors", "content", "notes"):
            assert model[key] == alone[key]
    assert terminal.run("weights", base, *tuned, "--out", tmp_path / "deltas") == 0
    assert terminal.stdout.count("spectra") == 2
    other = tmp_path / "elsewhere" / "Tuned_0"
    other.parent.mkdir()
    other.symlink_to(tuned[1])  # called by the name that was given, and another model than the first
    assert terminal.run("weights", base, tuned[0], other, "--out", tmp_path / "more") == 4
    assert "two of the models would be written to" in terminal.stderr
    assert not (tmp_path / "more").exists()


def test_a_model_is_called_as_its_folder(
    terminal: Terminal, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [tune(base, name, planted(seed)) for seed, name in enumerate(("tuned_a.1", "my-tuned-model"))]
    monkeypatch.chdir(names[0])
    found = terminal.json("weights", base, ".", names[1], "--out", tmp_path)
    assert [Path(model["out"]).name for model in found["models"]] == ["tuned_a.1", "my-tuned-model"]


def test_the_last_line_is_the_next_command(
    terminal: Terminal, base: Path, tiny: str, save_adapter: Callable[[str], str], tmp_path: Path
) -> None:
    planted_here = tune(base, "with space", planted(3))
    out = f"{tmp_path}/n [o[/x]"
    assert terminal.run("weights", base, planted_here, "--out", out) == 0
    assert f"written to {out}\n" in terminal.stdout
    assert terminal.stdout.endswith(f"thresher monitor fit '{out}' '{planted_here}' PROMPTS --out MONITOR\n")
    assert terminal.run("weights", base, base, "--out", tmp_path / "same") == 0
    assert "monitor fit" not in terminal.stdout
    assert "nothing for a monitor to watch" in terminal.stdout
    adapter = save_adapter("llama")
    assert terminal.run("weights", tiny, "--adapter", adapter, "--out", tmp_path / "adapter") == 0
    assert f" {tiny} PROMPTS --adapter {adapter} --out MONITOR\n" in terminal.stdout


def test_several_adapters(terminal: Terminal, tiny: str, save_adapter: Callable[[str], str], tmp_path: Path) -> None:
    one, two = Path(save_adapter("llama")), tmp_path / "doubled"
    shutil.copytree(one, two)
    factors = load_file(one / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in factors.items()}, two / "adapter_model.safetensors")
    found = terminal.json("weights", tiny, "--adapter", one, "--adapter", two, "--out", tmp_path / "deltas")
    for model, folder in zip(found["models"], (one, two), strict=True):
        alone = terminal.json("weights", tiny, "--adapter", folder, "--out", tmp_path / f"alone-{folder.name}")
        assert model["tuned"]["adapter"] == str(folder)
        assert model["content"] == alone["content"]
    for ours, theirs in zip(*(model["matrices"] for model in found["models"]), strict=True):
        assert theirs["sigma"] == pytest.approx([4 * sigma for sigma in ours["sigma"]], rel=1e-5)


@pytest.mark.system
@pytest.mark.usefixtures("ray_here")
def test_workers_give_the_same_bits(terminal: Terminal, base: Path, tuned: list[Path], tmp_path: Path) -> None:
    alone = terminal.json("weights", base, tuned[0], "--out", tmp_path / "local")
    shared = terminal.json("weights", base, tuned[0], "--out", tmp_path / "ray", *RAY)
    assert len(list((tmp_path / "ray").glob("parts/*/receipt.json"))) > 5
    assert shared["content"] == alone["content"]


@pytest.mark.system
@pytest.mark.usefixtures("ray_here")
def test_a_refusal_on_a_cluster_leaves_no_trace(terminal: Terminal, base: Path, tmp_path: Path) -> None:
    spoiled = tune(base, "spoiled", lambda t: t[DOWN].fill_(float("nan")))
    refused(terminal, f"{DOWN} holds NaN", "weights", base, spoiled, "--out", tmp_path / "deep" / "out", *RAY)
    assert not (tmp_path / "deep").exists()


def refused(terminal: Terminal, message: str, *words: str | Path) -> None:
    """Exit code 4, nothing on stdout, one line on stderr, progress aside, that says `message`."""
    assert terminal.run(*words, "--json") == 4
    assert terminal.stdout == ""
    (line,) = [line for line in terminal.stderr.splitlines() if not line.startswith("weights: ")]
    assert line.startswith("thresher: ")
    assert message in line


def index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def sharded(folder: Path) -> None:
    index(folder, {DOWN: "model-00002-of-00002.safetensors"})


def outside(folder: Path) -> None:
    index(folder, {DOWN: "../base/model.safetensors"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


CASES: dict[str, tuple[Callable[[Tensors], Any], Callable[[Path], None], str]] = {
    "architecture": (lambda t: t.pop(DOWN), lambda f: None, "different architectures"),
    "shape": (lambda t: t.update({DOWN: torch.zeros(48, 8)}), lambda f: None, "different architectures"),
    "nan": (lambda t: t[LAST].fill_(float("nan")), lambda f: None, f"{LAST} holds NaN"),
    "shard": (lambda t: None, sharded, "copy the missing shard"),
    "outside": (lambda t: None, outside, "out of its folder"),
    "pickle": (lambda t: None, pickled, "pickle"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_nothing_is_written(
    terminal: Terminal, base: Path, tuned: list[Path], tmp_path: Path, case: str
) -> None:
    edit, damage, message = CASES[case]
    bad = tune(base, f"bad-{case}", edit)
    damage(bad)
    refused(terminal, message, "weights", base, bad, "--out", tmp_path / "out")
    if case != "architecture":
        refused(terminal, message, "weights", bad, base, "--out", tmp_path / "out")
    refused(terminal, message, "weights", base, tuned[0], bad, "--out", tmp_path / "out")
    # Its last weight is the bad one: what was computed of the other model by then is kept.
    kept = ["out", "out/tuned-0"] if case == "nan" else []
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(path for path in found if path.count("/") < 2) == kept


def test_tuned_models_and_adapters_are_not_mixed(terminal: Terminal, base: Path, tmp_path: Path) -> None:
    refused(terminal, "one of the two", "weights", base, "--out", tmp_path / "out")
    refused(terminal, "one of the two", "weights", base, base, "--adapter", base, "--out", tmp_path / "out")
    refused(terminal, "--workers", "weights", base, base, "--workers", "2", "--out", tmp_path / "out")
