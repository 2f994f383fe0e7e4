"""Sinks through a real harvest of several units: what they keep is what the raw column of the same store gives."""

import itertools
import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import Moments, MomentsSink, ProbeSink, ProjectionSink, read_exemplars, read_moments
from analysis.probes import Probe
from analysis.sinks import ExemplarSink
from analysis.sinks.label_cells import cells_of
from harvest import NumericSettings, harvest, load_tokenizer
from store import CaptureSpec, Direction, InputError, ModelRef, PromptSet, Sink, Store

SITE, WIDTH, FOLDS, N = "resid_post.1", 32, 3, 4
SETTINGS = NumericSettings(threads=1, token_budget=64)
WORDS = [
    "Paris",
    "is",
    "in",
    "France",
    "and",
    "two",
    "plus",
    "two",
    "is",
    "four",
    "says",
    "the",
    "city",
    "of",
    "what",
    "it",
    "was",
]


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.unit.PROMPTS_PER_UNIT", 8)


@pytest.fixture
def prompts() -> PromptSet:
    rng = np.random.default_rng(0)
    return PromptSet.from_rows(
        [
            {
                "prompt_id": f"p{row}",
                "text": " ".join(rng.choice(WORDS, rng.integers(1, 12))),
                "group": f"g{row // 2}",
                "truth": None if row % 9 == 8 else ["yes", "no", "maybe"][row % 3],
            }
            for row in range(36)
        ]
    )


@pytest.fixture
def model(save_tiny: Callable[[str], str]) -> ModelRef:
    return ModelRef(save_tiny("llama"), dtype="float32").resolve()


def directions() -> tuple[Direction, ...]:
    rng = np.random.default_rng(1)
    sites = [SITE, "mlp_in.2", SITE]
    return tuple(
        Direction(name=f"d{n}", site=site, vector=rng.standard_normal(WIDTH).astype(np.float32))
        for n, site in enumerate(sites)
    )


def all_sinks(prompts: PromptSet, model: ModelRef) -> list[Sink]:
    rng = np.random.default_rng(2)
    none = np.zeros(0, np.uint64)
    probe = Probe(
        site=SITE, kind="lda", label="truth", positive="yes", model=model.digest, centre=rng.standard_normal(WIDTH),
        scale=rng.uniform(1, 2, WIDTH), weight=rng.standard_normal(WIDTH), bias=-0.5, thresholds={}, trained=none,
        calibrated=none,
    )  # fmt: skip
    moments = MomentsSink.of(prompts, sites=[SITE, "heads.2"], label="truth", folds=FOLDS, second_moments=True)
    return [
        *moments,
        ProjectionSink(directions=directions()),
        ProjectionSink(directions=directions(), reduce="max"),
        ProbeSink(probe=probe),
        ExemplarSink(directions=directions(), n=N),
    ]


@pytest.fixture
def run(prompts: PromptSet, model: ModelRef, tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "run", prompts)
    spec = CaptureSpec(sites=f"{SITE},heads.2,mlp_in.2")
    sinks = all_sinks(prompts, model)
    harvest(model, store, spec, sinks=sinks, settings=SETTINGS, certificate_prompts=0).raise_if_incomplete()
    assert len(store.units) == 5
    return store


