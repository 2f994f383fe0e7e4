"""Where the sites are in a model: found by its structure and one small table of names.

A decoder is the module that holds a list of as many blocks as its config says. In every block the parts are found
by the names below. What a site is:

| site          | read from                                                                               |
|---------------|-----------------------------------------------------------------------------------------|
| `resid_pre`   | the block's input                                                                       |
| `resid_mid`   | the input of the norm between attention and MLP (of the MLP itself where the norm follows it) |
| `resid_post`  | the block's output, so always before the final norm                                     |
| `attn_in`     | the attention's input: after the norm that feeds it, if one does                        |
| `attn_out`    | the attention's output: before a norm that follows it (Gemma, OLMo 2)                   |
| `mlp_in`, `mlp_out` | likewise of the MLP or the block of experts                                       |
| `heads`       | the input of the attention's output projection, [heads, head width]                     |
| `neurons`     | the input of the MLP's down projection                                                  |
| `router`      | the router's logits, one per expert                                                     |
| `module:path` | that module's output, its input with `@in`                                              |
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from store import Site, expand_sites
from store.errors import InputError

# Names of a block's parts, the first that is there counts.
ATTENTION = ("self_attn", "attention", "attn", "self_attention", "linear_attn")
MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
OUTPUT_PROJECTION = ("o_proj", "c_proj", "dense", "out_proj", "wo")
DOWN_PROJECTION = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")
ROUTER = ("gate", "router")
# The norm between attention and MLP. In a block with a norm after the MLP and none before it
# (OLMo 2: `post_attention_layernorm` is on the attention's branch) there is no such norm.
NORM_RIGHT_BEFORE_MLP = ("pre_feedforward_layernorm", "pre_mlp_layernorm")
NORM_BEFORE_MLP = (*NORM_RIGHT_BEFORE_MLP, "post_attention_layernorm", "ln_2", "ffn_norm")
NORM_AFTER_MLP = ("post_feedforward_layernorm",)
# Config flags of blocks whose attention and MLP read the same residual: there is nothing between them.
PARALLEL_FLAGS = ("use_parallel_residual", "parallel_attn")


@dataclass(frozen=True, kw_only=True)
class Tap:
    """How a site is read: at which module, on which side, and as how many heads.

    split  number of heads that the last dimension is split into; 0 leaves it
    head   the one head that is kept; None keeps all
    """

    module: nn.Module
    side: str
    split: int = 0
    head: int | None = None


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The part of a model that turns tokens into a residual stream.

    root      the whole model, whose module paths `module:` sites name
    backbone  runs on token ids, without the lm_head
    blocks    its blocks, in order
    config    the text model's config
    n_layers  number of blocks before any cut
    """

    root: nn.Module
    backbone: nn.Module
    blocks: nn.ModuleList
    config: Any
    n_layers: int

    def tap(self, site: Site) -> Tap:
        """Where `site` is read. Raises InputError naming what the architecture has."""
        if site.kind == "module":
            return self._module_tap(str(site.path))
        block = self.blocks[int(site.layer or 0)]
        tap = _block_tap(block, site, self.config)
        if tap is None:
            has = [kind for kind in _KINDS if _block_tap(block, Site(kind, layer=site.layer), self.config)]
            raise InputError(
                f"{type(block).__name__} {site.layer} has no place {site}: it has "
                f"{', '.join(has)}, and any module:dotted.path"
            )
        return tap

    def sites(self, patterns: str | Sequence[str]) -> list[Site]:
        """Concrete sites in the order asked, each once; a `*` takes the blocks that have the place.

        Raises InputError for an unknown kind, and for a layer or a head out of range.
        """
        n_heads = getattr(self.config, "num_attention_heads", None)
        return expand_sites(patterns, self.n_layers, n_heads=n_heads, has=self._has)

    def _has(self, site: Site) -> bool:
        if site.kind != "module":
            return _block_tap(self.blocks[int(site.layer or 0)], site, self.config) is not None
        return self._module(str(site.path).removesuffix("@in")) is not None

    def _module(self, path: str) -> nn.Module | None:
        """The module of a path from the whole model, or from the backbone."""
        found = _descend(self.root, path)
        return _descend(self.backbone, path) if found is None else found

    def attention(self, layer: int) -> nn.Module:
        """The attention of a block, or the block itself where it has none."""
        return _part(self.blocks[layer], ATTENTION) or self.blocks[layer]

    def _module_tap(self, path: str) -> Tap:
        name, side = (path[:-3], "in") if path.endswith("@in") else (path, "out")
        module = self._module(name)
        if module is not None:
            return Tap(module=module, side=side)
        parts = name.split(".")
        parent, depth = self.root, 0
        while depth < len(parts) and (child := _descend(parent, parts[depth])) is not None:
            parent, depth = child, depth + 1
        where = ".".join(parts[:depth]) or type(self.root).__name__
        has = ", ".join(child for child, _ in parent.named_children()) or "no modules"
        raise InputError(f"no module {name!r} in {type(self.root).__name__}: {where} has {has}")


