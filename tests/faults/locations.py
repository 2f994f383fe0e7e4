"""A location in memory, and one that fails in every way that a disk, a network or a killed process can."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

FAULTS = ("crash before", "crash after", "torn", "lost response", "duplicate", "late", "interleave")


class Killed(BaseException):
    """The process is gone: nothing after this point runs. No `except Exception` may catch it."""


@dataclass
class MemoryLocation:
    """The protocol over a dict; the reference that the faulty one wraps."""

    objects: dict[str, bytes] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    url: str = "memory"

    def put(self, files: dict[str, bytes]) -> None:
        self.objects.update(files)
        self.times.update(dict.fromkeys(files, time.time()))

    def write(self, files: dict[str, bytes]) -> None:
        self.put(files)

    def create(self, path: str, data: bytes) -> bool:
        if path in self.objects:
            return False
        self.put({path: data})
        return True

    def read(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def list(self, prefix: str) -> Iterator[str]:
        start = f"{prefix}/" if prefix else ""
        yield from sorted(path for path in self.objects if path.startswith(start))

    def present(self, paths: Sequence[str]) -> Sequence[str]:
        return [path for path in paths if path in self.objects]

    def modified(self, path: str) -> float:
        return self.times[path]

    def delete(self, path: str) -> None:
        self.objects.pop(path, None)

    def kvstore(self, path: str) -> dict[str, Any]:
        raise NotImplementedError("arrays are not read from here")


@dataclass
class FaultyLocation(MemoryLocation):
    """Shares the objects of `inner` and asks `fault` before every write, create and delete what goes wrong with it.

    `late` holds writes that a killed process had on their way: they arrive when `arrive` is called.
    `other` is what another driver does in the middle of this one's step.
    """

    inner: MemoryLocation = field(default_factory=MemoryLocation)
    fault: Callable[[str], str] = lambda step: "none"
    other: Callable[[], None] = lambda: None
    late: list[Callable[[], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objects, self.times = self.inner.objects, self.inner.times

    def write(self, files: dict[str, bytes]) -> None:
        kind = self.fault("write")
        if kind == "torn":
            names = sorted(files)
            torn = {name: files[name] for name in names[: len(names) // 2]}
            torn[names[len(names) // 2]] = files[names[len(names) // 2]][:-1]
            self.put(torn)
            raise Killed
        self._around(kind, lambda: self.put(files))

    def create(self, path: str, data: bytes) -> bool:
        kind = self.fault("create")
        made = self._around(kind, lambda: super(FaultyLocation, self).create(path, data))
        return False if kind == "lost response" else bool(made)

    def delete(self, path: str) -> None:
        self._around(self.fault("delete"), lambda: super(FaultyLocation, self).delete(path))

    def arrive(self) -> None:
        """What was under way when its process died reaches the storage now."""
        for write in self.late:
            write()
        self.late.clear()

    def _around(self, kind: str, act: Callable[[], Any]) -> Any:
        if kind in ("crash before", "torn"):
            raise Killed
        if kind == "late":
            self.late.append(act)
            raise Killed
        if kind == "interleave":
            self.other()
        result = act()
        if kind == "duplicate":
            result = act()
        if kind == "crash after":
            raise Killed
        return result
