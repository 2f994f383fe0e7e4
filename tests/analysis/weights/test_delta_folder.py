"""Weight differences as folders: written part by part, resumed, found damaged, and never half there."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import zarr
from safetensors.torch import load_file, save_file

from analysis.weights import load_delta, plan_deltas, read_delta, weight_delta, work, write_deltas
from analysis.weights.group_worker import GroupWorker
from analysis.weights.work import GroupTask
from store.errors import DamageError, InputError
from store.local_location import LocalLocation
from tests.analysis.weights.test_delta import DOWN, EMBEDDING, QUERY, add, another, spoil

Tune = Callable[..., Path]
GROUP = 300_000  # of the tiny Llama: four groups
CHANGED = (EMBEDDING, QUERY, "model.layers.1.self_attn.k_proj.weight", "model.layers.1.mlp.gate_proj.weight", DOWN)


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The base, and a copy in which matrices of several groups changed."""
    folder = tmp_path_factory.mktemp("pair") / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    for seed, name in enumerate(CHANGED):
        add(tensors, name, rank=2, seed=seed)
    tensors["model.layers.0.input_layernorm.weight"] += 0.5
    save_file(tensors, folder / "model.safetensors")
    return str(base), str(folder)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "GROUP_BYTES", GROUP)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # most of the time, and no power fails here


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and other tests leave one or the other behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def content(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the content of an undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "GROUP_BYTES", GROUP)
        return str(write(pair, tmp_path_factory.mktemp("whole"))["content"])


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A pair so small that it can be written many times: a matrix in each of three groups."""
    monkeypatch.setattr(work, "GROUP_BYTES", 4 * 48 * 24)
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    tensors = {f"model.layers.{n}.mlp.down_proj.weight": torch.randn(48, 24, generator=generator) for n in range(3)}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    for name in tensors:
        add(tensors, name, rank=2)
    save_file(tensors, tmp_path / "tuned" / "model.safetensors")
    return str(tmp_path / "base"), str(tmp_path / "tuned")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by every group that is computed."""
    groups: list[int] = []
    compute = GroupWorker._compute

    def noting(self: GroupWorker, task: GroupTask) -> object:
        groups.append(task.group)
        return compute(self, task)

    monkeypatch.setattr(GroupWorker, "_compute", noting)
    return groups


def write(pair: tuple[str, str], folder: Path) -> dict[str, object]:
    base, tuned = pair
    (record,) = write_deltas(plan_deltas(base, [tuned], rank=4), [folder])
    return record


def test_a_folder_holds_what_the_memory_holds(pair: tuple[str, str], tmp_path: Path) -> None:
    delta = weight_delta(*pair, rank=4)
    record = write(pair, tmp_path / "delta")
    back = read_delta(tmp_path / "delta")
    assert len(back.parts) > 3
    assert back.matrices
    for ours, theirs in zip(back.matrices, delta.matrices, strict=True):
        assert ours.record() == theirs.record()
        assert ours.role == theirs.role
        for array in ("sigma", "left", "right", "residual"):
            np.testing.assert_array_equal(getattr(ours, array), getattr(theirs, array))
    assert back.vectors == delta.vectors
    assert {m.name for m in back.matrices if m.significant} == set(CHANGED)
    delta.save(tmp_path / "saved")
    assert load_delta(tmp_path / "saved")[0]["content"] == record["content"]
    for ours, theirs in zip(load_delta(tmp_path / "delta")[1], delta.directions(), strict=True):
        assert (ours.name, ours.site, ours.source) == (theirs.name, theirs.site, theirs.source)
        np.testing.assert_array_equal(ours.vector, theirs.vector)


