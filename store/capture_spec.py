"""What a harvest is asked to take."""

import re
from dataclasses import dataclass

from store.errors import InputError
from store.site import split_patterns

DTYPES = ("bfloat16", "float16", "float32")
_TOKENS = re.compile(r"^(all|last|response|span|every:[1-9]\d*|role:[a-z]+)$")
# With 0 an average would stay at its first row for ever, and with 1 it is the last one.
_REDUCE = re.compile(r"none|mean|max|last|ema(:0?\.[0-9]*[1-9][0-9]*)?")


@dataclass(frozen=True, kw_only=True)
class CaptureSpec:
    """Which sites, which tokens, which reduction over tokens, and the dtype that is stored.

    sites    site patterns, comma-separated or a sequence: `resid_post.*`, `resid_post.8-20`, `resid_post.-1`
    tokens   `all`, `last`, `response`, `span`, `every:k` or `role:user`
    reduce   `none` (a row per token) or `mean`, `max`, `last`, `ema[:alpha]` with 0 < alpha < 1 (a row per prompt)
    dtype    stored dtype; None stores the model's own

    Raises InputError for a word that is none of these.
    """

    sites: str | tuple[str, ...]
    tokens: str = "all"
    reduce: str = "none"
    dtype: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", split_patterns(self.sites))
        check_tokens(self.tokens)
        if not _REDUCE.fullmatch(self.reduce):
            raise InputError(
                f"unknown reduction {self.reduce!r}: use none, mean, max, last, ema, or ema:ALPHA with an ALPHA above "
                "0 and below 1, e.g. ema:0.1"
            )
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}: use one of {', '.join(DTYPES)}")

    @property
    def rows(self) -> str:
        """`token` where a row is a token's, `prompt` where it is a prompt's."""
        return "token" if self.reduce == "none" else "prompt"


def check_tokens(tokens: str) -> None:
    """Raises InputError for what is no token selection."""
    if not _TOKENS.match(tokens):
        raise InputError(f"unknown token selection {tokens!r}: use all, last, response, span, every:K or role:NAME")
