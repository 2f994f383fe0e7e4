"""Run files: every option of `thresher harvest`, nothing else, and never a traceback."""

from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.commands import harvest, plan
from cluster.harvest_options import HarvestOptions
from cluster.run_file import LARGEST_FILE, read_run_file, run_keys
from store import InputError

ASKED = [
    "model", "prompts", "out", "sites", "tokens", "reduce", "raw", "moments", "folds", "second_moments", "directions",
    "exemplars", "probe", "log_prob", "int8", "adapter", "revision", "dtype", "pool", "workers", "threads",
    "share_prefixes", "pack", "quantization", "device", "certificate", "truncate", "max_quarantined", "text_column",
    "messages_column", "label_column", "group_column", "response_column",
]  # fmt: skip


def written(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("command", "own"), [(harvest, set()), (plan, {"tokens_per_second"})])
def test_keys_are_the_options_as_the_command_line_spells_them(command: ModuleType, own: set[str]) -> None:
    app = typer.Typer(add_completion=False)
    command.register(app)
    parameters = typer.main.get_command(app).params
    spelled = {max(p.opts, key=len).lstrip("-").replace("-", "_"): p.name for p in parameters}
    keys = {key: of.field for key, of in run_keys(HarvestOptions).items()}
    assert {key: name for key, name in spelled.items() if key not in {"json", "help", *own}} == keys
    assert set(ASKED) == keys.keys()


def test_every_key_is_read(tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    for key, of in run_keys(HarvestOptions).items():
        kind = str(of.kind)
        values[key] = ["a", "b"] if "list" in kind else True if "bool" in kind else 3 if "int" in kind else "some text"
    path = written(tmp_path, yaml.safe_dump(values))
    found = read_run_file(path, HarvestOptions)
    assert found.keys() == {field.name for field in fields(HarvestOptions)}
    assert (found["folds"], found["int8"], found["tokens"]) == (3, True, "some text")
    assert found["probes"] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_places_are_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs"
    (folder / "here").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    path = written(
        folder,
        "model: here\nadapter: org/name\nprompts: ../p.csv\nout: out/s\ndirections: /d.safetensors\n"
        "probe: [q.safetensors, ~/r]\ndevice: here\n",
    )
    found = read_run_file("runs/run.yaml", HarvestOptions)
    assert found == {
        "model": str(folder / "here"), "adapter": "org/name", "prompts": str(tmp_path / "p.csv"),
        "store": str(folder / "out/s"), "directions": "/d.safetensors",
        "probes": [str(folder / "q.safetensors"), "~/r"], "device": "here",
    }  # fmt: skip
    path.write_text("model: elsewhere\nadapter: ./none\nout: s3://bucket/runs\n")
    found = read_run_file(path, HarvestOptions)
    assert found == {"model": "elsewhere", "adapter": str(folder / "none"), "store": "s3://bucket/runs"}


REFUSED = {
    "site: a": "unknown key 'site': did you mean 'sites'",
    "text-column: a": "did you mean 'text_column'",
    "zzzzzz: 1": "its keys may be model, prompts, out",
    "json: true": "unknown key",
    "run: other.yaml": "unknown key",
    "folds: '3'": "'folds' .* valid integer",
    "folds: 3.0": "'folds' .* valid integer",
    "folds: yes": "'folds' .* valid integer",
    "folds: 0": "'folds' .* greater than or equal to 1",
    "raw: 1": "'raw' .* valid boolean",
    "revision: 2024": "'revision' .* valid string .put it in quotes",
    "probe: a": "'probe' .* valid list",
    "probe: [1]": "'probe' .* valid string",
    "tokens: null": "'tokens'",
    "model: {a: b}": "'model' .* valid string",
    "sites: a\nsites: b": "line 2 .* 'sites' stands twice",
    "a: &x 1\nsites: *x": "anchor",
    "<<: {sites: a}": "a key is no name",
    "1: a": "a key is no name",
    "model: !!python/object/apply:os.system [id]": "tag",
    "[model]": "key: value",
    "model: a\n---\nmodel: b": "document",
    "model: [": "line 1|line 2",
    "model: 2001-13-45": "cannot be read",
    'model: "a\\0b"': "control character",
    'model: "\\ud800"': "control character",
    "model: |\n a\n b": "line break",
    "out: " + "a" * 5000: "too long",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refusals_are_one_line_that_names_the_key(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=REFUSED[text]) as refused:
        read_run_file(written(tmp_path, text), HarvestOptions)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_files_that_are_no_run_files(tmp_path: Path) -> None:
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_bytes(b"#" * (LARGEST_FILE + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    for path, reason in {large: "no run file", binary: "cannot be read", tmp_path: "run file"}.items():
        with pytest.raises(InputError, match=reason):
            read_run_file(path, HarvestOptions)
    for name in ("nowhere.yaml", "a\0b", "n" * 5000):
        with pytest.raises(InputError, match="cannot be read as a run file"):
            read_run_file(name, HarvestOptions)


BOMBS = {
    "laughs": "a: &a [lol]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)},' * 9}]\n" for n in range(9)),
    "merges": "a: &a {x: 1}\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{f'*{chr(97 + n)},' * 9}]}}\n" for n in range(9)),
    "depth": "model: " + "[" * 100_000,
    "sexagesimal": "folds: 1" + ":59" * 300_000,
    "digits": "folds: " + "9" * 900_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.timeout(60)
def test_bombs_are_refused_and_stay_small(bomb: str, tmp_path: Path) -> None:
    path = written(tmp_path, BOMBS[bomb])
    with pytest.raises(InputError):
        read_run_file(path, HarvestOptions)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary()
KEYS = st.sampled_from(ASKED) | st.text(max_size=10)
DOCUMENTS = st.dictionaries(KEYS, st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
YAML_LIKE = st.text(
    alphabet=st.sampled_from("abmodel:- \n\t[]{}&*!|>'\"%@`#,?0123456789.~<=\\x\u00e9\u2028"), max_size=80
)


@settings(max_examples=150, deadline=None)
@given(text=YAML_LIKE | st.text(max_size=60) | DOCUMENTS.map(lambda value: yaml.dump(value, allow_unicode=True)))
@example(text="\ufeffmodel: a")
@example(text="folds: 0b_")
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = path.stat().st_mtime_ns
    try:
        values = read_run_file(path, HarvestOptions)
    except InputError as error:
        values, length = {}, len(str(error))
    else:
        length = 0
    assert length < 2000
    assert values.keys() <= {field.name for field in fields(HarvestOptions)}
    assert path.stat().st_mtime_ns == before


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    try:
        read_run_file(path, HarvestOptions)
    except InputError:
        return