def test_tables_lead_to_the_vectors_without_our_code(pair: tuple[str, str], tmp_path: Path) -> None:
    write(pair, tmp_path)
    delta = read_delta(tmp_path)
    root = zarr.open_group(tmp_path, mode="r")
    rows = pyarrow.parquet.read_table(tmp_path / "matrices.parquet").to_pylist()
    assert [row["name"] for row in rows] == [matrix.name for matrix in delta.matrices]
    for row, matrix in zip(rows, delta.matrices, strict=True):
        assert row["frobenius"] == matrix.frobenius
        assert row["stable_rank"] == matrix.stable_rank
        assert row["notes"] == list(matrix.notes)
        assert len(row["moved_tokens"]) == len(matrix.moved_rows)
        if not row["sigma"]:
            continue
        part, count = root[row["part"]], len(row["sigma"])
        for array, first, values in (
            ("sigma", row["triple"], matrix.sigma),
            ("residual", row["triple"], matrix.residual),
            (f"left_{matrix.left.shape[0]}", row["left"], matrix.left.T),
            (f"right_{matrix.right.shape[0]}", row["right"], matrix.right.T),
        ):
            np.testing.assert_array_equal(part[array][first : first + count], values)
    vectors = pyarrow.parquet.read_table(tmp_path / "vectors.parquet").to_pylist()
    assert [row["name"] for row in vectors if row["frobenius"]] == ["model.layers.0.input_layernorm.weight"]


PROGRAM = f"""
import os, signal, sys
from analysis.weights import plan_deltas, work, write_deltas
from store.local_location import LocalLocation

create = LocalLocation.create
def kill_before_the_third_receipt(self, path, data):
    if path == "parts/0002/receipt.json":
        os.kill(os.getpid(), signal.SIGKILL)
    return create(self, path, data)
LocalLocation.create = kill_before_the_third_receipt
work.GROUP_BYTES = {GROUP}
write_deltas(plan_deltas(sys.argv[1], [sys.argv[2]], rank=4), [sys.argv[3]])
"""


def test_a_rerun_after_kill_computes_what_is_missing(
    pair: tuple[str, str], content: str, computed: list[int], tmp_path: Path
) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM, *pair, str(tmp_path)]
    killed = subprocess.run(words, capture_output=True, check=False, env=env)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("parts/0002/*"))) == 2  # an attempt that nobody published
    with pytest.raises(InputError, match="no weight difference"):
        load_delta(tmp_path)
    assert write(pair, tmp_path)["content"] == content
    assert computed == list(range(2, len(read_delta(tmp_path).parts)))
    assert len(list(tmp_path.glob("parts/0002/*"))) == 3  # the published attempt, its receipt and zarr.json
    again = write(pair, tmp_path)
    assert again == load_delta(tmp_path)[0]
    assert computed == list(range(2, len(read_delta(tmp_path).parts)))


class Crash(BaseException):
    """Nothing in the code catches it, as nothing catches a kill."""


def test_a_crash_before_every_step_of_writing(
    three: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = write(three, tmp_path / "whole")["content"]
    calls, deadly = 0, -1
    kept = {name: getattr(LocalLocation, name) for name in ("write", "create", "delete")}

    def crashing(name: str) -> Callable[..., object]:
        def step(self: LocalLocation, *given: object) -> object:
            nonlocal calls
            calls += 1
            if calls == deadly:
                raise Crash
            return kept[name](self, *given)

        return step

    for name in kept:
        monkeypatch.setattr(LocalLocation, name, crashing(name))
    for step in range(1, 100):
        calls, deadly = 0, step
        folder = tmp_path / f"{step}"
        try:
            write(three, folder)
            break
        except Crash:
            assert write(three, folder)["content"] == content
            load_delta(folder)
            assert len(list(zarr.open_group(folder, mode="r")["parts"].groups())) == 3
            assert len(list(folder.glob("parts/*/*-*"))) == len(list(folder.glob("parts/*/receipt.json"))) == 3
    assert 10 < step < 50


def load_all(folder: Path) -> None:
    read_delta(folder)
    load_delta(folder)


def test_every_flipped_byte_is_found_and_made_anew(three: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    content = write(three, folder)["content"]
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if path.relative_to(folder).as_posix() not in ("zarr.json", "work.json")]
    assert len(files) > 30
    mended = {folder / "delta.json", folder / "directions.safetensors", next(folder.glob("parts/0001/*/left_48/c/0/0"))}
    for path in sorted(files, key=mended.__contains__):
        whole = path.read_bytes()
        data = bytearray(whole)
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamageError, match="damaged: run the same 'thresher weights' again") as found:
            load_all(folder)
        assert "\n" not in str(found.value)
        if path in mended:
            assert write(three, folder)["content"] == content
            load_all(folder)
        else:
            path.write_bytes(whole)
    next(folder.glob("parts/0002/*/left_48/c/0/0")).unlink()
    with pytest.raises(DamageError, match="0002 is damaged"):
        read_delta(folder)
    (folder / "parts/0002/receipt.json").unlink()
    with pytest.raises(DamageError, match="part 2 is missing"):
        read_delta(folder)
    (folder / "work.json").write_text("{}")
    with pytest.raises(DamageError, match="remove"):
        write(three, folder)


