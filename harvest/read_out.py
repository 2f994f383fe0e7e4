"""What a direction of the residual stream says in words: the tokens that it makes more and less likely.

The logit lens (nostalgebraist 2020), of a direction instead of an activation: it takes the place of the last block's
output, goes through the model's own final norm and head, and what is odd in it, half of the difference between +v and
−v, is read; so the biases of norm and head drop out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harvest.head import Head
from harvest.inputs import inputs_of
from harvest.layout import Layout
from harvest.loading import LoadedModel
from store import Site


@dataclass(frozen=True, kw_only=True)
class ReadOut:
    """Tokens as text with the logit that a residual of the direction alone has over the mean of the vocabulary.

    raises, lowers  the strongest first
    """

    raises: tuple[tuple[str, float], ...]
    lowers: tuple[tuple[str, float], ...]

    def record(self) -> dict[str, Any]:
        return {
            "raises": [{"token": token, "logit": logit} for token, logit in self.raises],
            "lowers": [{"token": token, "logit": logit} for token, logit in self.lowers],
        }


def read_out(loaded: LoadedModel, tokenizer: Any, vectors: np.ndarray, *, count: int = 8) -> list[ReadOut]:
    """One for each of `vectors` [k, width], of any lengths but zero; `count` tokens at either end.

    Raises InputError for a model without a head, or one that thresher does not know.
    """
    head = Head.of(loaded)
    units = torch.from_numpy(np.asarray(vectors, np.float32))
    # A residual's typical size: a norm's epsilon must not count.
    units = units / torch.linalg.vector_norm(units, dim=1, keepdim=True) * units.shape[1] ** 0.5
    logits = head.logits(_normed(loaded, torch.cat([units, -units]))).cpu()
    odd = (logits[: len(units)] - logits[len(units) :]) / 2
    odd = odd - odd.mean(dim=1, keepdim=True)
    return [
        ReadOut(raises=_strongest(tokenizer, row, count, 1), lowers=_strongest(tokenizer, row, count, -1))
        for row in odd
    ]


def _normed(loaded: LoadedModel, rows: torch.Tensor) -> torch.Tensor:
    """`rows` [n, width] in the place of the last block's output, after all that the backbone does to it."""
    last = loaded.decoder.tap(Site("resid_post", layer=len(loaded.decoder.blocks) - 1))

    def replaced(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = rows.to(hidden).reshape(hidden.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    hook = last.module.register_forward_hook(replaced)
    try:
        ids = torch.zeros((1, len(rows)), dtype=torch.int64, device=loaded.device)
        layout = Layout(lengths=(len(rows),), packed=False)
        with torch.inference_mode():
            hidden = loaded.decoder.backbone(**inputs_of(loaded.decoder.backbone, ids, layout)).last_hidden_state
    finally:
        hook.remove()
    return hidden.reshape(rows.shape)


def _strongest(tokenizer: Any, logits: torch.Tensor, count: int, sign: int) -> tuple[tuple[str, float], ...]:
    found = torch.topk(sign * logits, min(count, len(logits))).indices.tolist()
    return tuple((tokenizer.decode([token]), float(logits[token])) for token in found)
