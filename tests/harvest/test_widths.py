"""Widths told beforehand against those of activations that were harvested."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harvest import NumericSettings, harvest
from harvest.widths import site_widths
from store import CaptureSpec, ModelRef, PromptSet, Store

PROMPTS = PromptSet.from_rows([{"text": "Paris is in France"}])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3", "olmo2", "mixtral", "multimodal"])
def test_widths_are_those_of_the_activations(save_tiny: Callable[[str], str], tmp_path: Path, name: str) -> None:
    sites = ["resid_pre.0", "resid_post.3", "attn_in.1", "attn_out.1", "mlp_in.2", "mlp_out.2", "heads.1", "heads.2.3"]
    sites.append("router.1" if name == "mixtral" else "neurons.1")
    ref = ModelRef(save_tiny(name), dtype="float32")
    store = Store.create(tmp_path / "run", PROMPTS)
    spec = CaptureSpec(sites=tuple(sites))
    harvest(ref, store, spec, settings=NumericSettings(threads=1), certificate_prompts=0).raise_if_incomplete()
    found = site_widths(ref, sites)
    assert found == {site: int(np.prod(store.column(ref, site).shape[1:])) for site in sites}
