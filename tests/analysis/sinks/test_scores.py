"""Projections, probe scores and exemplars against numpy in float64, batches in any order."""

from typing import Any

import numpy as np
import pytest
import torch

from analysis.probes import Probe
from analysis.sinks import ExemplarSink, ExtremesSink, ProbeSink, ProjectionSink
from analysis.sinks.scoring import Reference, Scorer, prompt_extremes, token_extremes
from store import Direction, InputError, PromptSet, SinkBatch
from store.sink import ROLES
from tests.analysis.sinks.batches import feed, shuffled_batches

SITE, WIDTH = "resid_post.2", 16
PROMPTS = PromptSet.from_rows([{"text": f"prompt {row}"} for row in range(40)])


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    # Prompt 11 has no rows: it was quarantined.
    owner = np.repeat(np.arange(40), np.where(np.arange(40) == 11, 0, rng.integers(1, 9, 40)))
    values = rng.standard_normal((len(owner), WIDTH))
    values[:, 4] = 1000 + 30 * values[:, 4]
    return values.astype(np.float32), owner


@pytest.fixture
def directions() -> tuple[Direction, ...]:
    rng = np.random.default_rng(1)
    return tuple(
        Direction(name=f"d{n}", site=SITE, vector=(2 * rng.standard_normal(WIDTH)).astype(np.float32)) for n in range(3)
    )


