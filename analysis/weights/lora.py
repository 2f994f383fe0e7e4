"""The exact singular triples of a LoRA adapter, from its factors alone.

ΔW = s B A with B [outputs, r] and A [r, inputs]. With B = Q_B R_B and Aᵀ = Q_A R_A, the r × r matrix s R_B R_Aᵀ has
the singular values of ΔW, and its vectors rotate Q_B and Q_A into those of ΔW. Neither ΔW nor the base is needed.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from analysis.weights.checkpoint import Checkpoint, SafetensorsCheckpoint
from analysis.weights.compare import compare_pair, moved_rows
from analysis.weights.difference import tensor_rows
from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.merged import merged_note
from analysis.weights.pair import TABLES, Pair, tied_embedding
from analysis.weights.roles import role_of
from analysis.weights.svd import Triples, canonical_signs
from store.errors import InputError
from store.model_ref import ModelRef

# Settings that make ΔW something else than s B A, or that change the base itself.
REFUSED = {
    "use_dora": "DoRA",
    "layer_replication": "layer replication",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "trainable_token_indices": "trainable token indices",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "megatron_config": "Megatron layers",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
LOOKED_AT = 4  # matrices of the base that are read to see whether the adapter is in them already
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?$")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A peft LoRA adapter on disk.

    settings  of adapter_config.json factors   module of the base -> names of its tensors A and B in the adapter
    replaced  weight of the base -> name of the adapter's tensor that takes its place (modules_to_save, trained
    biases)
    """

    tensors: SafetensorsCheckpoint
    settings: Mapping[str, Any]
    factors: Mapping[str, Mapping[str, str]]
    replaced: Mapping[str, str]

    def scaling(self, module: str, rank: int) -> float:
        """s = alpha / r, or alpha / √r for rank-stabilised LoRA; alpha may differ by module."""
        alpha = float(_by_pattern(self.settings.get("alpha_pattern") or {}, module, self.settings["lora_alpha"]))
        return alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)


