"""ai.onnx Attention and RotaryEmbedding, and the scaled dot product that all fused attention operators share.

A head axis is Hkv·G (query heads come in groups that share one key and value head), a flattened one Hkv·G·D. The D of
queries and keys disappears inside, whether it is an axis of its own or lies within a flattened one; it is held where a
cache shows it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxprune.graph.axes import Layout
from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, operand, outcome, register
from onnxprune.graph.ops.elementwise import torch_dtype

HELD = "queries and keys meet inside {}, whose caches have their width"
"""Why the D of H·D stays."""


def split_heads(x: Any, heads: int) -> Any:
    """(batch, length, heads · width) -> (batch, heads, length, width)."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Any) -> Any:
    """(batch, heads, length, width) -> (batch, length, heads · width)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def repeat_heads(x: Any, heads: int) -> Any:
    """Key or value heads, each standing for its group of query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def scores(torch: Any, q: Any, k: Any, scale: float) -> Any:
    """Scaled products of queries and keys: (batch, heads, queries, keys).

    The root of the scale goes to both sides, as the standard has it, so that narrow types do not overflow.
    """
    root = math.sqrt(scale)
    return torch.matmul(q * root, (k * root).transpose(-1, -2))


def capped(torch: Any, x: Any, softcap: float) -> Any:
    """Logits squeezed into ±softcap; 0 leaves them."""
    return softcap * torch.tanh(x / softcap) if softcap else x


def product(*factors: Layout) -> Layout:
    """One dimension out of several that are each a plain product, the first outermost."""
    return (tuple(f for layout in factors for f in layout[0]),)


def heads_left(kept: np.ndarray, heads: int) -> int:
    """How many heads of an axis of heads and dimensions still have some. kept [heads · dimensions]"""
    return int(kept.reshape(heads, -1).any(axis=1).sum())


def kept_scale(node: Any, before: int, after: int) -> dict[str, Any]:
    """The scale as an attribute where it would follow the width; the model was trained with the old one.

    Args:
        before, after: dimensions of a head's queries.
    """
    return {} if before == after or attribute(node, "scale", 0.0) else {"scale": 1 / math.sqrt(before)}


