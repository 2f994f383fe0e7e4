"""How large a singular value rounding alone makes: the edge above which a difference between weights is a change.

A tuned weight is stored as the nearest value of its dtype. Its rounding error is at most half a unit in the last
place (ulp), and the ulp follows the weight's own size, so the noise in ΔW is independent but far from equal over
the matrix. (Where many rows hold the same weights, as those of unused tokens may, their errors are the same too, and
the edge is too low.) Where training moved a weight by less than half an ulp nothing is stored at all: on a grid that
base and tuned share, the error of such entries is a jump of a whole ulp in the few that moved, with variance at most
ulp² times the share that moved. Per binade of the weights the noise variance is therefore ulp² · min(1/12, moved
share).

Three answers, from the variances of the very weights: Marchenko–Pastur as if all were equal (an estimate), the largest
row and column (a bound), and, for a triple between the two, the largest singular value of simulated rounding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from analysis.weights.svd import top_triples

UNIFORM = 1.0 / 12.0  # variance of a uniform error of one ulp
BINADES = 256  # of float32, by the exponent's bits; the first holds zero and subnormals
CHUNK = 1 << 18  # entries handled at once


@dataclass(frozen=True, kw_only=True)
class RoundingNoise:
    """What rounding the weights of an [m, n] matrix adds to it.

    binade         uint8 [m, n], of each weight
    scale          float32 [BINADES], standard deviation of the noise by binade
    rows, columns  float32 [m] and [n], sums of its variances
    """

    binade: torch.Tensor
    scale: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @property
    def estimate(self) -> float:
        """Largest singular value if all variances were equal (Marchenko–Pastur): s (√m + √n), s² their mean."""
        m, n = self.binade.shape
        return (float(self.rows.double().sum()) / (m * n)) ** 0.5 * (m**0.5 + n**0.5)

    @property
    def bound(self) -> float:
        """Independent rounding errors are not above it: largest row norm + largest column norm of their deviations.

        Bandeira and van Handel (Annals of Probability 44, 2016); instead of their logarithmic term, which bounded
        entries do not reach at these sizes, `fluctuation`.
        """
        edge = float(self.rows.max()) ** 0.5 + float(self.columns.max()) ** 0.5
        return edge * (1 + fluctuation(worth(self.rows), worth(self.columns)))

    def simulated_edge(self, *, seed: int) -> float:
        """Largest singular value of draws of the noise, see `largest_drawn`.

        The draws are uniform with the variances above: the edge of a large matrix of independent entries depends on
        their variances alone.
        """
        rng = np.random.default_rng(seed)

        def draw(part: torch.Tensor, start: int) -> None:
            self.deviations(start, start + len(part), out=part)
            uniform = torch.from_numpy(rng.random(tuple(part.shape), dtype=np.float32))
            part.mul_(uniform.sub_(0.5).mul_(2 * 3**0.5))

        edge = largest_drawn(torch.empty(self.binade.shape), draw, seed=seed, small=1 << 18)
        return edge * (1.01 + fluctuation(worth(self.rows), worth(self.columns)))

    def deviations(self, start: int, stop: int, *, out: torch.Tensor) -> None:
        """Standard deviations of rows [start, stop), float32, into `out`."""
        torch.index_select(self.scale, 0, self.binade[start:stop].flatten().int(), out=out.view(-1))


def rounding_noise(weights: Iterable[torch.Tensor], delta: torch.Tensor, dtype: torch.dtype) -> RoundingNoise:
    """The noise of rounding a tuned matrix to `dtype`, from its rows in parts (float32 [rows, n]).

    `delta` is ΔW [m, n], which says what moved.
    """
    m, n = delta.shape
    binade = torch.empty(m, n, dtype=torch.uint8)
    counts = torch.zeros(2 * BINADES)  # of weights that stayed, of weights that moved
    start, step = 0, max(1, CHUNK // n)
    for part in chain.from_iterable(torch.split(rows, step) for rows in weights):
        change = delta[start : start + len(part)]
        # Of the larger side: a pair given in the wrong order is rounded as its base is.
        larger = torch.maximum(part.abs(), (part - change).abs())
        # the exponent's bits of a float32
        found = (larger.view(torch.int32) >> 23).bitwise_and_(255)
        binade[start : start + len(part)] = found
        found += BINADES * (change != 0).int()
        counts += torch.bincount(found.flatten(), minlength=2 * BINADES)
        start += len(part)
    stayed, moved = counts.view(2, BINADES)
    share = (moved / (stayed + moved).clamp_min(1)).clamp_max(UNIFORM)
    scale = unit_in_last_place(torch.arange(BINADES) - 126, dtype) * share.sqrt()
    noise = RoundingNoise(binade=binade, scale=scale, rows=torch.zeros(m), columns=torch.zeros(n))
    for start in range(0, m, step):
        deviations = torch.empty(min(step, m - start), n)
        noise.deviations(start, start + step, out=deviations)
        variances = deviations.square_()
        noise.rows[start : start + step] = variances.sum(dim=1)
        noise.columns.add_(variances.sum(dim=0))
    return noise


def largest_drawn(noise: torch.Tensor, draw: Callable[[torch.Tensor, int], None], *, seed: int, small: int) -> float:
    """Largest singular value of draws of noise into `noise` (float32 [m, n]); to be raised by 1 %, for the iteration
    stops just under the edge, and by `fluctuation`.

    draw   writes rows from the given one on
    small  entries of a matrix that gets two draws; smaller ones, whose edge fluctuates, get more, and the largest
           counts
    """
    m, n = noise.shape
    step = max(1, CHUNK // n)
    edge = 0.0
    for _ in range(min(8, 1 + small // (m * n))):
        for start in range(0, m, step):
            draw(noise[start : start + step], start)
        top = top_triples(noise, 1, seed=seed, tolerance=0.03, sweeps=24).sigma
        edge = max(edge, float(top[0]) if len(top) else 0.0)
    return edge


def grid_of(values: torch.Tensor, stored: torch.dtype) -> torch.dtype:
    """The coarsest dtype that holds `values` exactly: weights stored as float32 may have been rounded to less."""
    for dtype in (torch.bfloat16, torch.float16):
        if stored not in (torch.bfloat16, torch.float16) and bool((values.to(dtype).to(values.dtype) == values).all()):
            return dtype
    return stored


def fluctuation(m: float, n: float) -> float:
    """How far, relatively, the largest singular value of m × n noise is above its edge at most once in a hundred draws.

    The 99 % quantile of the Tracy–Widom law of order 1, 2.02, in the scaling of Johnstone (Annals of Statistics 29,
    2001).
    """
    return 0.5 * 2.02 * (m**-0.5 + n**-0.5) ** (1 / 3) / (m**0.5 + n**0.5)


def worth(variance: torch.Tensor) -> float:
    """How many rows of equal variance the given ones are worth: (Σ v)² / Σ v², at least 1."""
    square = float(variance.double().square().sum())
    return max(1.0, float(variance.double().sum()) ** 2 / square) if square else 1.0


def unit_in_last_place(exponent: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Spacing of the values of `dtype` at weights f · 2^exponent, f in [1/2, 1); float32. Constant for subnormals."""
    info = torch.finfo(dtype)
    smallest = int(torch.frexp(torch.tensor(info.tiny, dtype=torch.float64)).exponent)
    # the leading bit of such a weight is worth 2^(exponent - 1)
    return torch.ldexp(torch.full(exponent.shape, info.eps), exponent.clamp_min(smallest) - 1)
