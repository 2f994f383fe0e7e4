"""A store on a local disk or a shared file system."""

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.errors import IncompleteError, InputError


@dataclass(frozen=True)
class LocalLocation:
    """A folder on a local disk or a shared file system with hard links."""

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def write(self, files: dict[str, bytes]) -> None:
        with _explained(self.root):
            folders: set[Path] = set()
            for path, data in files.items():
                target = self.root / path
                folders |= self._make_folder(target.parent)
                self._write_durably(target, data)
            for folder in folders:
                _sync_folder(folder)

    def create(self, path: str, data: bytes) -> bool:
        with _explained(self.root):
            target = self.root / path
            folders = self._make_folder(target.parent)
            partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
            try:
                self._write_durably(partial, data)
                os.link(partial, target)
            except FileExistsError:
                return False
            finally:
                partial.unlink(missing_ok=True)
            for folder in folders:
                _sync_folder(folder)
            return True

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def list(self, prefix: str) -> Iterator[str]:
        for folder, folders, files in os.walk(self.root / prefix):
            folders.sort()
            relative = Path(folder).relative_to(self.root)
            yield from ((relative / name).as_posix() for name in sorted(files) if not name.endswith(".partial"))

    def present(self, paths: Sequence[str]) -> Sequence[str]:
        # Not by listing: a store in the making has as many folders as cells.
        return [path for path in paths if os.path.exists(f"{self.root}/{path}")]

    def modified(self, path: str) -> float:
        return (self.root / path).stat().st_mtime

    def delete(self, path: str) -> None:
        target = self.root / path
        with _explained(self.root):
            try:
                target.unlink()
            except FileNotFoundError:
                return
            _sync_folder(target.parent)
            for folder in list(target.relative_to(self.root).parents)[:-1]:
                try:
                    (self.root / folder).rmdir()
                except OSError:
                    return

    def kvstore(self, path: str) -> dict[str, Any]:
        return {"driver": "file", "path": f"{os.path.abspath(self.root / path)}/"}

    def _make_folder(self, folder: Path) -> set[Path]:
        """Makes a folder with its parents; returns every folder whose entries have to be synced."""
        touched = {folder}
        while not folder.exists():
            folder = folder.parent
            touched.add(folder)
        for made in sorted(touched):
            made.mkdir(parents=True, exist_ok=True)
        return touched

    @staticmethod
    def _write_durably(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_STOPPERS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EIO: "the disk reports an input/output error: check it",
    errno.EACCES: "permission was refused: restore it",
    errno.EPERM: "permission was refused: restore it",
    errno.EROFS: "the file system is read-only: remount it",
    errno.EMFILE: "too many files are open: raise 'ulimit -n'",
}


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turns what a disk can do to us into a line for people; what was published stays as it is."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (NotADirectoryError, FileExistsError, FileNotFoundError, IsADirectoryError)):
            raise InputError(f"no store can be made at {root} ({error.strerror}): give another folder") from error
        reason = _STOPPERS.get(error.errno or 0)
        if reason is None:
            raise
        raise IncompleteError(
            f"cannot write to {root}: {reason} and run the same command again; what was published is kept"
        ) from error
