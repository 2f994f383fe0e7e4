"""Shares of variance along channels against two passes of float64 numpy, over units, with massive activations."""

from typing import Any

import numpy as np
import pytest

from analysis.monitors import Reference, Scorer
from analysis.monitors.variance import VarianceShare, VarianceSink
from store import PromptSet
from store.direction import Direction
from store.sink import ROLES
from tests.analysis.sinks.batches import feed, shuffled_batches

SITES, WIDTH, COUNT = ("resid_post.1", "mlp_in.2"), 12, 30
USER, ASSISTANT = ROLES.index("user"), ROLES.index("assistant")
UNITS = [PromptSet.from_rows([{"text": f"{unit} {row}"} for row in range(COUNT)]) for unit in range(3)]
BROKEN = 7  # prompt of the second unit


def rows_of(unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose mean is a hundred thousand times the spread of most, their prompts and roles."""
    rng = np.random.default_rng(unit)
    owner = np.repeat(np.arange(COUNT), rng.integers(3, 9, COUNT))
    rows = rng.standard_normal((len(owner), WIDTH)) @ np.random.default_rng(9).standard_normal((WIDTH, WIDTH))
    rows[:, 2] = 1e5 * (1 + unit) + rows[:, 2]
    rows[:, 4] *= 30
    return rows.astype(np.float32), owner, rng.choice([0, USER, ASSISTANT], len(owner))


def directions() -> tuple[Direction, ...]:
    """Five at two sites in turn, of any length; the last all but repeats the first of its site."""
    vectors = np.random.default_rng(1).standard_normal((5, WIDTH))
    vectors[4] = -3 * vectors[0] + 1e-9 * vectors[2]
    return tuple(
        Direction(name=f"d{n}", site=SITES[n % 2], vector=vector.astype(np.float32)) for n, vector in enumerate(vectors)
    )


def shares(scorer: Scorer, *, broken: bool = False) -> list[VarianceShare | None]:
    """By the sink, unit by unit in batches of several sizes."""
    sink, columns = VarianceSink(scorer=scorer), []
    for number, prompts in enumerate(UNITS):
        rows, owner, role = rows_of(number)
        if broken and number == 1:
            rows[np.flatnonzero(owner == BROKEN)[-1], 0] = np.inf
        columns.append(feed(sink, prompts, rows, owner, shuffled_batches(COUNT, 5 + number, seed=number), role))
    return sink.shares([np.concatenate([unit[name] for unit in columns]) for name in sink.columns])


def exact(roles: tuple[int, ...], *, first: bool = False, without: tuple[int, int] | None = None) -> np.ndarray:
    """All counted rows, float64; the first token of a prompt counts with `first` only."""
    found = []
    for number in range(3):
        rows, owner, role = rows_of(number)
        counted = np.isin(role, roles) & (first | (np.diff(owner, prepend=-1) == 0))
        if without is not None and without[0] == number:
            counted &= owner != without[1]
        found.append(rows[counted].astype(np.float64))
    return np.concatenate(found)


def expected(rows: np.ndarray, vectors: np.ndarray) -> float:
    basis, sizes, _ = np.linalg.svd(vectors.T.astype(np.float64), full_matrices=False)
    basis = basis[:, sizes > 1e-6 * sizes[0]]
    centred = rows - rows.mean(0)
    return float(np.sum((centred @ basis) ** 2) / np.sum(centred**2))


@pytest.mark.parametrize("kind", ["cosine", "projection", "centred"])
@pytest.mark.parametrize("roles", [("all",), ("user",), ("user", "assistant")])
@pytest.mark.parametrize("prefix", [(), None])
def test_a_direction_has_the_share_of_two_passes(kind: str, roles: tuple[str, ...], prefix: Any) -> None:
    origin = {site: Reference(origin=np.full(WIDTH, 5.0)) for site in SITES} if kind == "centred" else {}
    found = shares(Scorer(directions=directions(), kind=kind, roles=roles, prefix=prefix, reference=origin))
    codes = tuple(range(len(ROLES))) if roles == ("all",) else tuple(ROLES.index(role) for role in roles)
    rows = exact(codes, first=prefix is None)
    for direction, share in zip(directions(), found, strict=True):
        assert share is not None
        assert share.share == pytest.approx(expected(rows, direction.vector[None]), rel=1e-9)
        assert (share.isotropic, share.tokens) == (1 / WIDTH, len(rows))


def test_a_subspace_has_the_share_of_its_span() -> None:
    reference = {
        site: Reference(origin=np.zeros(k), whitening=np.eye(k)) for site, k in zip(SITES, (3, 2), strict=True)
    }
    found = shares(Scorer(directions=directions(), kind="mahalanobis", reference=reference))
    rows = exact(tuple(range(len(ROLES))))
    for site, share in zip(SITES, found, strict=True):
        assert share is not None
        vectors = np.stack([d.vector for d in directions() if d.site == site])
        assert share.share == pytest.approx(expected(rows, vectors), rel=1e-6)
        assert share.isotropic == 2 / WIDTH  # one of the three at the first site repeats another


def test_a_prompt_that_is_not_finite_is_left_out_whole() -> None:
    scorer = Scorer(directions=directions())
    rows = exact(tuple(range(len(ROLES))), without=(1, BROKEN))
    found = shares(scorer, broken=True)
    assert found[0] is not None
    assert found[0].tokens == len(rows)
    assert found[0].share == pytest.approx(expected(rows, directions()[0].vector[None]), rel=1e-9)


def test_nothing_that_varies_has_no_share() -> None:
    sink = VarianceSink(scorer=Scorer(directions=directions()))
    owner = np.repeat(np.arange(COUNT), 3)
    given = [
        (np.ones((90, WIDTH), np.float32), [list(range(COUNT))]),  # alike everywhere
        (np.ones((90, WIDTH), np.float32), []),  # no prompt could be run
    ]
    for rows, order in given:
        found = feed(sink, UNITS[0], rows, owner, order)
        assert sink.shares([found[name] for name in sink.columns]) == [None] * 5