@pytest.mark.parametrize("site", [SITE, "heads.2"])
def test_merged_moments_are_those_of_the_raw_column(run: Store, model: ModelRef, site: str) -> None:
    raw = np.asarray(run.column(model, site)).astype(np.float64)
    raw = raw.reshape(len(raw), -1)
    owner = run.tokens(model, site).column("prompt").to_numpy()
    moments = read_moments(run, model, f"moments.{site}", second_moments=True)
    assert (moments.label, moments.values) == ("truth", ("maybe", "no", "yes"))
    cell = cells_of(run.prompts.table, label="truth", values=moments.values, folds=FOLDS)[owner]
    assert moments.count.sum() == (cell >= 0).sum() < len(cell)
    assert moments.covariance is not None
    for place, (value, fold) in enumerate(itertools.product(range(3), range(FOLDS))):
        rows = raw[cell == place]
        assert moments.count[value, fold] == len(rows) > 1
        np.testing.assert_allclose(moments.mean[value, fold], rows.mean(0), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(moments.variance[value, fold], rows.var(0), rtol=1e-6, atol=1e-9)
        exact = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(moments.covariance[value, fold], exact, rtol=1e-6, atol=1e-6 * abs(exact).max())


def test_units_merge_in_any_order(run: Store, model: ModelRef) -> None:
    counts, values = (run.column(model, f"{name}.{SITE}").per_unit() for name in ("moments-count", "moments"))
    units = [
        Moments(label="truth", values=("maybe", "no", "yes"), count=n, mean=v[:, :, 0], variance=v[:, :, 1])
        for n, v in zip(counts, values, strict=True)
    ]
    whole = read_moments(run, model, f"moments.{SITE}")
    assert whole.covariance is None
    for order in itertools.islice(itertools.permutations(units), 0, 120, 7):
        merged = reduce(Moments.merge, order)
        np.testing.assert_array_equal(merged.count, whole.count)
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(merged.variance, whole.variance, rtol=1e-9)


def test_scores_are_those_of_the_raw_columns(run: Store, model: ModelRef, prompts: PromptSet) -> None:
    *_, tokens, prompt_max, probe, _ = all_sinks(prompts, model)
    exact = np.stack(
        [
            np.asarray(run.column(model, d.site)).astype(np.float64) @ (d.vector / np.linalg.norm(d.vector))
            for d in directions()
        ],
        axis=1,
    )
    np.testing.assert_allclose(np.asarray(run.column(model, *tokens.columns)), exact, rtol=1e-4, atol=1e-4)
    owner = run.tokens(model, SITE).column("prompt").to_numpy()
    most = np.stack([exact[owner == prompt].max(0) for prompt in range(36)])
    np.testing.assert_allclose(np.asarray(run.column(model, *prompt_max.columns)), most, rtol=1e-4, atol=1e-4)
    assert isinstance(probe, ProbeSink)
    own = probe.probe.scores(run.column(model, SITE))
    np.testing.assert_allclose(np.asarray(run.column(model, *probe.columns)), own, rtol=1e-6, atol=1e-6)


def test_exemplars_of_the_whole_store(run: Store, model: ModelRef, prompts: PromptSet) -> None:
    sink = all_sinks(prompts, model)[-1]
    tokenizer = load_tokenizer(model)
    found = read_exemplars(run, model, next(iter(sink.columns)), decode=tokenizer.decode, window=3)
    assert [entry.direction for entry in found] == ["d0", "d1", "d2"]
    for direction, entry in zip(directions(), found, strict=True):
        scores = np.asarray(run.column(model, direction.site)) @ direction.vector / np.linalg.norm(direction.vector)
        table = run.tokens(model, direction.site)
        owner, position = table.column("prompt").to_numpy(), table.column("position").to_numpy()
        for exemplars, sign in ((entry.top, 1), (entry.bottom, -1)):
            best = [max(sign * scores[(owner == prompt) & (position > 0)]) for prompt in range(36)]
            ranked = np.argsort(-np.array(best))[:N]
            assert [exemplar.prompt for exemplar in exemplars] == ranked.tolist()
            for exemplar in exemplars:
                row = int(np.flatnonzero((owner == exemplar.prompt) & (position == exemplar.position))[0])
                assert exemplar.prompt_id == f"p{exemplar.prompt}"
                assert exemplar.score == pytest.approx(scores[row], rel=1e-4, abs=1e-4)
                assert exemplar.token_id == table.column("token_id")[row].as_py()
                around = exemplar.before + exemplar.token + exemplar.after
                whole = tokenizer.decode(table.column("token_id").to_numpy()[owner == exemplar.prompt])
                assert around in whole


def test_removed_cells_come_back_the_same_and_nothing_raw_is_needed(
    prompts: PromptSet, model: ModelRef, tmp_path: Path
) -> None:
    store = Store.create(tmp_path / "run", prompts)

    def go() -> Any:
        return harvest(model, store, None, sinks=all_sinks(prompts, model), tokens="last", settings=SETTINGS)

    first = go().raise_if_incomplete()
    assert SITE not in store.columns
    assert first.tokens == sum(receipt.tokens for receipt in store.receipts())
    assert len(store.column(model, *all_sinks(prompts, model)[2].columns)) == 36
    assert go().computed_tokens == 0
    for receipt in list(store.receipts())[1:3]:
        (tmp_path / "run" / "receipts" / receipt.model / receipt.unit / f"{receipt.capture}.json").unlink()
        shutil.rmtree(tmp_path / "run" / receipt.folder)
    again = go().raise_if_incomplete()
    assert again.digest == first.digest
    assert 0 < again.computed_tokens < first.computed_tokens


def test_sites_and_second_moments_added_later_compute_only_themselves(
    prompts: PromptSet, model: ModelRef, tmp_path: Path
) -> None:
    store = Store.create(tmp_path / "run", prompts)
    for sites, more in (([SITE], False), ([SITE, "mlp_in.2"], False), ([SITE], True)):
        sinks = MomentsSink.of(prompts, sites=sites, label="truth", folds=2, second_moments=more)
        harvest(model, store, None, sinks=sinks, settings=SETTINGS).raise_if_incomplete()
    assert [len(capture.names) for capture in store.captures] == [2, 2, 1]
    whole = read_moments(store, model, f"moments.{SITE}", second_moments=True)
    assert whole.covariance is not None
    np.testing.assert_allclose(np.diagonal(whole.covariance, axis1=2, axis2=3), whole.variance, rtol=1e-12)
    with pytest.raises(InputError, match="folds was 2, now 3"):
        harvest(model, store, None, sinks=MomentsSink.of(prompts, sites=[SITE], label="truth", folds=3))


def test_what_is_no_such_column_is_refused(run: Store, model: ModelRef) -> None:
    with pytest.raises(InputError, match="holds no moments"):
        read_moments(run, model, SITE)
    with pytest.raises(InputError, match="no column 'moments.resid_post.9'"):
        read_moments(run, model, "moments.resid_post.9")
    with pytest.raises(InputError, match="holds no exemplars"):
        read_exemplars(run, model, SITE, decode=str)
