"""`thresher steer` as a user types it, against plain transformers with hooks written by hand."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.monitors import Monitor, Scorer, common_prefix
from cluster.monitoring import score_prompts
from harvest import NumericSettings
from store import Direction, ModelRef, PromptSet
from store.direction import save_directions
from tests.cluster.command import Terminal

SITE = "resid_post.1"
RNG = np.random.default_rng(2)
VECTORS = np.linalg.qr(RNG.normal(size=(32, 3)))[0].T.astype(np.float32)
DIRECTIONS = [
    Direction(name="layers.1.o_proj.left.0", site=SITE, vector=4 * VECTORS[0]),
    Direction(name="layers.1.o_proj.left.1", site=SITE, vector=VECTORS[1]),
    Direction(name="layers.2.down_proj.left.0", site="resid_post.2", vector=VECTORS[2]),
]
QUESTIONS = [{"text": f"The city of Paris {word}"} for word in ("is", "is in", "and two", "what", "in four", "", "a")]
CLEAN = [{"text": f"{word} two is four. It is France.", "group": word} for word in ("a", "a", "it", "so", "Paris")]


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def words(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that only lacks what is to be done."""
    # Threads wait for each other where other processes are busy, and a tiny model has no use for them.
    monkeypatch.setattr("cluster.steering.NumericSettings", partial(NumericSettings, threads=1))
    save_directions(tmp_path / "d.safetensors", DIRECTIONS, {})
    questions = lines(tmp_path / "questions.jsonl", QUESTIONS)
    found = ["steer", tiny, str(questions), "--direction", f"{tmp_path}/d.safetensors:*left.0", "--dtype", "float32"]
    return [*found, "--max-new-tokens", "4"]


class ByHand:
    """Greedy answers and log-probabilities with hooks on blocks: block -> what becomes of its output."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    @torch.no_grad()
    def logs(self, ids: list[int], changes: dict[int, Any]) -> torch.Tensor:
        blocks = self.model.model.layers
        hooks = [
            blocks[number].register_forward_hook(lambda _, __, out, change=change: change(out))
            for number, change in changes.items()
        ]
        try:
            return torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)
        finally:
            for hook in hooks:
                hook.remove()

    def answer(self, text: str, changes: dict[int, Any], n: int = 4) -> list[int]:
        ids = self.ids(text)
        start = len(ids)
        while len(ids) < start + n and (token := int(self.logs(ids, changes)[-1].argmax())) != 1:
            ids.append(token)
        return ids[start:]

    def logprob(self, ids: list[int], changes: dict[int, Any], *, start: int = 1) -> float:
        logs = self.logs(ids, changes)
        return float(np.mean([float(logs[at - 1, ids[at]]) for at in range(start, len(ids))]))

    @torch.no_grad()
    def norm(self, block: int) -> float:
        """Mean over the tokens of all questions but each one's first."""
        states = [
            self.model(torch.tensor([self.ids(row["text"])]), output_hidden_states=True).hidden_states[block + 1][0, 1:]
            for row in QUESTIONS
        ]
        return float(torch.cat(states).norm(dim=1).mean())


def test_doses_are_those_of_hooks_written_by_hand(
    terminal: Terminal, words: list[str], tiny: str, tmp_path: Path
) -> None:
    clean, out = lines(tmp_path / "clean.jsonl", CLEAN), tmp_path / "answers.parquet"
    told = terminal.json(
        *words, "--alpha", "-1.5,0,3", "--ablate", "--clamp", "2", "--clean", clean, "--out", out, "--random", "2"
    )
    hand = ByHand(tiny)
    norms = {block: hand.norm(block) for block in (1, 2)}
    assert [each["name"] for each in told["directions"]] == [DIRECTIONS[0].name, DIRECTIONS[2].name]
    assert [each["mean_norm"] for each in told["directions"]] == pytest.approx(list(norms.values()), rel=1e-4)
    vectors = {1: torch.from_numpy(VECTORS[0]), 2: torch.from_numpy(VECTORS[2])}

    def changes(kind: str, amount: float | None) -> dict[int, Any]:
        def change(block: int) -> Any:
            v, size = vectors[block], (amount or 0.0) * norms[block]
            if kind == "add":
                return lambda x: x + size * v
            return lambda x: x + (size - x @ v)[..., None] * v

        return {} if kind == "none" else {block: change(block) for block in vectors}

    doses = [(dose["kind"], dose["amount"]) for dose in told["doses"]]
    assert doses == [("none", 0.0), ("add", -1.5), ("add", 3.0), ("ablate", None), ("clamp", 2.0)]
    table = pyarrow.parquet.read_table(out).to_pylist()
    assert len(table) == len(QUESTIONS) * (1 + 4 * 3)
    own = [hand.answer(row["text"], {}) for row in QUESTIONS]
    for (kind, amount), dose in zip(doses, told["doses"], strict=True):
        rows = [row for row in table if (row["kind"], row["amount"], row["control"]) == (kind, amount, None)]
        answers = [hand.answer(row["text"], changes(kind, amount)) for row in QUESTIONS]
        assert [row["response"] for row in rows] == [
            hand.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers
        ]
        flags = [new != old for new, old in zip(answers, own, strict=True)]
        assert [row["changed"] for row in rows] == flags
        exact = stats.binomtest(sum(flags), len(flags)).proportion_ci(0.95, "exact")
        assert [dose["changed"][end] for end in ("value", "low", "high")] == pytest.approx(
            [np.mean(flags), exact.low, exact.high]
        )
        shifts = []
        for row, said in zip(QUESTIONS, own, strict=True):
            asked = hand.ids(row["text"])
            if said:
                with_it, without_it = (
                    hand.logprob(asked + said, change, start=len(asked)) for change in (changes(kind, amount), {})
                )
                shifts.append(with_it - without_it)
        assert dose["answer_logprob"]["value"] == pytest.approx(np.mean(shifts), abs=1e-4)
        assert dose["answer_logprob"]["low"] <= np.mean(shifts) + 1e-4
        before = np.mean([hand.logprob(hand.ids(row["text"]), {}) for row in CLEAN])
        after = np.mean([hand.logprob(hand.ids(row["text"]), changes(kind, amount)) for row in CLEAN])
        cost = dose["perplexity"]
        assert (cost["without"], cost["with"]) == pytest.approx((np.exp(-before), np.exp(-after)), rel=1e-3)
        assert cost["ratio"]["value"] == pytest.approx(np.exp(before - after), rel=1e-3)
        assert cost["ratio"]["low"] <= cost["ratio"]["value"] <= cost["ratio"]["high"]
        # Two of the five texts are of one group.
        assert cost["logprob"]["units"] == 4
        assert len(dose["random"]) == (0 if kind == "none" else 2)
    strong = told["doses"][2]["random"]
    assert strong[0]["answer_logprob"]["value"] != strong[1]["answer_logprob"]["value"]
    assert all(each["changed"]["value"] > 0 for each in strong)
    assert [answer["kind"] for answer in told["examples"][0]["answers"]] == [kind for kind, _ in doses]
    again = terminal.json(*words, "--alpha", "3", "--random", "1", "--seed", "0")
    assert again["doses"][1]["random"][0]["changed"] == strong[0]["changed"]
    assert again["doses"][1]["perplexity"] is None
    assert terminal.run(*words, "--ablate", "--random", "0", "--clean", clean) == 0
    assert f"{SITE}: {norms[1]:.4g}" in terminal.stdout


