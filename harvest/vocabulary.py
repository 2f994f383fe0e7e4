"""The words that a tokenizer has a token of its own for."""

from typing import Any

import regex

# What stands for the space before a word: in byte-level tokenizers, and in SentencePiece.
_MARKS = ("Ġ", "▁")
_SHORTEST = 3
# Letters and digits, with the marks that many scripts write vowels by.
_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")


def vocabulary(tokenizer: Any) -> list[str]:
    """Words of letters and digits that are one token behind a space, of three characters at least; sorted.

    Scripts without spaces have no such marks: their tokens count where they are letters beyond ASCII.
    """
    found = set()
    for token, number in tokenizer.get_vocab().items():
        text = tokenizer.decode([number]).strip()
        begins = token.startswith(_MARKS) or not text.isascii()
        if begins and _WORD.fullmatch(text) and (len(text) >= _SHORTEST or not text.isascii()):
            found.add(text)
    return sorted(found - set(tokenizer.all_special_tokens))
