"""`thresher harvest`, `info` and `verify` as a user types them."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from store import Store
from tests.cluster.command import Terminal, spawn
from tests.cluster.conftest import write_statements

MAPPING = ("--text-column", "statement", "--label-column", "truth", "--group-column", "city")
SITES = ("--sites", "resid_post.1,resid_post.3", "--tokens", "last", "--threads", "1")


def harvest(tiny: str, prompts: Path, out: Path, *more: str) -> list[str]:
    return ["harvest", tiny, str(prompts), "--out", str(out), *SITES, *MAPPING, *more]


def test_json_of_harvest_info_and_verify(terminal: Terminal, tiny: str, statements: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    made = terminal.json(*harvest(tiny, statements, out))
    keys = {"store", "digest", "complete", "prompts", "tokens", "seconds", "tokens_per_second", "quarantined"}
    assert keys <= made.keys()
    assert made["complete"] is True
    assert made["prompts"] == 1100
    assert made["quarantined"] == []
    info = terminal.json("info", out)
    assert {"digest", "complete", "models", "columns", "prompts", "tokens", "bytes"} <= info.keys()
    assert info["digest"] == made["digest"]
    assert info["tokens"] == made["tokens"]
    assert info["prompts"] == 1100
    assert {column["name"] for column in info["columns"]} == {"resid_post.1", "resid_post.3"}
    assert terminal.json("verify", out, "--deep")["ok"] is True
    again = terminal.json(*harvest(tiny, statements, out))
    assert again["digest"] == made["digest"]
    assert again["computed_tokens"] == 0


def test_human_output_tells_the_same(terminal: Terminal, tiny: str, statements: Path, tmp_path: Path) -> None:
    assert terminal.run(*harvest(tiny, statements, tmp_path / "store")) == 0
    assert "complete" in terminal.stdout
    assert "certificate" in terminal.stdout
    assert terminal.run("info", tmp_path / "store") == 0
    assert "resid_post.3" in terminal.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ray_and_local_give_the_same_digest(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path, dtype: str, ray_here: None
) -> None:
    local = terminal.json(*harvest(tiny, statements, tmp_path / "local", "--dtype", dtype))
    ray = terminal.json(
        *harvest(tiny, statements, tmp_path / "ray", "--dtype", dtype, "--pool", "ray", "--workers", "2")
    )
    assert ray["complete"] is True
    assert ray["digest"] == local["digest"]


def test_killed_and_run_again_it_resumes(tiny: str, tmp_path: Path, terminal: Terminal) -> None:
    prompts = write_statements(tmp_path / "many.csv", 4000)
    out = tmp_path / "killed"
    victim = spawn(*harvest(tiny, prompts, out))
    deadline = time.monotonic() + 120
    while not list(out.glob("receipts/*/*/*.json")) and time.monotonic() < deadline:
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    published = {path: path.read_bytes() for path in out.glob("receipts/*/*/*.json")}
    store = Store.open(out)
    assert 0 < len(published) < len(store.units)
    assert terminal.json("info", out)["complete"] is False
    resumed = terminal.json(*harvest(tiny, prompts, out))
    assert {path: path.read_bytes() for path in published} == published
    undisturbed = terminal.json(*harvest(tiny, prompts, tmp_path / "whole"))
    assert resumed["digest"] == undisturbed["digest"]
    assert 0 < resumed["computed_tokens"] < undisturbed["computed_tokens"]


def test_prompts_models_and_sites_are_added_without_recomputing(
    terminal: Terminal, tiny: str, tmp_path: Path, save_tiny: Any
) -> None:
    few, more = write_statements(tmp_path / "few.csv", 600), write_statements(tmp_path / "more.csv", 900)
    out = tmp_path / "store"
    first = terminal.json(*harvest(tiny, few, out))
    grown = terminal.json(*harvest(tiny, more, out))
    assert 0 < grown["computed_tokens"] < first["tokens"]
    site = terminal.json("harvest", tiny, more, "--out", out, "--sites", "resid_post.2", "--tokens", "last",
                         "--threads", "1", *MAPPING)  # fmt: skip
    assert site["computed_tokens"] == grown["tokens"]
    other = terminal.json(*harvest(save_tiny("qwen2"), more, out))
    assert other["complete"] is True
    assert len(terminal.json("info", out)["models"]) == 2
    only = terminal.json("harvest", save_tiny("mistral"), more, "--out", out, "--sites", "resid_post.3", "--tokens",
                         "last", "--threads", "1", *MAPPING)  # fmt: skip
    assert only["complete"] is True


def test_same_prompts_in_every_format(terminal: Terminal, tiny: str, tmp_path: Path) -> None:
    rows = [{"prompt_id": f"p{n}", "text": f"Paris is city number {n}", "group": f"g{n}"} for n in range(20)]
    table = pa.Table.from_pylist(rows)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pa.csv.write_csv(table, tmp_path / "a.csv")
    digests = {
        terminal.json("harvest", tiny, tmp_path / f"a.{end}", "--out", tmp_path / end, *SITES)["digest"]
        for end in ("jsonl", "json", "parquet", "csv")
    }
    assert len(digests) == 1


BAD: dict[str, tuple[list[str], str]] = {
    "missing file": (["harvest", "TINY", "nowhere.csv"], "nowhere.csv"),
    "missing model": (["harvest", "./nowhere", "PROMPTS", *MAPPING], "nowhere"),
    "unknown column": (["harvest", "TINY", "PROMPTS", "--text-column", "claim"], "'statement', 'truth', 'city'"),
    "unknown site": (["harvest", "TINY", "PROMPTS", *MAPPING, "--sites", "residual.1"], "unknown site"),
    "layer out of range": (["harvest", "TINY", "PROMPTS", *MAPPING, "--sites", "resid_post.4"], "0 to 3"),
    "site the model lacks": (["harvest", "TINY", "PROMPTS", *MAPPING, "--sites", "router.1"], "router"),
    "unknown tokens": (["harvest", "TINY", "PROMPTS", *MAPPING, "--tokens", "first"], "unknown token selection"),
    "unknown pool": (["harvest", "TINY", "PROMPTS", *MAPPING, "--pool", "spark"], "local, ray"),
    "unknown dtype": (["harvest", "TINY", "PROMPTS", *MAPPING, "--dtype", "int3"], "bfloat16"),
    "empty set": (["harvest", "TINY", "EMPTY"], "no prompts"),
    "prompt longer than the context": (["harvest", "TINY", "LONG"], "'long-one'"),
    "duplicate ids": (["harvest", "TINY", "TWICE"], "'same'"),
    "unknown option": (["harvest", "TINY", "PROMPTS", "--bogus"], "--bogus"),
    "not json": (["harvest", "TINY", "BROKEN"], "line 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, terminal: Terminal, tiny: str, statements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = {
        "EMPTY": "",
        "LONG": json.dumps({"prompt_id": "long-one", "text": "x " * 400}) + "\n",
        "TWICE": '{"prompt_id": "same", "text": "a"}\n{"prompt_id": "same", "text": "b"}\n',
        "BROKEN": '{"text": "a"}\n{"text": \n',
    }
    places = {"TINY": tiny, "PROMPTS": str(statements)}
    for name, text in files.items():
        places[name] = str(tmp_path / f"{name.lower()}.jsonl")
        Path(places[name]).write_text(text)
    words, hint = BAD[case]
    given = [places.get(word, word) for word in words]
    if "--sites" not in given:
        given += ["--sites", "resid_post.1"]
    out = tmp_path / "never"
    assert terminal.run(*given, "--out", str(out)) == 4, terminal.stdout
    assert terminal.stdout == ""
    lines = terminal.stderr.strip().splitlines()
    assert len(lines) == 1, terminal.stderr
    assert lines[0].startswith("thresher: ")
    assert hint in lines[0]
    assert not out.exists()


def test_a_folder_that_is_no_store_is_left_alone(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years")
    for words in (["info", tmp_path / "thesis"], ["verify", tmp_path / "thesis"],
                  harvest(tiny, statements, tmp_path / "thesis")):  # fmt: skip
        assert terminal.run(*words) == 4
        assert "not a store" in terminal.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_truncation_only_if_asked(terminal: Terminal, tiny: str, tmp_path: Path) -> None:
    prompts = tmp_path / "long.jsonl"
    prompts.write_text(json.dumps({"text": "x " * 400}) + "\n")
    made = terminal.json("harvest", tiny, prompts, "--out", tmp_path / "s", *SITES, "--truncate")
    assert made["complete"] is True
    assert made["tokens"] == 128


def test_damage_is_named_repaired_and_recomputed(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    digest = terminal.json(*harvest(tiny, statements, out))["digest"]
    shard = sorted(out.glob("cells/*/u000001/*/*/resid_post.3/c/0/0"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    report = terminal.json("verify", out, code=1)
    assert [entry["path"] for entry in report["damaged"]] == [str(shard.relative_to(out))]
    assert terminal.json("verify", out, "--repair", code=1)["withdrawn"] == [report["damaged"][0]["cell"]]
    again = terminal.json(*harvest(tiny, statements, out))
    assert again["digest"] == digest
    assert 0 < again["computed_tokens"] < again["tokens"]
    assert terminal.json("verify", out)["ok"] is True


def test_delete_withdraws_and_gc_keeps_what_is_named(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    made = terminal.json(*harvest(tiny, statements, out))
    assert terminal.json("gc", out, "--older-than", "0s")["attempts"] == []
    stray = out / "cells" / terminal.json("info", out)["models"][0]["id"] / "u000000" / "0001" / "99-dead"
    stray.mkdir()
    (stray / "zarr.json").write_text("{}")
    assert terminal.json("gc", out, "--older-than", "7d")["attempts"] == []
    assert len(terminal.json("gc", out, "--older-than", "0s")["attempts"]) == 1
    assert not stray.exists()
    assert terminal.json("info", out)["digest"] == made["digest"]
    assert terminal.run("delete", out) == 4
    assert terminal.json("delete", out, "--capture", "0001", "--yes")["deleted"] == 3
    assert terminal.json("info", out)["columns"] == []
    again = terminal.json(*harvest(tiny, statements, out))
    assert again["digest"] == made["digest"]


def test_python_api_reads_what_the_command_wrote(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path
) -> None:
    terminal.json(*harvest(tiny, statements, tmp_path / "store"))
    store = Store.open(tmp_path / "store")
    (model,) = store.models
    column = store.column(model, "resid_post.3")
    tokens = store.tokens(model, "resid_post.3")
    assert column.shape == (1100, 32)
    assert tokens.column("prompt_id").to_pylist() == [str(row) for row in range(1100)]
    assert set(np.asarray(store.prompts.labels("label")).tolist()) == {0, 1}


def test_places_where_nothing_can_be_made_are_refused(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path
) -> None:
    assert terminal.run(*harvest(tiny, statements, statements)) == 4
    assert "another folder" in terminal.stderr
    store = tmp_path / "store"
    assert terminal.run(*harvest(tiny, statements, store)) == 0
    assert terminal.run("probe", "fit", store, "--label", "label", "--out", tmp_path) == 4
    assert "is a folder" in terminal.stderr


def test_a_torn_model_and_a_foreign_adapter_leave_nothing(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path, save_tiny: Any, save_adapter: Any
) -> None:
    shutil.copytree(tiny, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])
    for words in (
        harvest(str(tmp_path / "torn"), statements, tmp_path / "never"),
        harvest(save_tiny("gpt2"), statements, tmp_path / "never", "--adapter", save_adapter("llama")),
    ):
        assert terminal.run(*words) == 4, terminal.stderr
        assert len(terminal.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "never").exists()