def test_with_a_monitor_only_flagged_prompts_are_changed(
    terminal: Terminal, words: list[str], tiny: str, tmp_path: Path
) -> None:
    """One token is answered, which is not run itself: what fires is the prompt, as `thresher monitor score` has it."""
    ref = ModelRef(tiny, dtype="float32").resolve()
    named = {"name": tiny, "adapter": None, "digest": ref.digest, "dtype": "float32"}
    scale = {"centre": np.array([[0.0, 1.0], [0.5, 0.4]]), "spread": np.array([[0.5, 1.0], [0.6, 1.5]])}
    # Nothing is closer to the first direction than a token of the shared beginning, which does not count.
    hand = ByHand(tiny)
    prefix = common_prefix([np.array(hand.ids(row["text"])) for row in QUESTIONS])
    with torch.no_grad():
        seen = hand.model(torch.tensor([prefix]), output_hidden_states=True).hidden_states[2][0, -2].numpy()
    scorer = Scorer(directions=(Direction(name="seen", site=SITE, vector=seen), DIRECTIONS[2]), prefix=prefix)
    loose = Monitor(scorer=scorer, rule="z", threshold=-9.0, model=named, **scale)
    prompts = PromptSet.from_rows(QUESTIONS)
    scores = [row["score"] for row in score_prompts(loose, ref, prompts)["prompts"]]
    monitor = loose.with_threshold(float(np.mean(np.sort(scores)[3:5])), {})
    monitor.save(tmp_path / "monitor.safetensors")
    flagged = [row["flagged"] for row in score_prompts(monitor, ref, prompts)["prompts"]]
    assert sum(flagged) == 3
    out = tmp_path / "answers.parquet"
    command = [*words, "--alpha", "9", "--monitor", str(tmp_path / "monitor.safetensors"), "--out", str(out)]
    told = terminal.json(*command, "--random", "1", "--max-new-tokens", "1")
    assert told["monitor"] == monitor.id
    assert told["fired"]["value"] == pytest.approx(3 / 7)
    table = pyarrow.parquet.read_table(out).to_pylist()
    assert [row["fired"] for row in table] == flagged * 3
    for row, fires in zip(table[7:14], flagged, strict=True):
        assert fires or row["answer_logprob"] == 0
        assert not fires or row["answer_logprob"] != 0
    other = Monitor(scorer=scorer, rule="z", threshold=0.0, model={**named, "digest": "0" * 64}, **scale)
    other.save(tmp_path / "monitor.safetensors")
    assert terminal.run(*command, "--json") == 4
    assert "calibrated on" in terminal.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "nothing to do"),
        (["--alpha", "0"], "nothing to do"),
        (["--alpha", "1,x"], "numbers with commas"),
        (["--alpha", "nan"], "finite number"),
        (["--ablate", "--out", "answers.csv"], ".parquet"),
        (["--ablate", "--direction", "nowhere"], "should be FILE:NAME"),
        (["--ablate", "--direction", "nowhere:x"], "no directions at nowhere"),
        (["--ablate", "--direction", "{folder}/d.safetensors:x*"], "such as layers.1.o_proj.left.0"),
        (["--ablate", "--monitor", "{folder}/d.safetensors"], "without a calibration"),
        (["--ablate", "--direction", "{folder}/wide.safetensors:*"], "has width 7"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    terminal: Terminal, words: list[str], tmp_path: Path, more: list[str], says: str
) -> None:
    wide = Direction(name="wide", site=SITE, vector=np.ones(7, np.float32))
    save_directions(tmp_path / "wide.safetensors", [wide], {})
    assert terminal.run(*words, *(word.format(folder=tmp_path) for word in more), "--json") == 4
    assert says in terminal.stderr
    assert terminal.stdout == ""
    assert terminal.stderr.count("\n") == 1
