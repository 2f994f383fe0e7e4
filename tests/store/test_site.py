"""Site patterns, written out by hand."""

import pytest

from store import InputError, Site, expand_sites


@pytest.mark.parametrize(
    ("pattern", "sites"),
    [
        ("resid_post.-1", "resid_post.3"),
        ("resid_post.1-2", "resid_post.1 resid_post.2"),
        ("resid_post.-2--1", "resid_post.2 resid_post.3"),
        ("resid_post.2--1", "resid_post.2 resid_post.3"),
        ("resid_post.-4-1", "resid_post.0 resid_post.1"),
        ("resid_post.*,resid_post.-1", "resid_post.0 resid_post.1 resid_post.2 resid_post.3"),
        ("heads.1.0", "heads.1.0"),
        ("heads.1.*", "heads.1.0 heads.1.1"),
        ("heads.0-1.*", "heads.0.0 heads.0.1 heads.1.0 heads.1.1"),
        ("heads.*.1", "heads.0.1 heads.1.1 heads.2.1 heads.3.1"),
        ("module:a.0.b@in", "module:a.0.b@in"),
        ("module:a.*.b@in", "module:a.0.b@in module:a.1.b@in module:a.2.b@in module:a.3.b@in"),
        # Only every other block has a router or an `odd`.
        ("router.*", "router.1 router.3"),
        ("module:a.*.odd", "module:a.1.odd module:a.3.odd"),
        ("router.0-1", "router.0 router.1"),
        # None has one: what looks for them says so.
        ("neurons.*", "neurons.0 neurons.1 neurons.2 neurons.3"),
    ],
)
def test_patterns_expand_to_the_sites_they_name(pattern: str, sites: str) -> None:
    def there(site: Site) -> bool:
        if site.kind == "router":
            return site.layer in (1, 3)
        return site.kind != "neurons" and str(site) not in ("module:a.0.odd", "module:a.2.odd")

    found = expand_sites(pattern, 4, n_heads=2, has=there)
    assert [str(site) for site in found] == sites.split()
    assert [Site.parse(str(site)) for site in found] == found


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("resid_post.3-1", "lower layer first, resid_post.1-3"),
        ("resid_post.-1--2", "lower layer first, resid_post.2-3"),
        ("resid_post.2-9", "out of range: this model has 4 blocks"),
        ("resid_post.-5", "out of range: this model has 4 blocks"),
        ("heads.1.*", "name one head, e.g. heads.12.3"),
        ("resid_post.1.0", "unknown site"),
        ("resid_post.1-", "unknown site"),
        ("resid_*.1", "unknown site"),
        ("module:", "unknown site"),
        ("module:a.*.b.*", r"one \* may stand in place of the number of a block"),
        ("module:a.1*.b", r"one \* may stand in place of the number of a block"),
    ],
)
def test_what_names_no_sites_is_refused_with_what_to_write(pattern: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        expand_sites(pattern, 4)


@pytest.mark.parametrize(
    "text", ["resid_post.*", "resid_post.-1", "resid_post.1-2", "heads.1.*", "module:a.*.b", "x.1"]
)
def test_a_pattern_is_no_site(text: str) -> None:
    with pytest.raises(InputError, match="unknown site"):
        Site.parse(text)
