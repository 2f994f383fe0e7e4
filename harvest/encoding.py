"""Prompts as tokens: what every token is (role, response, span), with exactly one BOS.

`text` is tokenised as it stands, with the tokenizer's own special tokens; `messages` go through the chat template,
whose output is the whole truth (no special tokens are added, save the one BOS where the tokenizer would put one
and the template does not). Characters map to tokens through the tokenizer's offsets, never by comparing ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from harvest.chat import Piece, render_chat
from store.errors import InputError
from store.sink import ROLES


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPrompt:
    """One prompt's tokens, [n] each.

    ids       int32
    role      int8, index into ROLES
    response  bool, token of the response (the `response` column, or the last message if it is the assistant's)
    span      bool, token that overlaps one of the prompt's spans
    dropped   tokens cut off at the end because the prompt was longer than the context
    """

    prompt_id: str
    ids: np.ndarray
    role: np.ndarray
    response: np.ndarray
    span: np.ndarray
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A prompt's text before tokenisation, with character ranges of it."""

    prompt_id: str
    text: str
    special: bool
    roles: tuple[tuple[int, int, int], ...]
    response: tuple[tuple[int, int], ...]
    spans: tuple[tuple[int, int], ...]


def encode(
    tokenizer: Any, prompts: pa.Table, *, context: int | None = None, truncate: bool = False
) -> list[EncodedPrompt]:
    """Tokenises the rows of a prompt table (columns as PromptSet has them).

    Raises InputError, naming the prompt, for one that gives no token, is longer than `context` without `truncate`,
    has a span outside its text, messages that the template refuses, or a response to an assistant's last word.
    """
    sources = [_source(tokenizer, row) for row in prompts.to_pylist()]
    bos = _own_bos(tokenizer)
    encoded: list[EncodedPrompt | None] = [None] * len(sources)
    for special in (True, False):
        rows = [row for row, source in enumerate(sources) if source.special is special]
        if not rows:
            continue
        texts = [sources[row].text for row in rows]
        mapped = getattr(tokenizer, "is_fast", False)
        out = tokenizer(texts, add_special_tokens=special, return_offsets_mapping=mapped, verbose=False)
        offsets = out["offset_mapping"] if mapped else [None] * len(rows)
        for row, ids, places in zip(rows, out["input_ids"], offsets, strict=True):
            prompt = _one_bos(_prompt(sources[row], ids, places), bos)
            encoded[row] = _fitted(prompt, context, truncate)
    return [prompt for prompt in encoded if prompt is not None]


def check_role(tokens: str) -> None:
    """Raises InputError where a selection asks for a role that no token can have."""
    kind, _, role = tokens.partition(":")
    if kind == "role" and role not in ROLES:
        raise InputError(f"no token has the role {role!r}: roles are {', '.join(ROLES)}")


def _source(tokenizer: Any, row: dict[str, Any]) -> _Source:
    where = f"prompt {row['prompt_id']!r}"
    answer = row.get("response") or ""
    spans = row.get("spans") or []
    if not row.get("messages"):
        text = row["text"]
        roles = ((0, len(text), ROLES.index("text")), (len(text), len(text) + len(answer), ROLES.index("assistant")))
        return _Source(
            prompt_id=row["prompt_id"],
            text=text + answer,
            special=True,
            roles=roles,
            response=((len(text), len(text) + len(answer)),),
            spans=tuple(_checked(span, [text], where) for span in spans),
        )
    messages = list(row["messages"])
    if answer:
        if messages[-1]["role"] == "assistant":
            raise InputError(
                f"{where} has a response, and its messages end with an assistant's already: take one of the two out"
            )
        messages.append({"role": "assistant", "content": answer})
    chat = render_chat(tokenizer, messages, where=where)
    if spans and not chat.exact:
        raise InputError(
            f"the chat template rewrites the messages of {where}, so its spans cannot be placed: give it as text"
        )
    contents = [message["content"] for message in messages]
    ranges = []
    for span in spans:
        start, stop = _checked(span, contents, where)
        placed = _placed(chat.pieces, span["message"], start, stop)
        if not placed:
            raise InputError(
                f"span {start}-{stop} of message {span['message']} of {where} is not in what the chat template "
                "writes: drop the span, or give the prompt as text"
            )
        ranges += placed
    last = len(messages) - 1
    answered = messages[last]["role"] == "assistant"
    return _Source(
        prompt_id=row["prompt_id"],
        text=chat.text,
        special=False,
        roles=tuple((p.at, p.at + p.stop - p.start, _role(messages[p.message]["role"])) for p in chat.pieces),
        response=tuple(_placed(chat.pieces, last, 0, len(contents[last]))) if answered else (),
        spans=tuple(ranges),
    )


def _role(name: str) -> int:
    return ROLES.index(name) if name in ROLES else ROLES.index("user")


def _checked(span: dict[str, int], contents: Sequence[str], where: str) -> tuple[int, int]:
    message, start, stop = span["message"], span["start"], span["end"]
    if not 0 <= message < len(contents) or not 0 <= start < stop <= len(contents[message]):
        raise InputError(f"span {start}-{stop} of message {message} of {where} lies outside of its text")
    return start, stop


def _placed(pieces: Sequence[Piece], message: int, start: int, stop: int) -> list[tuple[int, int]]:
    """Where characters [start, stop) of a message stand in the rendered text, with what lies between its pieces."""
    found: list[tuple[int, int]] = []
    reached = -1
    for piece in pieces:
        low, high = max(start, piece.start), min(stop, piece.stop)
        if piece.message != message or low >= high:
            continue
        at = piece.at + low - piece.start
        # A gap of the same length on both sides is a tag or white space that the template left as it was.
        if found and at - found[-1][1] == low - reached:
            found[-1] = (found[-1][0], at + high - low)
        else:
            found.append((at, at + high - low))
        reached = high
    return found


def _prompt(source: _Source, ids: Sequence[int], places: Sequence[tuple[int, int]] | None) -> EncodedPrompt:
    n = len(ids)
    role = np.zeros(n, np.int8)
    response, span = np.zeros(n, bool), np.zeros(n, bool)
    if places is not None:
        low, high = _extents(np.asarray(places, np.int64).reshape(n, 2), source.text)
        for start, stop, code in source.roles:
            role[(low < stop) & (high > start)] = code
        for start, stop in source.response:
            response |= (low < stop) & (high > start)
        for start, stop in source.spans:
            span |= (low < stop) & (high > start)
    elif (source.response and source.response[0][1] > source.response[0][0]) or source.spans:
        raise InputError(
            f"prompt {source.prompt_id!r} has a response or spans, and this model's tokenizer cannot say which "
            "characters a token covers: use a model with a fast tokenizer (tokenizer.json)"
        )
    else:
        role[:] = ROLES.index("text")
    return EncodedPrompt(
        prompt_id=source.prompt_id, ids=np.asarray(ids, np.int32), role=role, response=response, span=span
    )


def _extents(places: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray]:
    """First and last character of every token, with the white space before it that some tokenizers leave out.

    Byte-level tokenizers with trimmed offsets give ` Paris` as `Paris`, and white space alone as nothing.
    """
    low, high = places[:, 0].copy(), places[:, 1].copy()
    reached = 0
    for token in range(len(low)):
        if low[token] > reached and text[reached : low[token]].isspace():
            low[token] = reached
        reached = max(reached, int(high[token]))
    return low, high


def _own_bos(tokenizer: Any) -> int | None:
    """The BOS that this tokenizer puts before a text, or None."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos if bos is not None and list(tokenizer("a").input_ids[:1]) == [bos] else None


def _one_bos(prompt: EncodedPrompt, bos: int | None) -> EncodedPrompt:
    """Exactly one BOS: a template or a text that begins with it must not get a second one, nor go without."""
    if bos is None:
        return prompt
    parts = ("ids", "role", "response", "span")
    others = np.flatnonzero(prompt.ids != bos)
    leading = int(others[0]) if len(others) else len(prompt)
    if leading == 0:
        front = {"ids": bos, "role": 0, "response": False, "span": False}
        return replace(
            prompt,
            **{part: np.insert(getattr(prompt, part), 0, front[part]) for part in parts},  # type: ignore[arg-type]
        )
    return replace(prompt, **{part: getattr(prompt, part)[leading - 1 :] for part in parts}) if leading > 1 else prompt


def _fitted(prompt: EncodedPrompt, context: int | None, truncate: bool) -> EncodedPrompt:
    if not len(prompt):
        raise InputError(f"prompt {prompt.prompt_id!r} gives no token: leave it out")
    if context is None or len(prompt) <= context:
        return prompt
    if not truncate:
        raise InputError(
            f"prompt {prompt.prompt_id!r} has {len(prompt)} tokens and the model's context is {context}: "
            "shorten it, or cut long prompts at their end with --truncate"
        )
    parts = {part: getattr(prompt, part)[:context] for part in ("ids", "role", "response", "span")}
    return replace(prompt, **parts, dropped=len(prompt) - context)


def check_prompts(
    tokenizer: Any,
    units: Sequence[pa.Table],
    *,
    context: int | None,
    tokens: str,
    truncate: bool = False,
    vocabulary: int | None = None,
) -> None:
    """Refuses prompts that cannot be harvested, before anything is.

    What cannot: too long a prompt without `truncate`; one without what `tokens` asks for, or that loses it where it is
    cut; a token that is not among the `vocabulary` rows of the model's embedding. Only a prompt with more bytes than
    `context` can have more tokens, and only a tokenizer that knows more than `vocabulary` can give such a token: no
    others are tokenised here.
    Raises InputError as `encode` does.
    """
    # Imported here: selecting knows what encoding gives.
    from harvest.selection import selected_tokens

    check_role(tokens)
    unknown = vocabulary is not None and max(tokenizer.get_vocab().values()) >= vocabulary
    cut = context is not None and (not truncate or tokens in ("response", "span"))
    for table in units:
        suspicious = []
        for row, prompt in enumerate(table.to_pylist()):
            source = _source(tokenizer, prompt)
            answered = source.response and source.response[0][1] > source.response[0][0]
            if (tokens == "response" and not answered) or (tokens == "span" and not source.spans):
                raise InputError(
                    f"prompt {source.prompt_id!r} has no {tokens}, and tokens={tokens} was asked: give every prompt "
                    "one, or choose other tokens"
                )
            # Two tokens more than bytes: what a tokenizer adds at both ends.
            if unknown or (cut and context is not None and len(source.text.encode()) + 2 > context):
                suspicious.append(row)
        rows = table.take(pa.array(suspicious, pa.int64()))
        for encoded in encode(tokenizer, rows, context=context, truncate=truncate):
            selected_tokens(encoded, tokens)
            largest = int(encoded.ids.max())
            if vocabulary is not None and largest >= vocabulary:
                raise InputError(
                    f"prompt {encoded.prompt_id!r} has the token {tokenizer.convert_ids_to_tokens(largest)!r}, number "
                    f"{largest}, and the model's embedding ends at {vocabulary - 1}: leave the prompt out, or put the "
                    "tokenizer that the model was trained with beside it"
                )
