"""The report in a real browser: every part is drawn, nothing complains, and hostile prompts do nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.report import write_report
from tests.cluster.report.run_folder import HOSTILE, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
PARTS = ("summary", "probes", "transfer", "weights", "monitor", "exemplars", "behaviour", "provenance")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1100,900",
]

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"))
    return write_report(folder, folder / "report.html")


def test_every_part_is_drawn_and_the_console_is_silent(browser, page):
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    for part in PARTS:
        section = browser.find_element("id", part)
        assert section.size["height"] > 60, part
        assert not section.find_elements("class name", "missing"), part
    assert len(browser.find_elements("css selector", "#probes svg")) == 2
    assert len(browser.find_elements("css selector", "#transfer svg rect.cell")) == 9
    assert len(browser.find_elements("css selector", "#weights svg")) == 3
    assert browser.find_element("css selector", "#monitor svg").size["height"] > 100


def test_the_style_sheet_passes_the_policy(browser, page):
    browser.get(page.as_uri())
    assert "600" in browser.find_element("tag name", "h1").value_of_css_property("font-weight")
    dot = browser.find_element("css selector", "#probes svg circle.dot.series-1")
    assert dot.value_of_css_property("fill") not in ("none", "rgb(0, 0, 0)")


def test_nothing_but_the_page_itself_is_asked_for(browser, page):
    browser.get_log("performance")
    browser.get(page.as_uri())
    asked = [
        entry["message"] for entry in browser.get_log("performance") if 'Network.requestWillBeSent"' in entry["message"]
    ]
    assert asked
    assert all('"url":"file://' in message or '"url":"data:' in message for message in asked)


def test_hostile_prompts_are_shown_and_inert(browser, page):
    browser.get(page.as_uri())
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.scripts.length") == 0
    assert not browser.find_elements("tag name", "img")
    shown = browser.find_element("id", "exemplars").text
    assert HOSTILE[0] in shown
    assert HOSTILE[1] in shown
    assert "⟨ESC⟩[31malert" in shown
    assert "user⟨U+202E⟩gnp.exe" in shown


def test_the_policy_stops_a_script_that_got_in(browser, page, tmp_path):
    """A control: the same page with a script smuggled in past the escaping does not run it."""
    pierced = tmp_path / "pierced.html"
    pierced.write_text(
        page.read_text(encoding="utf-8").replace("<main>", "<main><script>window.pwned = 1</script>"), encoding="utf-8"
    )
    browser.get(pierced.as_uri())
    assert browser.execute_script("return window.pwned") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser, page, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(page.as_uri())
    body = browser.find_element("tag name", "body")
    ink, paper = (_luminance(body.value_of_css_property(name)) for name in ("color", "background-color"))
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
    assert (paper < 0.5) == (scheme == "dark")


@pytest.mark.parametrize("width", [500, 1100])
def test_the_page_never_scrolls_sideways(browser, page, width):
    browser.set_window_size(width, 900)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(…)` or `rgba(…)`, WCAG 2."""
    red, green, blue = (float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
