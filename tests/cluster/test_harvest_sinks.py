"""`thresher harvest` with sinks: what a pass keeps besides activations, or instead of them."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from analysis import read_moments
from analysis.probes import Probe
from store import Direction, ModelRef, PromptSet, Store, save_directions
from tests.cluster.command import Terminal

MAPPING = ("--text-column", "statement", "--label-column", "truth", "--group-column", "city")
ASKED = ("--tokens", "last", "--threads", "1", "--dtype", "float32", *MAPPING)
SITES = ("--sites", "resid_post.1,mlp_in.2")


@pytest.fixture
def directions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "directions.safetensors"
    found = [
        Direction(name=f"d{n}", site=site, vector=rng.standard_normal(32).astype(np.float32))
        for n, site in enumerate(["resid_post.3", "attn_in.1"])
    ]
    save_directions(path, found, {})
    return path


@pytest.fixture
def probe(tmp_path: Path, tiny: str) -> Path:
    return save_probe(tmp_path / "probe.safetensors", ModelRef(tiny, dtype="float32").resolve().digest)


def save_probe(path: Path, model: str) -> Path:
    none = np.zeros(0, np.uint64)
    Probe(
        site="resid_post.2", kind="lda", label="truth", positive="1", model=model, centre=np.zeros(32),
        scale=np.ones(32), weight=np.arange(32.0), bias=1.0, thresholds={}, trained=none, calibrated=none,
    ).save(path)  # fmt: skip
    return path


def everything(directions: Path, probe: Path) -> list[str]:
    return ["--moments", "truth", "--folds", "2", "--second-moments", "--directions", str(directions),
            "--exemplars", "3", "--probe", str(probe), "--log-prob", "--int8"]  # fmt: skip


@pytest.fixture
def few(statements: Path, tmp_path: Path) -> Path:
    lines = statements.read_text().splitlines()[:61]
    (tmp_path / "few.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "few.csv"


def test_a_pass_that_stores_no_activations(
    terminal: Terminal, tiny: str, statements: Path, directions: Path, probe: Path, tmp_path: Path
) -> None:
    words = ["harvest", tiny, statements, "--out", tmp_path / "s", *SITES, *ASKED, *everything(directions, probe)]
    made = terminal.json(*words, "--no-raw")
    # Two sites, three units, two values by two folds.
    assert f"{2 * 3 * 2 * 2 * 8 * 32**2 / 1e9:.3f} GB" in terminal.stderr
    assert (made["complete"], made["prompts"], made["tokens"] > 1100) == (True, 1100, True)
    assert made["certificate"] is None
    columns = {entry["name"]: entry for entry in terminal.json("info", tmp_path / "s")["columns"]}
    kinds = {name.split(".")[0] for name in columns}
    assert kinds == {"moments", "moments-count", "moments-covariance", "projections", "exemplars", "exemplar-places",
                     "scores", "logprob", "entropy", "int8", "int8-scale"}  # fmt: skip
    assert {n for n in columns if n.startswith("int8.")} == {"int8.resid_post.1", "int8.mlp_in.2"}
    for name, entry in columns.items():
        if entry["rows"] == "token":
            assert entry["shape"][0] == 1100, name
    assert terminal.json("verify", tmp_path / "s")["ok"] is True
    store = Store.open(tmp_path / "s")
    moments = read_moments(store, store.models[0], "moments.mlp_in.2", second_moments=True)
    assert moments.values == (0, 1)
    assert moments.count.sum() == 1100
    again = terminal.json(*words, "--no-raw")
    assert (again["digest"], again["computed_tokens"]) == (made["digest"], 0)
    assert "second moments" not in terminal.stderr


def test_sinks_beside_raw_activations(terminal: Terminal, tiny: str, few: Path, tmp_path: Path) -> None:
    made = terminal.json("harvest", tiny, few, "--out", tmp_path / "s", *SITES, *ASKED, "--moments", "label")
    assert made["certificate"]["ok"] is True
    store = Store.open(tmp_path / "s")
    moments = read_moments(store, store.models[0], "moments.resid_post.1").over_folds()
    raw = np.asarray(store.column(store.models[0], "resid_post.1")).astype(np.float64)
    labels = store.prompts.labels("label")
    for place, value in enumerate(moments.values):
        np.testing.assert_allclose(moments.mean[place, 0], raw[labels == value].mean(0), rtol=1e-6)
        np.testing.assert_allclose(moments.variance[place, 0], raw[labels == value].var(0), rtol=1e-6)


def test_ray_and_local_give_the_same_digest(
    terminal: Terminal, tiny: str, statements: Path, directions: Path, probe: Path, tmp_path: Path, ray_here: None
) -> None:
    words = ["harvest", tiny, statements, *SITES, *ASKED, *everything(directions, probe), "--no-raw", "--out"]
    local = terminal.json(*words, tmp_path / "local")
    ray = terminal.json(*words, tmp_path / "ray", "--pool", "ray", "--workers", "2")
    assert ray["complete"] is True
    assert ray["digest"] == local["digest"]


def test_numeric_flags_are_part_of_the_columns(terminal: Terminal, tiny: str, few: Path, tmp_path: Path) -> None:
    for flags, wanted in (((), (True, True)), (("--no-share-prefixes", "--no-pack"), (False, False))):
        out = tmp_path / f"s{len(flags)}"
        terminal.json("harvest", tiny, few, "--out", out, *SITES, *ASKED, *flags)
        numeric = Store.open(out).captures[0].columns[0].settings["numeric"]
        assert (numeric["share_prefixes"], numeric["pack"]) == wanted
    assert terminal.run("harvest", tiny, few, "--out", tmp_path / "s0", *SITES, *ASKED, "--no-pack") == 4
    assert "numeric.pack was True, now False" in terminal.stderr


def test_second_moments_have_to_fit_on_the_disk(
    terminal: Terminal, tiny: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["harvest", tiny, few, "--out", tmp_path / "s", *SITES, *ASKED, "--moments", "truth", "--second-moments"]
    needed = 2 * 2 * 5 * 8 * 32**2
    plain = shutil.disk_usage
    for free, code in ((needed - 1, 4), (needed, 0)):
        monkeypatch.setattr("cluster.sinks.shutil.disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        assert terminal.run(*words) == code
        assert (tmp_path / "s").exists() == (code == 0)
        if code:
            assert "the second moments take" in terminal.stderr
    # What is published already takes no more room.
    monkeypatch.setattr("cluster.sinks.shutil.disk_usage", lambda place: SimpleNamespace(free=0))
    assert terminal.run(*words) == 0
    monkeypatch.setattr("cluster.sinks.shutil.disk_usage", plain)


BAD = {
    "nothing to store": (["--no-raw"], "leaves nothing to store"),
    "no sites": (["--log-prob"], "no site is named"),
    "moments without sites": (["--no-raw", "--moments", "truth"], "say which with --sites"),
    "second moments of nothing": ([*SITES, "--second-moments"], "add --moments"),
    "exemplars of nothing": ([*SITES, "--exemplars", "3"], "add --directions"),
    "unknown label": ([*SITES, "--moments", "colour"], "no column 'colour'"),
    "no directions": (["--no-raw", "--directions", "nowhere"], "no directions at nowhere"),
    "site of a direction": (["--no-raw", "--directions", "FAR"], "resid_post.9"),
    "width of a direction": (["--no-raw", "--directions", "WIDE"], "has 33 numbers"),
    "probe of another model": (["--no-raw", "--probe", "FOREIGN"], "not on one with digest"),
    "unknown tokens": (["--no-raw", "--log-prob", "--tokens", "first"], "unknown token selection"),
    "reduction of nothing": (["--no-raw", "--log-prob", "--reduce", "mean"], "leave one of the two out"),
    "unknown site": (["--no-raw", "--int8", "--sites", "router.1"], "router"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, terminal: Terminal, tiny: str, few: Path, tmp_path: Path
) -> None:
    places = {name: str(tmp_path / f"{name.lower()}.safetensors") for name in ("FAR", "WIDE", "FOREIGN")}
    for name, site, width in (("FAR", "resid_post.9", 32), ("WIDE", "resid_post.1", 33)):
        save_directions(places[name], [Direction(name="d", site=site, vector=np.ones(width, np.float32))], {})
    save_probe(Path(places["FOREIGN"]), "f" * 64)
    words, hint = BAD[case]
    given = [places.get(word, word) for word in words]
    assert terminal.run("harvest", tiny, few, "--out", tmp_path / "never", *MAPPING, *given) == 4
    lines = terminal.stderr.strip().splitlines()
    assert len(lines) == 1, terminal.stderr
    assert lines[0].startswith("thresher: ")
    assert hint in lines[0]
    assert not (tmp_path / "never").exists()


def test_moments_and_projections_of_another_label_need_another_store(
    terminal: Terminal, tiny: str, few: Path, tmp_path: Path
) -> None:
    words = ["harvest", tiny, few, "--out", tmp_path / "s", *SITES, *ASKED, "--no-raw", "--moments"]
    assert terminal.run(*words, "truth") == 0
    assert terminal.run(*words, "city") == 4
    assert "label was 'truth', now 'city'" in terminal.stderr


def test_prompts_are_appended_to_their_moments(
    terminal: Terminal, tiny: str, few: Path, statements: Path, tmp_path: Path
) -> None:
    words = ["--out", tmp_path / "s", *SITES, *ASKED, "--no-raw", "--moments", "truth"]
    terminal.json("harvest", tiny, few, *words)
    grown = terminal.json("harvest", tiny, statements, *words)
    assert 0 < grown["computed_tokens"] < grown["tokens"]
    store = Store.open(tmp_path / "s")
    assert read_moments(store, store.models[0], "moments.mlp_in.2").count.sum() == 1100
    assert len(PromptSet.read(few, text="statement")) == 60