def _additive(torch: Any, mask: Any, kind: Any) -> Any:
    """A mask as a number to add: 0 or -inf for booleans."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill(~mask, -math.inf)


def _bias(torch: Any, node: Any, q: Any, length: int, mask: Any, past: int, valid: Any) -> Any:
    """What is added to the scores: the mask, the causal frontier, the window and the padding. None where nothing is."""
    bias = None
    if mask is not None:
        bias = _additive(torch, mask, q.dtype)
        if short := length - bias.shape[-1]:
            bias = torch.nn.functional.pad(bias, (0, short), value=-math.inf)
    columns = torch.arange(length, device=q.device)
    rows = torch.arange(q.shape[2], device=q.device)[:, None] + past
    if valid is not None:
        rows = rows + (valid.reshape(-1, 1, 1, 1) - q.shape[2])
    allowed = []
    if attribute(node, "is_causal", 0):
        allowed.append(columns <= rows)
    if (left := attribute(node, "left_window_size", -1)) >= 0:
        allowed.append(columns >= rows - left)
    if (right := attribute(node, "right_window_size", -1)) >= 0:
        allowed.append(columns <= rows + right)
    if valid is not None:
        allowed.append(columns < valid.reshape(-1, 1, 1, 1))
    for condition in allowed:
        extra = _additive(torch, condition, q.dtype)
        bias = extra if bias is None else bias + extra
    return bias


def _attention(
    torch: Any,
    node: Any,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    valid: Any = None,
) -> Any:
    flat = q.dim() == 3
    if flat:
        groups = attribute(node, "kv_num_heads")
        q, k, v = split_heads(q, attribute(node, "q_num_heads")), split_heads(k, groups), split_heads(v, groups)
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    heads = q.shape[1]
    raw = scores(torch, q, repeat_heads(k, heads), attribute(node, "scale") or 1 / math.sqrt(q.shape[3]))
    cap = capped(torch, raw, attribute(node, "softcap", 0.0))
    bias = _bias(torch, node, q, k.shape[2], mask, past, valid)
    biased = cap if bias is None else cap + bias
    precision = attribute(node, "softmax_precision")
    p = torch.softmax(biased if precision is None else biased.to(torch_dtype(torch, precision)), -1).to(q.dtype)
    if bias is not None:
        # A query that may look at nothing gives zeros.
        p = p.masked_fill(bias.amax(-1, keepdim=True) == -math.inf, 0.0)
    y = torch.matmul(p, repeat_heads(v, heads))
    y = merge_heads(y) if flat else y
    if len(node.outputs) == 1:
        return y
    return y, k, v, (raw, cap, biased, p)[attribute(node, "qk_matmul_output_mode", 0)]


def _attention_axes(node: Any, c: Constraints) -> None:
    q, k, v = node.inputs[:3]
    mask, past_key, past_value, valid = (operand(node, i) for i in range(3, 7))
    y, present_key, present_value, products = (outcome(node, i) for i in range(4))
    assert y is not None
    dq, dk, dv, dy = c.dims(q), c.dims(k), c.dims(v), c.dims(y)
    if len(dq) == 4:
        groups, inner, value = dk[1], dk[3], dv[3]
        group = c.fresh(c.sizes(q)[1] // max(c.sizes(k)[1], 1))
        c.flat([dq[1]], [groups, group])
        c.same(dk[1], dv[1])
        c.same(dq[1], dy[1])
        c.same(dq[3], dk[3])
        c.same(dv[3], dy[3])
        c.reads(node, 0, 3)
        c.reads(node, 1, 3)
        long = 2
    else:
        heads, shared = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
        groups, group = c.fresh(shared), c.fresh(heads // shared)
        inner, value = c.fresh(c.sizes(q)[2] // heads), c.fresh(c.sizes(v)[2] // shared)
        c.flat([dq[2]], [groups, group, inner])
        c.flat([dk[2]], [groups, inner])
        c.flat([dv[2]], [groups, value])
        c.flat([dy[2]], [groups, group, value])
        if past_key is None and present_key is None:
            c.meets(node, 0, 2, inner)
        else:
            c.hold(inner, HELD.format("Attention"))
        long = 1
    for other in (dk, dv, dy):
        c.same(dq[0], other[0])
    c.same(dq[long], dy[long])
    c.same(dk[long], dv[long])
    c.pin(k, [long], "normalised by Attention's softmax")
    if (
        valid is not None
        or attribute(node, "is_causal", 0)
        or {"left_window_size", "right_window_size"} & set(node.attributes)
    ):
        c.pin(q, [long], "counted by a causal mask")
    tie_rows(c, valid, q, (0,))
    for cache, width in ((past_key, inner), (present_key, inner), (past_value, value), (present_value, value)):
        if cache is not None:
            dims = c.dims(cache)
            c.same(dims[0], dq[0])
            c.same(dims[1], groups)
            c.pin(cache, [2], "normalised by Attention's softmax")
            c.same(dims[3], width)
    heads_of = (dq[0], product(groups, group) if len(dq) == 3 else dq[1], dq[long])
    for table in (mask, products):
        if table is not None:
            tie_table(c, table, heads_of)


def tie_table(c: Constraints, table: Any, leading: tuple[Layout, Layout, Layout]) -> None:
    """Tie a mask or a bias, broadcast to (batch, heads, queries, keys), to the first three; the keys stay."""
    dims, sizes = c.dims(table), c.sizes(table)
    for back, target in enumerate(reversed(leading), start=2):
        if back <= len(dims) and sizes[-back] > 1:
            c.same(dims[-back], target)
    c.pin(table, [len(dims) - 1], "normalised by the softmax of attention")


def tie_rows(c: Constraints, table: Any, x: Any, axes: tuple[int, ...]) -> None:
    """Tie the first dimensions of a small table (positions, lengths) to axes of x of the same size, and pin it."""
    if table is None:
        return
    for dim, size, axis in zip(c.dims(table), c.sizes(table), axes, strict=False):
        if size == c.sizes(x)[axis] > 1:
            c.same(dim, c.dims(x)[axis])
    c.pin(table, None, "a table that attention looks up")


def _length(node: Any, s: Sizes, past: int) -> int:
    """Keys, with those of the cache."""
    k = s.shape(node.inputs[1])
    cache = operand(node, past)
    return k[-2] + (s.shape(cache)[2] if cache is not None else 0)


def _attention_macs(node: Any, s: Sizes) -> int:
    """Each query's D products with every key, and each output's weighted sum over every value."""
    return (math.prod(s.shape(node.inputs[0])) + math.prod(s.shape(node.outputs[0]))) * _length(node, s, 4)


def _attention_resize(node: Any, s: Sizes) -> Change:
    q, k = node.inputs[:2]
    new: dict[str, Any] = {}
    if len(s.shape(q)) == 4:
        if s.changed(q, 3) and not attribute(node, "scale"):
            # The default is one over the root of the width, which is not the width that the model was trained with.
            new["scale"] = 1 / math.sqrt(len(s.kept(q, 3)))
        counts = {"q_num_heads": s.shape(q)[1], "kv_num_heads": s.shape(k)[1]}
        return Change(attributes=new | {name: n for name, n in counts.items() if attribute(node, name, n) != n})
    for name, value in (("q_num_heads", q), ("kv_num_heads", k)):
        if s.changed(value, 2):
            new[name] = heads_left(s.kept(value, 2), attribute(node, name))
    heads = attribute(node, "q_num_heads")
    left = new.get("q_num_heads", heads)
    return Change(attributes=new | kept_scale(node, len(s.kept(q, 2)) // heads, s.shape(q)[2] // left))


register({"Attention": _attention}, axes=_attention_axes, macs=_attention_macs, resize=_attention_resize)


def rotate(torch: Any, x: Any, cos: Any, sin: Any, interleaved: bool) -> Any:
    """Rotary position embedding (Su et al., 2021).

    Args:
        x: (batch, heads, length, width); the first 2 · angles of the width turn.
        cos, sin: (batch or 1, length, angles).
        interleaved: pairs are neighbours, rather than one of each half.
    """
    wide = 2 * cos.shape[-1]
    turning, rest = x[..., :wide], x[..., wide:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = (turning[..., 0::2], turning[..., 1::2]) if interleaved else turning.chunk(2, -1)
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def _rotary(torch: Any, node: Any, x: Any, cos: Any, sin: Any, positions: Any = None) -> Any:
    flat = x.dim() == 3
    x = split_heads(x, attribute(node, "num_heads")) if flat else x
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    angles = (attribute(node, "rotary_embedding_dim", 0) or 2 * cos.shape[-1]) // 2
    y = rotate(torch, x, cos[..., :angles], sin[..., :angles], bool(attribute(node, "interleaved", 0)))
    return merge_heads(y) if flat else y


def rotary_axes(node: Any, c: Constraints, heads: int) -> None:
    """Heads pass; what turns, and the tables of angles, stay."""
    x, (result,) = node.inputs[0], node.outputs
    for before, after in zip(c.dims(x), c.dims(result), strict=True):
        c.same(before, after)
    if len(c.sizes(x)) == 4:
        width = c.dims(x)[3]
    else:
        width = c.fresh(c.sizes(x)[2] // heads)
        c.flat([c.dims(x)[2]], [c.fresh(heads), width])
    c.hold(width, f"{node.op_type} turns pairs of it")
    for table in node.inputs[1:]:
        tie_rows(c, table, x, (0, len(c.sizes(x)) - 2))


def rotary_resize(node: Any, s: Sizes) -> Change:
    """The number of heads, where it is written."""
    x, heads = node.inputs[0], attribute(node, "num_heads", 0)
    axis = 1 if len(s.shape(x)) == 4 else 2
    if not heads or not s.changed(x, axis):
        return Change()
    return Change(attributes={"num_heads": heads * s.shape(x)[axis] // len(s.kept(x, axis))})


register(
    {"RotaryEmbedding": _rotary},
    axes=lambda node, c: rotary_axes(node, c, attribute(node, "num_heads", 0)),
    resize=rotary_resize,
)
