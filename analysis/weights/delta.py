"""The difference between two models' weights as one object, and as a folder."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.weights.checkpoint import open_checkpoint
from analysis.weights.compare import compare
from analysis.weights.lora import adapter_deltas, open_adapter
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.pair import natural_order
from store.digest import digest_json
from store.direction import Direction, check_writable, load_directions, save_directions, write_atomically
from store.errors import InputError
from store.model_ref import ModelRef

FORMAT = "thresher-weights-1"
DELTA_FILE, DIRECTIONS_FILE = "delta.json", "directions.safetensors"


@dataclass(frozen=True, kw_only=True)
class WeightDelta:
    """What a fine-tune changed.

    base, tuned     the models, resolved; an adapter is the base with `adapter`
    rank            triples asked for per matrix
    matrices        in the order of layers; for an adapter, those that it touches
    vectors         norms and biases
    peak_rss_bytes  largest resident size of this process so far
    """

    base: ModelRef
    tuned: ModelRef
    rank: int
    matrices: tuple[MatrixDelta, ...]
    vectors: tuple[VectorDelta, ...]
    seconds: float
    peak_rss_bytes: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What was recognised about the pair as a whole."""
        if all(m.frobenius == 0 for m in self.matrices) and all(v.frobenius == 0 for v in self.vectors):
            return ("identical: the two models have the same weights",)
        if not any(m.significant for m in self.matrices):
            return ("rounding only: no matrix changed by more than the rounding of its weights",)
        return ()

    def directions(self) -> Iterator[Direction]:
        """Every triple's residual-stream side, significant or not (`source["significant"]` says which)."""
        source = {"kind": "weights", "base": self.base.digest, "tuned": self.tuned.digest}
        for matrix in self.matrices:
            yield from matrix.directions(source)

    def record(self) -> dict[str, Any]:
        """The JSON of `thresher weights`: everything but the vectors."""
        return {
            "format": FORMAT,
            "base": self.base.record(),
            "tuned": self.tuned.record(),
            "rank": self.rank,
            "matrices": [matrix.record() for matrix in self.matrices],
            "vectors": [vector.record() for vector in self.vectors],
            "notes": list(self.notes),
            "digest": self.digest,
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }

    @property
    def digest(self) -> str:
        """Of what was compared: the same pair at the same rank has the same digest."""
        return digest_json([FORMAT, self.base.digest, self.tuned.digest, self.rank])

    def save(self, directory: Path | str) -> None:
        """Writes directions.safetensors, then delta.json: a folder with the latter is whole."""
        folder = Path(directory)
        save_directions(folder / DIRECTIONS_FILE, list(self.directions()), {"delta": self.digest, "rank": self.rank})
        text = json.dumps(self.record(), indent=1, allow_nan=False)
        write_atomically(folder / DELTA_FILE, text.encode())


def check_unclaimed(directory: Path | str, base: ModelRef, tuned: ModelRef, rank: int) -> None:
    """Raises InputError where no folder can be made, or where it holds the difference of another pair or rank."""
    file = Path(directory) / DELTA_FILE
    check_writable(file)
    if not file.is_file():
        return
    held, _ = load_delta(directory)
    asked = [base.resolve().digest, tuned.resolve().digest, rank]
    if [held["base"]["digest"], held["tuned"]["digest"], held["rank"]] != asked:
        raise InputError(
            f"{directory} holds the difference of {held['base']['name']} and {held['tuned']['name']} at rank "
            f"{held['rank']}: give another folder"
        )


def weight_delta(
    base: ModelRef | str,
    tuned: ModelRef | str | None = None,
    adapter: str | None = None,
    rank: int = 20,
    *,
    full: bool = False,
    progress: Callable[[str], None] | None = None,
) -> WeightDelta:
    """Compares a tuned model, or an adapter, with its base.

    base, tuned  a model or its name (folder, .gguf file or hub id)
    adapter      folder or hub id of a peft LoRA adapter on `base`, in place of `tuned`
    rank         triples per matrix
    full         LAPACK's full decomposition in place of the iteration
    progress     called with each weight's name when it is done

    Raises InputError for a pair that cannot be compared (see `analysis.weights.compare` and `.lora`).
    """
    if (tuned is None) == (adapter is None):
        raise InputError("give either a tuned model or --adapter, one of the two")
    if rank < 1:
        raise InputError(f"rank {rank} is too small: ask for at least 1 triple per matrix")
    began = time.monotonic()
    base = _model(base).resolve()
    if adapter is None:
        assert tuned is not None
        other = _model(tuned).resolve()
        stream = compare(open_checkpoint(base), open_checkpoint(other), rank=rank, full=full)
    else:
        other = ModelRef(base.name, revision=base.revision, adapter=adapter).resolve()
        stream = adapter_deltas(open_adapter(other), open_checkpoint(base), rank=rank)
    matrices: list[MatrixDelta] = []
    vectors: list[VectorDelta] = []
    for found in stream:
        if isinstance(found, MatrixDelta):
            matrices.append(found)
        else:
            vectors.append(found)
        if progress is not None:
            progress(found.name)
    base.check_unchanged()
    other.check_unchanged()
    return WeightDelta(
        base=base,
        tuned=other,
        rank=rank,
        matrices=tuple(sorted(matrices, key=lambda matrix: natural_order(matrix.name))),
        vectors=tuple(sorted(vectors, key=lambda vector: natural_order(vector.name))),
        seconds=time.monotonic() - began,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def load_delta(directory: Path | str) -> tuple[dict[str, Any], list[Direction]]:
    """The record and the directions of a folder that `WeightDelta.save` wrote. Raises InputError for anything else."""
    path = Path(directory) / DELTA_FILE
    if not path.is_file():
        raise InputError(f"no weight difference at {directory}: make one with 'thresher weights BASE TUNED --out DIR'")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}): run 'thresher weights' again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path} is not a weight difference of this version of thresher: run 'thresher weights' again")
    return record, load_directions(Path(directory) / DIRECTIONS_FILE)[0]


def _model(model: ModelRef | str) -> ModelRef:
    return ModelRef(model) if isinstance(model, str) else model
