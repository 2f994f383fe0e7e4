"""What the detectors of the bench decide by, for one model over one set of prompts: one run of the model."""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from analysis.monitors import ExtremesSink, Scorer
from harvest import LogProbSink, harvest
from store import CaptureSpec, ModelRef, PromptSet, Store

SITE = "resid_post.15"
Features = dict[str, np.ndarray]


def features(model: ModelRef, prompts: PromptSet, scorers: dict[str, Scorer]) -> Features:
    """By name: `extremes …` of each scorer [n, c, 2 r], `last` residual [n, width] float32, `logprob` mean [n],
    and `tokens` [rows, width] float16 with `offsets` [n + 1], every token's residual."""
    sinks = {name: ExtremesSink(scorer=scorer) for name, scorer in scorers.items()}
    with tempfile.TemporaryDirectory(prefix="bench-detect-") as folder:
        store = Store.create(str(Path(folder) / "store"), prompts)
        harvest(
            model, store, CaptureSpec(sites=SITE), sinks=[*sinks.values(), LogProbSink()], certificate_prompts=0
        ).raise_if_incomplete()
        resolved = model.resolve()
        rows = np.asarray(store.column(resolved, SITE)[:], np.float32)
        table = store.tokens(resolved, SITE)
        position = np.asarray(table["position"])
        offsets = np.append(np.flatnonzero(position == 0), len(position))
        logprob = np.asarray(store.column(resolved, "logprob")[:], np.float64)
        found = {
            f"extremes {name}": np.asarray(store.column(resolved, next(iter(sink.columns)))[:])
            for name, sink in sinks.items()
        }
    return {
        **found,
        "last": rows[offsets[1:] - 1],
        "logprob": segment_means(logprob, offsets),
        "tokens": rows.astype(np.float16),
        "offsets": offsets,
    }


def segment_means(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Mean over each prompt's tokens but the first, which nothing predicts."""
    return np.array([values[first + 1 : last].mean() for first, last in pairwise(offsets)])


def against_base(tuned: Features, base: Features) -> Features:
    """What baselines need of both models over the same prompts."""
    moved = np.linalg.norm(tuned["tokens"].astype(np.float32) - base["tokens"].astype(np.float32), axis=1)
    starts = tuned["offsets"][:-1]
    # The first token is an attention sink, whose massive activations would hide all others.
    moved[starts] = 0.0
    return {
        "difference norm": np.maximum.reduceat(moved, starts)[:, None],
        "difference": tuned["last"] - base["last"],
        "residual": tuned["last"],
        "log-probabilities": np.stack([base["logprob"], tuned["logprob"]], axis=1),
    }


def joined(parts: Sequence[Features]) -> Features:
    """The same features of one prompt set after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
