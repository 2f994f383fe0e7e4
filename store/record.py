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
    """The object of a record. Raises DamageError, naming the file, where it is not the one that was written."""
    damaged = DamageError(f"{where} is damaged: run 'thresher verify STORE --repair', then the harvest again")
    try:
        value = json.loads(data)
        checksum = value.pop(CHECKSUM)
        # Bytes, not only values: a flipped bit in white space is a flipped bit.
        if sha256(canonical_json(value)) != checksum or encode_record(value) != data:
            raise damaged
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise damaged from error
    return dict(value)
