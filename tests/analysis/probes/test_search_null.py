"""P-values of probes on noise are valid: every shuffle is fitted anew."""

import numpy as np

from analysis.probes.examples import labelled
from analysis.probes.folds import deal_folds
from analysis.probes.rows import Rows
from analysis.probes.search_null import SearchNull
from tests.analysis.probes.study import planted, statements


def test_noise_is_significant_no_more_often_than_it_should():
    prompts = statements(24)
    examples = labelled(prompts, label="label")
    folds = deal_folds(examples.group, examples.label, folds=4)
    every = np.arange(len(examples))
    p = []
    for seed in range(80):
        null = SearchNull(examples=examples, folds=folds, kind="lda", shuffles=19, seed=seed)
        for name, values in planted(prompts, {"a": 0.0, "b": 0.0, "c": 0.0}, width=6, seed=seed).items():
            null.add(Rows(site=name, source=values, chosen=every, example=every))
        p.append(null.p_adjusted().min())
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 3 * np.sqrt(0.09 / 80)
    assert 0.35 < np.mean(p) < 0.7
