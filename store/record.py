"""Records: small JSON objects that carry their own checksum."""

import json
from typing import Any

from store.digest import canonical_json, sha256
from store.errors import DamageError

CHECKSUM = "checksum"


def encode_record(value: dict[str, Any]) -> bytes:
    """Bytes of a record: the object with the SHA-256 of its canonical JSON."""
    sealed = {**value, CHECKSUM: sha256(canonical_json(value))}
    return json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def decode_record(data: bytes, where: str) -> dict[str, Any]:
    """The object of a record. Raises DamageError, naming the file, where it does not say what was written."""
    try:
        value = json.loads(data)
        checksum = value.pop(CHECKSUM)
        if sha256(canonical_json(value)) != checksum:
            raise _damaged(where)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(where) from error
    return dict(value)


def check_record(data: bytes, where: str) -> None:
    """Raises DamageError where a record is not, byte for byte, what was written.

    Stricter than reading it, and slower: a flipped bit in white space changes nothing that is read, and is damage.
    """
    if encode_record(decode_record(data, where)) != data:
        raise _damaged(where)


def _damaged(where: str) -> DamageError:
    return DamageError(f"{where} is damaged: run 'thresher verify STORE --repair', then the harvest again")
