"""Endings run behind a shared beginning, against plain transformers on each prompt alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harvest import encode, load_model
from harvest.endings import Endings
from harvest.prefixes import common_length
from harvest.vocabulary import vocabulary
from store import InputError, ModelRef, PromptSet

BEGINNING = "The city of Paris is in"
# One token and many, so that some batches are packed and some padded.
ENDINGS = {
    "several": [" France", " two plus two", ". What is it", " four", " the city of France. It is"],
    "single": [" is", " in", "?"],
}
SITE = "resid_post.1"


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom", "mamba"])
@pytest.mark.parametrize("kind", list(ENDINGS))
@pytest.mark.parametrize("whole", [False, True])
def test_endings_are_what_each_prompt_gives_alone(
    save_tiny: Callable[[str], str], tokenizer: Any, architecture: str, kind: str, whole: bool
) -> None:
    folder = save_tiny(architecture)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [BEGINNING + ending for ending in ENDINGS[kind]]
    rows = [{"prompt_id": str(row), "text": text} for row, text in enumerate(texts)]
    prompts = encode(tokenizer, PromptSet.from_rows(rows).table)
    shared = 0 if whole else common_length([prompt.ids for prompt in prompts])
    assert whole or shared > 3
    loaded = load_model(ModelRef(folder, dtype="float32"))
    seen = []
    for found in Endings(loaded, [SITE], logits=True).run(prompts, shared=shared):
        seen += found.rows
        batch = found.batch
        following = torch.cat([found.next(slice(0, 1)), found.next(slice(1, None))])
        for place, row in enumerate(found.rows):
            ids = torch.from_numpy(prompts[row].ids.astype(np.int64))[None]
            with torch.inference_mode():
                expected = plain(input_ids=ids, output_hidden_states=True)
            own = batch.prompt == row
            assert batch.position[own].tolist() == list(range(shared, len(prompts[row])))
            assert batch.token_id[own].tolist() == prompts[row].ids[shared:].tolist()
            assert batch.role[own].tolist() == prompts[row].role[shared:].tolist()
            found_here = batch.activations[SITE][torch.from_numpy(own)]
            if architecture != "mamba":  # whose own hidden states are of other places
                torch.testing.assert_close(found_here, expected.hidden_states[2][0, shared:], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(following[place], expected.logits[0, -1].log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert sorted(seen) == list(range(len(texts)))


def test_without_logits_no_token_is_added(save_tiny: Callable[[str], str], tokenizer: Any) -> None:
    loaded = load_model(ModelRef(save_tiny("llama"), dtype="float32"))
    prompts = encode(tokenizer, PromptSet.from_rows([{"prompt_id": "a", "text": "Paris is in"}]).table)
    (found,) = Endings(loaded, [SITE]).run(prompts, shared=2)
    assert len(found.batch.prompt) == len(prompts[0]) - 2 == len(found.batch.activations[SITE])


def test_a_model_without_a_head_is_refused(save_tiny: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(ModelRef(save_tiny("llama"), dtype="float32"))
    monkeypatch.setattr(loaded.model, "get_output_embeddings", lambda: None)
    with pytest.raises(InputError, match="no lm_head"):
        Endings(loaded, [], logits=True)


def test_the_vocabulary_holds_words_that_are_one_token(tokenizer: Any) -> None:
    found = vocabulary(tokenizer)
    assert "city" in found
    assert found == sorted(set(found))
    assert all(word.isalnum() and not word.startswith(" ") for word in found)
    assert all(len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1 for word in found)
