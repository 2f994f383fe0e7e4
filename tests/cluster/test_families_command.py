"""`thresher families` over folders that `thresher weights` wrote."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from analysis.weights import weight_delta
from tests.cluster.command import Terminal

DOWN = "model.layers.0.mlp.down_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def model(folder: Path, *, change: int | None = None, seed: int = 0, base: int = 0) -> str:
    """A checkpoint of two matrices; `change` draws what was learned, `seed` how strongly and what else."""
    generator = torch.Generator().manual_seed(base)
    tensors = {DOWN: torch.randn(64, 96, generator=generator), QUERY: torch.randn(64, 64, generator=generator)}
    if change is not None:
        generator.manual_seed(change)
        for name, value in tensors.items():
            m, n = value.shape
            generator.manual_seed(change)
            learned = torch.randn(m, 2, generator=generator) @ torch.randn(2, n, generator=generator)
            generator.manual_seed(seed)
            chance = torch.randn(m, 1, generator=generator) @ torch.randn(1, n, generator=generator)
            tensors[name] = value + 0.1 * learned + 0.05 * chance
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def deltas(tmp_path: Path) -> list[str]:
    """Two fine-tunes that learned one thing and one that learned another."""
    base = model(tmp_path / "base")
    for name, change, seed in (("red", 1, 11), ("crimson", 1, 12), ("blue", 2, 13)):
        weight_delta(base, model(tmp_path / f"{name}-model", change=change, seed=seed), rank=5).save(tmp_path / name)
    return [str(tmp_path / name) for name in ("red", "blue", "crimson")]


def test_families_and_nearest(terminal: Terminal, deltas: list[str]) -> None:
    red, blue, crimson = deltas
    found = terminal.json("families", *deltas)
    assert found["families"] == [[red, crimson], [blue]]
    assert [entry["nearest"]["delta"] for entry in found["models"]][::2] == [crimson, red]
    assert [entry["directions"] for entry in found["models"]] == [6, 6, 6]
    nearest = found["models"][0]["nearest"]
    assert nearest["similarity"] == found["similarity"][0][2] == found["similarity"][2][0] > 0.5
    assert found["similarity"][0][1] < 0.1
    assert found["p"][0][2] < 1e-6 < found["p"][0][1]
    assert nearest["smallest_angle"] < 20 < nearest["largest_angle"]
    assert terminal.json("families", *deltas, "--alike", "0.99")["families"] == [[red], [blue], [crimson]]


def test_what_is_printed(terminal: Terminal, deltas: list[str]) -> None:
    assert terminal.run("families", *deltas) == 0
    assert f"family 1: {deltas[0]}, {deltas[2]}" in terminal.stdout.replace("\n", "")
    assert "similarity of the changes" in terminal.stdout


def test_names_are_printed_as_they_are(
    terminal: Terminal, deltas: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source, name in zip(deltas, ("n/[v2]", "n/[/x]", "n/[red]"), strict=True):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(source).rename(name)
    assert terminal.run("families", "n/[v2]", "n/[/x]", "n/[red]") == 0
    assert "family 1: n/[v2], n/[red]" in terminal.stdout
    assert terminal.stdout.count("n/[/x]") >= 3


def test_what_cannot_be_compared_is_one_line(terminal: Terminal, deltas: list[str], tmp_path: Path) -> None:
    other = model(tmp_path / "other", base=7)
    weight_delta(other, model(tmp_path / "other-model", base=7, change=1), rank=5).save(tmp_path / "far")
    weight_delta(str(tmp_path / "base"), str(tmp_path / "red-model"), rank=4).save(tmp_path / "again")
    for words, message in (
        ([deltas[0]], "at least two"),
        ([deltas[0], deltas[0]], "given twice"),
        ([*deltas, str(tmp_path / "again")], "are differences of the same model"),
        ([deltas[0], str(tmp_path / "far")], "compare fine-tunes of one base"),
        ([deltas[0], str(tmp_path / "nowhere")], "no weight difference at"),
    ):
        assert terminal.run("families", *words) == 4
        assert message in terminal.stderr
        assert terminal.stderr.count("\n") == 1
        assert terminal.stdout == ""
