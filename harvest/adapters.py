"""peft adapters on top of a model: which kinds can be harvested, and whether one fits."""

import json
import os
from pathlib import Path

from safetensors import safe_open
from torch import nn

from store import ModelRef
from store.errors import InputError, first_line

# peft's types that live in linear layers alone. Others put tokens before the prompt, which the base would not see.
ADAPTERS = frozenset({"LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA"})


def check_adapter_kind(ref: ModelRef) -> None:
    """Raises InputError for an adapter that does more than change what linear layers give, the same for every token."""
    try:
        config = json.loads(Path(ref.adapter_folder, "adapter_config.json").read_text(encoding="utf-8"))
        kind, invoked = config.get("peft_type"), config.get("alora_invocation_tokens")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"adapter {ref.adapter!r} has no readable adapter_config.json: fetch it again") from error
    if kind not in ADAPTERS or invoked:
        raise InputError(
            f"adapter {ref.adapter!r} is {'an activated LoRA' if invoked else f'of type {kind}'}: "
            f"only {', '.join(sorted(ADAPTERS))} can be harvested"
        )


def check_fits(ref: ModelRef, model: nn.Module) -> None:
    """Raises InputError for a LoRA of modules that the model does not have, by the names of its tensors alone."""
    known = {name for name, _ in model.named_modules()}
    for file in ref.files:
        if file.role == "adapter" and file.path.endswith(".safetensors"):
            with safe_open(os.path.join(ref.adapter_folder, file.path), framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  it is no dict
                    module = name.removeprefix("base_model.model.").split(".lora_")[0]
                    if ".lora_" in name and module not in known:
                        raise InputError(f"adapter {ref.adapter!r} does not fit {ref.name!r}: it has no {module}")


def with_adapter(model: nn.Module, ref: ModelRef) -> nn.Module:
    from peft import PeftModel

    check_adapter_kind(ref)
    try:
        wrapped = PeftModel.from_pretrained(model, ref.adapter_folder, is_trainable=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"adapter {ref.adapter!r} does not fit {ref.name!r}: {first_line(error)}") from error
    return wrapped.get_base_model()
