"""Attention of com.microsoft as ONNX Runtime's optimiser writes it: Attention, MultiHeadAttention, RotaryEmbedding.

Source: onnxruntime's ContribOperators.md and its CPU kernels, which the tests compare with.
"""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph.axes import Layout
from onnxprune.graph.ops.attention import (
    HELD,
    heads_left,
    kept_scale,
    merge_heads,
    product,
    rotary_axes,
    rotary_resize,
    rotate,
    scores,
    split_heads,
    tie_rows,
    tie_table,
)
from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, opaque, operand, outcome, register
from onnxprune.graph.quantised_operators import noted


def key_mask(torch: Any, mask: Any, batch: int, queries: int, keys: int) -> Any:
    """Which keys count, as booleans that broadcast to (batch, heads, queries, keys).

    Args:
        mask: (batch,) ends; (2 batch,) ends, then starts; or 0 and 1 as (batch, keys), (batch, queries, keys) or
            (batch, 1, long, long).
    """
    if mask.dim() == 1:
        columns = torch.arange(keys, device=mask.device)
        if mask.shape[0] not in (batch, 2 * batch):
            raise NotImplementedError("key masks of cumulated lengths")
        found = columns < mask[:batch, None]
        if mask.shape[0] == 2 * batch:
            found = found & (columns >= mask[batch:, None])
        return found[:, None, None]
    if mask.dim() == 2:
        return (mask > 0)[:, None, None]
    if mask.dim() == 3:
        return (mask > 0)[:, None]
    return (mask > 0)[:, :, keys - queries : keys, :keys]


def attend(torch: Any, node: Any, q: Any, k: Any, v: Any, mask: Any, bias: Any) -> Any:
    """The scaled dot product of com.microsoft: what is masked out gets `mask_filter_value` added, not -inf.

    Args:
        q: (batch, heads, queries, width); k, v: (batch, heads, keys, width).
        mask: as in `key_mask`; bias: broadcast to the scores.
    """
    queries, keys = q.shape[2], k.shape[2]
    s = scores(torch, q, k, attribute(node, "scale", 0.0) or 1 / math.sqrt(q.shape[3]))
    if bias is not None:
        s = s + bias
    if mask is not None:
        s = s + torch.where(
            key_mask(torch, mask, q.shape[0], queries, keys), 0.0, attribute(node, "mask_filter_value", -10000.0)
        ).to(s.dtype)
    if attribute(node, "unidirectional", 0):
        future = torch.ones((queries, keys), dtype=torch.bool, device=q.device).triu(1 + keys - queries)
        s = s.masked_fill(future, torch.finfo(s.dtype).min)
    return torch.matmul(torch.softmax(s, -1), v)


