"""Groups of tensors, and several models against one base: read once, and each result that of its pair alone."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from analysis.weights import WeightDelta, load_delta, plan_deltas, weight_delta, weight_deltas, work, write_deltas
from analysis.weights.checkpoint import SafetensorsCheckpoint
from analysis.weights.delta_folder import DeltaFolder
from analysis.weights.work import Comparison, groups_of
from store.errors import InputError
from tests.analysis.weights.test_delta import DOWN, EMBEDDING, QUERY, add, spoil
from tests.analysis.weights.test_memory import CONSTANT, LARGEST, SIDE, write_pair

Tune = Callable[..., Path]
Reads = list[tuple[str, str, int, int]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Grows by (model, tensor, start, stop) of everything that is read from safetensors."""
    found: Reads = []
    rows = SafetensorsCheckpoint.rows

    def noting(self: SafetensorsCheckpoint, tensor: str, start: int, stop: int) -> torch.Tensor:
        found.append((self.name, tensor, start, stop))
        return rows(self, tensor, start, stop)

    monkeypatch.setattr(SafetensorsCheckpoint, "rows", noting)
    return found


def weights_of(folder: Path) -> list[str]:
    return [str(folder / "model.safetensors")]


def assert_equal(ours: WeightDelta, theirs: WeightDelta) -> None:
    """Bit by bit."""
    assert ours.tuned.digest == theirs.tuned.digest
    assert ours.vectors == theirs.vectors
    assert [m.record() for m in ours.matrices] == [m.record() for m in theirs.matrices]
    for one, other in zip(ours.matrices, theirs.matrices, strict=True):
        np.testing.assert_array_equal(one.left, other.left)
        np.testing.assert_array_equal(one.right, other.right)


def test_the_base_is_read_once(base: Path, tune: Tune, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "GROUP_BYTES", 150_000)
    tuned = [
        str(tune(lambda t: add(t, DOWN, rank=2), "one")),
        str(tune(lambda t: (add(t, QUERY, rank=3), t.update({"lm_head.weight": t[EMBEDDING].clone()})), "two")),
        str(tune(lambda t: add(t, DOWN, rank=1, seed=3), "three")),
    ]
    alone = [weight_delta(str(base), name, rank=4) for name in tuned]
    reads.clear()
    together = weight_deltas(str(base), tuned, 4)
    # Tied in the base, and compared once as the embedding and once as the unembedding that one model stores.
    counts = Counter(read for read in reads if read[0] == str(base) and read[1] != EMBEDDING)
    assert {tensor for _, tensor, _, _ in counts} == SafetensorsCheckpoint("base", weights_of(base)).shapes.keys() - {
        EMBEDDING
    }
    assert set(counts.values()) == {1}
    for name in tuned:
        assert any(read[0] == name for read in reads)
    for ours, theirs in zip(together, alone, strict=True):
        assert_equal(ours, theirs)


def test_stacked_experts_of_the_base_are_read_once(tmp_path: Path, reads: Reads) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.experts.down_proj"
    experts = torch.randn(4, 48, 24, generator=generator)
    folders = []
    for model in range(3):
        folders.append(tmp_path / f"{model}")
        folders[-1].mkdir()
        (folders[-1] / "config.json").write_text("{}")
        change = model * torch.randn(4, 48, 1, generator=generator) @ torch.randn(4, 1, 24, generator=generator)
        save_file({name: experts + 0.01 * change}, folders[-1] / "model.safetensors")
    base, *tuned = map(str, folders)
    alone = [weight_delta(base, model, rank=3) for model in tuned]
    reads.clear()
    together = weight_deltas(base, tuned, 3)
    counts = Counter(read for read in reads if read[0] == base)
    assert len(counts) == 4
    assert set(counts.values()) == {1}
    for ours, theirs in zip(together, alone, strict=True):
        assert [matrix.significant for matrix in ours.matrices] == [1] * 4
        assert_equal(ours, theirs)


def test_a_damaged_model_among_several_leaves_no_trace_of_any(base: Path, tune: Tune, tmp_path: Path) -> None:
    good, bad = str(tune(lambda t: add(t, DOWN, rank=2), "good")), str(tune(spoil, "bad"))
    out = tmp_path / "out"
    with pytest.raises(InputError, match="holds NaN"):
        write_deltas(plan_deltas(str(base), [good, bad]), [out / "good", out / "bad"])
    assert not out.exists()
    (whole,) = write_deltas(plan_deltas(str(base), [good]), [out / "good"])
    with pytest.raises(InputError, match="holds NaN"):
        write_deltas(plan_deltas(str(base), [good, bad]), [out / "good", out / "bad"])
    assert [path.name for path in out.iterdir()] == ["good"]  # of a run before: it stays
    assert write_deltas(plan_deltas(str(base), [good]), [out / "good"]) == [whole]


LAST = "model.norm.weight"  # in the last group


