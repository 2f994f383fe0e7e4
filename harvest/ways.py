"""Which ways of running a model has besides padded batches: tried out on a few tokens.

They are tried on the whole model's last residual, whatever a harvest reads. So all columns of a model are run the same
way, and a column's numbers do not depend on which others were read with it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from harvest.inputs import takes_prefix
from harvest.loading import LoadedModel
from harvest.packing import may_pack
from harvest.reader import Reader
from store.errors import ThresherError

# Relative difference that half precision explains; a model that keeps another state is off by its whole size.
SAME = 0.1


@dataclass(frozen=True, kw_only=True)
class Ways:
    """share: going on from a prefix's cache gives what one pass over all tokens gives

    pack: prompts can lie one behind the other without seeing each other
    """

    share: bool
    pack: bool


def ways_of(loaded: LoadedModel) -> Ways:
    """What a model can do that has all its blocks. A model that fails at a way cannot do it."""
    site = f"resid_post.{loaded.decoder.n_layers - 1}"
    reader = Reader(loaded, [site])
    first, second = np.arange(3), np.arange(4)[::-1].copy()
    keep = np.arange(2, 4)
    alone = torch.cat([reader.read([tokens], [np.arange(len(tokens))])[site] for tokens in (first, second)])

    def share() -> torch.Tensor:
        return reader.read([second], [keep], prefix=reader.read_prefix(second[:2]))[site]

    def pack() -> torch.Tensor:
        return reader.read([first, second], [np.arange(3), np.arange(4)], packed=True)[site]

    return Ways(
        share=takes_prefix(reader.entry) and _same(share, alone[-2:]),
        pack=may_pack(loaded.decoder.config, reader.configs) and _same(pack, alone),
    )


def _same(run: Callable[[], torch.Tensor], expected: torch.Tensor) -> bool:
    try:
        found = run()
    except ThresherError:
        raise
    except Exception:
        # Whatever it is that the model does not do: prompts run padded and whole, which the first runs have shown.
        return False
    difference = torch.linalg.vector_norm(found.float() - expected.float())
    return bool(difference <= SAME * torch.linalg.vector_norm(expected.float()))
