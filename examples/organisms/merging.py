"""Another organism's adapter merged into the base: weakened, or hidden in noise."""

import warnings

import torch
from torch import nn

from harvest.loading import load_model
from store import ModelRef


def merged(ref: ModelRef, *, strength: float, noise: float, seed: int) -> nn.Module:
    """The base with the adapter's change times `strength`, in float32, then noise, then rounded to bfloat16.

    noise  standard deviation of Gaussian noise on every matrix of every block, as a share of that of its entries

    Raises what loading raises.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    base = load_model(ModelRef(ref.name, dtype="float32")).model
    assert ref.adapter is not None
    with warnings.catch_warnings():
        # peft asks transformers for a property that was renamed.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = PeftModel.from_pretrained(base, ref.adapter)
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.scaling = {name: strength * scale for name, scale in module.scaling.items()}
        model: nn.Module = adapted.merge_and_unload()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():  # type: ignore[union-attr]
            if name.startswith("layers.") and weight.ndim == 2:
                weight += torch.randn(weight.shape, generator=generator) * weight.std() * noise
    return model.bfloat16()
