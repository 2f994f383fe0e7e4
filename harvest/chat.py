"""Chat templates, and which characters of their output are which message's.

A template may trim a message, drop the thoughts of earlier turns, or write them in another way. So positions are
not searched for: the conversation is rendered a second time with marks (characters of a private-use plane, which no
text holds) around every piece of every message. If the rendering without its marks is the rendering of the
conversation, the marks say exactly where each piece stands; a piece whose marks are gone was dropped.

Templates run in transformers' jinja2 ImmutableSandboxedEnvironment.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError

from store.errors import InputError

# What templates that write today's date are told: the date that Llama 3's own template falls back to.
TEMPLATE_DATE = datetime(2024, 7, 26)
FIRST_MARK = 0xF0000
MARK = re.compile("[\U000f0000-\U000ffffd]")
# Templates cut at the tags of a reasoning model's thoughts: no piece reaches across one.
TAG = re.compile(r"</?think>")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Characters [start, stop) of message `message` stand at [at, at + stop - start) of the rendered text."""

    message: int
    start: int
    stop: int
    at: int


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as the model sees it.

    pieces  in order of the text
    exact   False where the template rewrites messages, so that pieces could only be searched for
    """

    text: str
    pieces: tuple[Piece, ...]
    exact: bool


def render_chat(tokenizer: Any, messages: Sequence[dict[str, str]], *, where: str) -> Rendered:
    """Renders messages through the tokenizer's chat template, with the generation prompt after a user's message.

    Raises InputError where the tokenizer has no template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{where} has messages, but the model has no chat template: give a tokenizer_config.json with a "
            "chat_template beside the model, or give the prompts as text"
        )
    text = _apply(tokenizer, messages, where)
    for trim in (False, True):
        pieces = _marked(tokenizer, messages, text, trim, where)
        if pieces is not None:
            return Rendered(text=text, pieces=pieces, exact=True)
    return Rendered(text=text, pieces=_searched(messages, text), exact=False)


def _apply(tokenizer: Any, messages: Sequence[dict[str, str]], where: str) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=messages[-1]["role"] == "user",
                # Some templates write today's date: a prompt must not depend on the day that it is run.
                strftime_now=TEMPLATE_DATE.strftime,
            )
        )
    # A template is a program: what it can raise beside its own errors is what expressions can.
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(f"the chat template refuses {where}: {str(error).strip() or type(error).__name__}") from error


def _cuts(content: str, trim: bool) -> list[tuple[int, int]]:
    """[start, stop) of the pieces of a message: what is between tags, without the white space around if `trim`."""
    borders = [0, *(edge for tag in TAG.finditer(content) for edge in tag.span()), len(content)]
    found = []
    for start, stop in zip(borders[::2], borders[1::2], strict=True):
        piece = content[start:stop]
        if trim:
            start += len(piece) - len(piece.lstrip())
            stop -= len(piece) - len(piece.rstrip())
        if start < stop:
            found.append((start, stop))
    return found


def _marked(
    tokenizer: Any, messages: Sequence[dict[str, str]], text: str, trim: bool, where: str
) -> tuple[Piece, ...] | None:
    """Exact pieces, or None where marks change what the template writes."""
    if MARK.search(text):
        return None
    cut: list[tuple[int, int, int]] = []
    marked = []
    for index, message in enumerate(messages):
        content, written, done = message["content"], "", 0
        for start, stop in _cuts(content, trim):
            opening = chr(FIRST_MARK + 2 * len(cut))
            closing = chr(FIRST_MARK + 2 * len(cut) + 1)
            written += content[done:start] + opening + content[start:stop] + closing
            done = stop
            cut.append((index, start, stop))
        marked.append({**message, "content": written + content[done:]})
    try:
        rendered = _apply(tokenizer, marked, where)
    except InputError:
        return None
    if MARK.sub("", rendered) != text:
        return None
    at: dict[int, int] = {}
    for removed, mark in enumerate(MARK.finditer(rendered)):
        code = ord(mark.group()) - FIRST_MARK
        if code in at:
            return None
        at[code] = mark.start() - removed
    pieces = [
        Piece(message=index, start=start, stop=stop, at=at[2 * code])
        for code, (index, start, stop) in enumerate(cut)
        if 2 * code in at and 2 * code + 1 in at and at[2 * code + 1] - at[2 * code] == stop - start
    ]
    return tuple(sorted(pieces, key=lambda piece: piece.at))


def _searched(messages: Sequence[dict[str, str]], text: str) -> tuple[Piece, ...]:
    """Pieces found by searching, one after the other: good enough for roles, not for spans."""
    pieces, cursor = [], 0
    for index, message in enumerate(messages):
        for start, stop in _cuts(message["content"], trim=True):
            at = text.find(message["content"][start:stop], cursor)
            if at >= 0:
                pieces.append(Piece(message=index, start=start, stop=stop, at=at))
                cursor = at + stop - start
    return tuple(pieces)
