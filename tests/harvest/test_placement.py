"""Where a model lies and in which form its weights are: quantized, on several devices."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harvest import NumericSettings, harvest, load_model, loading
from harvest.host_copy import HostCopy
from harvest.unit_rows import IN_FLIGHT, UnitRows
from store import CaptureSpec, InputError, ModelRef, PromptSet, Store

PROMPTS = PromptSet.from_rows([{"text": "The city of Paris is in France."[: 4 + row]} for row in range(12)])
SPEC = CaptureSpec(sites="resid_post.3")
SETTINGS = NumericSettings(threads=1)


@pytest.fixture
def model(save_tiny: Callable[[str], str]) -> ModelRef:
    return ModelRef(save_tiny("llama"), dtype="float32").resolve()


@pytest.mark.parametrize(
    ("quantization", "dtype", "off"), [("8bit", "bfloat16", (0.001, 0.2)), ("4bit", "float32", (0.01, 1.0))]
)
def test_quantized_weights(
    save_tiny: Callable[[str], str], tmp_path: Path, quantization: str, dtype: str, off: tuple[float, float]
) -> None:
    model = ModelRef(save_tiny("llama_wide"), dtype="float32").resolve()
    whole = Store.create(tmp_path / "whole", PROMPTS)
    harvest(model, whole, SPEC, settings=SETTINGS)
    store = Store.create(tmp_path / "run", PROMPTS)
    half = replace(model, dtype=dtype)
    settings = replace(SETTINGS, quantization=quantization)
    result = harvest(half, store, SPEC, settings=settings).raise_if_incomplete()
    exact = np.asarray(whole.column(model, "resid_post.3"))
    given = np.asarray(store.column(half, "resid_post.3")).astype(np.float32)
    error = np.linalg.norm(given - exact) / np.linalg.norm(exact)
    assert off[0] < error < off[1]
    assert result.certificate is not None
    # Against the same quantized weights in float32: what is certified is the run, not the quantization.
    assert result.certificate.ok
    with pytest.raises(InputError, match="quantization"):
        harvest(half, store, SPEC, settings=SETTINGS)


def test_quantized_weights_without_the_library(model: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'thresher\[quantized\]'"):
        load_model(model, quantization="4bit")
    with pytest.raises(InputError, match="use one of none, 8bit, 4bit"):
        NumericSettings(quantization="2bit")


def test_a_model_spread_over_its_devices_gives_the_same_bits(model: ModelRef, tmp_path: Path) -> None:
    digests = set()
    for device in (None, "cpu", "auto"):
        store = Store.create(tmp_path / str(device), PROMPTS)
        digests.add(harvest(model, store, SPEC, settings=SETTINGS, device=device).raise_if_incomplete().digest)
    assert len(digests) == 1


class Stream:
    """Stands in for a CUDA stream: copies arrive when their event is waited for, and not before."""

    def __init__(self) -> None:
        self.pending: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def arrive(self, key: int) -> None:
        host, values = self.pending.pop(key)
        host.copy_(values)


def test_rows_are_read_only_when_their_copy_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 8, with copies that come late as they do from a device."""
    stream, most = Stream(), 0

    def late(self: HostCopy, values: torch.Tensor) -> None:
        nonlocal most
        self._host = torch.full_like(values, torch.nan)
        key = id(self._host)
        stream.pending[key] = (self._host, values.clone())
        most = max(most, len(stream.pending))

        class Event:
            def synchronize(self) -> None:
                stream.arrive(key)

        self._done = Event()  # type: ignore[assignment]

    monkeypatch.setattr(HostCopy, "__init__", late)
    rows, batches = UnitRows(), [torch.randn(3, 4) for _ in range(9)]
    for number, values in enumerate(batches):
        rows.add(np.repeat(np.int32(8 - number), 3), {"a": values})
    given = rows.assembled()["a"]
    np.testing.assert_array_equal(given, torch.cat(batches[::-1]).numpy())
    assert most == IN_FLIGHT + 1
    assert not stream.pending
