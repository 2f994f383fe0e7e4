"""`thresher probe score`: prompts run and scored in one pass, against activations that transformers gives."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from analysis.probes import Probe, load_probe
from store import ModelRef, Store
from tests.cluster.command import Terminal
from tests.harvest.conftest import tiny_tokenizer

SITE = "resid_post.2"
RNG = np.random.default_rng(7)
CENTRE, SCALE, WEIGHT = RNG.standard_normal(32), 0.5 + RNG.random(32), RNG.standard_normal(32)
BIAS = 0.3
TEXTS = ["The city of Paris", "Four is two", "What is the city in France?", "Two", "plus two is four, is it?"]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def probe_file(tmp_path: Path, tiny: str) -> Callable[..., Path]:
    """Writes a probe of the tiny model with other parts than usual; `column` are settings of the column."""
    none = np.zeros(0, np.uint64)

    def write(*, column: dict[str, Any] | None = None, **parts: Any) -> Path:
        settings = {"tokens": "all", "reduce": "none", "dtype": "float32", "compute_dtype": "float32"} | (column or {})
        probe = Probe(
            site=SITE, kind="lda", label="truth", positive="1", model=ModelRef(tiny).resolve().digest, centre=CENTRE,
            scale=SCALE, weight=WEIGHT, bias=BIAS, thresholds={}, trained=none, calibrated=none,
            provenance={"column": {"settings": {k: v for k, v in settings.items() if v is not None}}},
        )  # fmt: skip
        replace(probe, **parts).save(tmp_path / "probe.safetensors")
        return tmp_path / "probe.safetensors"

    return write


@pytest.fixture(scope="module")
def activations(tiny: str) -> list[np.ndarray]:
    """Of each text the output of block 2, float64 [tokens, 32], from transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    with torch.no_grad():
        return [
            model(**tiny_tokenizer()(text, return_tensors="pt"), output_hidden_states=True)
            .hidden_states[3][0]
            .double()
            .numpy()
            for text in TEXTS
        ]


def score_of(rows: np.ndarray) -> np.ndarray:
    return ((rows - CENTRE) / SCALE) @ WEIGHT + BIAS


def ema(rows: np.ndarray) -> np.ndarray:
    mean = rows[0]
    for row in rows[1:]:
        mean = 0.25 * row + 0.75 * mean
    return mean


POOLED: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {
    ("all", "none"): lambda rows: score_of(rows).mean(),
    ("last", "none"): lambda rows: score_of(rows[-1]),
    ("every:2", "none"): lambda rows: score_of(rows[::2]).mean(),
    ("all", "max"): lambda rows: score_of(rows.max(axis=0)),
    ("all", "ema:0.25"): lambda rows: score_of(ema(rows)),
}


@pytest.mark.parametrize(("tokens", "reduce"), POOLED)
def test_a_prompt_is_pooled_as_the_column_of_the_fit(
    tokens: str,
    reduce: str,
    terminal: Terminal,
    tiny: str,
    probe_file: Callable[..., Path],
    activations: list[np.ndarray],
    tmp_path: Path,
) -> None:
    given = lines(tmp_path / "some.jsonl", [{"text": text} for text in TEXTS])
    probe = probe_file(column={"tokens": tokens, "reduce": reduce})
    found = terminal.json("probe", "score", probe, tiny, given, "--dtype", "float32", "--tokens", "2")
    wanted = np.array([POOLED[tokens, reduce](rows) for rows in activations])
    np.testing.assert_allclose([row["score"] for row in found["prompts"]], wanted, rtol=1e-4, atol=1e-4)
    if reduce == "max":
        assert found["by_token"]["prompts"] == []
        assert "none has a score of its own" in found["by_token"]["reason"]
        return
    shown = found["by_token"]["prompts"]
    assert [int(entry["prompt_id"]) for entry in shown] == np.argsort(-wanted)[:2].tolist()
    tokenizer = tiny_tokenizer()
    for entry in shown:
        row = int(entry["prompt_id"])
        assert entry["tokens"] == [tokenizer.decode([token]) for token in tokenizer(TEXTS[row])["input_ids"]]
        own = score_of(activations[row])
        read = [place for place, score in enumerate(entry["scores"]) if score is not None]
        assert read == list(range(0, len(own), 2 if tokens == "every:2" else 1))
        np.testing.assert_allclose([entry["scores"][place] for place in read], own[read], rtol=1e-4, atol=1e-4)
        assert entry["position"] == read[int(np.argmax(own[read]))]


def test_thresholds_and_their_rates(
    terminal: Terminal, tiny: str, probe_file: Callable[..., Path], activations: list[np.ndarray], tmp_path: Path
) -> None:
    scores = np.array([score_of(rows).mean() for rows in activations])
    border = float(np.sort(scores)[1:3].mean())  # three of the five are above
    reason = "a false-positive rate of 0.1 % needs 999 control cities"
    probe = probe_file(
        thresholds={"0.01": 1e6, "0.2": border},
        provenance={
            **load_probe(probe_file()).provenance,
            "recall_at_fpr": {
                "0.01": {"value": 0.5},
                "0.2": {"value": 0.9},
                "0.001": {"value": None, "reason": reason},
            },
        },
    )
    rows = [{"text": text, "kind": ("a", "[b]x[/b]")[i % 2], "of": f"g{i // 2}"} for i, text in enumerate(TEXTS)]
    words = ("probe", "score", probe, tiny, lines(tmp_path / "some.jsonl", rows), "--dtype", "float32",
             "--group-column", "of", "--domain-column", "kind")  # fmt: skip
    found = terminal.json(*words)
    assert (found["n"], found["unscored"], found["site"], found["label"]) == (5, 0, SITE, "truth")
    at = found["flagged_at_fpr"]
    assert (at["0.01"]["flagged"], at["0.2"]["flagged"]) == (0, 3)
    assert (at["0.2"]["rate"]["value"], at["0.2"]["rate"]["units"], at["0.2"]["rate"]["noun"]) == (0.6, 3, "groups")
    assert at["0.01"]["rate"]["high"] == pytest.approx(1 - 0.025 ** (1 / 3))
    assert at["0.001"] == {"threshold": None, "flagged": None, "rate": None, "reason": reason}
    for index, row in enumerate(found["prompts"]):
        assert row["flagged_at_fpr"] == {"0.01": False, "0.2": bool(scores[index] > border), "0.001": None}
    above = scores > border
    assert {name: part["flagged"] for name, part in at["0.2"]["domains"].items()} == {
        "a": above[::2].sum(),
        "[b]x[/b]": above[1::2].sum(),
    }
    assert terminal.run(*words, "--tokens", "1") == 0
    for said in ("3 of 5 prompts flagged: 60.0 %", "no threshold, a false-positive rate", "[b]x[/b]", "mean of its"):
        assert said in terminal.stdout