def entries(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))


@pytest.mark.parametrize(("edit", "message"), [(spoil, "holds NaN"), (another, "nothing to do with")])
def test_what_is_refused_on_the_way_leaves_no_trace(
    base: Path, tune: Tune, tmp_path: Path, edit: Callable[..., None], message: str, computed: list[int]
) -> None:
    tuned = tune(edit)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        write((str(base), str(tuned)), out / "deep" / "delta")
    assert not out.exists()
    (comparison,) = plan_deltas(str(base), [str(tuned)]).comparisons
    assert 1 < len(computed) < len(comparison.groups)  # nothing more is computed once it is refused
    out.mkdir()
    (out / ".hidden").touch()
    with pytest.raises(InputError, match=message):
        write((str(base), str(tuned)), out)
    assert list(entries(out)) == [".hidden"]


def test_a_killed_run_that_is_refused_leaves_no_trace(
    base: Path, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = str(base), str(tune(lambda tensors: tensors["model.norm.weight"].fill_(float("nan"))))  # in the last group
    with monkeypatch.context() as patch:
        create = LocalLocation.create

        def crash(self: LocalLocation, path: str, data: bytes) -> bool:
            if path == "parts/0001/receipt.json":
                raise Crash
            return create(self, path, data)

        patch.setattr(LocalLocation, "create", crash)
        with pytest.raises(Crash):
            write(pair, tmp_path / "delta")
    assert (tmp_path / "delta" / "parts" / "0000" / "receipt.json").exists()
    with pytest.raises(InputError, match="holds NaN"):
        write(pair, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_a_folder_is_for_one_comparison(pair: tuple[str, str], base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    write(pair, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError, match="holds the difference of .* at rank 4.* give another folder"):
        write_deltas(plan_deltas(pair[0], [pair[1]], rank=5), [folder])
    with pytest.raises(InputError, match="give another folder"):
        write_deltas(plan_deltas(pair[0], [pair[1]], rank=4, full=True), [folder])
    with pytest.raises(InputError, match="give another folder"):
        write((str(base), str(base)), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match="holds something else"):
        write(pair, tmp_path / "store")


def test_a_folder_of_anything_else_is_left_alone(three: tuple[str, str]) -> None:
    base = Path(three[0])
    before = list(entries(base))
    with pytest.raises(InputError, match=r"holds something else \(config\.json\): give another folder"):
        write(three, base)
    assert list(entries(base)) == before


def test_a_folder_of_another_version_says_what_to_do(three: tuple[str, str], tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "delta.json").write_text('{"format": "thresher-weights-1", "matrices": []}')
    with pytest.raises(InputError, match="another version of thresher: run 'thresher weights' again into another"):
        load_delta(old)
    with pytest.raises(InputError, match="another version of thresher: remove it or give another folder"):
        write(three, old)
    assert list(entries(old)) == ["delta.json"]
