"""Directions read out as tokens, against the norm and head applied by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harvest import load_model, load_tokenizer
from harvest.read_out import read_out
from store import ModelRef

NORMS = {"llama": "model.norm", "gpt2": "transformer.ln_f", "gemma2": "model.norm"}


@pytest.mark.parametrize("arch", NORMS)
def test_tokens_are_those_of_the_final_norm_and_head(save_tiny: Callable[[str], str], arch: str) -> None:
    ref = ModelRef(save_tiny(arch), dtype="float32")
    loaded, tokenizer = load_model(ref), load_tokenizer(ref)
    plain = AutoModelForCausalLM.from_pretrained(ref.name, dtype=torch.float32)
    norm = plain.get_submodule(NORMS[arch])
    width = plain.config.hidden_size
    vectors = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32) * [[1], [100], [1e-3]]
    found = read_out(loaded, tokenizer, vectors, count=4)
    for vector, one in zip(vectors, found, strict=True):
        v = torch.from_numpy(vector.astype(np.float32))
        v = v / v.norm() * width**0.5
        with torch.no_grad():
            up, down = (plain.lm_head(norm(sign * v)) for sign in (1, -1))
            cap = getattr(plain.config, "final_logit_softcapping", None)
            if cap:
                up, down = (cap * torch.tanh(part / cap) for part in (up, down))
        odd = (up - down) / 2
        odd = (odd - odd.mean()).numpy()
        order = np.argsort(-odd)
        assert [token for token, _ in one.raises] == [tokenizer.decode([int(i)]) for i in order[:4]]
        assert [token for token, _ in one.lowers] == [tokenizer.decode([int(i)]) for i in order[::-1][:4]]
        np.testing.assert_allclose([logit for _, logit in one.raises], odd[order[:4]], rtol=1e-4, atol=1e-5)


def test_a_head_reads_its_own_rows(save_tiny: Callable[[str], str]) -> None:
    """The direction of a token's row of the head, undone by the norm's gain, raises that token most."""
    ref = ModelRef(save_tiny("llama"), dtype="float32")
    loaded, tokenizer = load_model(ref), load_tokenizer(ref)
    plain = AutoModelForCausalLM.from_pretrained(ref.name, dtype=torch.float32)
    rows = plain.lm_head.weight.detach()
    token = int(rows.norm(dim=1).argmax())
    (found,) = read_out(loaded, tokenizer, (rows[token] / plain.model.norm.weight.detach()).numpy()[None])
    assert found.raises[0][0] == tokenizer.decode([token])
