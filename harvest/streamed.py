"""A model larger than memory: its blocks stay in their files, and every weight is read as its module runs.

transformers and accelerate do the reading; what is decided here is when, and which modules. A module that stays in its
file is read in every pass, cast to the compute dtype, and dropped when the module is done: at no time is there more in
memory than the embeddings, the final norm and the one module that runs (all experts of a block are one module).
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate.utils import get_max_memory
from safetensors import safe_open
from torch import nn

from harvest.architecture import Decoder

# Share of the free memory that the weights may take: the rest is for activations and for what else runs there.
SHARE = 0.6
_CGROUP = Path("/sys/fs/cgroup")


def fits_whole(weights: int, free: int) -> bool:
    """Whether weights of so many bytes may be loaded at once where `free` bytes are free."""
    return weights <= SHARE * free


def float32_bytes(shards: Iterable[Path]) -> int:
    """Size in float32 of all tensors of some safetensors files, from their headers alone."""
    total = 0
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return 4 * total


def free_memory(device: torch.device, *, cgroup: Path = _CGROUP) -> int:
    """Free bytes of a device; on the processor, of the machine or of this container, whichever is less.

    What the files of a container's processes hold in the page cache counts as free: it is given back when needed.
    """
    known = get_max_memory()
    if device.type != "cpu":
        return int(known[device.index or 0])
    free = int(known["cpu"])
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:  # no container, or one of another kind
        return free
    return free if limit == "max" else min(free, int(limit) - used + int(counts["inactive_file"]))


def stream_map(decoder: Decoder, device: torch.device) -> dict[str, str | int]:
    """`from_pretrained`'s `device_map`: blocks, and all that is beside the backbone, on disk; the rest on `device`.

    A head that shares the embeddings' weights has none of its own in any file: it stays beside them.
    """
    root = decoder.root
    place = "cpu" if device.type == "cpu" else device.index or 0
    names = {id(module): name for name, module in root.named_modules()}
    blocks, backbone = names[id(decoder.blocks)], names[id(decoder.backbone)]
    parts = blocks.split(".")
    above = {".".join(parts[:depth]) for depth in range(len(parts) + 1)}
    tied = tuple(getattr(root, "all_tied_weights_keys", {}))

    def on_disk(name: str) -> bool:
        inside = name.startswith(f"{backbone}.") if backbone else True
        beside = not inside and not any(weight.startswith(f"{name}.") for weight in tied)
        return name.startswith(f"{blocks}.") or beside

    chosen = [name for name in names.values() if name not in above and _parent(name) in above]
    loose = [name for name, _ in _tensors(root) if _parent(name) in above]
    return {name: "disk" if on_disk(name) else place for name in chosen} | dict.fromkeys(loose, place)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _tensors(root: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()
