"""Tiny random models of every architecture, with a real byte-level tokenizer, saved as a user would have them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCAB = 320
ENDS = {"bos_token_id": 0, "eos_token_id": 1}
WIDE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 1,
    **ENDS,
}
EXPERTS = {"num_experts_per_tok": 2}
# head_dim differs from hidden_size / heads wherever the architecture lets it.
WITH_HEAD_DIM = {**WIDE, "head_dim": 12}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", WIDE),
    # Wide enough for a block of 4-bit weights.
    "llama_wide": ("LlamaConfig", {**WIDE, "hidden_size": 64, "intermediate_size": 128}),
    "qwen2": ("Qwen2Config", WIDE),
    "qwen3": ("Qwen3Config", WITH_HEAD_DIM),
    "mistral": ("MistralConfig", {**WITH_HEAD_DIM, "sliding_window": 6}),
    "gemma2": ("Gemma2Config", {**WITH_HEAD_DIM, "sliding_window": 6, "query_pre_attn_scalar": 12}),
    "gemma3": ("Gemma3TextConfig", {**WITH_HEAD_DIM, "sliding_window": 6, "query_pre_attn_scalar": 12}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, **ENDS},
    ),
    "gpt_neox": ("GPTNeoXConfig", {k: v for k, v in WIDE.items() if k != "num_key_value_heads"}),
    "gpt_neox_serial": (
        "GPTNeoXConfig",
        {**{k: v for k, v in WIDE.items() if k != "num_key_value_heads"}, "use_parallel_residual": False},
    ),
    "phi3": ("Phi3Config", WIDE),
    # Beyond 12 tokens its positions turn with other frequencies.
    "phi3_long": (
        "Phi3Config",
        {
            **WIDE,
            "original_max_position_embeddings": 12,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 12,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 3.0, 4.0, 5.0],
            },
        },
    ),
    "olmo2": ("Olmo2Config", WIDE),
    "mixtral": ("MixtralConfig", {**WIDE, **EXPERTS, "num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**WITH_HEAD_DIM, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
    ),
    "granite": ("GraniteConfig", {**WIDE, "logits_scaling": 3.0, "residual_multiplier": 0.5}),
    # Positions by ALiBi, and a state instead of attention: neither takes position ids.
    "bloom": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4, **ENDS}),
    "mamba": ("MambaConfig", {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8, **ENDS}),
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a BOS before every text; the padding token is the end token, as so often."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["The city of Paris is in France. What is two plus two? It is four."] * 4
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # Offsets without the space before a word, as GPT-2's tokenizer gives them.
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(architecture: str) -> Any:
    """A random model in float32; weights large enough that every site differs from every other."""
    if architecture == "multimodal":
        text = transformers.Gemma3TextConfig(**CONFIGS["gemma3"][1])
        vision = transformers.SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
        config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        torch.manual_seed(0)
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        name, options = CONFIGS[architecture]
        config = getattr(transformers, name)(**options)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise + (1.0 if parameter.ndim == 1 else 0.0))
    return model.eval()


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Architecture -> folder with its safetensors and tokenizer; made once."""

    @functools.cache
    def save(architecture: str) -> str:
        folder: Path = tmp_path_factory.mktemp(architecture)
        tiny_model(architecture).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="session")
def save_adapter(save_tiny: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Architecture -> folder of a LoRA adapter that changes its numbers."""
    from peft import LoraConfig, get_peft_model

    @functools.cache
    def save(architecture: str) -> str:
        folder = tmp_path_factory.mktemp(f"{architecture}-adapter")
        base = transformers.AutoModelForCausalLM.from_pretrained(save_tiny(architecture))
        torch.manual_seed(2)
        tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        tuned.save_pretrained(str(folder))
        return str(folder)

    return save


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()
