"""Models too large for memory: the streamed certificate is the whole model's, in little memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from harvest import NumericSettings, harvest
from harvest.loading import load_model
from harvest.reader import Reader
from harvest.streamed import SHARE, fits_whole, float32_bytes, free_memory
from store import CaptureSpec, ModelRef, PromptSet, Store
from tests.harvest.conftest import CONFIGS, tiny_model, tiny_tokenizer

SITES = "resid_pre.0,resid_post.1,attn_in.2,heads.2,mlp_out.3"
MIB = 2**20


def small_memory(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("harvest.certificate.free_memory", lambda device: 1)
    monkeypatch.setenv("THRESHER_CACHE", str(cache))


def test_the_decision_is_of_two_numbers() -> None:
    assert fits_whole(600, 1000)
    assert not fits_whole(601, 1000)
    assert not fits_whole(1, 0)
    assert SHARE == 0.6


def test_the_size_is_that_of_all_tensors_in_float32(tmp_path: Path) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert float32_bytes(shards) == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_a_containers_limit_counts_and_its_page_cache_does_not(tmp_path: Path) -> None:
    machine = free_memory(torch.device("cpu"), cgroup=tmp_path / "none")
    assert machine > 64 * MIB
    (tmp_path / "memory.max").write_text(f"{64 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{50 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {10 * MIB}\ninactive_file {30 * MIB}\n")
    assert free_memory(torch.device("cpu"), cgroup=tmp_path) == 44 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu"), cgroup=tmp_path) > 64 * MIB


@pytest.mark.parametrize("architecture", [*CONFIGS, "multimodal"])
def test_every_architecture_streams_to_the_same_bits(architecture: str, tmp_path: Path) -> None:
    """Sharded bfloat16 weights, tied and untied heads, fused experts, buffers: against the whole model in float32."""
    tiny_model(architecture).to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    ref = ModelRef(str(tmp_path / "model"), dtype="float32").resolve()
    whole = load_model(ref, threads=1)
    streamed = load_model(ref, threads=1, streamed_through=str(tmp_path / "spill"))
    inside = {parameter.device.type for parameter in streamed.decoder.blocks.parameters()}
    assert inside == {"meta"}
    sites = ["resid_pre.0", "resid_post.0", "resid_post.3"]
    if architecture != "mamba":
        sites += ["heads.2", "attn_in.2", "mlp_in.3"]
    if architecture in ("mixtral", "qwen3_moe"):
        sites += ["router.2", "mlp_out.2"]
    ids = torch.randint(2, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(streamed.model(ids).logits, whole.model(ids).logits)
    read = []
    for loaded in (whole, streamed):
        reader = Reader(loaded, sites)
        reader.cut()
        read.append(reader.example)
    for site in sites:
        assert torch.equal(read[0][site], read[1][site]), site


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "gemma3"])
def test_the_certificate_of_a_streamed_model_is_the_whole_ones(
    architecture: str, save_tiny: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = PromptSet.from_rows([{"text": "Paris is in France " * (1 + row % 3)} for row in range(9)])
    made = {}
    for name in ("whole", "streamed"):
        if name == "streamed":
            small_memory(monkeypatch, tmp_path / "cache")
        model = ModelRef(save_tiny(architecture), dtype="bfloat16").resolve()
        store = Store.create(tmp_path / name, prompts)
        result = harvest(model, store, CaptureSpec(sites=SITES), settings=NumericSettings(threads=1))
        assert result.certificate is not None
        made[name] = result.certificate
    assert made["streamed"].streamed
    assert not made["whole"].streamed
    assert made["streamed"].sites == made["whole"].sites
    assert made["streamed"].prompts == made["whole"].prompts
    # What was spilled is gone.
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_adapter_that_does_not_fit_is_left_out_and_says_why(
    save_tiny: Callable[[str], str],
    save_adapter: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_memory(monkeypatch, tmp_path / "cache")
    model = ModelRef(save_tiny("llama"), adapter=save_adapter("llama"), dtype="float32").resolve()
    store = Store.create(tmp_path / "store", PromptSet.from_rows([{"text": "Paris"}]))
    result = harvest(model, store, CaptureSpec(sites="resid_post.1"), settings=NumericSettings(threads=1))
    assert result.complete
    assert result.certificate is not None
    assert not result.certificate.ok
    assert "adapter" in str(result.certificate.left_out)


MEASURE = """
import json, sys, threading, time
from pathlib import Path
import torch
from harvest.loading import load_model
from harvest.reader import Reader
from store import ModelRef

small, large, spill, streamed = sys.argv[1:]

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def run(folder):
    ref = ModelRef(folder, dtype="float32").resolve()
    loaded = load_model(ref, threads=1, streamed_through=spill if streamed == "yes" else None)
    reader = Reader(loaded, [f"resid_post.{loaded.decoder.n_layers - 1}", "neurons.0"])
    reader.cut()
    return {site: rows.double().sum().item() for site, rows in reader.example.items()}

run(small)  # what the libraries keep once they have run is no weight
before = peak = private()
running = True

def watch():
    global peak
    while running:
        peak = max(peak, private())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
found = run(large)
running = False
watcher.join()
print(json.dumps({"peak": peak - before, "found": found}))
"""


def wide_llama(blocks: int) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=1000,
            hidden_size=768,
            intermediate_size=2880,
            num_hidden_layers=blocks,
            num_attention_heads=12,
            num_key_value_heads=12,
        )
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much memory is a process's own")
def test_memory_is_that_of_the_embeddings_and_one_block(tmp_path: Path) -> None:
    """24 wide blocks, 400 MB in bfloat16 and 800 MB in float32: streamed it takes a fraction of that."""
    model = wide_llama(24)
    block = 4 * sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    embeddings = 4 * model.model.embed_tokens.weight.numel()
    total = 4 * sum(parameter.numel() for parameter in model.parameters())
    for name, made in (("large", model), ("small", wide_llama(1))):
        made.to(torch.bfloat16).save_pretrained(tmp_path / name, max_shard_size="50MB")
    del model, made
    places = [str(tmp_path / name) for name in ("small", "large", "spill")]
    told = {}
    for streamed in ("no", "yes"):
        words = [sys.executable, "-c", MEASURE, *places, streamed]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        told[streamed] = json.loads(done.stdout.splitlines()[-1])
    assert told["no"]["peak"] > 0.9 * total
    assert told["yes"]["peak"] < embeddings + 2 * block < total / 10
    assert told["yes"]["found"] == told["no"]["found"]
