"""What a model is given: ids with explicit positions and masks, and the cache of a shared prefix.

Masks and positions come from the lengths, never from comparing ids: the padding token is often a real one.
"""

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from harvest.layout import Layout
from harvest.packing import slots_of


def inputs_of(
    module: nn.Module,
    ids: torch.Tensor,
    layout: Layout,
    *,
    past: Any = None,
    offset: int = 0,
    keep_cache: bool = False,
    config: Any = None,
) -> dict[str, Any]:
    """Arguments of `module.forward` for ids that lie as `layout` says.

    past        cache of the `offset` tokens before these; it is changed by the run
    keep_cache  gives a new, empty cache of `config` that the run fills
    """
    given: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": torch.from_numpy(layout.positions()).to(ids.device) + offset,
        "past_key_values": DynamicCache(config=config) if keep_cache else past,
        "use_cache": keep_cache or past is not None,
    }
    if layout.packed:
        return {**given, "packed_prompts": slots_of(layout.lengths, ids.device)}
    mask = torch.from_numpy(layout.mask()).to(ids.device)
    if offset:
        mask = torch.cat([mask.new_ones((len(ids), offset)), mask], dim=1)
    given["attention_mask"] = mask.long()
    accepted = inspect.signature(module.forward).parameters
    return {name: value for name, value in given.items() if name in accepted}


def repeated(cache: Any, times: int) -> Any:
    """A copy of a one-row cache for `times` rows. Layers that no pass has reached are empty and stay so."""
    copied = copy.deepcopy(cache)
    for layer in copied.layers:
        if times > 1 and getattr(layer, "is_initialized", False):
            layer.batch_repeat_interleave(times)
    return copied


def takes_prefix(module: nn.Module) -> bool:
    """True where a model can go on from a cache of keys and values; recurrent ones have other states."""
    accepted = inspect.signature(module.forward).parameters
    return "past_key_values" in accepted and "position_ids" in accepted
