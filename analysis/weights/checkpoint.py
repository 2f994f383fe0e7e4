"""Checkpoints read tensor by tensor from disk, a range of rows at a time.

Nothing here builds a model: memory holds the rows that were asked for and no more. The safetensors library checks
every file when it is opened; rows are then read at the offsets of its header, because the library maps a file into
memory, where every page that was touched counts as resident, and reads the whole header for every range of rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from store.errors import InputError
from store.model_ref import ModelRef

# What quantised checkpoints of the usual libraries hold in place of, or beside, a weight.
QUANTISED_MARKS = (".qweight", ".qzeros", ".weight.absmax", ".weight_scale", ".weight_packed", ".SCB")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint(Protocol):
    """The tensors of one model as its Hugging Face checkpoint names them."""

    @property
    def name(self) -> str:
        """The model's name, for messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Tensor name -> shape, floating-point tensors only."""

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype in which the values were stored; float32 for dequantised ones."""

    def rows(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) along the first axis, in the stored dtype."""


class SafetensorsCheckpoint:
    """The shards of a folder. Raises InputError for a shard that is damaged or quantised, naming it."""

    def __init__(self, name: str, shards: Sequence[str]) -> None:
        self.name = name
        self._shard: dict[str, str] = {}
        self._offset: dict[str, int] = {}
        self._dtype: dict[str, torch.dtype] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in shards:
            self._read_header(path)

    def _read_header(self, path: str) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                    if tensor.endswith(QUANTISED_MARKS):
                        raise InputError(
                            f"{self.name} is a quantised checkpoint ({tensor} in {path}): compare the weights "
                            "before quantisation, or a dequantised copy"
                        )
                    entry = file.get_slice(tensor)
                    if entry.get_dtype() not in FLOATS:
                        if entry.get_dtype().startswith("F8") or tensor.endswith(".weight"):
                            raise InputError(
                                f"{self.name}: {tensor} in {path} is {entry.get_dtype()}, not a floating-point "
                                "weight of 16 bits or more: compare a dequantised copy"
                            )
                        continue  # an integer buffer, e.g. position ids
                    if tensor in self._shard:
                        raise InputError(f"{self.name}: {tensor} is in {self._shard[tensor]} and in {path}")
                    self._shard[tensor] = path
                    self._dtype[tensor] = FLOATS[entry.get_dtype()]
                    self.shapes[tensor] = tuple(entry.get_shape())
            offsets = _offsets(path)
            self._offset |= {tensor: offsets[tensor] for tensor in offsets if self._shard.get(tensor) == path}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error}): fetch the shard again") from error

    def dtype(self, tensor: str) -> torch.dtype:
        return self._dtype[tensor]

    def rows(self, tensor: str, start: int, stop: int) -> torch.Tensor:
        shape, dtype = self.shapes[tensor], self._dtype[tensor]
        start, stop = (min(row, shape[0]) for row in (start, stop)) if shape else (0, 1)
        row = math.prod(shape[1:])
        values = torch.empty((stop - start) * row, dtype=dtype)
        with Path(self._shard[tensor]).open("rb", buffering=0) as file:
            file.seek(self._offset[tensor] + start * row * dtype.itemsize)
            bytes_of = values.view(torch.uint8).numpy().data
            read = 0
            while read < len(bytes_of):
                count = file.readinto(bytes_of[read:])
                if not count:
                    raise InputError(f"{self._shard[tensor]} became shorter while it was read: fetch the shard again")
                read += count
        return values.reshape(stop - start, *shape[1:]) if shape else values.reshape(())


def _offsets(path: str) -> dict[str, int]:
    """Where each tensor's bytes begin in a safetensors file that the library found sound."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def weight_files(model: ModelRef) -> list[str]:
    """Absolute paths of the resolved model's weight files, in order of name."""
    return sorted(str(Path(model.folder) / file.path) for file in model.files if file.role == "weights")


def open_checkpoint(model: ModelRef) -> Checkpoint:
    """The checkpoint behind a model, resolved or not. Raises InputError where it cannot be read."""
    resolved = model.resolve()
    if resolved.gguf_file:
        from analysis.weights.gguf_checkpoint import GgufCheckpoint  # transformers takes seconds to import

        return GgufCheckpoint(resolved)
    return SafetensorsCheckpoint(resolved.name, weight_files(resolved))
