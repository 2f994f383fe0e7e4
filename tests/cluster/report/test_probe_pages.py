"""The pages of one fit and of one transfer: figures of the JSON, marks where they belong, nothing that could run."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from analysis.probes.fit import fit_probe
from analysis.statistics.calibration import ReliabilityBin
from analysis.statistics.interval import Interval
from cluster.report.chart_histogram import histogram_chart
from cluster.report.chart_reliability import reliability_chart
from cluster.report.chart_roc import roc_chart
from cluster.report.fit_page import render_fit
from cluster.report.show import interval
from cluster.report.transfer_page import render_transfer
from tests.analysis.probes.study import planted, statements, write
from tests.cluster.report.run_folder import HOSTILE, estimate
from tests.cluster.report.test_page import Tags


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    prompts = statements(60, kinds=("plain", "negated"))
    sites = {"resid_post.1": 0.5, "resid_post.2": 3.0, "attn_out.2": 1.0}
    return write(tmp_path_factory.mktemp("pages") / "store", prompts, planted(prompts, sites))


@pytest.fixture(scope="module")
def fitted(store):
    return fit_probe(store, kind="lda", permutations=9, resamples=50, fprs=(0.1, 0.001))


@pytest.fixture(scope="module")
def page(fitted):
    return render_fit(fitted, store=f"/stores/{HOSTILE[0]}", model=HOSTILE[1], label=HOSTILE[4])


def inert(html: str) -> None:
    found = Tags(html)
    assert not {"script", "img", "iframe", "object", "embed", "form", "base"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
    assert not re.search(r"https?://", html)
    assert "default-src &#39;none&#39;" in html
    assert "\u202e" not in html
    assert "\x1b" not in html


def svgs(html: str) -> dict[str, ElementTree.Element]:
    """The drawings by what a screen reader calls them."""
    found = [ElementTree.fromstring(part) for part in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    return {drawing.get("aria-label", ""): drawing for drawing in found}


def test_the_page_of_a_fit_holds_its_figures(fitted, page):
    inert(page)
    assert fitted.chosen == "resid_post.2"
    for site in [fitted.result, *fitted.sites]:
        assert interval(site.auroc.record()) in page
        assert f"{site.p_adjusted:.3f}" in page
    for gain in fitted.gains.values():
        assert interval(gain.record()) in page
    drawings = svgs(page)
    assert len(drawings) == 5  # two kinds of site, ROC, histogram, reliability
    rings = {name: len(drawing.findall("circle[@class='ring series-1']")) for name, drawing in drawings.items()}
    assert {name for name, count in rings.items() if count} == {"AUROC by layer, resid_post"}
    assert "Refused at 0.1 %" in page
    assert "user⟨U+202E⟩gnp.exe" in page
    assert "&lt;/script&gt;" in page


def test_a_mass_mean_probe_has_no_reliability_curve(store):
    plain = fit_probe(store, kind="mass-mean", permutations=0, resamples=50, baselines=False, site="resid_post.2")
    html = render_fit(plain, store="s", model="m", label="label")
    inert(html)
    assert "No reliability curve" in html
    assert "reliability curve" not in svgs(html)


def test_the_roc_axis_is_logarithmic_and_its_points_have_both_intervals():
    rates, recalls = np.array([0, 0, 0.001, 0.01, 0.1, 1.0]), np.array([0, 0.1, 0.3, 0.5, 0.8, 1.0])
    point = {"fpr": 0.01, "recall": estimate(0.5, 0.1), "realised_fpr": estimate(0.01, 0.005)}
    drawing = ElementTree.fromstring(roc_chart(rates, recalls, [point]))
    curve = drawing.find("path[@class='curve series-1']").get("d")
    xs = [float(step.split()[0]) for step in re.split("[ML]", curve)[1:]]
    assert np.diff(xs[2:]) == pytest.approx(np.diff(xs[2:]).mean(), abs=0.02)  # decades are equally far
    dot = drawing.find("circle[@class='dot series-2']")
    assert float(dot.get("cx")) == pytest.approx(xs[3], abs=0.02)
    assert len(drawing.findall("line[@class='whisker series-2']")) == 2
    assert {text.text for text in drawing.findall("text")} >= {"0.1 %", "1 %", "10 %", "100 %"}


def test_a_long_roc_is_thinned_and_keeps_its_ends():
    rates = np.linspace(0, 1, 50_001)
    drawing = ElementTree.fromstring(roc_chart(rates, np.sqrt(rates), []))
    curve = drawing.find("path[@class='curve series-1']").get("d")
    steps = [tuple(map(float, step.split())) for step in re.split("[ML]", curve)[1:]]
    assert len(steps) <= 802
    assert (steps[0], steps[-1]) == ((38.0, 216.0), (396.0, 30.0))


def test_every_score_is_in_the_histogram_of_its_class():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    scores = np.r_[rng.normal(labels * 2.0, 1.0)[:-1], 80.0]  # one far beyond the axis
    drawing = ElementTree.fromstring(histogram_chart(scores, labels, positive=HOSTILE[0], label="score"))
    for css, wanted in (("dot bad", labels.sum()), ("dot quiet", (~labels).sum())):
        bars = drawing.findall(f"rect[@class='{css}']")
        assert sum(int(bar.find("title").text.split()[0]) for bar in bars) == wanted
    middle = 123.0
    for bar in drawing.findall("rect[@class='dot bad']"):
        assert float(bar.get("y")) + float(bar.get("height")) <= middle + 0.02
    assert all(float(bar.get("y")) == middle for bar in drawing.findall("rect[@class='dot quiet']"))


def test_scores_that_are_all_alike_are_drawn():
    histogram_chart(np.zeros(8), np.arange(8) < 4, positive="yes", label="score")


def test_reliability_stands_where_its_figures_are():
    frequency = Interval(value=0.25, low=0.1, high=0.5, level=0.95, method="m", units=9)
    drawing = ElementTree.fromstring(reliability_chart([ReliabilityBin(probability=0.5, frequency=frequency, rows=20)]))
    dot = drawing.find("circle")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == (217.0, 169.5)


def test_the_page_of_a_transfer_flags_what_is_inverted():
    names = [HOSTILE[0], HOSTILE[4], "larger_than"]
    values = np.array([[0.95, 0.09, 0.52], [0.8, 0.95, 0.5], [0.62, 0.9, 0.91]])
    cells = [
        {"fitted_on": a, "measured_on": b, "sites": ["resid_post.3"], "n": 1200,
         "auroc": estimate(values[i, j], 0.05), "inverted": bool(values[i, j] < 0.5)}
        for i, a in enumerate(names) for j, b in enumerate(names)
    ]  # fmt: skip
    html = render_transfer(cells, title=HOSTILE[2])
    inert(html)
    assert "1 of 6" in html
    assert html.count('<td class="exceeded">inverted') == 1
    assert html.count("not told from chance</td>") == 2
    assert "0.090 ▼" in html
    for cell in cells:
        assert interval(cell["auroc"]) in html
    (drawing,) = svgs(html).values()
    assert len(drawing.findall("rect[@class='cell below']")) == 1
    longest = max(len(text.text) for text in drawing.findall("text[@class='label']"))
    assert longest <= 21


def test_commands_write_their_pages(terminal, store, tmp_path):
    where = tmp_path / "fit.html"
    words = ("probe", "fit", store.path, "--kind", "mass-mean", "--permutations", "0", "--site", "resid_post.2")
    assert terminal.json(*words, "--html", where)["html"] == str(where)
    inert(where.read_text(encoding="utf-8"))
    assert terminal.run(*words, "--html", tmp_path) == 4
    assert "is a folder" in terminal.stderr
    matrix = tmp_path / "transfer.html"
    words = ("probe", "transfer", store.path, "--by", "kind", "--kind", "mass-mean", "--site", "resid_post.2")
    assert terminal.run(*words, "--html", matrix) == 0
    assert "page: " in terminal.stdout
    inert(matrix.read_text(encoding="utf-8"))