def test_a_wrong_model_dtype_or_site_is_one_line(
    terminal: Terminal, tiny: str, save_tiny: Callable[[str], str], probe_file: Callable[..., Path], tmp_path: Path
) -> None:
    given = lines(tmp_path / "some.jsonl", [{"text": "Two"}])

    def refused(probe: Path, model: str = tiny, dtype: str = "float32", *more: str) -> str:
        assert terminal.run("probe", "score", probe, model, given, "--dtype", dtype, *more) == 4
        assert terminal.stdout == ""
        (line,) = terminal.stderr.strip().splitlines()
        return line

    assert "not on one with digest" in refused(probe_file(), save_tiny("olmo2"))
    assert "fitted in float32, this run is in bfloat16: add --dtype float32" in refused(probe_file(), dtype="bfloat16")
    assert "resid_post.9" in refused(probe_file(site="resid_post.9"))
    assert "reads 31 features" in refused(probe_file(centre=CENTRE[1:], scale=SCALE[1:], weight=WEIGHT[1:]))
    assert "does not say the tokens" in refused(probe_file(column={"tokens": None}))
    assert "--quantization 8bit" in refused(probe_file(column={"numeric": {"quantization": "8bit"}}))
    assert "has no response" in refused(probe_file(column={"tokens": "response"}))
    assert "use local or ray" in refused(probe_file(), tiny, "float32", "--pool", "ray://head:10001")
    assert "no column 'none'" in refused(probe_file(), tiny, "float32", "--domain-column", "none")


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_prompts_without_a_score_are_counted_and_never_clean(
    terminal: Terminal, tiny: str, probe_file: Callable[..., Path], activations: list[np.ndarray], tmp_path: Path
) -> None:
    scores = np.array([(score_of(rows) - BIAS).mean() for rows in activations])
    worst = int(np.argmax(np.abs(scores)))
    second = np.sort(np.abs(scores))[-2]
    factor = float(np.finfo(np.float32).max) / np.mean([abs(scores[worst]), second])  # one score is too large
    given = lines(tmp_path / "some.jsonl", [{"text": text} for text in TEXTS])
    words = ("probe", "score", probe_file(weight=WEIGHT * factor, bias=0.0, thresholds={"0.1": -1e39}), tiny, given,
             "--dtype", "float32", "--tokens", "9")  # fmt: skip
    found = terminal.json(*words, code=2)
    assert (found["n"], found["unscored"], len(found["by_token"]["prompts"])) == (4, 1, 4)
    told = {"prompt_id": str(worst), "score": None, "flagged_at_fpr": {"0.1": None}}
    assert found["prompts"][worst] == told
    assert (found["flagged_at_fpr"]["0.1"]["flagged"], found["flagged_at_fpr"]["0.1"]["n"]) == (4, 4)
    assert terminal.run(*words) == 2
    assert "1 prompts more could not be scored" in terminal.stdout
    assert terminal.run(*words[:2], probe_file(weight=WEIGHT * 1e300), *words[3:]) == 2
    assert "none of the 5 prompts has a finite score" in terminal.stderr


@pytest.mark.parametrize("words", [("--tokens", "last"), ("--tokens", "all", "--reduce", "mean")])
def test_scores_of_a_fitted_probe_are_those_on_its_store(
    terminal: Terminal, tiny: str, statements: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    few = tmp_path / "few.csv"
    few.write_text("".join(statements.read_text().splitlines(keepends=True)[:81]))
    columns = ("--text-column", "statement", "--group-column", "city")
    store, probe = tmp_path / "store", tmp_path / "fitted.safetensors"
    harvested = ("harvest", tiny, few, "--out", store, "--sites", SITE, *words, *columns, "--label-column", "truth")
    terminal.json(*harvested)
    terminal.json("probe", "fit", store, "--out", probe, "--kind", "mass-mean", "--permutations", "0", "--fpr", "0.3")
    found = terminal.json("probe", "score", probe, tiny, few, *columns)
    opened = Store.open(store)
    wanted = load_probe(probe).scores(opened.column(opened.models[0], SITE))
    np.testing.assert_allclose([row["score"] for row in found["prompts"]], wanted, rtol=1e-6)
    threshold = load_probe(probe).thresholds["0.3"]
    flags = np.array([row["flagged_at_fpr"]["0.3"] for row in found["prompts"]])
    apart = np.abs(wanted - threshold) > 1e-4  # the score that set the threshold equals it, in float32
    assert np.count_nonzero(~apart) == 1
    assert not flags[~apart].any()
    assert (flags == (wanted > threshold))[apart].all()
