"""What an audit says of a direction beside its prompts: share of variance and label, on a tiny model."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.monitors import Monitor, Reference, Scorer, common_prefix
from cluster.monitor_audit import audit_prompts
from harvest import harvest
from store import CaptureSpec, Direction, ModelRef, PromptSet, Store
from tests.cluster.command import Terminal

WIDTH, SITES = 32, ("resid_post.1", "resid_post.2")
VECTORS = np.random.default_rng(3).normal(size=(3, WIDTH)).astype(np.float32)
DIRECTIONS = tuple(
    Direction(name=f"layers.{n}.left.[red]0[/]", site=SITES[n // 2], vector=vector) for n, vector in enumerate(VECTORS)
)
TURNS = ("What is in Paris?", "Two", "The city of France is it four?", "two plus two is")
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"The {turn}"},
            {"role": "assistant", "content": " ".join(TURNS[: n + 1])},
        ]
    }
    for n, turn in enumerate(TURNS)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def raw(tiny: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every activation of the corpus in float64, by site, and whose they are."""
    store = Store.create(str(tmp_path_factory.mktemp("raw") / "store"), PromptSet.read(corpus))
    model = ModelRef(tiny, dtype="float32").resolve()
    harvest(model, store, CaptureSpec(sites=",".join(SITES), tokens="all"), certificate_prompts=0)
    tokens = store.tokens(model, SITES[0])
    return {
        **{site: np.asarray(store.column(model, site)[:], np.float64) for site in SITES},
        **{name: np.array(tokens.column(name).to_pylist()) for name in ("prompt", "token_id", "role")},
    }


def monitor(tiny: str, scorer: Scorer) -> Monitor:
    model = ModelRef(tiny, dtype="float32").resolve()
    shape = (len(scorer.channels), 2 * len(scorer.roles))
    named = {"name": model.name, "adapter": None, "digest": model.digest, "dtype": model.dtype}
    return Monitor(scorer=scorer, rule="z", centre=np.zeros(shape), spread=np.ones(shape), threshold=0.0, model=named)


def counted(raw: Mapping[str, Any], prefix: Sequence[int], roles: Sequence[str]) -> np.ndarray:
    """Bool [tokens]: those behind the shared beginning that are of the roles."""
    place = np.concatenate([np.arange(count) for count in np.bincount(raw["prompt"])])
    return (place >= len(prefix)) & (np.isin(raw["role"], roles) if "all" not in roles else True)


@pytest.mark.parametrize(("kind", "roles"), [("cosine", ("all",)), ("mahalanobis", ("assistant",))])
def test_the_share_of_variance_is_that_of_the_raw_activations(
    tiny: str, corpus: Path, raw: dict[str, Any], kind: str, roles: tuple[str, ...]
) -> None:
    prefix = common_prefix([raw["token_id"][raw["prompt"] == row] for row in range(len(ROWS))])
    assert len(prefix) > 2
    channels = {n: [n] for n in range(3)} if kind != "mahalanobis" else {0: [0, 1], 1: [2]}
    whitened = {s: Reference(origin=np.zeros(k), whitening=np.eye(k)) for s, k in zip(SITES, (2, 1), strict=True)}
    reference = whitened if kind == "mahalanobis" else {}
    scorer = Scorer(directions=DIRECTIONS, kind=kind, roles=roles, prefix=prefix, reference=reference)
    found = audit_prompts(monitor(tiny, scorer), ModelRef(tiny, dtype="float32"), PromptSet.read(corpus), top=1)
    names = [name for name, _ in scorer.channels]
    assert sorted(part["direction"] for part in found["directions"]) == sorted(names)
    chosen = counted(raw, prefix, roles)
    assert 0 < chosen.sum() < len(chosen)
    for part in found["directions"]:
        rows = raw[part["site"]][chosen]
        basis = np.linalg.qr(VECTORS[channels[names.index(part["direction"])]].T.astype(np.float64))[0]
        along = np.trace(basis.T @ np.cov(rows.T) @ basis) / np.trace(np.cov(rows.T))
        assert part["variance"]["share"] == pytest.approx(along, rel=1e-6)
        assert part["variance"]["isotropic"] == basis.shape[1] / WIDTH
        assert part["variance"]["tokens"] == chosen.sum()
        assert (part["label"], part["label_note"]) == (None, None)


def test_one_failing_label_loses_nothing(tiny: str, corpus: Path) -> None:
    given = []

    def labeller(direction: Mapping[str, Any]) -> str:
        given.append(dict(direction))
        if len(given) == 2:
            raise RuntimeError("no answer")
        return f"the {len(given)}th"

    watch = monitor(tiny, Scorer(directions=DIRECTIONS))
    found = audit_prompts(watch, ModelRef(tiny, dtype="float32"), PromptSet.read(corpus), top=1, labeller=labeller)[
        "directions"
    ]
    assert [part["label"] for part in found] == ["the 1th", None, "the 3th"]
    assert [part["label_note"] for part in found] == [None, "RuntimeError: no answer", None]
    assert [{k: v for k, v in part.items() if not k.startswith("label")} for part in found] == given
    assert given[0].keys() >= {"direction", "site", "read_out", "variance", "top", "bottom"}


def test_labels_and_shares_are_printed_as_they_are(terminal: Terminal, tiny: str, corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "monitor.safetensors"
    monitor(tiny, Scorer(directions=DIRECTIONS)).save(file)
    text = (
        "import json, sys; name = json.load(sys.stdin)['direction']\n"
        "if name.startswith('layers.0'): sys.exit('no [bold]key[/]')\n"
        "print('[red]likes[/nope] \\x1b[31m' + name)"
    )
    command = shlex.join([sys.executable, "-S", "-c", text])
    words = ("monitor", "audit", file, tiny, corpus, "--dtype", "float32", "--labeller", command, "--top", "1")
    assert terminal.run(*words) == 0
    assert "resid_post.1: [red]likes[/nope] [31mlayers.1.left.[red]0[/]\n" in terminal.stdout
    assert "exit code 1: no [bold]key[/]\n" in terminal.stdout
    assert terminal.stdout.count("% if it were even") == 3
    assert "\x1b" not in terminal.stdout


def test_a_labeller_that_is_not_there_is_told_before_anything_is_read(terminal: Terminal, tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    words = ("monitor", "audit", nowhere, nowhere, nowhere, "--labeller", "no-such-labeller", "--json")
    assert terminal.run(*words) == 4
    assert "there is no program 'no-such-labeller'" in terminal.stderr
    assert terminal.stderr.count("\n") == 1
