"""A weight difference as a folder.

work.json               what is compared and how it is cut; by exclusive create, before anything else
zarr.json, parts/       the differences, group by group (see `analysis.weights.parts`)
matrices.parquet        a row per matrix, with the place of its triples; vectors.parquet  of norms and biases
directions.safetensors  the residual-stream side of every triple: what monitors and `--directions` read
delta.json              the JSON of `thresher weights`, written last: a folder with it is whole
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.weights.parts import PublishedPart, damaged, read_part, withdraw_part
from analysis.weights.work import FORMAT, Comparison
from store.cell import GROUP
from store.direction import check_writable
from store.errors import DamageError, InputError
from store.local_location import LocalLocation
from store.location import prove_exclusive_create
from store.record import decode_record, encode_record

WORK_FILE, DELTA_FILE, DIRECTIONS_FILE = "work.json", "delta.json", "directions.safetensors"
REFUSED_FILE = "refused"  # there only while the workers of a run that was refused come to an end
PROBE = "probe-"  # of `prove_exclusive_create`
FAMILY = FORMAT.rstrip("0123456789")  # what the formats of all versions begin with
MATRICES_FILE, VECTORS_FILE = "matrices.parquet", "vectors.parquet"
SIDE_FILES = (DIRECTIONS_FILE, MATRICES_FILE, VECTORS_FILE)


@dataclass(frozen=True)
class DeltaFolder:
    """The folder of one comparison."""

    path: Path

    @property
    def location(self) -> LocalLocation:
        return LocalLocation(self.path)

    def held(self) -> Comparison | None:
        """What the folder is for; None where it is nobody's. Raises InputError where it holds something else."""
        # Listed before the claim is looked for: somebody else may claim it, and begin, at any moment.
        foreign = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        if not self._claimed:
            check_writable(self.path / DELTA_FILE)
            if self.of_another_version:
                raise self._another_version()
            # Hidden files, and a probe of exclusive create, may be what is left of a claim that was killed.
            if foreign := [name for name in foreign if not name.startswith((".", PROBE))]:
                raise InputError(f"{self.path} holds something else ({foreign[0]}): give another folder")
            return None
        record = self.record(WORK_FILE)
        if record["format"] != FORMAT:
            raise self._another_version()
        return Comparison.from_record(record)

    @property
    def of_another_version(self) -> bool:
        """Whether delta.json is a weight difference in another format, which may have no checksum."""
        try:
            found = json.loads((self.path / DELTA_FILE).read_bytes())["format"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return isinstance(found, str) and found.startswith(FAMILY) and found != FORMAT

    def _another_version(self) -> InputError:
        return InputError(
            f"{self.path} holds the difference of another version of thresher: remove it or give another folder"
        )

    def check(self, asked: Comparison) -> Comparison:
        """`asked` as it goes on here, with the threads that it began with.

        Raises InputError where the folder holds the difference of another pair, or of this one at other settings.
        """
        held = self.held()
        if held is None:
            return asked
        if held.identity != asked.identity:
            how = f"at rank {held.rank}{' with --full' if held.full else ''}"
            raise InputError(
                f"{self.path} holds the difference of {held.base.name} and {held.tuned.adapter or held.tuned.name} "
                f"{how}, and this is another: give another folder"
            )
        return replace(asked, threads=held.threads)

    def claim(self, comparison: Comparison) -> bool:
        """Makes the folder this comparison's; tells whether this very call did, or it was so before.

        Raises InputError where somebody else was faster with another.
        """
        made = False
        if not self._claimed:
            prove_exclusive_create(self.location)
            made = self.location.create(WORK_FILE, encode_record(comparison.record()))
        self.check(comparison)
        self.location.create("zarr.json", GROUP)
        self.resume()
        return made

    def record(self, name: str) -> dict[str, Any]:
        """The object of work.json or delta.json, its checksum included.

        Raises DamageError where it is not what was written.
        """
        try:
            data = self.location.read(name)
            decode_record(data, name)
            return dict(json.loads(data))
        except (DamageError, FileNotFoundError) as error:
            if name == WORK_FILE:
                raise DamageError(
                    f"{self.path / name} is damaged: remove {self.path} and run 'thresher weights' again"
                ) from error
            raise damaged(f"{self.path / name}") from error

    def lacking(self, comparison: Comparison) -> list[int]:
        """The groups without a part. Damaged parts are withdrawn, and lacking."""
        lacking = []
        for group in range(len(comparison.groups)):
            try:
                if read_part(self.location, group) is None:
                    lacking.append(group)
            except DamageError:
                withdraw_part(self.location, group)
                lacking.append(group)
        return lacking

    def parts(self, comparison: Comparison) -> list[PublishedPart]:
        """Every part. Raises DamageError where one is missing or damaged."""
        found = []
        for group in range(len(comparison.groups)):
            part = read_part(self.location, group)
            if part is None:
                raise damaged(f"{self.path}, whose part {group} is missing,")
            found.append(part)
        return found

    def absent(self) -> list[Path]:
        """The folders that `withdraw` has to remove if this one is made now, the deepest first."""
        path = self.path.absolute()
        return [f for f in (path, *path.parents) if not f.exists() or (self._claimed and f == path)]

    @property
    def _claimed(self) -> bool:
        return (self.path / WORK_FILE).is_file()

    @property
    def wanted(self) -> bool:
        """Whether workers should begin a task for this folder."""
        return self._claimed and not (self.path / REFUSED_FILE).exists()

    @property
    def begun(self) -> bool:
        """Whether a part is published."""
        return any(path.endswith("/receipt.json") for path in self.location.list("parts"))

    @property
    def finished(self) -> bool:
        """Whether it once was whole."""
        return (self.path / DELTA_FILE).exists()

    def refuse(self) -> None:
        """Tells the workers to begin no more tasks for this folder."""
        self.location.create(REFUSED_FILE, b"")

    def resume(self) -> None:
        """Takes back `refuse`."""
        self.location.delete(REFUSED_FILE)

    def withdraw(self, made: list[Path]) -> None:
        """Removes everything that was written here, and those of the folders `made` that are empty then."""
        groups = self.location.list("parts")
        for group in sorted({int(path.split("/")[1]) for path in groups if path.count("/") > 1}):
            withdraw_part(self.location, group)
        # Killed on the way, it still holds the claim: a rerun goes on, is refused again and withdraws the rest.
        for name in (DELTA_FILE, *SIDE_FILES, "parts/zarr.json", "zarr.json", REFUSED_FILE, WORK_FILE):
            self.location.delete(name)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
