"""What `*` stands for in a model: the blocks that have the place, and the heads of a block."""

import pytest
import torch
import transformers

from harvest.architecture import Decoder, find_decoder
from store import InputError
from tests.harvest.conftest import CONFIGS


def decoder(architecture: str) -> Decoder:
    """A model's modules without weights."""
    name, options = CONFIGS[architecture]
    with torch.device("meta"):
        return find_decoder(transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**options)))


@pytest.mark.parametrize(
    ("architecture", "pattern", "sites"),
    [
        # Block 1 is dense, the others are mixtures of experts.
        ("qwen3_moe", "router.*", "router.0 router.2 router.3"),
        ("qwen3_moe", "neurons.*", "neurons.1"),
        (
            "qwen3_moe",
            "module:model.layers.*.mlp.gate@in",
            "module:model.layers.0.mlp.gate@in module:model.layers.2.mlp.gate@in module:model.layers.3.mlp.gate@in",
        ),
        # From the backbone.
        (
            "llama",
            "module:layers.*.mlp",
            "module:layers.0.mlp module:layers.1.mlp module:layers.2.mlp module:layers.3.mlp",
        ),
        ("llama", "heads.1.*", "heads.1.0 heads.1.1 heads.1.2 heads.1.3"),
    ],
)
def test_globs_take_the_blocks_and_heads_that_there_are(architecture: str, pattern: str, sites: str) -> None:
    found = decoder(architecture)
    assert [str(site) for site in found.sites(pattern)] == sites.split()
    for site in found.sites(pattern):
        found.tap(site)


@pytest.mark.parametrize(
    ("architecture", "pattern", "says"),
    [
        ("llama", "router.*", r"0 has no place router\.0: it has resid_pre"),
        ("qwen3_moe", "router.0-2", r"1 has no place router\.1: it has resid_pre"),
        ("llama", "module:a.*.b", r"no module 'a\.0\.b'"),
        ("llama", "heads.*.9", "from 0 to 3"),
    ],
)
def test_what_no_block_has_and_a_range_over_one_without_it_is_refused(
    architecture: str, pattern: str, says: str
) -> None:
    found = decoder(architecture)
    with pytest.raises(InputError, match=says):
        [found.tap(site) for site in found.sites(pattern)]
