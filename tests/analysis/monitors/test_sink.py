"""The sinks against plain hooks on single prompts, through a real harvest of a tiny model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analysis.monitors import Calibrator, ExtremesSink, MonitorSink, Scorer, calibrate
from analysis.sinks import ProjectionSink
from harvest import harvest
from store import ModelRef, PromptSet, Store
from store.direction import Direction

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({"[UNK]": 40, **{w: i for i, w in enumerate(WORDS)}}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]").save_pretrained(folder)
    return ModelRef(str(folder), dtype="float32").resolve()


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(["w7", "w9", *rng.choice(WORDS, rng.integers(1, 30))])} for _ in range(60)]
    return PromptSet.from_rows([*rows, {"text": "w3"}, {"text": "w8 w9 w1"}])


@pytest.fixture(scope="module")
def directions() -> tuple[Direction, ...]:
    rng = np.random.default_rng(1)
    sites = ["resid_post.1", "attn_in.2", "resid_post.1", "mlp_in.0", "attn_in.2"]
    return tuple(
        Direction(name=f"d{i}", site=site, vector=3 * rng.standard_normal(32).astype(np.float32))
        for i, site in enumerate(sites)
    )


@pytest.fixture(scope="module")
def reference(
    model: ModelRef, prompts: PromptSet, directions: tuple[Direction, ...]
) -> list[tuple[np.ndarray, list[int]]]:
    """Per prompt: cosines [tokens, t] from hooks on an unbatched forward pass, and its token ids."""
    plain: Any = LlamaForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    seen: dict[str, torch.Tensor] = {}
    layers = plain.model.layers
    layers[1].register_forward_hook(lambda m, i, o: seen.update({"resid_post.1": o[0] if o.ndim == 3 else o}))
    layers[2].input_layernorm.register_forward_hook(lambda m, i, o: seen.update({"attn_in.2": o[0]}))
    layers[0].post_attention_layernorm.register_forward_hook(lambda m, i, o: seen.update({"mlp_in.0": o[0]}))
    found = []
    for text in prompts.table["text"].to_pylist():
        ids = [WORDS.index(word) for word in text.split()]
        with torch.inference_mode():
            plain(torch.tensor([ids]))
        columns = []
        for direction in directions:
            x, v = seen[direction.site].numpy().astype(np.float64), direction.vector.astype(np.float64)
            columns.append(x @ v / np.linalg.norm(x, axis=1) / np.linalg.norm(v))
        found.append((np.stack(columns, axis=1), ids))
    return found


def run(model: ModelRef, prompts: PromptSet, sink: Any, folder: Path) -> list[np.ndarray]:
    store = Store.create(str(folder), prompts)
    harvest(model, store, None, sinks=[sink], certificate_prompts=0).raise_if_incomplete()
    assert set(store.columns) == set(sink.columns)  # nothing raw is stored
    return [np.asarray(store.column(model, name)[:]) for name in sink.columns]


def expected_first(ids: list[int], prefix: tuple[int, ...]) -> int:
    same = 0
    while same < min(len(prefix), len(ids)) and ids[same] == prefix[same]:
        same += 1
    return min(max(same, 1), len(ids) - 1)


@pytest.mark.parametrize("prefix", [(), (7, 9)])
def test_extremes_equal_hooks(
    model: ModelRef,
    prompts: PromptSet,
    directions: tuple[Direction, ...],
    reference: list[tuple[np.ndarray, list[int]]],
    prefix: tuple[int, ...],
    tmp_path: Path,
) -> None:
    values, positions = run(
        model, prompts, ExtremesSink(scorer=Scorer(directions=directions, prefix=prefix)), tmp_path / "s"
    )
    assert values.shape == (62, 5, 2)
    for row, (cosines, ids) in enumerate(reference):
        first = expected_first(ids, prefix)
        np.testing.assert_allclose(values[row, :, 0], cosines[first:].max(axis=0), atol=2e-5)
        np.testing.assert_allclose(values[row, :, 1], (-cosines[first:]).max(axis=0), atol=2e-5)
        at = cosines[positions[row], np.arange(5)[:, None]]
        np.testing.assert_allclose(at, values[row] * [1, -1], atol=2e-5)


def test_token_scores_equal_hooks(
    model: ModelRef,
    prompts: PromptSet,
    directions: tuple[Direction, ...],
    reference: list[tuple[np.ndarray, list[int]]],
    tmp_path: Path,
) -> None:
    (scores,) = run(model, prompts, ProjectionSink(directions=directions, scoring="cosine"), tmp_path / "s")
    np.testing.assert_allclose(scores, np.concatenate([cosines for cosines, _ in reference]), atol=2e-5)


def test_the_monitor_sink_says_what_the_monitor_says_of_the_extremes(
    model: ModelRef, prompts: PromptSet, directions: tuple[Direction, ...], tmp_path: Path
) -> None:
    extremes, positions = run(model, prompts, ExtremesSink(scorer=Scorer(directions=directions)), tmp_path / "a")
    groups = np.array([f"p{i}" for i in range(62)])
    monitor = calibrate(Scorer(directions=directions), extremes, groups, calibrator=Calibrator(fpr=0.1))
    scores, fired = run(model, prompts, MonitorSink(monitor=monitor), tmp_path / "b")
    direct = monitor.score(extremes)
    np.testing.assert_allclose(scores[:, 0], direct.score, rtol=1e-5)
    np.testing.assert_array_equal(fired[:, 0], direct.channel)
    np.testing.assert_array_equal(fired[:, 1], direct.side)
    rows = np.arange(62)
    np.testing.assert_array_equal(fired[:, 3], positions[rows, direct.channel, direct.side])
    raw = extremes[rows, direct.channel, direct.side] * (1 - 2 * direct.side)
    np.testing.assert_allclose(scores[:, 1], raw, rtol=1e-5)