def _widths(node: Any, total: int) -> tuple[int, int, int]:
    """The parts of packed weights that make queries, keys and values."""
    q, k, v = attribute(node, "qkv_hidden_sizes") or [total // 3] * 3
    return int(q), int(k), int(v)


def _attention(
    torch: Any,
    node: Any,
    x: Any,
    w: Any,
    b: Any = None,
    mask: Any = None,
    past: Any = None,
    bias: Any = None,
    length: Any = None,
) -> Any:
    if attribute(node, "do_rotary", 0) or attribute(node, "past_present_share_buffer", 0):
        raise NotImplementedError("com.microsoft Attention with do_rotary or past_present_share_buffer")
    heads = attribute(node, "num_heads")
    packed = torch.matmul(x, w)
    packed = packed if b is None else packed + b
    q, k, v = (split_heads(part, heads) for part in torch.split(packed, _widths(node, w.shape[1]), -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y = merge_heads(attend(torch, node, q, k, v, mask, bias))
    return (y, torch.stack([k, v])) if len(node.outputs) > 1 else y


def _attention_axes(node: Any, c: Constraints) -> None:
    x, w = node.inputs[:2]
    heads = attribute(node, "num_heads")
    widths = _widths(node, c.sizes(w)[1])
    if 1 in widths:
        opaque(node, c)
        return
    head, inner, value = c.fresh(heads), c.fresh(widths[0] // heads), c.fresh(widths[2] // heads)
    parts = (*product(head, inner), *product(head, inner), *product(head, value))
    c.same(c.dims(x)[2], c.dims(w)[0])
    c.reads(node, 0, 2)
    c.reads(node, 1, 0)
    c.same(c.dims(w)[1], parts)
    c.same(c.dims(node.outputs[0])[2], product(head, value))
    caches = [cache for cache in (operand(node, 4), outcome(node, 1)) if cache is not None]
    if caches or attribute(node, "do_rotary", 0):
        c.hold(inner, HELD.format("Attention"))
    else:
        c.meets(node, 1, 1, inner)
    note = noted(node)
    if note is not None and note.operator == "QAttention":
        c.same(inner, value)  # it has no sizes for queries, keys and values apart
    if (b := operand(node, 2)) is not None:
        c.same(c.dims(b)[0], parts)
        if not caches and not attribute(node, "do_rotary", 0):
            c.meets(node, 2, 0, inner)
    for axis in (0, 1):
        c.same(c.dims(x)[axis], c.dims(node.outputs[0])[axis])
    c.pin(x, [1], "normalised by Attention's softmax")
    tie_rows(c, operand(node, 3), x, (0,))
    for cache in caches:
        _tie_cache(c, cache, (c.fresh(2), c.dims(x)[0], head, None, inner))
        c.pin(cache, [0], "keys and values in one cache")
        c.same(inner, value)
    if (bias := operand(node, 5)) is not None:
        tie_table(c, bias, (c.dims(x)[0], head, c.dims(x)[1]))


def _tie_cache(c: Constraints, cache: Any, dims: tuple[Layout | None, ...]) -> None:
    for axis, (dim, target) in enumerate(zip(c.dims(cache), dims, strict=True)):
        if target is None:
            c.pin(cache, [axis], "the length of a cache")
        else:
            c.same(dim, target)


def _attention_macs(node: Any, s: Sizes) -> int:
    """The projection, then each query's products with every key and its weighted sum over every value."""
    batch, length, _ = s.shape(node.inputs[0])
    inputs, packed = s.shape(node.inputs[1])
    values = s.shape(node.outputs[0])[2]
    past = operand(node, 4)
    keys = length + (s.shape(past)[3] if past is not None else 0)
    return batch * length * (inputs * packed + keys * ((packed - values) // 2 + values))


def _attention_resize(node: Any, s: Sizes) -> Change:
    w, (y, *_) = node.inputs[1], node.outputs
    if not s.changed(w, 1):
        return Change()
    packed, values, heads = s.shape(w)[1], s.shape(y)[2], attribute(node, "num_heads")
    kept = s.kept(w, 1)
    width, *_ = _widths(node, len(kept))
    queries = (packed - values) // 2
    left = heads_left(kept[:width], heads)
    new: dict[str, Any] = {"num_heads": left, **kept_scale(node, width // heads, queries // left)}
    if "qkv_hidden_sizes" in node.attributes or queries != values:
        new["qkv_hidden_sizes"] = [queries, queries, values]
    return Change(attributes=new)


register(
    {"Attention": _attention},
    axes=_attention_axes,
    macs=_attention_macs,
    resize=_attention_resize,
    domain="com.microsoft",
)


def _unpacked(node: Any, q: Any, k: Any, v: Any, b: Any) -> tuple[Any, Any, Any]:
    """Queries, keys and values as (batch, heads, length, width), with their biases."""
    heads = attribute(node, "num_heads")
    if q.dim() == 5:  # (batch, length, heads, 3, width)
        q, k, v = (part.flatten(2) for part in q.unbind(3))
    elif k is not None and k.dim() == 5:
        k, v = (part.flatten(2) for part in k.unbind(3))
    if k is None:
        raise NotImplementedError("MultiHeadAttention without keys")
    if b is not None:
        width = q.shape[2]
        q = q + b[:width]
        k = k + b[width : 2 * width] if k.dim() == 3 else k
        v = v + b[2 * width :] if v.dim() == 3 else v
    first, second, third = (split_heads(x, heads) if x.dim() == 3 else x for x in (q, k, v))
    return first, second, third


def _multi_head(
    torch: Any, node: Any, q: Any, k: Any = None, v: Any = None, b: Any = None, mask: Any = None, bias: Any = None,
    past_key: Any = None, past_value: Any = None, *rest: Any,
) -> Any:  # fmt: skip
    if any(x is not None for x in rest) or len(node.outputs) > 3:
        raise NotImplementedError("MultiHeadAttention with a shared cache, cache indirection, or scores as an output")
    q, k, v = _unpacked(node, q, k, v, b)
    if past_key is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    y = merge_heads(attend(torch, node, q, k, v, mask, bias))
    return (y, k, v)[: len(node.outputs)] if len(node.outputs) > 1 else y


def _multi_head_axes(node: Any, c: Constraints) -> None:
    q = node.inputs[0]
    k, v, b = (operand(node, i) for i in range(1, 4))
    y, heads = node.outputs[0], attribute(node, "num_heads")
    if 1 in (c.sizes(y)[2], c.sizes(q)[2]):
        opaque(node, c)
        return
    packed = len(c.sizes(q)) == 5
    inner = c.sizes(q)[4] if packed else c.sizes(q)[2] // heads
    head, width, value = c.fresh(heads), c.fresh(inner), c.fresh(c.sizes(y)[2] // heads)
    for x, last in ((q, width), (k, width), (v, value), (y, value)):
        if x is not None:
            _tie_heads(c, x, head, last, c.dims(q)[0])
            if len(c.sizes(x)) == 5:  # packed: parts of one width
                c.same(value, width)
    c.same(c.dims(q)[1], c.dims(y)[1])
    caches = [operand(node, 6), operand(node, 7), outcome(node, 1), outcome(node, 2)]
    shown = packed or any(x is not None and len(c.sizes(x)) != 3 for x in (k, v, *caches))
    if shown:  # packed parts and caches of one width, or keys that are given as caches are
        c.hold(width, HELD.format("MultiHeadAttention"))
    else:
        c.meets(node, 0, 2, width)
    if b is not None:
        c.same(c.dims(b)[0], (*product(head, width), *product(head, width), *product(head, value)))
        if not shown:
            c.meets(node, 3, 0, width)
    for x in (k, v) if not packed else (q,):
        c.pin(x, [1 if x is None or len(c.sizes(x)) != 4 else 2], "normalised by MultiHeadAttention's softmax")
    if attribute(node, "unidirectional", 0):
        c.pin(q, [1], "counted by a causal mask")
    tie_rows(c, operand(node, 4), q, (0,))
    if (bias := operand(node, 5)) is not None:
        tie_table(c, bias, (c.dims(q)[0], head, c.dims(q)[1]))
    if any(cache is not None for cache in caches) or (v is not None and len(c.sizes(v)) == 4):
        c.same(value, width)  # the kernels ask for it
    for cache, last in zip(caches, (width, value, width, value), strict=False):
        if cache is not None:
            _tie_cache(c, cache, (c.dims(q)[0], head, None, last))


def _tie_heads(c: Constraints, x: Any, head: Layout, width: Layout, batch: Layout) -> None:
    """(batch, length, H·D), (batch, length, H, 2 or 3, D) or (batch, H, length, D)."""
    dims = c.dims(x)
    c.same(dims[0], batch)
    if len(dims) == 3:
        c.same(dims[2], product(head, width))
    elif len(dims) == 5:
        c.same(dims[2], head)
        c.pin(x, [3], "packed queries, keys and values")
        c.same(dims[4], width)
    else:
        c.same(dims[1], head)
        c.same(dims[3], width)


def _multi_head_macs(node: Any, s: Sizes) -> int:
    q, k = s.shape(node.inputs[0]), operand(node, 1)
    keys = s.shape(k)[2 if len(s.shape(k)) == 4 else 1] if k is not None else q[1]
    past = operand(node, 6)
    keys += s.shape(past)[2] if past is not None else 0
    width = q[2] * q[4] if len(q) == 5 else q[2]
    return q[0] * q[1] * keys * (width + s.shape(node.outputs[0])[2])


def _multi_head_resize(node: Any, s: Sizes) -> Change:
    q, heads = node.inputs[0], attribute(node, "num_heads")
    if not s.changed(q, 2):
        return Change()
    kept = s.kept(q, 2)
    if len(s.shape(q)) != 3:  # (batch, length, heads, 3, width)
        return Change(attributes={"num_heads": s.shape(q)[2]})
    left = heads_left(kept, heads)
    scale = kept_scale(node, len(kept) // heads, s.shape(q)[2] // left)
    return Change(attributes={"num_heads": left, **scale})


register(
    {"MultiHeadAttention": _multi_head},
    axes=_multi_head_axes,
    macs=_multi_head_macs,
    resize=_multi_head_resize,
    domain="com.microsoft",
)


def _rotary(torch: Any, node: Any, x: Any, positions: Any, cos: Any, sin: Any) -> Any:
    if attribute(node, "is_packed_batching", 0):
        raise NotImplementedError("RotaryEmbedding of packed batches")
    if attribute(node, "rotary_embedding_dim", 0) not in (0, 2 * cos.shape[1]):  # whose rows the kernel reads askew
        raise NotImplementedError("RotaryEmbedding of a part of a head by tables for a whole one")
    flat = x.dim() == 3
    width = 0 if not flat else _rotary_width(node, x.shape[2], cos.shape[1])
    x = split_heads(x, x.shape[2] // width) if flat else x
    if positions.dim() == 1:  # where the first token stands
        positions = positions + torch.arange(x.shape[2], device=positions.device)[None]
    y = rotate(torch, x, cos[positions], sin[positions], bool(attribute(node, "interleaved", 0)))
    return merge_heads(y) if flat else y


def _rotary_width(node: Any, hidden: int, angles: int) -> int:
    """One head's width: told by the number of heads, or else by the table."""
    heads = attribute(node, "num_heads", 0)
    return hidden // heads if heads else 2 * angles


def _rotary_axes(node: Any, c: Constraints) -> None:
    hidden, angles = c.sizes(node.inputs[0])[-1], c.sizes(node.inputs[2])[1]
    rotary_axes(node, c, hidden // _rotary_width(node, hidden, angles))


register({"RotaryEmbedding": _rotary}, axes=_rotary_axes, resize=rotary_resize, domain="com.microsoft")
