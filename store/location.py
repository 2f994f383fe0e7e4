"""Where a store lies: whole objects, written durably, and one exclusive create.

A location knows a few verbs. Everything the store promises rests on `create`: of any number of writers, one
succeeds, and every other is told so.
"""

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from store.errors import InputError


class Location(Protocol):
    """Paths are relative, with forward slashes. Reading what is not there raises FileNotFoundError."""

    @property
    def url(self) -> str:
        """How a user names it."""

    def write(self, files: dict[str, bytes]) -> None:
        """Writes objects whole; all of them are durable when it returns. Existing ones are replaced."""

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object, durably, only if there is none: True if this call wrote it."""

    def read(self, path: str) -> bytes: ...

    def list(self, prefix: str) -> Iterator[str]:
        """Paths of all objects under a folder, in sorted order; nothing where there is no such folder."""

    def present(self, paths: Sequence[str]) -> Sequence[str]:
        """Those of `paths` that are there, in the order given."""

    def modified(self, path: str) -> float:
        """When an object was last written, in seconds since the epoch."""

    def delete(self, path: str) -> None:
        """Removes an object; silent where there is none."""

    def kvstore(self, path: str) -> dict[str, Any]:
        """tensorstore's key-value store specification of a folder."""


def locate(path: Path | str) -> Location:
    """The location that a user's path or URL names. Raises InputError for a URL of another kind."""
    # Imported here: both kinds of location know this protocol.
    from store.local_location import LocalLocation
    from store.s3_location import S3Location

    text = str(path)
    if text.startswith("s3://"):
        return S3Location.from_url(text)
    if "://" in text:
        raise InputError(f"{text!r} is no place for a store: give a path, or s3://BUCKET/PREFIX")
    # Not Path.absolute, which leaves `..` where it is: tensorstore takes no such path.
    return LocalLocation(Path(os.path.abspath(Path(text).expanduser())))


def is_probe(path: str) -> bool:
    """True for what `prove_exclusive_create` leaves if it is killed."""
    return re.fullmatch(r"probe-[0-9a-f]{16}", path) is not None


def prove_exclusive_create(location: Location) -> None:
    """Proves at a new location that a second exclusive create is refused. Raises InputError if it is not."""
    path = f"probe-{secrets.token_hex(8)}"
    try:
        location.create(path, b"1")
        if location.create(path, b"2") or location.read(path) != b"1":
            raise InputError(
                f"{location.url} does not refuse to create a file that is there already, so two writers could "
                "overwrite each other: choose another file system"
            )
    finally:
        location.delete(path)
