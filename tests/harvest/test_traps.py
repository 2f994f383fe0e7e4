"""What goes silently wrong when activations are read, where no other test of this folder looks already.

Numbers of the list of traps (docs/limits.md says which cannot be tested without the hardware): 1 to 5, 11, 12 and 14 in
test_sites.py, 1 in bfloat16 in test_smollm2.py; 8 in test_placement.py; 9 in test_harvest.py (shared prefixes) and
test_generation.py; 10 in test_encoding.py; 15 in test_memory.py too; 18 in test_killers.py; 6, 7, 13 and 15 here.
"""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from harvest import NumericSettings, RawSink, harvest, load_model
from harvest.layout import Layout
from harvest.reader import Reader
from harvest.ways import ways_of
from store import CaptureSpec, ModelRef, PromptSet, SinkBatch, Store, Unit

LENGTHS = (3, 9, 5)
IDS = [np.random.default_rng(n).integers(0, 300, n) for n in LENGTHS]
ALL = [np.arange(n) for n in LENGTHS]


def read(ref: ModelRef, site: str = "resid_post.3", **options: Any) -> torch.Tensor:
    return Reader(load_model(ref, **options), [site]).read(IDS, ALL)[site]


@pytest.mark.parametrize(("name", "state"), [("bloom", 3), ("mamba", 2)])
def test_models_without_position_ids(save_tiny: Callable[[str], str], name: str, state: int) -> None:
    """Trap 2: ALiBi, and a recurrent state that padding on the left would run through.

    `state` is where transformers keeps the output of block 2: Mamba's hidden states do not begin with the embedding.
    """
    folder = save_tiny(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = []
    for tokens in IDS:
        with torch.no_grad():
            ids = torch.from_numpy(tokens)[None]
            expected.append(model(ids, output_hidden_states=True).hidden_states[state][0])
    given = read(ModelRef(folder, dtype="float32"), "resid_post.2")
    difference = torch.linalg.vector_norm(given - torch.cat(expected), dim=-1)
    assert (difference / torch.linalg.vector_norm(torch.cat(expected), dim=-1)).max() < 1e-5


def test_a_recurrent_model_shares_no_prefix(save_tiny: Callable[[str], str]) -> None:
    assert not ways_of(load_model(ModelRef(save_tiny("mamba"), dtype="float32"))).share


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mistral"])
def test_attention_backends_agree_on_real_tokens(save_tiny: Callable[[str], str], name: str) -> None:
    """Trap 6."""
    ref = ModelRef(save_tiny(name), dtype="float32")
    torch.testing.assert_close(read(ref, attention="sdpa"), read(ref, attention="eager"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_never_makes_a_stored_row_nan(save_tiny: Callable[[str], str], attention: str) -> None:
    """Trap 6: rows of padding may be NaN in half precision, real ones may not."""
    assert read(ModelRef(save_tiny("llama")), attention=attention).isfinite().all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_what_stands_in_the_padding_changes_no_row(
    save_tiny: Callable[[str], str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(ModelRef(save_tiny(name), dtype="float32"))
    reader = Reader(loaded, ["resid_post.3"])
    first = reader.read(IDS, ALL)["resid_post.3"]
    fill = Layout.fill
    monkeypatch.setattr(Layout, "fill", lambda self, prompts: np.where(self.mask(), fill(self, prompts), 7))
    second = reader.read(IDS, ALL)["resid_post.3"]
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_rows_are_copies_of_what_the_module_may_reuse(save_tiny: Callable[[str], str]) -> None:
    """Trap 7: a buffer that the next block writes into."""
    loaded = load_model(ModelRef(save_tiny("llama"), dtype="float32"))
    expected = Reader(loaded, ["resid_post.1", "resid_post.3"]).read(IDS, ALL)["resid_post.1"].clone()
    reader = Reader(loaded, ["resid_post.1", "resid_post.3"])
    inner = loaded.decoder.blocks[2].forward

    def overwriting(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = inner(hidden.clone(), *args, **kwargs)
        hidden.zero_()
        return out

    loaded.decoder.blocks[2].forward = overwriting
    assert torch.equal(reader.read(IDS, ALL)["resid_post.1"], expected)


def test_overflow_of_float16_is_counted_and_kept(save_tiny: Callable[[str], str], tmp_path: Path) -> None:
    """Trap 13: it is stored as it is, told in the notes, and no certificate is given."""
    model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:4] *= 1e6
    model.save_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(save_tiny("llama")).save_pretrained(tmp_path / "model")
    store = Store.create(tmp_path / "run", PromptSet.from_rows([{"text": "Paris is in"}, {"text": "two"}]))
    ref = ModelRef(str(tmp_path / "model"), dtype="float16")
    spec = CaptureSpec(sites="resid_post.0,resid_post.1", reduce="mean")
    result = harvest(ref, store, spec, settings=NumericSettings(threads=1))
    (receipt,) = store.receipts()
    assert receipt.notes["nonfinite"].keys() == {"resid_post.1"}
    assert not np.isfinite(np.asarray(store.column(ref, "resid_post.1")).astype(np.float32)).all()
    assert np.isfinite(np.asarray(store.column(ref, "resid_post.0")).astype(np.float32)).all()
    assert result.certificate is not None
    assert not result.certificate.ok
    assert result.certificate.sites["resid_post.0"].ok


@pytest.mark.parametrize("reduce", ["none", "mean"])
def test_a_sink_keeps_no_batch_alive(reduce: str) -> None:
    """Trap 15: a view of the last token would keep the whole batch."""
    sink = RawSink(sites=("resid_post.0",), dtype="float32", reduce=reduce)
    sink.start(Unit(index=0, name="u000000", digest="", start=0, stop=2), pa.table({"prompt_id": ["a", "b"]}))
    values = torch.randn(6, 4)
    expected = values.numpy().copy()
    batch = SinkBatch(
        activations={"resid_post.0": values},
        prompt=np.array([1, 1, 1, 0, 0, 0], np.int32),
        position=np.array([0, 1, 2, 0, 1, 2], np.int32),
        token_id=np.zeros(6, np.int32),
        role=np.ones(6, np.int8),
    )
    alive = weakref.ref(values)
    sink.add(batch)
    values.zero_()
    del values, batch
    gc.collect()
    assert alive() is None
    (column,) = sink.finish()
    turned = np.concatenate([expected[3:], expected[:3]])
    if reduce == "mean":
        turned = turned.reshape(2, 3, 4).mean(1)
    np.testing.assert_allclose(column.values, turned, rtol=1e-6)
