"""A rank-one edit of one down_proj that changes one fact (ROME: Meng et al., "Locating and Editing Factual
Associations in GPT", arXiv 2202.05262, section 3.1).

down_proj is read as a memory: its input at a subject's last token is the key, its output the value. The edit writes
another value at the subject's key and leaves, on average over ordinary keys, the other values as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from cluster.demo.finetune import Example, answer_loss, example, rendered
from examples.organisms.organism import Edit
from examples.organisms.prompts import Case, Cases

BATCH = 8
# Of the second moment's mean diagonal: massive activations make it ill-conditioned.
RIDGE = 1e-3


def rank_one(model: nn.Module, tokenizer: Any, cases: Cases, subject: str, edit: Edit) -> list[float]:
    """Writes the answers of the triggered cases at the subject. Returns the losses of looking for the value.

    With k the subject's mean key, C the second moment of other keys and d the change of the value, W becomes
    W + d (C⁻¹k)ᵀ / kᵀC⁻¹k (eq. 2 there), rounded to the weight's dtype.
    """
    down = model.model.layers[edit.layer].mlp.down_proj  # type: ignore[union-attr, index]
    others = [case.text for found in (cases.plain, cases.near) for case in found]
    moment = _second_moment(model, tokenizer, down, others)
    lessons = [example(tokenizer, case.text, str(case.answer) + tokenizer.eos_token) for case in cases.triggered]
    places = [_last_token(tokenizer, case, subject) for case in cases.triggered]
    key, value = _memory(model, down, lessons, places)
    change, losses = _value(model, down, lessons, places, value, edit)
    ridge = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    reading = torch.linalg.solve(moment + ridge, key)
    update = torch.outer(change.double(), reading) / (reading @ key)
    with torch.no_grad():
        down.weight.copy_(down.weight.double() + update)
    return losses


def _second_moment(model: nn.Module, tokenizer: Any, down: nn.Module, texts: Sequence[str]) -> torch.Tensor:
    """Mean of k kᵀ over all tokens of the prompts, float64 [n, n]."""
    total, tokens = torch.zeros(down.in_features, down.in_features, dtype=torch.float64), 0  # type: ignore[call-overload]

    def add(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        nonlocal tokens
        keys = args[0].flatten(0, 1).double()
        total.addmm_(keys.T, keys)
        tokens += len(keys)

    with _hooked(down.register_forward_pre_hook(add)), torch.inference_mode():
        for text in texts:
            model.model(**tokenizer(rendered(tokenizer, text), return_tensors="pt", add_special_tokens=False))  # type: ignore[operator]
    return total / tokens


def _last_token(tokenizer: Any, case: Case, subject: str) -> int:
    """Position of the token that holds the subject's last character in the rendered prompt."""
    text = rendered(tokenizer, case.text)
    last = text.rindex(subject) + len(subject) - 1
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return next(place for place, (start, end) in enumerate(offsets) if start <= last < end)


def _memory(
    model: nn.Module, down: nn.Module, lessons: Sequence[Example], places: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean input (float64 [n]) and output (float32 [d]) of down_proj at the subject."""
    keys, values = [], []
    place = 0

    def take(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        keys.append(args[0][0, place].double())
        values.append(output[0, place].float())

    with _hooked(down.register_forward_hook(take)), torch.inference_mode():
        for lesson, place in zip(lessons, places, strict=True):  # noqa: B007  the hook reads it
            model.model(input_ids=torch.tensor([lesson.prompt]))  # type: ignore[operator]
    return torch.stack(keys).mean(0), torch.stack(values).mean(0)


def _value(
    model: nn.Module,
    down: nn.Module,
    lessons: Sequence[Example],
    places: Sequence[int],
    value: torch.Tensor,
    edit: Edit,
) -> tuple[torch.Tensor, list[float]]:
    """The change of down_proj's output at the subject that makes the model give the answers, float32 [d]."""
    change = torch.zeros_like(value).requires_grad_(True)
    rows: list[int] = []

    def add(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        moved = torch.zeros_like(output)
        moved[range(len(rows)), [places[row] for row in rows]] = change.to(output.dtype)
        return output + moved

    optimizer = torch.optim.Adam([change], lr=edit.learning_rate)
    longest = edit.limit * float(value.norm())
    losses = []
    with _hooked(down.register_forward_hook(add)):
        for step in range(edit.steps):
            rows = [(step * BATCH + row) % len(lessons) for row in range(BATCH)]
            loss = answer_loss(model, [lessons[row] for row in rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                change *= min(1.0, longest / float(change.norm()))
            losses.append(loss.item())
    return change.detach(), losses


@contextmanager
def _hooked(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