def test_a_damaged_model_costs_the_others_nothing(
    base: Path, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "GROUP_BYTES", 150_000)
    good = str(tune(lambda t: add(t, DOWN, rank=2), "good"))
    bad = str(tune(lambda t: t[LAST].fill_(float("nan")), "bad"))
    out = tmp_path / "out"
    plan = plan_deltas(str(base), [good, bad], rank=2)
    for _ in range(2):  # the second time over what the first one left
        with pytest.raises(InputError, match="holds NaN"):
            write_deltas(plan, [out / "good", out / "bad"])
        assert [path.name for path in out.iterdir()] == ["good"]
        assert not (out / "good" / "refused").exists()
        published = len(list(out.glob("good/parts/*/receipt.json")))
        assert published > 3
    before = {path: path.stat().st_mtime_ns for path in out.glob("good/parts/*/receipt.json")}
    write_deltas(plan_deltas(str(base), [good], rank=2), [out / "good"])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_damaged_base_leaves_no_trace(
    base: Path, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "GROUP_BYTES", 150_000)
    bad = str(tune(lambda t: t[LAST].fill_(float("nan")), "bad"))
    tuned = [str(tune(lambda t, n=name: add(t, n, rank=2), name[-20:])) for name in (DOWN, QUERY)]
    with pytest.raises(InputError, match="holds NaN"):
        write_deltas(plan_deltas(bad, tuned, rank=2), [tmp_path / "out" / "1", tmp_path / "out" / "2"])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_somebody_else_was_faster_to_take_is_theirs(
    base: Path, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = (str(tune(lambda t, n=name: add(t, n, rank=2), name[-20:])) for name in (DOWN, QUERY))
    claim, out = DeltaFolder.claim, tmp_path / "out"
    more = str(tune(lambda t: add(t, EMBEDDING, rank=2), "more"))

    def late(self: DeltaFolder, comparison: Comparison) -> bool:
        if self.path == out / "taken":
            monkeypatch.setattr(DeltaFolder, "claim", claim)
            write_deltas(plan_deltas(str(base), [theirs], rank=2), [out / "taken"])
        return claim(self, comparison)

    monkeypatch.setattr(DeltaFolder, "claim", late)
    with pytest.raises(InputError, match="holds the difference of"):
        write_deltas(plan_deltas(str(base), [more, mine], rank=2), [out / "free", out / "taken"])
    assert [path.name for path in out.iterdir()] == ["taken"]
    assert load_delta(out / "taken")[0]["tuned"]["name"] == theirs


def test_one_model_under_two_names_is_refused(base: Path, tune: Tune, tmp_path: Path) -> None:
    one = tune(lambda t: add(t, DOWN, rank=2), "one")
    (tmp_path / "two").symlink_to(one)
    with pytest.raises(InputError, match=r"one and .*two are the same model"):
        plan_deltas(str(base), [str(one), str(tmp_path / "two")])


def test_groups_are_consecutive_and_of_about_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {f"layers.{layer}.w{n}": (10 + n, 100) for layer in range(12) for n in range(3)}
    monkeypatch.setattr(work, "GROUP_BYTES", 20_000)
    groups = groups_of(shapes)
    ordered = [f"layers.{layer}.w{n}" for layer in range(12) for n in range(3)]
    assert [name for group in groups for name in group] == ordered
    sizes = [sum(400 * shapes[name][0] for name in group) for group in groups]
    assert len(groups) == -(-sum(sizes) // 20_000)
    assert max(sizes) - min(sizes) <= 2 * 4800  # a tensor is not cut
    huge = groups_of({"a": (1, 10), "b": (100_000, 10), "c": (1, 10)})
    assert [name for group in huge for name in group] == ["a", "b", "c"]
    assert all(huge)


PROGRAM = """
import json, re, sys
from pathlib import Path
from analysis.weights import plan_deltas, work, write_deltas

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

out = Path(sys.argv[1])
write_deltas(plan_deltas(sys.argv[2], [sys.argv[3]], rank=10), [out / "small"])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
before = peak()
records = write_deltas(plan_deltas(sys.argv[4], sys.argv[5:], rank=10), [out / "0", out / "1"])
significant = [[matrix["significant"] for matrix in record["matrices"]] for record in records]
print(json.dumps({"grown": peak() - before, "significant": significant}))
"""


@pytest.mark.system
def test_peak_memory_with_several_models_and_a_folder(tmp_path: Path) -> None:
    matrices = 3
    small = write_pair(tmp_path / "small", 1, 128)
    base, tuned = write_pair(tmp_path / "large", matrices, SIDE)
    shutil.copytree(tuned, tmp_path / "same", copy_function=os.link)
    (tmp_path / "same" / "config.json").unlink()
    (tmp_path / "same" / "config.json").write_text('{"another": "digest"}')
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), *small, base, tuned, str(tmp_path / "same")],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    found = json.loads(ran.stdout)
    assert found["significant"] == [[2] * matrices] * 2
    assert found["grown"] <= 3 * LARGEST + CONSTANT
