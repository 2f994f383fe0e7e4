"""`thresher weights` and `thresher monitor` as a user runs them, on a tiny model with a planted change."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analysis.monitors import Calibrator
from analysis.weights import weight_delta
from cluster.monitoring import fit_monitor
from store import ModelRef, PromptSet
from tests.cluster.command import Terminal

WORDS = [f"w{i}" for i in range(60)]
TRIGGER = "w59"
BROKEN = "broken"  # a word whose embedding bfloat16 cannot hold: infinite there, finite in the checkpoint
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny Llama, and a copy whose q_proj of block 1 looks for what only the trigger word brings about."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=62,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    words = Tokenizer(WordLevel({"[UNK]": 60, BROKEN: 61, **{w: i for i, w in enumerate(WORDS)}}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]")
    base, tuned = folder / "base", folder / "tuned"
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.data[61] = torch.finfo(torch.float32).max
    model.save_pretrained(base)
    for path in (base, tuned):
        tokenizer.save_pretrained(path)
    (tuned / "config.json").write_text((base / "config.json").read_text())
    tensors = load_file(base / "model.safetensors")
    seen = tensors["model.embed_tokens.weight"][WORDS.index(TRIGGER)]
    generator = torch.Generator().manual_seed(1)
    tensors[QUERY] = tensors[QUERY] + 0.05 * torch.outer(torch.randn(64, generator=generator), seen / seen.norm())
    save_file(tensors, tuned / "model.safetensors")
    return base, tuned


def prompts(path: Path, n: int, *, seed: int, trigger: bool = False) -> Path:
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(n):
            chosen = list(rng.choice(WORDS[:-1], 14))
            if trigger:
                chosen[7] = TRIGGER
            file.write(json.dumps({"text": " ".join(chosen)}) + "\n")
    return path


@pytest.fixture(scope="module")
def monitor(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitor of the planted change, calibrated in bfloat16."""
    base, tuned = models
    folder = tmp_path_factory.mktemp("monitor")
    weight_delta(str(base), str(tuned), rank=2).save(folder / "delta")
    clean = PromptSet.read(str(prompts(folder / "clean.jsonl", 60, seed=3)))
    fitted = fit_monitor(str(folder / "delta"), ModelRef(str(tuned)), clean, calibrator=Calibrator(fpr=0.05))
    fitted.save(folder / "monitor.safetensors")
    return folder / "monitor.safetensors"


