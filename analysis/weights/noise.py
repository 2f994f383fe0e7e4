"""How large a singular value rounding alone makes: the edge above which a difference between weights is a change.

A tuned weight is stored as the nearest value of its dtype. Its rounding error is at most half a unit in the last
place (ulp), and the ulp follows the weight's own size, so the noise in ΔW is independent but far from equal over
the matrix. Where training moved a weight by less than half an ulp nothing is stored at all: on a grid that base and
tuned share, the error of such entries is a jump of a whole ulp in the few that moved, with variance at most ulp²
times the share that moved. Per binade of the weights the noise variance is therefore ulp² · min(1/12, moved share).

Two answers. The cheap ones need the norms of the weights only, because an ulp lies between eps |w| / 2 and eps |w|:
Marchenko–Pastur as if the noise were equal everywhere (an estimate), and the largest row and column (a bound). The
dear one simulates the rounding and takes the largest singular value; it is asked for when a triple lies under the
bound.
"""

from dataclasses import dataclass

import numpy as np
import torch

from analysis.weights.svd import top_triples

UNIFORM = 1.0 / 12.0  # variance of a uniform error of one ulp
BINADES = 256  # of float32, by the exponent's bits; the first holds zero and subnormals
CHUNK = 1 << 20  # entries handled at once


@dataclass(frozen=True, kw_only=True)
class CheapEdge:
    """`estimate`: Marchenko–Pastur for noise of equal variance; `bound`: no rounding noise is above it."""

    estimate: float
    bound: float


def cheap_edge(
    dtype: torch.dtype,
    *,
    square: float,
    largest_row: float,
    largest_column: float,
    shape: tuple[int, int],
    moved: float,
) -> CheapEdge:
    """From norms of the tuned weights: `square` is ‖W‖²_F, the others the largest row's and column's norm.

    The bound is max row norm + max column norm of the noise (Bandeira, van Handel 2016; their logarithmic term is
    not reached by bounded entries at these sizes). The estimate is s (√m + √n) with s² the mean variance, for
    mantissas spread as 1/x (E[ulp²] = 0.54 eps² w²), times the share of weights that moved where few did.
    """
    unit = torch.finfo(dtype).eps * UNIFORM**0.5
    m, n = shape
    spread = 0.735 * unit * (square / (m * n)) ** 0.5 * min(1.0, moved / UNIFORM) ** 0.5
    return CheapEdge(estimate=spread * (m**0.5 + n**0.5), bound=unit * (largest_row + largest_column))


def grid_of(values: torch.Tensor, stored: torch.dtype) -> torch.dtype:
    """The coarsest dtype that holds `values` exactly: weights stored as float32 may have been rounded to less."""
    for dtype in (torch.bfloat16, torch.float16):
        if stored not in (torch.bfloat16, torch.float16) and bool((values.to(dtype).to(values.dtype) == values).all()):
            return dtype
    return stored


def simulated_edge(weights: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype, *, seed: int) -> float:
    """Largest singular value of draws of the rounding noise of tuned `weights` (float32 [m, n], overwritten).

    `delta` is ΔW, which says where the weights moved. The draws are uniform with the variance above: the edge of
    a large matrix of independent entries depends on their variances alone. Small matrices, whose edge fluctuates,
    get several draws, of which the largest counts. Added are 1 %, for the iteration stops just under the edge, and
    `fluctuation`.
    """
    m, n = weights.shape
    step = max(1, CHUNK // n)
    binade = torch.cat([_binades(part).to(torch.uint8) for part in torch.split(weights, step)])
    scale = _noise_scales(binade, delta, dtype)
    rows, columns = torch.zeros(m), torch.zeros(n)
    rng = np.random.default_rng(seed)
    edge = 0.0
    for draw in range(min(8, 1 + (1 << 18) // (m * n))):
        for start in range(0, m, step):
            part = weights[start : start + step]
            torch.index_select(scale, 0, binade[start : start + step].flatten().int(), out=part.view(-1))
            if draw == 0:
                squares = part.square()
                rows[start : start + step] = squares.sum(dim=1)
                columns += squares.sum(dim=0)
            uniform = torch.from_numpy(rng.random(tuple(part.shape), dtype=np.float32))
            part.mul_(uniform.sub_(0.5).mul_(2 * 3**0.5))
        top = top_triples(weights, 1, seed=seed, tolerance=0.03, sweeps=24).sigma
        edge = max(edge, float(top[0]) if len(top) else 0.0)
    return edge * (1.01 + fluctuation(_worth(rows), _worth(columns)))


def fluctuation(m: float, n: float) -> float:
    """How far, relatively, the largest singular value of m × n noise is above its edge at most once in a hundred draws.

    The 99 % quantile of the Tracy–Widom law of order 1, 2.02, in the scaling of Johnstone (Annals of Statistics 29,
    2001).
    """
    return 0.5 * 2.02 * (m**-0.5 + n**-0.5) ** (1 / 3) / (m**0.5 + n**0.5)


def _worth(variance: torch.Tensor) -> float:
    """How many rows of equal variance the given ones are worth: (Σ v)² / Σ v², at least 1."""
    square = float(variance.double().square().sum())
    return max(1.0, float(variance.double().sum()) ** 2 / square) if square else 1.0


def _noise_scales(binade: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Standard deviation of the rounding noise by binade of the weight, float32 [BINADES]; `binade` uint8 [m, n]."""
    counts = torch.zeros(2 * BINADES)  # of weights that stayed, of weights that moved
    rows = max(1, CHUNK // binade.shape[1])
    for part, change in zip(torch.split(binade, rows), torch.split(delta, rows), strict=True):
        counts += torch.bincount((part + BINADES * (change != 0).int()).flatten(), minlength=2 * BINADES)
    stayed, moved = counts.view(2, BINADES)
    share = moved / (stayed + moved).clamp_min(1)
    return unit_in_last_place(torch.arange(BINADES) - 126, dtype) * share.clamp_max(UNIFORM).sqrt()


def _binades(weights: torch.Tensor) -> torch.Tensor:
    """Index of each weight's binade, int32: the exponent's bits of a float32."""
    return (weights.view(torch.int32) >> 23) & 255


def unit_in_last_place(exponent: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Spacing of the values of `dtype` at weights f · 2^exponent, f in [1/2, 1); float32. Constant for subnormals."""
    info = torch.finfo(dtype)
    smallest = int(torch.frexp(torch.tensor(info.tiny, dtype=torch.float64)).exponent)
    # the leading bit of such a weight is worth 2^(exponent - 1)
    return torch.ldexp(torch.full(exponent.shape, info.eps), exponent.clamp_min(smallest) - 1)
