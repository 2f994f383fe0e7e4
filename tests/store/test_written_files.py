"""Single files: what cannot be written is one line for people, and what was there stays."""

import errno
import os
from pathlib import Path

import pytest

from store.direction import check_writable, write_atomically
from store.errors import IncompleteError, InputError
from store.local_location import LocalLocation


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_told_and_what_was_there_stays(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"before")

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IncompleteError, match=f"file could not be written .{os.strerror(number)}"):
        write_atomically(target, b"after")
    with pytest.raises(IncompleteError, match="cannot write to"):
        LocalLocation(tmp_path / "store").write({"part": b"bytes"})
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]
    assert target.read_bytes() == b"before"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc here")
def test_a_place_that_takes_no_files_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="/proc takes none"):
        check_writable("/proc/x")
    check_writable(tmp_path / "deep" / "file")
    assert not any(tmp_path.iterdir())
