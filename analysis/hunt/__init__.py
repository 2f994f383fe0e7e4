"""The hunt for triggers: which text fires a monitor and changes what the model says."""

from analysis.hunt.confirm import Confirmation, check_random, confirm
from analysis.hunt.search import Measured, Prober, Search, Searched, ngrams, search, select, shorten, words_of

__all__ = [
    "Confirmation",
    "Measured",
    "Prober",
    "Search",
    "Searched",
    "check_random",
    "confirm",
    "ngrams",
    "search",
    "select",
    "shorten",
    "words_of",
]
