"""`thresher verify --deep` runs the models again, and what it finds marks the store."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from store import Store
from store.cell import publish_cell, read_tokens
from store.removal import withdraw_cell
from tests.cluster.command import Terminal
from tests.cluster.conftest import write_statements

MAPPING = ("--text-column", "statement", "--label-column", "truth", "--group-column", "city")


@pytest.fixture
def home(tiny: str, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may take away."""
    shutil.copytree(tiny, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def store(terminal: Terminal, home: Path, tmp_path: Path) -> Path:
    prompts = write_statements(tmp_path / "few.csv", 40)
    out = tmp_path / "store"
    sites = ("--sites", "resid_post.1,resid_post.3", "--threads", "1")
    assert terminal.run("harvest", home, prompts, "--out", out, *sites, *MAPPING) == 0, terminal.stderr
    return out


def spoil(path: Path) -> None:
    """Publishes the cell again with one column's rows shifted: every checksum holds, and the numbers are wrong."""
    opened = Store.open(path)
    (model,), (unit,), (capture,) = opened.models, opened.units, opened.captures
    receipt = opened.receipt(model.id, unit, capture.id)
    assert receipt is not None
    columns = {name: np.asarray(opened.column(model, name)) for name in capture.names}
    columns["resid_post.3"] = np.roll(columns["resid_post.3"], 1, axis=0)
    tokens = read_tokens(opened.location, receipt)
    withdraw_cell(opened, model.id, unit.name, capture.id)
    publish_cell(
        opened.location, model=model.id, unit=unit, capture=capture, columns=columns, tokens=tokens, notes=receipt.notes
    )


def test_a_right_store_holds_and_says_so(terminal: Terminal, store: Path) -> None:
    told = terminal.json("verify", store, "--deep")
    assert told["ok"] is True
    (certificate,) = told["certificates"]
    assert certificate["state"] == "holds"
    assert set(certificate["sites"]) == {"resid_post.1", "resid_post.3"}
    other = terminal.json("verify", store, "--deep", "--seed", "3")["certificates"][0]
    assert len(other["prompts"]) == len(certificate["prompts"]) == 4
    assert other["prompts"] != certificate["prompts"]
    info = terminal.json("info", store)
    assert info["certified"] is True
    assert [record["exceeded"] for record in info["certificates"]] == [{}] * 3
    assert terminal.run("verify", store, "--deep") == 0
    assert "holds" in terminal.stdout
    assert terminal.json("verify", store)["certificates"] == []


def test_wrong_numbers_under_right_checksums_exit_1_and_mark_the_store(terminal: Terminal, store: Path) -> None:
    spoil(store)
    assert terminal.json("verify", store)["damaged"] == []
    told = terminal.json("verify", store, "--deep", code=1)
    assert told["damaged"] == []
    assert told["ok"] is False
    (certificate,) = told["certificates"]
    assert certificate["state"] == "exceeded"
    assert certificate["sites"]["resid_post.1"]["ok"] is True
    assert certificate["sites"]["resid_post.3"]["ok"] is False
    prompts = certificate["sites"]["resid_post.3"]["exceeding"]
    assert prompts == certificate["prompts"]
    assert terminal.run("verify", store, "--deep") == 1
    assert f"resid_post.3: prompts {', '.join(prompts)}" in terminal.stdout
    info = terminal.json("info", store)
    assert info["certified"] is False
    assert {"resid_post.3": prompts} in [record["exceeded"] for record in info["certificates"]]
    assert terminal.run("info", store) == 0
    assert "bound is exceeded" in terminal.stdout
    assert "resid_post.3" in terminal.stdout


def test_a_model_that_is_not_here_is_named_and_not_clean(terminal: Terminal, store: Path, home: Path) -> None:
    home.rename(home.with_name("elsewhere"))
    told = terminal.json("verify", store, "--deep", code=2)
    assert told["ok"] is False
    (certificate,) = told["certificates"]
    assert certificate["state"] == "not certified"
    assert str(home) in certificate["left_out"]
    assert terminal.run("verify", store, "--deep") == 2
    assert "not certified" in terminal.stdout
    assert str(home) in terminal.stdout
    # What was measured when the model was there still holds.
    assert terminal.json("info", store)["certified"] is True


def test_damage_comes_first(terminal: Terminal, store: Path) -> None:
    shard = next(store.glob("cells/*/*/*/*/resid_post.3/c/0/0"))
    shard.write_bytes(shard.read_bytes()[:-5])
    told = terminal.json("verify", store, "--deep", code=1)
    assert [entry["path"] for entry in told["damaged"]] == [str(shard.relative_to(store))]
    assert [certificate["state"] for certificate in told["certificates"]] == ["not certified"]
    # The cell is withdrawn, and with it the certificates that spoke of it.
    assert terminal.json("verify", store, "--deep", "--repair", code=1)["withdrawn"]
    assert terminal.json("info", store)["certified"] is None
    assert terminal.run("info", store) == 0
    assert "not certified" in terminal.stdout


def test_a_seed_without_deep_is_refused(terminal: Terminal, store: Path) -> None:
    assert terminal.run("verify", store, "--seed", "1") == 4
    assert "--deep" in terminal.stderr
