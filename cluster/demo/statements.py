"""True and false statements with checkable truth, of several kinds, affirmative and negated.

In each kind every group (a city; a triple of numbers) has one true and one false statement, and every answer is
given as often truly as falsely: the false answers are a permutation of the true ones. So neither the subject nor the
answer tells the label; only knowing the fact does (Marks & Tegmark, "The Geometry of Truth", arXiv 2310.06824; the
negated forms as in Bürger et al., "Truth is Universal", arXiv 2407.12831).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cluster.demo.cities import City, known_cities
from cluster.demo.numbers import Triple, in_words, triples

KINDS = ("cities", "neg_cities", "larger_than", "neg_larger_than", "smaller_than")
TRIPLES = 200
GREATEST_NUMBER = 999
# Close numbers are beyond a small model, and a wide distance would let the size of the subject tell the label.
NEAREST, WIDEST = 10, 120

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("text", pa.string()),
        ("label", pa.int64()),
        ("kind", pa.string()),
        ("group", pa.string()),
        ("entity", pa.string()),
        ("answer", pa.string()),
    ]
)


def statements(*, seed: int = 0) -> pa.Table:
    """All statements: prompt_id, text, label (1 true, 0 false), kind, group, entity (what a group is), answer."""
    rng = np.random.default_rng(seed)
    cities = known_cities()
    wrong = permuted_countries([city.country for city in cities], rng)
    numbers = list(triples(rng, count=TRIPLES, greatest=GREATEST_NUMBER, nearest=NEAREST, widest=WIDEST))
    rows = [
        *_city_rows("cities", "The city of {} is in {}.", cities, wrong, negated=False),
        *_city_rows("neg_cities", "The city of {} is not in {}.", cities, wrong, negated=True),
        *_number_rows("larger_than", "{} is larger than {}.", numbers, true_is_high=True),
        *_number_rows("neg_larger_than", "{} is not larger than {}.", numbers, true_is_high=False),
        *_number_rows("smaller_than", "{} is smaller than {}.", numbers, true_is_high=False),
    ]
    return pa.Table.from_pylist([{**row, "entity": row["group"]} for row in rows], schema=SCHEMA)


def permuted_countries(true: Sequence[str], rng: np.random.Generator) -> list[str]:
    """A permutation of the countries that leaves none in its place: the false answers.

    A random permutation is mended by swaps until no city is given its own country. Raises ValueError where one country
    has more than half of the cities, for then there is no such permutation.
    """
    countries = np.array(true, dtype=object)
    if max(np.unique(countries, return_counts=True)[1]) * 2 > len(countries):
        raise ValueError("a country with more than half of the cities cannot be permuted away from itself")
    wrong = rng.permutation(countries)
    while (fixed := np.flatnonzero(wrong == countries)).size:
        here, there = fixed[0], int(rng.integers(len(countries)))
        if wrong[there] != countries[here] and wrong[here] != countries[there]:
            wrong[[here, there]] = wrong[[there, here]]
    return list(wrong)


def _city_rows(
    kind: str, form: str, cities: Sequence[City], wrong: Sequence[str], *, negated: bool
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for city, false_country in zip(cities, wrong, strict=True):
        for country in (city.country, false_country):
            rows.append(
                {
                    "prompt_id": f"{kind}-{len(rows):04d}",
                    "text": form.format(city.name, country),
                    "label": int((country == city.country) != negated),
                    "kind": kind,
                    "group": f"city:{city.name}",
                    "answer": country,
                }
            )
    return rows


def _number_rows(kind: str, form: str, numbers: Sequence[Triple], *, true_is_high: bool) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for triple in numbers:
        for subject in (triple.high, triple.low):
            rows.append(
                {
                    "prompt_id": f"{kind}-{len(rows):04d}",
                    "text": form.format(in_words(subject).capitalize(), in_words(triple.middle)),
                    "label": int((subject == triple.high) == true_is_high),
                    "kind": kind,
                    "group": f"numbers:{triple.low}-{triple.middle}-{triple.high}",
                    "answer": in_words(triple.middle),
                }
            )
    return rows
