"""thresher probe fit, eval and transfer as they are typed."""

import json

import pytest
import typer
from typer.testing import CliRunner

from analysis.probes.probe import load_probe
from cluster.commands.probe import register
from store.errors import InputError
from tests.analysis.probes.study import planted, statements, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("command")
    prompts = statements(60, kinds=("plain", "negated"))
    write(made / "store", prompts, planted(prompts, {"resid_post.3": 4.0, "resid_post.5": 1.0}, inverted="negated"))
    return made


@pytest.fixture(scope="module")
def app():
    made = typer.Typer()
    made.callback()(lambda: None)
    register(made)
    return made


def run(app, *arguments):
    """Standard output of a command; errors are raised as the program's entry would see them."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_fit_eval_and_transfer(app, folder):
    probe = folder / "probe.safetensors"
    options = ("--kind", "mass-mean", "--permutations", 19, "--fpr", 0.2, "--where", "kind=plain")
    found = json.loads(
        run(app, "probe", "fit", folder / "store", "--label", "label", *options, "--out", probe, "--json")
    )
    assert found["chosen"] == "resid_post.3"
    assert [entry["site"] for entry in found["sites"]] == ["resid_post.3", "resid_post.5"]
    assert load_probe(probe).thresholds["0.2"] == found["threshold"]
    measured = json.loads(run(app, "probe", "eval", probe, folder / "store", "--where", "kind=negated", "--json"))
    assert measured["inverted"]
    assert (measured["n"], measured["left_out"]) == (24, 96)
    by = ("--by", "kind", "--json")
    fitted_here = json.loads(run(app, "probe", "transfer", folder / "store", "--kind", "mass-mean", *by))["cells"]
    assert [cell["inverted"] for cell in fitted_here] == [False, True, True, False]
    fitted_before = json.loads(run(app, "probe", "transfer", probe, folder / "store", *by))["cells"]
    assert [cell["inverted"] for cell in fitted_before] == [False, True]


def test_what_a_person_reads(app, folder):
    text = run(
        app, "probe", "fit", folder / "store", "--kind", "mass-mean", "--permutations", 19, "--where", "kind=plain"
    )
    for words in ("resid_post.5", "bag of words", "refused", "chosen resid_post.3", "over 60 cities"):
        assert words in text
    matrix = run(app, "probe", "transfer", folder / "store", "--by", "kind", "--kind", "mass-mean")
    assert matrix.count("▼") == 3  # the legend's and two inverted pairs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transfer", "{store}"], "--by COLUMN"),
        (["transfer", "nothing.safetensors"], "needs a store"),
        (["fit", "{store}", "--where", "kind"], "not COLUMN=VALUE"),
        (["eval", "nothing.safetensors", "{store}"], "no probe at"),
        (["fit", "{store}x"], "is not a store"),
    ],
)
def test_bad_input(app, folder, arguments, message):
    with pytest.raises(InputError, match=message):
        run(app, "probe", *[argument.format(store=folder / "store") for argument in arguments])
