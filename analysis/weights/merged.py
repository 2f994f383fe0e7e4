"""Whether a base already holds an adapter: it is then the tuned model, not what the adapter was trained on.

Along the adapter's own directions, cᵢ = uᵢᵀ W vᵢ. In the base it was trained on, c has no relation to σ: its entries
are those of W in any directions, about ‖W‖_F / √(mn) in size. In a base that the adapter was merged into, c is that
plus σ.
"""

import math

import torch

from analysis.weights.checkpoint import Checkpoint
from analysis.weights.difference import CHUNK, tensor_rows
from analysis.weights.svd import Triples

EXPLAINED = 0.9  # share of Σ c² that σ must explain
STRONG = 20.0  # Σ σ² over what Σ c² is without the adapter, from which the two cases are told apart


def merged_note(base: Checkpoint, name: str, triples: Triples, *, transposed: bool) -> str | None:
    """A note where the base's matrix holds the adapter's change; None where it does not or nothing can be said.

    triples  leading ones of the adapter's change, [outputs, inputs]; transposed  stored as [inputs, outputs]
    """
    first, second = (triples.right, triples.left) if transposed else (triples.left, triples.right)
    rows, columns = base.shapes[name][0], math.prod(base.shapes[name][1:])
    along, square = torch.zeros_like(triples.sigma), 0.0
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        weights = tensor_rows(base, name, start, min(rows, start + step)).to(first.dtype)
        square += float(weights.square().sum())
        along += ((weights @ second) * first[start : start + len(weights)]).sum(dim=0)
    change, chance = float(triples.sigma.square().sum()), len(triples.sigma) * square / (rows * columns)
    unexplained = float((along - triples.sigma).square().sum())
    if change < STRONG * chance or unexplained > (1 - EXPLAINED) * float(along.square().sum()):
        return None
    share = float((along * triples.sigma).sum()) / change
    return (
        f"adapter in the base already: along its directions the base's weights are {share:.2f} times its change; give "
        "the base without it"
    )