def projections(rows: np.ndarray, directions: tuple[Direction, ...]) -> np.ndarray:
    vectors = np.stack([direction.vector for direction in directions]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(rows.astype(np.float64) @ vectors.T)


def per_prompt(values: np.ndarray, owner: np.ndarray, how: Any) -> np.ndarray:
    none = np.full(values.shape[1:], np.nan)
    return np.stack([how(values[owner == p], axis=0) if (owner == p).any() else none for p in range(40)])


@pytest.mark.parametrize(("reduce", "how"), [("none", None), ("max", np.max), ("mean", np.mean)])
def test_projections(rows: tuple[Any, Any], directions: tuple[Direction, ...], reduce: str, how: Any) -> None:
    values, owner = rows
    sink = ProjectionSink(directions=directions, reduce=reduce)
    (found,) = feed(sink, PROMPTS, values, owner, shuffled_batches(40, 7, seed=2)).values()
    exact = projections(values, directions)
    assert found.dtype == np.float32
    assert list(sink.columns.values()) == ["token" if reduce == "none" else "prompt"]
    np.testing.assert_allclose(found, exact if how is None else per_prompt(exact, owner, how), atol=2e-3, rtol=2e-6)


@pytest.fixture
def probe() -> Probe:
    rng = np.random.default_rng(3)
    scale = rng.uniform(0.5, 30, WIDTH)
    scale[7] = np.inf  # a feature that never varied
    return Probe(
        site=SITE, kind="logistic", label="truth", positive="1", model="0" * 64,
        centre=np.where(np.arange(WIDTH) == 4, 1000, 0.0), scale=scale, weight=rng.standard_normal(WIDTH), bias=0.3,
        thresholds={}, trained=np.zeros(0, np.uint64), calibrated=np.zeros(0, np.uint64),
    )  # fmt: skip


@pytest.mark.parametrize(("reduce", "how"), [("none", None), ("max", np.max), ("mean", np.mean)])
def test_probe_scores_are_the_probes_own(
    rows: tuple[Any, Any], probe: Probe, reduce: str, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.sinks.probe_sink.BLOCK_ROWS", 3)
    values, owner = rows
    (found,) = feed(
        ProbeSink(probe=probe, reduce=reduce), PROMPTS, values, owner, shuffled_batches(40, 7, seed=2)
    ).values()
    exact = probe.scores(values)
    np.testing.assert_allclose(found, exact if how is None else per_prompt(exact, owner, how), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 5, 60])
def test_exemplars_are_the_best_of_every_prompts_best(
    rows: tuple[Any, Any], directions: tuple[Direction, ...], n: int
) -> None:
    values, owner = rows
    values[np.flatnonzero(owner == 20)[-1], 0] = np.nan
    values[np.flatnonzero(owner == 21)[-1], 0] = np.inf
    sink = ExemplarSink(directions=directions, n=n)
    scores, places = feed(sink, PROMPTS, values, owner, shuffled_batches(40, 7, seed=2)).values()
    assert scores.shape == (3, 2, n)
    assert places.shape == (3, 2, n, 3)
    exact = projections(values, directions)
    first = np.concatenate([np.arange(count) for count in np.bincount(owner, minlength=40)])
    alone = np.bincount(owner, minlength=40)[owner] == 1
    for place in range(3):
        for side, sign in ((0, 1), (1, -1)):
            best = []
            for prompt in range(40):
                scored = np.flatnonzero((owner == prompt) & ((first > 0) | alone))
                if len(scored) and np.isfinite((sign * exact[scored, place]).max()):
                    token = scored[np.argmax(sign * exact[scored, place])]
                    best.append((exact[token, place], prompt, first[token], 1000 + token))
            best = sorted(best, key=lambda entry: -sign * entry[0])[:n]
            filled = len(best)
            np.testing.assert_allclose(scores[place, side, :filled], [entry[0] for entry in best], atol=1e-3)
            np.testing.assert_array_equal(places[place, side, :filled], [entry[1:] for entry in best])
            assert np.isnan(scores[place, side, filled:]).all()
            assert (places[place, side, filled:] == -1).all()


def test_exemplars_and_extremes_are_of_the_same_tokens(
    rows: tuple[Any, Any], directions: tuple[Direction, ...]
) -> None:
    values, owner = rows
    order = shuffled_batches(40, 9, seed=4)
    # Every prompt begins with its own token id here, so that the prefix is the first prompt's alone.
    prefix = (1000, 1001, 1002)
    extremes, positions = feed(
        ExtremesSink(scorer=Scorer(directions=directions, prefix=prefix)), PROMPTS, values, owner, order
    ).values()
    scores, places = feed(
        ExemplarSink(directions=directions, n=40, scoring="cosine", prefix=prefix), PROMPTS, values, owner, order
    ).values()
    for place in range(3):
        for side, sign in ((0, 1), (1, -1)):
            prompt, position = places[place, side, :39, 0], places[place, side, :39, 1]
            np.testing.assert_array_equal(scores[place, side, :39], sign * extremes[prompt, place, side])
            np.testing.assert_array_equal(position, positions[prompt, place, side])


def test_names_and_settings_follow_the_directions(directions: tuple[Direction, ...]) -> None:
    turned = (Direction(name="d0", site=SITE, vector=-directions[0].vector), *directions[1:])
    for make in (lambda d: ProjectionSink(directions=d), lambda d: ExemplarSink(directions=d, n=2)):
        assert make(directions).columns == make(tuple(directions)).columns
        assert make(directions).columns != make(turned).columns
        assert make(directions).columns != make(directions[::-1]).columns
        assert "d1" in str(make(directions).settings())
    assert ProjectionSink(directions=directions).columns != ProjectionSink(directions=directions, reduce="max").columns


def test_what_does_not_fit_is_refused(rows: tuple[Any, Any], directions: tuple[Direction, ...], probe: Probe) -> None:
    values, owner = rows
    narrow = values[:, :5]
    for sink in (
        ProjectionSink(directions=directions),
        ProbeSink(probe=probe),
        ExemplarSink(directions=directions, n=2),
    ):
        with pytest.raises(InputError, match="5"):
            feed(sink, PROMPTS, narrow, owner, [[0, 1]])
    with pytest.raises(InputError, match="use none, max, mean"):
        feed(ProjectionSink(directions=directions, reduce="last"), PROMPTS, values, owner, [[0]])
    with pytest.raises(InputError, match="at least 1"):
        ExemplarSink(directions=directions, n=0)


@pytest.mark.parametrize("kind", ["cosine", "mahalanobis"])
@pytest.mark.parametrize("roles", [("all",), ("user", "assistant")])
def test_a_token_as_a_prompt_of_its_own(kind: str, roles: tuple[str, ...]) -> None:
    rng = np.random.default_rng(4)
    directions = tuple(
        Direction(name=f"d{n}", site=f"resid_post.{n // 2}", vector=rng.standard_normal(WIDTH).astype(np.float32))
        for n in range(4)
    )
    whitened = Reference(origin=np.zeros(2), whitening=np.eye(2))
    reference = {"resid_post.0": whitened, "resid_post.1": whitened} if kind == "mahalanobis" else {}
    scorer = Scorer(directions=directions, kind=kind, roles=roles, prefix=None, reference=reference)
    role = rng.integers(0, len(ROLES), 50).astype(np.int8)
    batch = SinkBatch(
        activations={
            site: torch.from_numpy(rng.standard_normal((50, WIDTH)).astype(np.float32)) for site in scorer.sites
        },
        prompt=np.arange(50, dtype=np.int32),
        position=np.zeros(50, np.int32),
        token_id=np.zeros(50, np.int32),
        role=role,
    )
    np.testing.assert_array_equal(token_extremes(batch, scorer), prompt_extremes(batch, scorer).value)
