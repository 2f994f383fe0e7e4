"""Logits of kept rows only: the head applied to a few rows at a time, so that a batch's logits never exist at once."""

from dataclasses import dataclass

import torch
from torch import nn

from harvest.inputs import inputs_of
from harvest.layout import Layout
from harvest.loading import LoadedModel
from store.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns a final hidden state [rows, width] into logits [rows, vocabulary].

    cap    logits are `cap * tanh(logits / cap)` (Gemma 2); None leaves them
    scale  logits are multiplied with it (Cohere, Granite)
    """

    projection: nn.Module
    cap: float | None
    scale: float

    @staticmethod
    def of(loaded: LoadedModel) -> "Head":
        """The model's head, checked against the model's own logits on two tokens.

        Raises InputError for a model without one, or with one that does something else.
        """
        config = loaded.decoder.config
        projection = loaded.model.get_output_embeddings()  # type: ignore[operator]
        if projection is None:
            raise InputError(f"{type(loaded.model).__name__} has no lm_head: its log-probabilities cannot be read")
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        head = Head(projection=projection, cap=getattr(config, "final_logit_softcapping", None), scale=scale)
        ids = torch.zeros((1, 2), dtype=torch.int64, device=loaded.device)
        layout = Layout(lengths=(2,), packed=False)
        with torch.inference_mode():
            hidden = loaded.decoder.backbone(**inputs_of(loaded.decoder.backbone, ids, layout)).last_hidden_state
            own = loaded.model(**inputs_of(loaded.model, ids, layout)).logits
            same = torch.allclose(head.logits(hidden), own.float(), rtol=1e-2, atol=1e-2)
        if not same:
            raise InputError(
                f"{type(loaded.model).__name__} makes its logits in a way that thresher does not know: "
                "leave out the sinks that need them"
            )
        return head

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [rows, vocabulary]."""
        logits = self.projection(hidden).float() * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