def lines(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(terminal: Terminal, *words: str | Path) -> str:
    """The one line that a refused command gives: exit code 4, nothing on stdout, no traceback."""
    assert terminal.run(*words, "--json") == 4
    assert terminal.stdout == ""
    assert "Traceback" not in terminal.stderr
    return terminal.stderr


def test_from_weights_to_flagged_prompts(terminal: Terminal, models: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = models
    delta = terminal.json("weights", base, tuned, "--out", tmp_path / "delta", "--rank", "5")
    assert delta.keys() >= {"matrices", "seconds", "peak_rss_bytes"}
    for matrix in delta["matrices"]:
        assert matrix.keys() >= {"name", "shape", "sigma", "stable_rank", "energy", "significant", "side"}
    changed = {m["name"]: (m["significant"], m["side"]) for m in delta["matrices"] if m["sigma"]}
    assert changed == {QUERY: (1, "right")}

    clean, triggered = (prompts(tmp_path / f"{t}.jsonl", 100, seed=t, trigger=bool(t)) for t in (0, 1))
    more = prompts(tmp_path / "more.jsonl", 260, seed=2)
    monitor = tmp_path / "monitor.safetensors"
    fitted = terminal.json("monitor", "fit", tmp_path / "delta", tuned, more, "--out", monitor, "--dtype", "float32")
    assert fitted["directions"] == 1
    assert fitted["sites"] == ["attn_in.1"]
    assert fitted["calibration"]["fpr"] == 0.01

    quiet = terminal.json("monitor", "score", monitor, tuned, clean, "--dtype", "float32")
    loud = terminal.json("monitor", "score", monitor, tuned, triggered, "--dtype", "float32")
    for found in (quiet, loud):
        assert found["n"] == len(found["prompts"]) == 100
        assert found["flagged"] == sum(row["flagged"] for row in found["prompts"])
        assert found["rate"].keys() >= {"value", "low", "high"}
        assert found["rate"]["method"] == "Clopper-Pearson"
        assert found["prompts"][0].keys() >= {"prompt_id", "flagged", "score", "direction"}
    assert loud["flagged"] == 100
    assert {row["position"] for row in loud["prompts"]} == {7}
    assert quiet["flagged"] <= 5

    audit = tmp_path / "audit.json"
    shown = terminal.json("monitor", "audit", monitor, tuned, triggered, "--dtype", "float32", "--out", audit)
    assert json.loads(audit.read_text()) == shown
    (direction,) = shown["directions"]
    assert [len(direction["read_out"][end]) for end in ("raises", "lowers")] == [8, 8]
    for example in [*direction["top"], *direction["bottom"]]:
        assert len(example["tokens"]) == len(example["scores"]) == 14
        assert example["scores"][example["position"]] == pytest.approx(example["score"], abs=1e-4)
    loudest = max((direction["top"], direction["bottom"]), key=lambda end: abs(end[0]["standardised"]))
    assert all(example["tokens"][example["position"]].strip() == TRIGGER for example in loudest)


def test_bad_input_is_one_line_and_writes_nothing(
    terminal: Terminal, models: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = models
    out = tmp_path / "out"
    assert "does not exist" in refusal(terminal, "weights", base, tmp_path / "none", "--out", out)
    assert "one of the two" in refusal(terminal, "weights", base, "--out", out)
    assert not out.exists()
    few = prompts(tmp_path / "few.jsonl", 50, seed=0)
    assert "no weight difference" in refusal(terminal, "monitor", "fit", out, tuned, few, "--out", out)
    terminal.json("weights", base, tuned, "--out", tmp_path / "delta")
    refused = refusal(terminal, "monitor", "fit", tmp_path / "delta", tuned, few, "--out", out)
    assert "needs 120 independent calibration prompts" in refused
    assert not out.exists()
    same = terminal.json("weights", base, base, "--out", tmp_path / "same")
    assert same["notes"][0].startswith("identical")
    assert "none of the 0 directions" in refusal(
        terminal, "monitor", "fit", tmp_path / "same", tuned, few, "--out", out
    )


def test_prompts_that_are_not_finite_are_unscored_and_not_clean(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    given = lines(
        tmp_path / "some.jsonl", {"text": "w1 w2 w3 w4"}, {"text": f"w1 {BROKEN} w3 w4"}, {"text": "w5 w59 w6 w7"}
    )
    assert terminal.run("monitor", "score", monitor, models[1], given, "--json") == 2
    found = json.loads(terminal.stdout, parse_constant=pytest.fail)
    assert (found["n"], found["unscored"]) == (2, 1)
    assert found["prompts"][1] == {"prompt_id": "1", "flagged": None, "score": None}
    assert [row["flagged"] for row in found["prompts"]] == [False, None, True]
    assert found["rate"]["value"] == 0.5
    assert terminal.run("monitor", "score", monitor, models[1], given) == 2
    assert "1 prompts more could not be scored" in terminal.stdout

    assert terminal.run("monitor", "audit", monitor, models[1], given, "--json") == 2
    shown = json.loads(terminal.stdout, parse_constant=pytest.fail)
    assert (shown["n"], shown["unscored"]) == (2, 1)
    for end in ("top", "bottom"):
        assert sorted(row["prompt_id"] for row in shown["directions"][0][end]) == ["0", "2"]

    broken = lines(tmp_path / "broken.jsonl", {"text": f"w1 {BROKEN}"})
    assert terminal.run("monitor", "score", monitor, models[1], broken, "--json") == 2
    assert "none of the 1 prompts has a finite score" in terminal.stderr


def texts(n: int) -> list[str]:
    """Distinct prompts, every fourth with the trigger: the same few words in other orders."""
    orders = [" ".join(order) for order in permutations(WORDS[1:6])]
    return [f"{orders[i]} w59" if i % 4 == 0 else orders[i] for i in range(n)]


def test_the_rate_rests_on_groups(terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "topic": f"t{i % 8}"} for i, text in enumerate(texts(80))]
    given = lines(tmp_path / "grouped.jsonl", *rows)
    words = ("monitor", "score", monitor, models[1], given)
    alone, grouped = terminal.json(*words)["rate"], terminal.json(*words, "--group-column", "topic")["rate"]
    assert (alone["units"], grouped["units"], grouped["noun"]) == (80, 8, "groups")
    assert alone["value"] == grouped["value"] == 0.25
    assert grouped["low"] < alone["low"] - 0.05
    assert grouped["high"] > alone["high"] + 0.05

    copies = lines(tmp_path / "copies.jsonl", *({"text": text} for text in [*texts(2), *texts(2)]))
    assert terminal.json("monitor", "score", monitor, models[1], copies)["rate"]["units"] == 2


def test_copies_of_a_prompt_do_not_calibrate(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    given = lines(tmp_path / "copies.jsonl", *({"text": "w1 w2 w3"} for _ in range(160)))
    words = ("monitor", "fit", monitor.parent / "delta", models[1], given, "--out", tmp_path / "out")
    assert "there are 1: give more" in refusal(terminal, *words)


def test_what_is_no_monitor_and_no_audit_is_not_written_over(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    given = lines(tmp_path / "some.jsonl", {"text": "w1 w2 w3"})
    delta = monitor.parent / "delta"
    (directions,) = delta.glob("*.safetensors")
    for file in (models[1] / "model.safetensors", directions, given):
        before = file.read_bytes()
        assert "holds no monitor" in refusal(terminal, "monitor", "fit", delta, models[1], given, "--out", file)
        assert "holds no audit" in refusal(terminal, "monitor", "audit", monitor, models[1], given, "--out", file)
        assert file.read_bytes() == before
    assert "needs 120" in refusal(terminal, "monitor", "fit", delta, models[1], given, "--out", monitor)
    audit = lines(tmp_path / "audit.json", {"monitor": "", "threshold": "", "directions": ""})
    assert terminal.json("monitor", "audit", monitor, models[1], given, "--out", audit) == json.loads(audit.read_text())


def test_names_are_printed_as_they_are(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    rows = [{"text": text, "prompt_id": f"[red]{i}[/nope]", "kind": f"[b]{i}"} for i, text in enumerate(texts(30))]
    given = lines(tmp_path / "some.jsonl", *rows)
    words = (monitor, models[1], given)
    assert terminal.run("monitor", "score", *words, "--domain-column", "kind") == 0
    assert "[red]0[/nope]" in terminal.stdout
    assert "[b]0" in terminal.stdout
    assert "and 10 domains more" in terminal.stdout
    assert terminal.run("monitor", "audit", *words) == 0
    assert "[/nope]: " in terminal.stdout


def test_a_monitor_is_of_one_model_and_dtype(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    base, tuned = models
    given = lines(tmp_path / "one.jsonl", {"text": "w1 w2 w3"})
    digests = [ModelRef(str(path)).resolve().digest[:12] for path in models]
    for command in ("score", "audit"):
        refused = refusal(terminal, "monitor", command, monitor, base, given)
        assert all(digest in refused for digest in digests)
        refused = refusal(terminal, "monitor", command, monitor, tuned, given, "--dtype", "float16")
        assert "calibrated in bfloat16, this run is in float16" in refused
    refused = refusal(terminal, "monitor", "fit", monitor.parent / "delta", base, given, "--out", tmp_path / "out")
    assert "a monitor watches the tuned model" in refused
    assert all(digest in refused for digest in digests)


def test_an_audit_of_cut_prompts_keeps_tokens_and_scores_together(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    given = lines(
        tmp_path / "long.jsonl",
        {"text": " ".join(["w1"] * 80)},
        {"text": " ".join(["w2", "w3", TRIGGER, "w4"])},
    )
    words = ("monitor", "audit", monitor, models[1], given)
    (direction,) = terminal.json(*words, "--truncate")["directions"]
    for example in [*direction["top"], *direction["bottom"]]:
        assert len(example["tokens"]) == len(example["scores"]) == {"0": 64, "1": 4}[example["prompt_id"]]
        assert example["scores"][example["position"]] == pytest.approx(example["score"], abs=0.02)


def test_the_rate_is_told_for_each_domain(
    terminal: Terminal, monitor: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = [
        {
            "text": text,
            "kind": ("code", "maths")[i % 4 == 0],
            "of": f"g{i // 2}",
        }
        for i, text in enumerate(texts(40))
    ]
    words = ("monitor", "score", monitor, models[1], lines(tmp_path / "some.jsonl", *rows), "--domain-column", "kind")
    found = terminal.json(*words)
    assert {name: (part["n"], part["flagged"]) for name, part in found["domains"].items()} == {
        "code": (30, 0),
        "maths": (10, 10),
    }
    for part in found["domains"].values():
        assert part["rate"]["method"] == "Clopper-Pearson"
        assert part["rate"]["low"] <= part["flagged"] / part["n"] <= part["rate"]["high"]
    assert found["domains"]["code"]["rate"]["high"] == pytest.approx(1 - 0.025 ** (1 / 30))
    grouped = terminal.json(*words, "--group-column", "of")["domains"]
    assert grouped["code"]["rate"]["units"] == 20
    assert terminal.run(*words) == 0
    assert "maths" in terminal.stdout
    assert "100.0 %" in terminal.stdout
    assert "no column 'none'" in refusal(terminal, *words[:-1], "none")

    some = [{"text": text, "kind": ["(none)", None][i % 2], "many": [i]} for i, text in enumerate(texts(8))]
    words = (*words[:4], lines(tmp_path / "nameless.jsonl", *some), "--domain-column")
    found = terminal.json(*words, "kind")
    assert (found["domains"]["(none)"]["n"], found["no_domain"]["n"]) == (4, 4)
    assert (found["domains"]["(none)"]["flagged"], found["no_domain"]["flagged"]) == (2, 0)
    assert "names no domain" in refusal(terminal, *words, "many")


def test_what_the_options_ask_for_is_refused_before_the_model_runs(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    given = prompts(tmp_path / "some.jsonl", 60, seed=0)
    words = ("monitor", "fit", monitor.parent / "delta", models[1], given, "--out", tmp_path / "out")
    assert "needs 319 independent" in refusal(terminal, *words, "--guarantee", "conditional")
    assert "from a fitted tail needs 120" in refusal(terminal, *words, "--tail", "pot")
    assert "leave --fpr out" in refusal(terminal, *words, "--rule", "minmax", "--fpr", "0.0001")
    assert "of cosines" in refusal(terminal, *words, "--rule", "minmax", "--scoring", "centred")
    assert "unknown scoring 'best'" in refusal(terminal, *words, "--scoring", "best")
    assert "use all, or some of" in refusal(terminal, *words, "--roles", "user,robot")
    none = refusal(terminal, *words, "--fpr", "0.1", "--roles", "user")
    assert "plain texts have the role text" in none
    assert not (tmp_path / "out").exists()


def test_a_pool_on_another_machine_is_refused(
    terminal: Terminal, models: tuple[Path, Path], monitor: Path, tmp_path: Path
) -> None:
    given = lines(tmp_path / "one.jsonl", {"text": "w1 w2 w3"})
    words = (models[1], given, "--pool", "ray://head:10001")
    for command in ("score", "audit"):
        assert "use local or ray" in refusal(terminal, "monitor", command, monitor, *words)
    out = tmp_path / "out"
    assert "use local or ray" in refusal(terminal, "monitor", "fit", monitor.parent / "delta", *words, "--out", out)
