"""What a weight matrix is for, read off its name: which side of it lives in the residual stream, and where.

A matrix that writes to the residual stream is known by its left vectors (what it adds), one that reads from it by
its right vectors (what it looks for). Each is watched where the model has that vector: what `o_proj` or `down_proj`
of block L writes in the residual after the block, what q, k and v look for in the normed input of attention, what
gate and up look for in the normed input of the MLP.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# (role, pattern of the last parts of the name, side, kind of site). The first that matches counts.
_ROLES: tuple[tuple[str, str, str, str | None], ...] = (
    ("q", r"(attn|attention)\.(q_proj|query|wq|q_a_proj)", "right", "attn_in"),
    ("k", r"(attn|attention)\.(k_proj|key|wk|kv_a_proj_with_mqa)", "right", "attn_in"),
    ("v", r"(attn|attention)\.(v_proj|value|wv)", "right", "attn_in"),
    ("qkv", r"(attn|attention)\.(qkv_proj|query_key_value|c_attn|Wqkv)", "right", "attn_in"),
    ("o", r"(attn|attention)\.(o_proj|out_proj|dense|c_proj|wo)", "left", "resid_post"),
    ("gate", r"(gate_proj|experts\.\d+\.w1|feed_forward\.w1)", "right", "mlp_in"),
    ("up", r"(up_proj|c_fc|fc1|fc_in|dense_h_to_4h|experts\.\d+\.w3|feed_forward\.w3)", "right", "mlp_in"),
    ("gate_up", r"gate_up_proj", "right", "mlp_in"),
    (
        "down",
        r"(down_proj|mlp\.c_proj|fc2|fc_out|dense_4h_to_h|experts\.\d+\.w2|feed_forward\.w2)",
        "left",
        "resid_post",
    ),
    ("router", r"(mlp|block_sparse_moe)\.(gate|router)", "right", "mlp_in"),
    ("embedding", r"(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)", "left", "resid_pre"),
    ("position", r"(wpe|embed_positions)", "left", "resid_pre"),
    ("unembedding", r"(lm_head|embed_out)", "right", None),
)
_COMPILED = tuple((role, re.compile(rf"(^|[._]){p}(\.weight)?$"), side, kind) for role, p, side, kind in _ROLES)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")
_CONV1D = re.compile(r"\.(c_attn|c_fc|c_proj)\.weight$")


@dataclass(frozen=True, kw_only=True)
class Role:
    """A matrix's place.

    name        q, k, v, qkv, o, gate, up, gate_up, down, router, embedding, position, unembedding or other
    layer       block, from 0; None outside the blocks
    side        `left` where it writes to the residual stream, `right` where it reads from it
    site        where its directions are watched; None where the residual stream has no such place
    transposed  stored as [inputs, outputs]: an embedding table, or a Conv1D of GPT-2
    """

    name: str
    layer: int | None
    side: str
    site: str | None
    transposed: bool


def role_of(tensor: str, *, conv1d: bool = False) -> Role:
    """The role of a matrix by its name in the checkpoint. `conv1d` where the checkpoint stores GPT-2's Conv1D."""
    found = _LAYER.search(tensor)
    layer = int(found.group(1)) if found else None
    for name, pattern, side, kind in _COMPILED:
        if pattern.search(tensor):
            table = name in ("embedding", "position")
            site = None
            if table and kind:
                site = f"{kind}.0"
            elif kind and layer is not None:
                site = f"{kind}.{layer}"
            transposed = table or (conv1d and bool(_CONV1D.search(tensor)))
            return Role(name=name, layer=layer, side=side, site=site, transposed=transposed)
    return Role(name="other", layer=layer, side="left", site=None, transposed=False)


def stores_conv1d(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `c_fc` is [inputs, outputs], as GPT-2's Conv1D keeps it, told from its shape (an MLP widens)."""
    return any(len(s) == 2 and s[0] < s[1] for name, s in shapes.items() if name.endswith(".c_fc.weight"))
