"""How wide activations are at a site, before any weight is loaded: for plans and for refusals in time."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harvest.architecture import Tap
from harvest.loading import skeleton
from store import ModelRef, Site


def site_widths(ref: ModelRef, sites: Sequence[str]) -> dict[str, int]:
    """Numbers per row at each site, heads flattened, from the model built without its weights.

    A `module:` path that names no linear layer is taken to be as wide as the residual stream. Raises InputError for a
    site that the architecture does not have.
    """
    decoder = skeleton(ref)
    residual = int(decoder.config.hidden_size)
    return {site: _width(decoder.tap(Site.parse(site)), Site.parse(site), residual) for site in dict.fromkeys(sites)}


def _width(tap: Tap, site: Site, residual: int) -> int:
    module, width = tap.module, residual
    if isinstance(module, nn.Linear):
        width = module.in_features if tap.side == "in" else module.out_features
    elif isinstance(module, Conv1D):
        width = module.nx if tap.side == "in" else module.nf
    elif site.kind == "router" and isinstance(module.weight, torch.Tensor):
        width = len(module.weight)
    return width // tap.split if tap.head is not None else width