_KINDS = (
    "resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "heads", "neurons", "router",
)  # fmt: skip


def find_decoder(root: nn.Module) -> Decoder:
    """The text decoder of a model: plain, peft-wrapped, or inside a multimodal one.

    Raises InputError where no list of blocks can be found: `module:` sites need one too, for the cut.
    """
    config = root.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    n_layers = int(config.num_hidden_layers)
    candidates = [
        (module, child)
        for module in root.modules()
        for child in module.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_layers and _takes_tokens(module)
    ]
    if not candidates:
        raise InputError(
            f"{type(root).__name__} has no decoder of {n_layers} blocks that thresher can find: "
            "only causal language models can be harvested"
        )
    backbone, blocks = candidates[0]
    return Decoder(root=root, backbone=backbone, blocks=blocks, config=config, n_layers=n_layers)


def n_layers_of(config: Any) -> int:
    """Number of blocks a config promises, multimodal ones included."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def _takes_tokens(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Embedding) for child in module.children())


# Their attention and MLP modules add the residual themselves: what these return is not what they add.
ADDS_INSIDE = ("bloom", "mpt")


def _part(parent: nn.Module | None, names: Iterable[str]) -> nn.Module | None:
    for name in names:
        child = getattr(parent, name, None)
        if isinstance(child, nn.Module):
            return child
    return None


def _block_tap(block: nn.Module, site: Site, config: Any) -> Tap | None:
    attention, mlp = _part(block, ATTENTION), _part(block, MLP)
    places: dict[str, tuple[nn.Module | None, str]] = {
        "resid_pre": (block, "in"),
        "resid_mid": (_between(block, mlp, config), "in"),
        "resid_post": (block, "out"),
        "attn_in": (attention, "in"),
        "attn_out": (attention, "out"),
        "mlp_in": (mlp, "in"),
        "mlp_out": (mlp, "out"),
        "heads": (_part(attention, OUTPUT_PROJECTION), "in"),
        "neurons": (_part(mlp, DOWN_PROJECTION), "in"),
        "router": (_part(mlp, ROUTER), "out"),
    }
    module, side = places[site.kind]
    if module is None or (site.kind in ("attn_out", "mlp_out") and config.model_type in ADDS_INSIDE):
        return None
    if site.kind != "heads":
        return Tap(module=module, side=side)
    heads = int(config.num_attention_heads)
    if site.head is not None and site.head >= heads:
        raise InputError(f"site {site} is out of range: this model has {heads} heads, from 0 to {heads - 1}")
    return Tap(module=module, side=side, split=heads, head=site.head)


def _between(block: nn.Module, mlp: nn.Module | None, config: Any) -> nn.Module | None:
    """The module whose input is the residual between attention and MLP; None where the two are parallel."""
    if any(getattr(config, flag, False) for flag in PARALLEL_FLAGS):
        return None
    if _part(block, NORM_AFTER_MLP) is not None and _part(block, NORM_RIGHT_BEFORE_MLP) is None:
        return mlp
    return _part(block, NORM_BEFORE_MLP)


def _descend(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        child = module._modules.get(name)
        if child is None:
            return None
        module = child
    return module


def tensor_of(value: Any) -> torch.Tensor:
    """The activation in what a module takes or gives: the tensor itself, or the first one of a tuple.

    Recent decoder layers return a tensor and older ones a tuple; an attention returns (output, weights) and a
    router (logits, weights, indices).
    """
    if isinstance(value, torch.Tensor):
        return value
    parts = value.values() if hasattr(value, "values") else value
    for part in parts:
        if isinstance(part, torch.Tensor):
            return part
    raise InputError("a module named by a site takes or gives no tensor: name another one")
