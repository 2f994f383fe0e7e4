"""The root group of a store: a Zarr group that tells the store's format, always the same bytes."""

import json

from store.digest import canonical_json
from store.errors import DamageError, InputError
from store.location import Location

FORMAT = 1
ROOT = canonical_json({"zarr_format": 3, "node_type": "group", "attributes": {"thresher": {"format": FORMAT}}})


def read_root(location: Location) -> int | None:
    """The store format at a location; None where there is no store.

    Raises InputError for a newer format, DamageError where there are prompts but no readable root group.
    """
    try:
        document = json.loads(location.read("zarr.json"))
        version = document["attributes"]["thresher"]["format"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        if next(location.list("prompts"), None) is None:
            return None
        raise DamageError(
            f"{location.url}/zarr.json is damaged or missing: restore it, it always reads {ROOT.decode()}"
        ) from error
    if not isinstance(version, int) or version > FORMAT:
        raise InputError(
            f"{location.url} has store format {version!r}, and this thresher reads up to {FORMAT}: update thresher"
        )
    return version
