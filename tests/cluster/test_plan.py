"""`thresher plan` and `thresher harvest` with the same arguments or the same run file, as a user types them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.probes import Probe
from store import Direction, ModelRef, PromptSet, Store, save_directions
from tests.cluster.command import Terminal
from tests.cluster.conftest import write_statements
from tests.store.traces import nbytes, trace

RUN: dict[str, Any] = {
    "prompts": "statements.csv", "out": "store", "sites": "resid_post.1,resid_post.3", "tokens": "every:2",
    "dtype": "float32", "threads": 1, "certificate": 0, "text_column": "statement", "label_column": "truth",
    "group_column": "city",
}  # fmt: skip


class Runs:
    """A folder with a prompt file and a run file; the run file can be written anew."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        folder.mkdir()
        write_statements(folder / "statements.csv", 60)

    def file(self, **changes: Any) -> Path:
        path = self.folder / "run.yaml"
        values = {"model": self.model, **RUN, **changes}
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}))
        return path

    @property
    def store(self) -> Path:
        return self.folder / "store"


@pytest.fixture
def runs(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr("store.unit.PROMPTS_PER_UNIT", 50)
    return Runs(tmp_path / "runs", tiny)


def plan_then_harvest(terminal: Terminal, runs: Runs, run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plan, and the harvest of the same file, whose receipts have to say the same."""
    before = trace(runs.folder)
    planned = terminal.json("plan", run)
    assert trace(runs.folder) == before
    known = {r.attempt for r in Store.open(runs.store).receipts()} if runs.store.exists() else set()
    done = terminal.json("harvest", run)
    made = [receipt for receipt in Store.open(runs.store).receipts() if receipt.attempt not in known]
    assert planned["cells_missing"] == len(made)
    assert planned["units_missing"] == len({receipt.unit for receipt in made})
    assert planned["tokens"] == done["computed_tokens"]
    sizes: dict[str, int] = {}
    for receipt in made:
        for name in receipt.columns:
            sizes[name] = sizes.get(name, 0) + nbytes(receipt, name)
    assert {column["name"]: column["bytes"] for column in planned["columns"] if column["units_missing"]} == sizes
    for column in planned["columns"]:
        assert column["units_missing"] == sum(column["name"] in receipt.columns for receipt in made)
        assert column["units_missing"] + column["units_published"] == planned["units"]
    assert planned["bytes"] == sum(sizes.values())
    after = trace(runs.folder)
    nothing = terminal.json("plan", run, code=3)
    assert (nothing["cells_missing"], nothing["units_missing"], nothing["units_new"], nothing["bytes"]) == (0,) * 4
    assert trace(runs.folder) == after
    return planned, done


def test_a_plan_says_what_the_harvest_then_does(terminal: Terminal, runs: Runs, save_tiny: Any) -> None:
    new, done = plan_then_harvest(terminal, runs, runs.file())
    assert (new["units"], new["units_new"], new["prompts"]) == (2, 2, 60)
    assert new["model"] == ModelRef(runs.model, dtype="float32").resolve().id
    assert new["free_bytes"] > 0
    assert new["tokens_per_second"] is new["device_hours"] is None
    assert done["store"] == str(runs.store)
    write_statements(runs.folder / "statements.csv", 65)
    grown, _ = plan_then_harvest(terminal, runs, runs.file())
    assert (grown["units"], grown["units_new"], grown["units_missing"], grown["prompts_missing"]) == (3, 1, 1, 5)
    site, _ = plan_then_harvest(terminal, runs, runs.file(sites="resid_post.2"))
    assert (site["units_new"], site["units_missing"]) == (0, 3)
    plan_then_harvest(terminal, runs, runs.file(model=save_tiny("qwen2")))


def test_long_prompts_are_cut_in_the_plan_as_in_the_harvest(terminal: Terminal, runs: Runs) -> None:
    (runs.folder / "long.csv").write_text("statement\n" + "word " * 300 + "\nshort\n")
    columns = {"label_column": ..., "group_column": ...}
    plan_then_harvest(terminal, runs, runs.file(prompts="long.csv", truncate=True, **columns))


def test_all_sinks_are_planned_to_the_byte(terminal: Terminal, runs: Runs) -> None:
    rng = np.random.default_rng(0)
    found = [
        Direction(name=f"d{n}", site=site, vector=rng.standard_normal(32).astype(np.float32))
        for n, site in enumerate(["resid_post.3", "attn_in.1"])
    ]
    save_directions(runs.folder / "d.safetensors", found, {})
    none = np.zeros(0, np.uint64)
    Probe(
        site="resid_post.2", kind="lda", label="truth", positive="1", centre=np.zeros(32), scale=np.ones(32),
        weight=np.arange(32.0), bias=1.0, thresholds={}, trained=none, calibrated=none,
        model=ModelRef(runs.model, dtype="float32").resolve().digest,
    ).save(runs.folder / "p.safetensors")  # fmt: skip
    run = runs.file(
        raw=False, moments="truth", folds=2, second_moments=True, directions="d.safetensors", exemplars=3,
        probe=["p.safetensors"], log_prob=True, int8=True,
    )  # fmt: skip
    planned, _ = plan_then_harvest(terminal, runs, run)
    assert {column["name"].split(".")[0] for column in planned["columns"]} == {
        "moments", "moments-count", "moments-covariance", "projections", "exemplars", "exemplar-places", "scores",
        "logprob", "entropy", "int8", "int8-scale",
    }  # fmt: skip


def test_second_moments_of_a_wide_model_are_not_tried_out(
    terminal: Terminal, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("512 MB for each would be made")

    monkeypatch.setattr("analysis.sinks.MomentsSink.start", never)
    planned = terminal.json("plan", runs.file(raw=False, moments="truth", second_moments=True))
    sizes = {column["name"]: column["bytes"] for column in planned["columns"]}
    assert sizes["moments-covariance.resid_post.1"] == 2 * 8 * 32**2 * 2 * 5


def test_device_hours_need_a_rate(terminal: Terminal, runs: Runs) -> None:
    run = runs.file()
    told = terminal.json("plan", run, "--tokens-per-second", "1000")
    assert told["device_hours"] == pytest.approx(told["tokens"] / 1000 / 3600)
    assert terminal.run("plan", run) == 0
    assert "--tokens-per-second" in terminal.stdout
    for rate in ("0", "-1", "nan", "inf"):
        assert terminal.run("plan", run, "--tokens-per-second", rate) == 4


def test_human_output_tells_the_same(terminal: Terminal, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.file()
    data = terminal.json("plan", run)
    monkeypatch.setattr("cluster.sinks.shutil.disk_usage", lambda place: SimpleNamespace(free=1))
    assert terminal.run("plan", run, "--tokens-per-second", "7") == 0
    for number in (data["tokens"], data["tokens_kept"], data["cells_missing"], data["columns"][0]["bytes"]):
        assert f"{number:,}" in terminal.stdout
    assert "more than is free" in terminal.stdout
    assert terminal.run("harvest", run) == 0
    assert terminal.run("plan", run) == 3
    assert "nothing to do" in terminal.stdout


def test_options_on_the_command_line_win(terminal: Terminal, runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "other"
    run = runs.file(sites="resid_post.1", probe=["nowhere"])
    assert terminal.run("harvest", run, "--out", out) == 4
    assert "nowhere" in terminal.stderr
    run = runs.file(sites="resid_post.1", pack=False)
    done = terminal.json("harvest", run, "--out", out, "--sites", "resid_post.2", "--pack")
    assert done["store"] == str(out)
    store = Store.open(out)
    assert store.columns == ["resid_post.2"]
    column = store.captures[0].columns[0]
    assert column.settings["numeric"]["pack"] is True
    assert column.settings["tokens"] == "every:2"
    assert not runs.store.exists()


def test_arguments_and_a_run_file_plan_the_same(
    terminal: Terminal, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a plan loads no weights")

    monkeypatch.setattr("harvest.worker.load_model", never)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", never)
    by_file = terminal.json("plan", runs.file())
    options = [
        word
        for key, value in RUN.items()
        if key != "prompts"
        for word in (f"--{key.replace('_', '-')}", str(runs.folder / "store") if key == "out" else str(value))
    ]
    by_words = terminal.json("plan", runs.model, runs.folder / "statements.csv", *options)
    assert {**by_words, "free_bytes": 0} == {**by_file, "free_bytes": 0}


def test_what_is_missing_is_asked_for(terminal: Terminal, runs: Runs) -> None:
    for command in ("harvest", "plan"):
        for words in ([command], [command, runs.model], [command, runs.model, "p.csv"], [command, runs.file(out=...)]):
            assert terminal.run(*words) == 4
            assert terminal.stderr.startswith("thresher: Missing")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other tokens": ({"tokens": "last"}, "tokens was 'every:2', now 'last'"),
    "other dtype": ({"dtype": "bfloat16"}, "compute_dtype was 'float32', now 'bfloat16'"),
    "unknown site": ({"sites": "resid_post.9"}, "0 to 3"),
    "no model": ({"model": ...}, "does not say 'model'"),
    "model that is not there": ({"model": "./nowhere"}, "nowhere"),
    "no prompts": ({"prompts": "nowhere.csv"}, "nowhere.csv"),
    "other prompts": ({"text_column": "city"}, "row 0"),
    "unknown key": ({"site": "resid_post.1"}, "did you mean 'sites'"),
    "wrong type": ({"threads": "one"}, "'threads'"),
    "no site": ({"sites": ...}, "no site is named"),
    "nothing to store": ({"sites": ..., "raw": False}, "leaves nothing to store"),
    "a long prompt": ({"prompts": "long.csv", "out": "other", "truncate": False}, "--truncate"),
    "no such pool": ({"pool": "slurm"}, "unknown pool"),
    "no room": ({"moments": "truth", "second_moments": True, "folds": 10**9}, "the second moments take"),
    "a file in the way": ({"out": "statements.csv"}, "(Not a directory): give another folder"),
    "a file above": ({"out": "statements.csv/store"}, "(Not a directory): give another folder"),
    "another folder": ({"out": "."}, "not empty"),
}


def test_refusals_are_one_line_the_harvests_own_and_leave_no_trace(terminal: Terminal, runs: Runs) -> None:
    terminal.json("harvest", runs.file())
    # What extends the prompts is refused with the rest: a store never grows by a harvest that is refused.
    write_statements(runs.folder / "statements.csv", 70)
    (runs.folder / "long.csv").write_text("statement,truth,city\n" + "word " * 300 + ",1,a\n")
    for case, (changes, hint) in REFUSED.items():
        run = runs.file(**changes)
        before = trace(runs.folder)
        said = []
        for command in ("plan", "harvest"):
            assert terminal.run(command, run) == 4, (case, terminal.stdout)
            assert len(terminal.stderr.strip().splitlines()) == 1, (case, terminal.stderr)
            assert hint in terminal.stderr, (case, terminal.stderr)
            assert trace(runs.folder) == before, case
            said.append(terminal.stderr)
        assert said[0] == said[1]


WORDS = [
    "", "all", "last", "mean", "float32", "int3", "resid_post.1", "router.1", "heads.0.9", "truth", "statement", "8bit",
    ".", "..", "run.yaml", "ray", "every:0", "every:x", "role:nobody", "module:lm_head", "\u202e", "a b",
]  # fmt: skip
CHANGED = [
    *sorted(RUN.keys() - {"out"}), "reduce", "raw", "moments", "folds", "directions", "exemplars", "probe", "log_prob",
    "int8", "truncate", "quantization", "second_moments",
]  # fmt: skip
LISTS = st.lists(st.sampled_from(["run.yaml", "none"]), max_size=2)
VALUES = st.none() | st.booleans() | st.integers(-2, 5) | st.sampled_from(WORDS) | LISTS
CHANGES = st.dictionaries(st.sampled_from(CHANGED), VALUES, max_size=3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_any_run_is_planned_or_refused_and_nothing_is_written(
    terminal: Terminal, runs: Runs, changes: dict[str, Any]
) -> None:
    if len(PromptSet.read(runs.folder / "statements.csv", text="statement")) > 8:
        write_statements(runs.folder / "statements.csv", 8)
    run = runs.file(**changes)
    before = trace(runs.folder)
    code = terminal.run("plan", run, "--json")
    assert code in (0, 4), terminal.stderr
    if code == 0:
        assert json.loads(terminal.stdout)["units_missing"] == 1
    else:
        assert len(terminal.stderr.strip().splitlines()) == 1
    assert trace(runs.folder) == before
