"""Whether weights lie on the few levels of a quantisation, told from a sample of their values alone.

A uniform quantisation stores integers times a step, the step shared by a group: 16 to 256 neighbours of a row, a
row, a column, or the whole tensor. A value of the group that is largest in size is then k steps for some small k, so
every step worth trying is that value over 1, 2, … 255, and the right one leaves remainders far smaller than those
of values that lie anywhere (uniform in ±1/2, mean square 1/12). Codebooks whose levels are not evenly spaced (NF4,
8-bit floats, grids with an offset) show in how few values a group takes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LARGEST = 255  # steps from zero to the largest value of an 8-bit code
SIZES = (16, 32, 64, 128, 256)  # sizes of groups in use
EVEN = 0.15  # mean square remainder, as a share of that of values off any grid
CODES = 256  # values of an 8-bit codebook
SCREENED, TESTED, LINE = 4, 32, 512  # groups looked at first and then, entries of a line looked at
MOST = 0.9  # share of the groups that must be on a grid


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The levels that weights lie on.

    levels  values that a group spans (even steps) or takes (a codebook), at most, in the sample
    place   what shares a step: `group of 32 along its rows`, `row`, `column`, `tensor`
    step    median distance between neighbouring levels; 0 for a codebook of uneven levels
    """

    levels: int
    place: str
    step: float

    def __str__(self) -> str:
        return f"{self.levels} levels per {self.place}, " + (f"step {self.step:.2g}" if self.step else "uneven")


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """How one group lies on its best grid: levels spanned, and the step (0 where uneven)."""

    levels: int
    step: float


_Test = Callable[[np.ndarray], "_Fit | None"]


def find_grid(sample: np.ndarray, precision: float) -> Grid | None:
    """The grid of a sample of neighbouring rows [rows, columns] as stored; None where there is none.

    `precision` is the eps of the dtype that the values were rounded to: a level of q steps is off by up to q eps / 2
    steps, so only levels near zero are tested.
    """
    reach = 0.4 / precision

    def even(group: np.ndarray) -> _Fit | None:
        return _even_steps(group, reach)

    steps, codes = _best_axis(sample, even, 16), _best_axis(sample, _few_values, 32)
    # a fine enough step fits the few values of any codebook: it counts where it has not many more levels than values
    return codes if steps is None or (codes is not None and steps.levels > 4 * codes.levels) else steps


def _best_axis(sample: np.ndarray, test: _Test, smallest: int) -> Grid | None:
    """The grid whose groups lie along rows or along columns, whichever has the larger groups."""
    found = [
        (size, size == lines.shape[1], line, fits)
        for line, lines in (("row", sample), ("column", sample.T))
        for size, fits in [_largest_group(lines, test, smallest)]
        if fits
    ]
    if not found:
        return None
    size, whole, line, fits = max(found, key=lambda entry: entry[0])
    steps = [fit.step for fit in fits]
    place = line if whole else f"group of {size} along its {line}s"
    if whole and steps[0] and np.ptp(steps) <= 0.01 * np.median(steps):
        place = "tensor"
    return Grid(levels=max(fit.levels for fit in fits), place=place, step=_median_step(fits))


def _largest_group(lines: np.ndarray, test: _Test, smallest: int) -> tuple[int, list[_Fit]]:
    """(size, fits) of the largest groups along `lines` [lines, entries] that pass; (0, []) where none do."""
    whole = lines.shape[1]
    found: tuple[int, list[_Fit]] = (0, [])
    sizes = [size for size in SIZES if smallest <= size < whole] + [whole] * (whole >= smallest)
    for size in sizes:
        fits = _passing(lines, size, test)
        if fits and (not found[0] or _median_step(fits) >= 0.75 * _median_step(found[1])):
            found = (size, fits)
        elif found[0] or test is not _few_values:
            # groups with steps of their own still have a fine common one: that is not a larger group
            return found
        else:
            # a codebook of 256 levels cannot be seen in few values: there the whole line decides
            fits = _passing(lines, whole, test)
            return (whole, fits) if fits else found
    return found


def _median_step(fits: list[_Fit]) -> float:
    return float(np.median([fit.step for fit in fits]))


def _passing(lines: np.ndarray, size: int, test: _Test) -> list[_Fit]:
    """The fits of groups of one size, none where too few of them pass. A few groups decide whether more are read."""
    whole = lines.shape[1] // size
    total = lines.shape[0] * whole
    fits: list[_Fit] = []
    for count, share in ((SCREENED, 0.5), (TESTED, MOST)):
        fits, tested = [], 0
        allowed = (1 - share) * count
        for index in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)):
            row, column = divmod(int(index), whole)
            group = lines[row, column * size : (column + 1) * size]
            group = group[group != 0]  # zero is on every grid, and pruned weights are many zeros
            if len(group) < 8:
                continue
            tested += 1
            fit = test(group)
            if fit is not None:
                fits.append(fit)
            elif tested - len(fits) > allowed:
                return []
        if len(fits) < share * tested:
            return []
    return fits


def _even_steps(group: np.ndarray, reach: float) -> _Fit | None:
    """The widest step that all values of a group (nonzero, [n]) are whole multiples of; None where there is none."""
    if len(group) > LINE:
        group = np.append(group[:: len(group) // LINE], group[np.abs(group).argmax()])
    group = group.astype(np.float64)
    step = np.abs(group).max() / np.arange(1, LARGEST + 1)[:, None]  # [255, 1]
    multiple = np.rint(group / step)  # [255, n]
    near = np.abs(multiple) <= reach
    square = np.sum(near * multiple**2, axis=1, keepdims=True)
    step = np.sum(near * multiple * group, axis=1, keepdims=True) / np.maximum(square, 1)
    ratio = group / np.where(step > 0, step, np.inf)
    # a value that is none of zero but nearest to it is off the grid, or one outlier would make a grid of anything
    remainder = np.where(multiple == 0, 0.5, ratio - multiple)
    tested = near.sum(axis=1)
    spread = 12 * np.sum(near * remainder**2, axis=1) / np.maximum(tested, 1)
    passing = np.flatnonzero((spread <= EVEN) & (tested >= max(6, len(group) / 4)))
    if len(passing) == 0:
        return None
    best = passing[0]
    codes = np.append(multiple[best], 0)
    return _Fit(levels=int(codes.max() - codes.min()) + 1, step=float(step[best, 0]))


def _few_values(group: np.ndarray) -> _Fit | None:
    """A codebook: values that recur, 16 of them at most among few and 256 among many."""
    group = group[: 4 * CODES]
    count = len(np.unique(group))
    most = CODES if len(group) >= 4 * CODES else 16
    return _Fit(levels=count, step=0.0) if count <= min(most, len(group) // 2) else None
