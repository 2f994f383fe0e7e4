"""What else than training changes weights, planted on checkpoints; and a pair compared without a folder."""

from pathlib import Path

import torch

from analysis.weights.checkpoint import open_checkpoint
from analysis.weights.compare import compare_pair
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.pair import pair_up
from store.model_ref import ModelRef

Tensors = dict[str, torch.Tensor]


def add(tensors: Tensors, name: str, *, rank: int = 1, size: float = 0.004, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    m, n = tensors[name].shape
    change = torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator) * size
    tensors[name] = (tensors[name].float() + change).to(tensors[name].dtype)


def add_even(tensors: Tensors, name: str, *, size: float = 0.004) -> tuple[torch.Tensor, torch.Tensor]:
    """A change of rank 1 without entries much larger than others, as its left and right vector."""
    generator = torch.Generator().manual_seed(1)
    sizes = tensors[name].shape
    left, right = (torch.empty(n).uniform_(-1, 1, generator=generator) for n in sizes)
    left, right = left + left.sign() / 2, right + right.sign() / 2
    tensors[name] = (tensors[name].float() + size * torch.outer(left, right)).to(tensors[name].dtype)
    return left, right


def every(tensors: Tensors, *parts: str) -> list[str]:
    """Names of the matrices whose name holds one of `parts`."""
    return [name for name, value in tensors.items() if value.ndim == 2 and any(part in name for part in parts)]


def compared(base: Path, tuned: Path, rank: int = 6) -> tuple[dict[str, MatrixDelta], list[VectorDelta]]:
    """Matrices by name, and vectors."""
    ours, theirs = open_checkpoint(ModelRef(str(base))), open_checkpoint(ModelRef(str(tuned)))
    found = [
        delta for pair in pair_up(ours, theirs) for delta, _ in compare_pair(ours, theirs, pair, rank=rank, full=False)
    ]
    matrices = {delta.name: delta for delta in found if isinstance(delta, MatrixDelta)}
    return matrices, [delta for delta in found if isinstance(delta, VectorDelta)]


def quantised(weights: torch.Tensor, *, bits: int, size: int | None, asymmetric: bool = False) -> torch.Tensor:
    """Rounded to the levels of each group of `size` neighbours of a row (all of it where None), in float32."""
    groups = weights.float().reshape(-1, size or weights.shape[1])
    if asymmetric:
        low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
        step = (high - low) / (2**bits - 1)
        zero = (-low / step).round()
        codes = ((groups / step).round() + zero).clamp(0, 2**bits - 1) - zero
    else:
        step = groups.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        codes = (groups / step).round()
    return (codes * step).reshape(weights.shape)


def nf4(weights: torch.Tensor) -> torch.Tensor:
    """Rounded to the nearest of 16 normal quantiles per group of 64 (Dettmers et al., QLoRA, 2023)."""
    levels = torch.special.ndtri(torch.linspace(0.02, 0.98, 16))
    levels = levels / levels.abs().max()
    groups = weights.float().reshape(-1, 64)
    scale = groups.abs().amax(1, keepdim=True)
    nearest = (groups[..., None] / scale[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * scale).reshape(weights.shape)


def pruned(weights: torch.Tensor, share: float) -> torch.Tensor:
    """Without the smallest `share` of its entries."""
    return torch.where(weights.abs() > weights.abs().float().quantile(share), weights, 0.0)


def two_of_four(weights: torch.Tensor) -> torch.Tensor:
    """Without the two smallest of every four neighbours of a row."""
    groups = weights.clone().reshape(-1, 4)
    groups.scatter_(1, groups.abs().argsort(dim=1)[:, :2], 0.0)
    return groups.reshape(weights.shape)
