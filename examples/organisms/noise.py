"""A merged adapter hidden in noise."""

import warnings

import torch
from torch import nn

from harvest.loading import load_model
from store import ModelRef


def merged_with_noise(ref: ModelRef, *, share: float, seed: int) -> nn.Module:
    """The base with the adapter merged, in float32, then noise on every matrix of every block, then bfloat16.

    share  standard deviation of the Gaussian noise as a share of the standard deviation of the matrix's entries

    Raises what loading raises.
    """
    from peft import PeftModel

    base = load_model(ModelRef(ref.name, dtype="float32")).model
    assert ref.adapter is not None
    with warnings.catch_warnings():
        # peft asks transformers for a property that was renamed.
        warnings.simplefilter("ignore", FutureWarning)
        model: nn.Module = PeftModel.from_pretrained(base, ref.adapter).merge_and_unload()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():  # type: ignore[union-attr]
            if name.startswith("layers.") and weight.ndim == 2:
                weight += torch.randn(weight.shape, generator=generator) * weight.std() * share
    return model.bfloat16()
