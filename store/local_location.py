"""A store on a local disk or a shared file system."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.errors import DamageError, IncompleteError, InputError


@dataclass(frozen=True)
class LocalLocation:
    """A folder on a local disk or a shared file system with hard links."""

    root: Path

    @property
    def url(self) -> str:
        return str(self.root)

    def write(self, files: dict[str, bytes]) -> None:
        with _written(self.root):
            folders: set[Path] = set()
            for path, data in files.items():
                folders |= self._in_folder(self.root / path, data, self._replace) or set()
            for folder in folders:
                _sync_folder(folder)

    def create(self, path: str, data: bytes) -> bool:
        with _written(self.root):
            folders = self._in_folder(self.root / path, data, self._link)
            for folder in folders or ():
                _sync_folder(folder)
            return folders is not None

    def read(self, path: str) -> bytes:
        with _read(self.root, path):
            return (self.root / path).read_bytes()

    def list(self, prefix: str) -> Iterator[str]:
        # A folder that cannot be listed is not empty: what is in it would count as missing, and as garbage.
        with _read(self.root, prefix):
            for folder, folders, files in os.walk(self.root / prefix, onerror=_raise_unless_gone):
                folders.sort()
                relative = Path(folder).relative_to(self.root)
                # Hidden: files being written, and what file systems and desktops leave.
                yield from ((relative / name).as_posix() for name in sorted(files) if not name.startswith("."))

    def present(self, paths: Sequence[str]) -> Sequence[str]:
        # Not by listing: a store in the making has as many folders as cells.
        return [path for path in paths if self._is_there(path)]

    def modified(self, path: str) -> float:
        with _read(self.root, path):
            return (self.root / path).stat().st_mtime

    def delete(self, path: str) -> None:
        target = self.root / path
        with _written(self.root):
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

    def _is_there(self, path: str) -> bool:
        with _read(self.root, path):
            try:
                (self.root / path).stat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def _in_folder(self, target: Path, data: bytes, publish: Callable[[Path, Path], bool]) -> set[Path] | None:
        """Writes beside the target, durably, and publishes; returns the folders whose entries have to be synced.

        None where `publish` was refused. A folder may be removed by a deletion that found it empty: it is made again.
        """
        for left in range(100, -1, -1):
            partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
            try:
                folders = self._make_folder(target.parent)
                with partial.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                return folders if publish(partial, target) else None
            except (FileNotFoundError, FileExistsError):  # the latter of a folder that was there for a moment
                if not left:
                    raise
            finally:
                with suppress(FileNotFoundError, NotADirectoryError):
                    partial.unlink()
        raise AssertionError

    @staticmethod
    def _replace(partial: Path, target: Path) -> bool:
        # What was there stays whole until the very end: a reader, or a crash, never meets half of a file.
        partial.replace(target)
        return True

    def _link(self, partial: Path, target: Path) -> bool:
        try:
            os.link(partial, target)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                raise InputError(f"the file system of {self.root} has no hard links: choose another one") from error
            raise


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # a deletion found it empty: what it held is deleted as well
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_STOPPERS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "a file is larger than is allowed here: raise 'ulimit -f' or take another file system",
    errno.EIO: "the disk reports an input/output error: check it",
    errno.EACCES: "permission was refused: restore it",
    errno.EPERM: "permission was refused: restore it",
    errno.EROFS: "the file system is read-only: remount it",
    errno.EMFILE: "too many files are open: raise 'ulimit -n'",
    errno.ENFILE: "too many files are open on this machine: close some",
    errno.ESTALE: "the file server lost track of a file: wait until it answers",
    errno.ETIMEDOUT: "the file server does not answer: wait until it does",
}


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


@contextmanager
def _read(root: Path, path: str) -> Iterator[None]:
    """Reading: what is not there is told as it is; a disk's own error is damage; the rest may pass."""
    try:
        yield
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            raise
        if error.errno in (errno.EIO, errno.EBADMSG):
            raise DamageError(f"{root}/{path} cannot be read ({error.strerror}): check the disk") from error
        reason = _STOPPERS.get(error.errno or 0, f"{error.strerror}: mend that")
        raise IncompleteError(f"cannot read {root}/{path}: {reason} and run the same command again") from error


@contextmanager
def _written(root: Path) -> Iterator[None]:
    """Writing: turns what a disk can do to us into a line for people; what was published stays as it is."""
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
