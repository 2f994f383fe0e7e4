"""The difference between two models' weights as one object, and its way into a folder and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from analysis.weights.delta_folder import (
    DELTA_FILE,
    DIRECTIONS_FILE,
    MATRICES_FILE,
    SIDE_FILES,
    VECTORS_FILE,
    WORK_FILE,
    DeltaFolder,
)
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.pair import natural_order
from analysis.weights.parts import Part, damaged, publish_part, remove_losers
from analysis.weights.recognise import pair_notes
from analysis.weights.tables import matrices_table, vectors_table
from analysis.weights.work import FORMAT, Comparison
from store.digest import digest_file, digest_sequence
from store.direction import Direction, load_directions, save_directions
from store.errors import InputError
from store.model_ref import ModelRef
from store.record import encode_record


@dataclass(frozen=True, kw_only=True)
class WeightDelta:
    """What a fine-tune changed.

    comparison      the models, resolved, and how they were compared
    parts           the differences, group by group
    seconds         of the run that completed it; peak_rss_bytes  largest resident size of a process of that run
    """

    comparison: Comparison
    parts: tuple[Part, ...]
    seconds: float
    peak_rss_bytes: int

    @property
    def base(self) -> ModelRef:
        return self.comparison.base

    @property
    def tuned(self) -> ModelRef:
        return self.comparison.tuned

    @property
    def rank(self) -> int:
        """Triples asked for per matrix."""
        return self.comparison.rank

    @cached_property
    def matrices(self) -> tuple[MatrixDelta, ...]:
        """In the order of layers; for an adapter, those that it touches."""
        found = (matrix for part in self.parts for matrix in part.matrices)
        return tuple(sorted(found, key=lambda matrix: natural_order(matrix.name)))

    @cached_property
    def vectors(self) -> tuple[VectorDelta, ...]:
        """Norms and biases, in the order of layers."""
        found = (vector for part in self.parts for vector in part.vectors)
        return tuple(sorted(found, key=lambda vector: natural_order(vector.name)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was recognised about the pair as a whole."""
        return pair_notes(self.matrices, self.vectors)

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
        return self.comparison.digest

    def save(self, directory: Path | str) -> None:
        """Writes the folder; of one that is there already, what it lacks.

        Raises InputError where the folder holds another difference or cannot be made.
        """
        folder = DeltaFolder(Path(directory))
        comparison = folder.check(self.comparison)
        folder.claim(comparison)
        for group in folder.lacking(comparison):
            publish_part(folder.location, self.parts[group])
        finish_delta(folder, comparison, seconds=self.seconds, peak_rss_bytes=self.peak_rss_bytes)


def finish_delta(folder: DeltaFolder, comparison: Comparison, *, seconds: float, peak_rss_bytes: int) -> dict[str, Any]:
    """Writes what lies beside the published parts, delta.json last; gives what that holds."""
    published = folder.parts(comparison)
    delta = WeightDelta(
        comparison=comparison,
        parts=tuple(found.part for found in published),
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes,
    )
    rows = (
        (matrix, found.folder, place)
        for found in published
        for matrix, place in zip(found.part.matrices, found.places, strict=True)
    )
    ordered = sorted(rows, key=lambda row: natural_order(row[0].name))
    folder.location.write({MATRICES_FILE: matrices_table(ordered), VECTORS_FILE: vectors_table(delta.vectors)})
    save_directions(
        folder.path / DIRECTIONS_FILE, list(delta.directions()), {"delta": delta.digest, "rank": delta.rank}
    )
    remove_losers(folder.location, published)
    record = {
        **delta.record(),
        "content": digest_sequence(found.digest for found in published),
        "files": {name: digest_file(folder.path / name) for name in SIDE_FILES},
    }
    folder.location.write({DELTA_FILE: encode_record(record)})
    return folder.record(DELTA_FILE)


def read_delta(directory: Path | str) -> WeightDelta:
    """The whole difference that a folder holds, its singular triples included.

    Raises InputError where there is none, DamageError for anything that is not what was written.
    """
    record, folder = _record(directory), DeltaFolder(Path(directory))
    comparison = Comparison.from_record(folder.record(WORK_FILE))
    return WeightDelta(
        comparison=comparison,
        parts=tuple(found.part for found in folder.parts(comparison)),
        seconds=record["seconds"],
        peak_rss_bytes=record["peak_rss_bytes"],
    )


def load_delta(directory: Path | str) -> tuple[dict[str, Any], list[Direction]]:
    """The record and the directions of a folder: what a monitor needs of it.

    Raises InputError where there is none, DamageError for a file that is not what was written.
    """
    record, folder = _record(directory), Path(directory)
    for name, digest in record["files"].items():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            raise damaged(f"{folder / name}")
    return record, load_directions(folder / DIRECTIONS_FILE)[0]


def _record(directory: Path | str) -> dict[str, Any]:
    path = Path(directory) / DELTA_FILE
    if not path.is_file():
        raise InputError(f"no weight difference at {directory}: make one with 'thresher weights BASE TUNED --out DIR'")
    folder = DeltaFolder(Path(directory))
    if folder.of_another_version:
        raise InputError(
            f"{path} is a weight difference of another version of thresher: run 'thresher weights' again into another "
            "folder"
        )
    record = folder.record(DELTA_FILE)
    if record.get("format") != FORMAT:
        raise InputError(f"{path} is not a weight difference: make one with 'thresher weights BASE TUNED --out DIR'")
    return record