def open_adapter(model: ModelRef) -> Adapter:
    """The adapter of a resolved model. Raises InputError, by name, for kinds that are more than s B A."""
    folder = Path(model.adapter_folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    kind = settings.get("peft_type")
    unsupported = [name for key, name in REFUSED.items() if settings.get(key)]
    start = settings.get("init_lora_weights")
    if kind != "LORA":
        unsupported = [f"peft type {kind}"]
    elif isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        unsupported.append(f"initialisation {start!r}, which changes the base's weights")
    if unsupported:
        raise InputError(
            f"adapter {folder}: {unsupported[0]} is not supported; merge it into its base and give both models"
        )
    paths = [str(folder / f.path) for f in model.files if f.role == "adapter" and f.path.endswith(".safetensors")]
    tensors = SafetensorsCheckpoint(str(model.adapter), paths)
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for tensor in tensors.shapes:
        name = tensor.removeprefix("base_model.model.")
        found = _FACTOR.match(name)
        if found:
            factors.setdefault(found["module"], {})[found["factor"]] = tensor
        elif ".lora_" in name and not name.endswith(".lora_B.bias"):
            raise InputError(f"adapter {folder}: {tensor} is no LoRA factor; merge the adapter and give both models")
        else:
            replaced[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = tensor
    for module, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise InputError(f"adapter {folder}: {module} has only one of its two factors: fetch the adapter again")
    # peft also saves the untouched table below an adapted embedding: the factors are the change, not that copy.
    replaced = {name: tensor for name, tensor in replaced.items() if name.removesuffix(".weight") not in factors}
    if not factors and not replaced:
        raise InputError(f"adapter {folder} holds no tensors: fetch it again")
    return Adapter(tensors=tensors, settings=settings, factors=factors, replaced=replaced)


def adapter_deltas(adapter: Adapter, base: Checkpoint, *, rank: int) -> Iterator[MatrixDelta | VectorDelta]:
    """The difference of every weight that the adapter touches.

    Of the base, names and shapes alone are read, but for weights that the adapter replaces (modules_to_save,
    biases), and the first few adapted ones, which show whether the adapter is in them already.
    """
    for number, module in enumerate(adapter.factors):
        yield _module_delta(adapter, base, module, rank=rank, look=number < LOOKED_AT)
    for name, tensor in adapter.replaced.items():
        if name.endswith(".lora_B.bias"):
            yield _bias_delta(adapter, name.removesuffix(".lora_B.bias"), tensor)
        else:
            pair = _replaced_pair(adapter, base, name, tensor)
            for found, _ in compare_pair(base, adapter.tensors, pair, rank=rank, full=False):
                yield found


def _bias_delta(adapter: Adapter, module: str, tensor: str) -> VectorDelta:
    """The bias of a factor B, which the adapter adds times its scaling."""
    rank = adapter.tensors.shapes[adapter.factors[module]["A"]][0]
    bias = tensor_rows(adapter.tensors, tensor, 0, adapter.tensors.shapes[tensor][0])
    return VectorDelta(
        name=f"{module}.bias", frobenius=adapter.scaling(module, rank) * float(bias.norm()), relative=None
    )


def _replaced_pair(adapter: Adapter, base: Checkpoint, name: str, tensor: str) -> Pair:
    """A weight that the adapter holds whole, beside the base's own: here the base is read."""
    shape = adapter.tensors.shapes[tensor]
    held = name if name in base.shapes else tied_embedding(base)
    if held is None or (held != name and not TABLES.search(name)) or base.shapes[held][1:] != shape[1:]:
        raise InputError(
            f"adapter {adapter.tensors.name} replaces {name} {list(shape)}, which {base.name} does not have: give the "
            f"base that it was trained on ({adapter.settings.get('base_model_name_or_path')})"
        )
    ours = base.shapes[held]
    notes: tuple[str, ...] = ()
    if ours != shape:
        notes = (f"resized vocabulary {ours[0]} to {shape[0]}: the common rows are compared",)
    rows = min(ours[0], shape[0])
    return Pair(name=name, base_name=held, tuned_name=tensor, shape=ours, rows=rows, notes=notes)


def _module_delta(adapter: Adapter, base: Checkpoint, module: str, *, rank: int, look: bool) -> MatrixDelta:
    name = f"{module}.weight"
    down, up = (_factor(adapter, module, factor) for factor in ("A", "B"))  # [r, inputs], [outputs, r]
    stored = (up.shape[0], down.shape[1])
    transposed = bool(adapter.settings.get("fan_in_fan_out")) or "embedding_" in adapter.factors[module]["A"]
    if transposed:
        stored = (stored[1], stored[0])
    _check_target(adapter, base, name, stored)
    left, core_left = torch.linalg.qr(up)
    right, core_right = torch.linalg.qr(down.T)
    inner, sigma, outer = torch.linalg.svd(adapter.scaling(module, down.shape[0]) * core_left @ core_right.T)
    kept = sigma > torch.finfo(torch.float64).eps * max(stored) * sigma[0]
    total = float((sigma**2).sum())
    kept[rank:] = False
    left, right, sigma = left @ inner[:, kept], right @ outer[kept].T, sigma[kept]
    sign = canonical_signs(left)
    triples = Triples(sigma=sigma, left=left * sign, right=right * sign, residual=torch.zeros_like(sigma))
    notes: tuple[str, ...] = ("unchanged",) if total == 0 else ()
    if total and len(sigma) < min(rank, *stored):
        notes = (f"rank {len(sigma)}, below the {rank} asked for",)
    if total and (another := _another_base(adapter, base)):
        notes = (another, *notes)
    if total and look and name in base.shapes:
        merged = merged_note(base, name, triples, transposed=transposed)
        notes = (merged, *notes) if merged else notes
    role = role_of(name, conv1d=transposed)
    return MatrixDelta(
        name=name,
        shape=stored,
        role=role,
        sigma=triples.sigma.float().numpy(),
        left=triples.left.float().numpy(),
        right=triples.right.float().numpy(),
        residual=triples.residual.float().numpy(),
        frobenius=total**0.5,
        relative=None,
        noise_edge=0.0,
        significant=len(sigma),
        notes=notes,
        moved_rows=_moved_tokens(triples, role.name),
    )


def _another_base(adapter: Adapter, base: Checkpoint) -> str | None:
    """A note where the adapter names another base than this, both by names that mean something.

    No more: bases have copies. A full path (of a cache, of another machine) and a GGUF file say nothing.
    """
    named = adapter.settings.get("base_model_name_or_path")
    if not isinstance(named, str) or not named or os.path.isabs(named) or base.name.endswith(".gguf"):
        return None
    theirs, ours = (os.path.basename(os.path.abspath(name)).lower() for name in (named, base.name))
    if theirs == ours:
        return None
    return (
        f"perhaps another base: by its adapter_config.json the adapter was trained on {named}, and this is {base.name}"
    )


def _factor(adapter: Adapter, module: str, factor: str) -> torch.Tensor:
    tensor = adapter.factors[module][factor]
    shape = adapter.tensors.shapes[tensor]
    if len(shape) != 2:
        raise InputError(f"{adapter.tensors.name}: {tensor} is {list(shape)}; LoRA on convolutions is not supported")
    return tensor_rows(adapter.tensors, tensor, 0, shape[0]).double()


def _check_target(adapter: Adapter, base: Checkpoint, name: str, stored: tuple[int, int]) -> None:
    """Raises InputError where the base has no such weight, or another shape: the adapter belongs to another base."""
    tied = TABLES.search(name) and name not in base.shapes
    if tied:
        return
    shape = base.shapes.get(name)
    if shape is None or tuple(shape) != stored:
        has = "does not have that weight" if shape is None else f"has {list(shape)} there"
        raise InputError(
            f"adapter {adapter.tensors.name} changes {name} as {list(stored)}, but {base.name} {has}: give the base "
            f"that it was trained on ({adapter.settings.get('base_model_name_or_path')})"
        )


def _moved_tokens(triples: Triples, role: str) -> tuple[tuple[int, float], ...]:
    """Tokens whose rows change most: an embedding's inputs and an unembedding's outputs are the vocabulary."""
    if role not in ("embedding", "unembedding"):
        return ()
    vectors = triples.right if role == "embedding" else triples.left
    return moved_rows((vectors * triples.sigma).float())


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """peft's rule: a pattern names the end of a module's path, from a dot on; the first that matches counts."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
