"""Names that become paths: a pattern, nothing else."""

import re

from store.errors import InputError

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]*$")


def check_name(name: str, what: str) -> str:
    """`name` itself if it may become a path component; raises InputError otherwise."""
    if not NAME.match(name) or ".." in name or len(name) > 200:
        raise InputError(
            f"{what} {name!r} cannot name a folder: use lower-case letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    return name


def slug(text: str, *, longest: int = 48) -> str:
    """A readable name made of `text`: lower case, everything outside the pattern folded to '-'."""
    folded = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return folded[:longest].strip("-") or "model"
