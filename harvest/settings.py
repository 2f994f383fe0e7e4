"""What decides the last bits of an activation besides the model and the prompt.

All of it is part of a column's key: fixed when a harvest is planned, recorded, and never a consequence of how
many workers there happen to be.
"""

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from store.errors import InputError

# Raised whenever the same settings would give other numbers than before.
SEMANTICS = 2

QUANTIZATIONS = ("none", "8bit", "4bit")
ATTENTION_BACKENDS = ("auto", "sdpa", "eager", "flash_attention_2")


def machine_threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class NumericSettings:
    """Numeric settings of a harvest.

    threads       of every worker's tensor arithmetic; equal for all workers, whatever their number
    attention     transformers' attention backend; `auto` is sdpa, or eager where a model has no sdpa
    token_budget  tokens in one batch, padding included; a prompt longer than that has a batch of its own
    share_prefixes  beginnings that several prompts of a unit share (system prompt, few-shot header) are run once
                    and reused through the cache of keys and values, where the architecture has one
    quantization  of the linear layers' weights as the model is loaded, by bitsandbytes: none, 8bit or 4bit
    pack          prompts lie one behind the other without padding, each attending to itself alone, where the
                    architecture's attention can be told so; elsewhere, and without it, batches are padded
    """

    threads: int = field(default_factory=machine_threads)
    attention: str = "auto"
    token_budget: int = 4096
    share_prefixes: bool = True
    pack: bool = True
    quantization: str = "none"

    def __post_init__(self) -> None:
        if self.threads < 1 or self.token_budget < 1:
            raise InputError("threads and token budget are at least 1")
        if self.quantization not in QUANTIZATIONS:
            raise InputError(f"unknown quantization {self.quantization!r}: use one of {', '.join(QUANTIZATIONS)}")
        if self.attention not in ATTENTION_BACKENDS:
            raise InputError(
                f"unknown attention backend {self.attention!r}: use one of {', '.join(ATTENTION_BACKENDS)}"
            )

    def record(self) -> dict[str, Any]:
        """JSON for the keys of columns."""
        return {**asdict(self), "semantics": SEMANTICS}
