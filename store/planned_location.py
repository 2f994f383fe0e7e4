"""A location as it would become: what lies at another one, and what would be written there, in memory."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from store.errors import InputError
from store.location import Location


@dataclass(frozen=True, kw_only=True)
class PlannedLocation:
    """Reads what `base` holds. Nothing that is written or deleted here reaches `base`.

    A plan runs the code that a harvest runs, against this: it says what the harvest would do because it has done it,
    and it cannot write because there is nothing it could write to.
    """

    base: Location
    _written: dict[str, bytes | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def url(self) -> str:
        return self.base.url

    def write(self, files: dict[str, bytes]) -> None:
        self._written.update(files)

    def create(self, path: str, data: bytes) -> bool:
        if self.present([path]):
            return False
        self._written[path] = data
        return True

    def read(self, path: str) -> bytes:
        if path not in self._written:
            try:
                return self.base.read(path)
            except NotADirectoryError as error:
                raise InputError(
                    f"no store can be made at {self.url} ({error.strerror}): give another folder"
                ) from error
        data = self._written[path]
        if data is None:
            raise FileNotFoundError(path)
        return data

    def list(self, prefix: str) -> Iterator[str]:
        under = f"{prefix}/" if prefix else ""
        mine = sorted(path for path, data in self._written.items() if data is not None and path.startswith(under))
        return heapq.merge(mine, (path for path in self.base.list(prefix) if path not in self._written))

    def present(self, paths: Sequence[str]) -> Sequence[str]:
        there = set(self.base.present([path for path in paths if path not in self._written]))
        return [path for path in paths if path in there or self._written.get(path) is not None]

    def modified(self, path: str) -> float:
        return self.base.modified(path)

    def delete(self, path: str) -> None:
        self._written[path] = None

    def kvstore(self, path: str) -> dict[str, Any]:
        return self.base.kvstore(path)
