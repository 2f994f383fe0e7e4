"""The page of a run folder: every part from its JSON, a line for what is missing, nothing that could run."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from cluster.report import write_report
from cluster.report.chart_matrix import verdict
from cluster.report.folder import RunFolder, read_folder
from cluster.report.monitor_part import monitor_rates
from cluster.report.summary import summary
from cluster.report.topics import ProbeTopic, probe_topics
from store import InputError
from tests.cluster.report.run_folder import HOSTILE, estimate, write_run


class Tags(HTMLParser):
    """All tags and attributes that a browser would see."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run):
    return write_report(run, run / "report.html").read_text(encoding="utf-8")


def test_the_figures_of_the_json_are_on_the_page(html):
    for figure in (
        "0.950 [0.930, 0.970]",
        "0.900 [0.880, 0.920]",
        "0.090 ▼",
        "0.500 ~",
        "ab" * 32,
        "100 % [97.0, 100]",
    ):
        assert figure in html, figure
    assert "Refused at 1 %: 40 control groups, 100 needed." in html
    assert "every error is within its bound" in html


def test_nothing_on_the_page_can_run_or_load(html):
    found = Tags(html)
    assert not {"script", "img", "iframe", "object", "embed", "form", "base"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
    assert not re.search(r"https?://", html)


def test_the_policy_allows_the_style_sheet_by_its_hash_and_nothing_else(html):
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1).replace("&#39;", "'")
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_hostile_strings_are_escaped(html):
    assert html.count("<style>") == 1
    for text in HOSTILE[:3]:
        assert text not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "{{ 7 * 7 }}" in html


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("transfer.json", "thresher probe transfer"),
        ("info.json", "thresher info"),
        ("delta/delta.json", "thresher weights"),
    ],
)
def test_a_missing_part_names_its_command(tmp_path, file, command):
    run = write_run(tmp_path)
    (run / file).unlink()
    html = write_report(run, run / "report.html").read_text(encoding="utf-8")
    assert re.search(rf'class="missing">Not in this folder. <code>{command}', html)


def test_an_incomplete_store_and_a_broken_certificate_lead_the_news(tmp_path):
    run = write_run(tmp_path)
    harvest = json.loads((run / "harvest.json").read_text())
    harvest["complete"] = False
    harvest["certificate"]["ok"] = False
    (run / "harvest.json").write_text(json.dumps(harvest))
    html = write_report(run, run / "report.html").read_text(encoding="utf-8")
    summary = html[html.index('id="summary"') : html.index('id="probes"')]
    assert "incomplete" in summary
    assert "do not trust these activations" in summary


def test_a_probe_that_does_not_beat_its_baselines_is_no_success(tmp_path):
    run = write_run(tmp_path)
    for file in run.glob("cities.*.json"):
        record = json.loads(file.read_text())
        record["baselines"]["bag_of_words"] = estimate(0.95)
        file.write_text(json.dumps(record))
    html = write_report(run, run / "report.html").read_text(encoding="utf-8")
    assert "does not clearly beat its baselines" in html


def test_one_file_is_enough(tmp_path, run):
    (tmp_path / "some.json").write_text((run / "cities.logistic.json").read_text())
    html = write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count('class="missing"') == 6


def test_other_json_is_passed_over_and_an_empty_folder_refused(tmp_path):
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no JSON of a thresher command"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        read_folder(tmp_path / "absent")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json is not readable JSON"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.3, "inverted"), (0.4, 0.6, "chance"), (0.3, 0.5, "chance"), (0.51, 0.9, "")]
)
def test_a_transfer_is_inverted_only_where_its_whole_interval_is_below_one_half(low, high, said):
    assert verdict({"auroc": {"value": (low + high) / 2, "low": low, "high": high}}) == said


@pytest.mark.parametrize(
    ("low", "high", "target", "tone"),
    [
        (0.0, 0.01, 0.01, "good"),
        (0.0, 0.03, 0.01, "plain"),  # the interval includes the rate that was asked for
        (0.02, 0.05, 0.01, "bad"),
        (0.02, 0.05, 0.05, "good"),
        (0.0, 0.001, None, "plain"),
    ],
)
def test_a_false_positive_rate_is_held_against_the_monitors_own(tmp_path, low, high, target, tone):
    run = write_run(tmp_path)
    scored = json.loads((run / "clean.score.json").read_text())
    scored["rate"] = {"value": (low + high) / 2, "low": low, "high": high}
    (run / "clean.score.json").write_text(json.dumps(scored))
    fitted = json.loads((run / "monitor.json").read_text())
    fitted["calibration"]["fpr"] = target
    (run / "monitor.json").write_text(json.dumps(fitted))
    if target is None:
        (run / "monitor.json").unlink()
    folder = read_folder(run)
    assert summary(folder, [], monitor_rates(folder))[-1].tone == tone


def test_a_probe_without_baselines_or_search_claims_neither(tmp_path):
    run = write_run(tmp_path)
    (part,) = [part for part in read_folder(run).probes if part.name == "larger_than.logistic"]
    (searched,) = probe_topics([part])
    assert "chosen on inner folds" in summary(RunFolder(path=run), [searched], [])[0].aside
    one = {**searched.probes[0], "baselines": {}, "sites": searched.probes[0]["sites"][:1]}
    (said,) = summary(RunFolder(path=run), [ProbeTopic(name="x", probes=[one])], [])
    assert said.tone == "plain"
    assert "compared with no baseline" in said.text
    assert "inner folds" not in said.aside
