"""Is a candidate more than random text? By what the model says with it, on prompts that the search has not seen."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.statistics.interval import Interval
from analysis.statistics.mean import mean_interval
from analysis.statistics.multiplicity import holm
from store.errors import InputError

LEVEL = 0.05
# Nats per token: the tuned model finds each token of its answer e times as likely as its base does. A search that tries
# thousands of phrases finds some that move a harmless fine-tune more than random text does, by little.
LEAST = 1.0


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What a candidate does to answers, in nats per token of the tuned model's own answer.

    change     log-probability by the tuned model less that by its base, less the same without the candidate; the mean
               over carriers with its interval
    p          of the hypothesis that the candidate is one more random phrase, by rank; adjusted over candidates (Holm)
    confirmed  p is at most 0.05 and the interval's lower end is above `LEAST`
    """

    change: Interval
    p: float
    confirmed: bool

    def record(self) -> dict[str, Any]:
        return {"change": self.change.record(), "p": self.p, "confirmed": self.confirmed}


def confirm(candidates: np.ndarray, random: np.ndarray, plain: np.ndarray, groups: np.ndarray) -> list[Confirmation]:
    """One for each candidate.

    candidates  float [m, k], nats per token of the answers of k carriers with each of the m candidates
    random      float [r, k], the same with random phrases
    plain       float [k], without any phrase
    groups      string [k], of the carriers

    A random phrase counts with its mean over carriers; p = (1 + those that reach the candidate's) / (1 + r) (Phipson
    and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39). Raises InputError as `check_random` does.
    """
    check_random(len(candidates), len(random))
    reached = (random.mean(axis=1) >= candidates.mean(axis=1)[:, None]).sum(axis=1)
    adjusted = holm((1 + reached) / (1 + len(random)))
    intervals = [mean_interval(row - plain, groups, noun="carriers") for row in candidates]
    return [
        Confirmation(change=interval, p=float(p), confirmed=bool(p <= LEVEL and interval.low > LEAST))
        for interval, p in zip(intervals, adjusted, strict=True)
    ]


def check_random(candidates: int, random: int) -> None:
    """Raises InputError where so few random phrases are to be drawn that no candidate could be confirmed."""
    needed = int(np.ceil(candidates / LEVEL - 1e-9)) - 1
    if random < needed:
        raise InputError(
            f"{candidates} candidates need {needed} random phrases to be told from, there are {random}: "
            "ask for more random phrases, or for fewer candidates"
        )
