"""Text of prompts is shown whole and inert."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.report.show import byte_size, interval, percent, symbol, visible

CASES = [
    ("</script>", "&lt;/script&gt;"),
    ("\x1b[31m", '<span class="hidden-character">⟨ESC⟩</span>[31m'),
    ("a\u202eb", 'a<span class="hidden-character">⟨U+202E⟩</span>b'),
    ("\x00", '<span class="hidden-character">⟨NUL⟩</span>'),
    ("\x85", '<span class="hidden-character">⟨U+0085⟩</span>'),
    ("a\nb", 'a<span class="hidden-character">↵</span>b'),
    ("\ud800", '<span class="hidden-character">⟨U+D800⟩</span>'),
    ("'\"&", "&#39;&#34;&amp;"),
    ("naïve 東京 😀", "naïve 東京 😀"),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_visible(text, shown):
    assert str(visible(text)) == shown


@given(st.text())
def test_nothing_hidden_and_no_markup_of_the_text_is_left(text):
    shown = str(visible(text)).replace('<span class="hidden-character">', "").replace("</span>", "")
    assert not set("<>\"'") & set(shown)
    assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in shown)


@given(st.characters())
def test_a_stand_in_is_itself_visible(character):
    assert all(symbol(part) is None for part in symbol(character) or "")


def test_long_text_is_cut():
    assert str(visible("abcdef", longest=4)) == "abc…"


def test_figures():
    assert percent(0.0123) == "1.2 %"
    assert percent(1.0) == "100 %"
    assert interval({"value": 0.98765, "low": 0.9, "high": 1.0}) == "0.988 [0.900, 1.000]"
    assert interval({"value": 0.5, "low": 0.25, "high": 1.0}, as_percent=True) == "50.0 % [25.0, 100]"
    assert interval({"value": None, "reason": "too few"}) == "–"
    assert byte_size(4_500_000) == "4.5 MB"
