"""com.microsoft GroupQueryAttention: grouped heads, rotary positions and a cache of keys and values in one operator.

Source: onnxruntime's ContribOperators.md and its CPU kernel, which the tests compare with.
"""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph.ops.attention import (
    HELD,
    capped,
    merge_heads,
    product,
    repeat_heads,
    rotate,
    scores,
    split_heads,
    tie_rows,
    tie_table,
)
from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, operand, outcome, register

_NAMES = (
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache",
    "position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm_weight", "k_norm_weight",
    "query_seqlens",
)  # fmt: skip
_UNSUPPORTED = {
    "k_scale": "a quantised cache",
    "v_scale": "a quantised cache",
    "q_norm_weight": "heads that it normalises (which no processor runs)",
    "k_norm_weight": "heads that it normalises (which no processor runs)",
    "query_seqlens": "chunks that are padded (query_seqlens)",
    "k_quant_type": "a quantised cache",
    "v_quant_type": "a quantised cache",
    "sliding_window_cache": "a cache that holds a window alone (sliding_window_cache)",
    "qk_output": "scores as an output",
}
"""Operands and attributes that are not computed, unless they stand at their default, and what they make of it."""
_DEFAULTS = (None, 0, "NONE")


def _obstacle(node: Any) -> str | None:
    """What a node asks for that is not computed."""
    for name, what in _UNSUPPORTED.items():
        given = operand(node, _NAMES.index(name)) if name in _NAMES else attribute(node, name)
        if given not in _DEFAULTS:
            return what
    return None


def _group_query(torch: Any, node: Any, *operands: Any) -> Any:
    x: dict[str, Any] = dict.fromkeys(_NAMES) | dict(zip(_NAMES, operands, strict=False))
    if (what := _obstacle(node)) is not None:
        raise NotImplementedError(f"GroupQueryAttention with {what}")
    heads, groups = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
    q, k, v = x["query"], x["key"], x["value"]
    if k is None:
        width = q.shape[2] // (heads + 2 * groups)
        q, k, v = torch.split(q, [heads * width, groups * width, groups * width], -1)
    q, k, v = split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
    length = q.shape[2]
    # Rows hold `ends` tokens, the new ones included; a prompt's padding stands at its end.
    ends = x["seqlens_k"].reshape(-1).to(torch.int64) + 1
    prompt = int(x["total_sequence_length"].reshape(()).item()) == length
    starts = torch.zeros_like(ends) if prompt else ends - length
    places = starts[:, None] + torch.arange(length, device=q.device)
    if attribute(node, "do_rotary", 0):
        positions = x["position_ids"]
        if positions is None:
            positions = places
        elif prompt:  # of which the kernels read the first position alone, and count on from there in every row
            positions = positions.reshape(-1)[0] + places
        cos, sin, paired = (
            x["cos_cache"][positions],
            x["sin_cache"][positions],
            bool(attribute(node, "rotary_interleaved", 0)),
        )
        q, k = rotate(torch, q, cos, sin, paired), rotate(torch, k, cos, sin, paired)
    total = int(x["total_sequence_length"].reshape(()).item())
    keys, values = (
        _written(torch, cache, new, places, total) for cache, new in ((x["past_key"], k), (x["past_value"], v))
    )
    y = _attend(torch, node, q, keys, values, (places, ends, total), x["attention_bias"], x["head_sink"])
    return (merge_heads(y), keys, values)[: len(node.outputs)] if len(node.outputs) > 1 else merge_heads(y)


def _written(torch: Any, cache: Any, new: Any, places: Any, total: int) -> Any:
    """The cache, as long as it was or as it has to be, with the new tokens in their places."""
    batch, groups, _, width = new.shape
    held = 0 if cache is None else cache.shape[2]
    room = torch.zeros((batch, groups, max(total, held) - held, width), dtype=new.dtype, device=new.device)
    whole = room if cache is None else torch.cat([cache, room], 2)
    if cache is not None:  # what a row's cache holds beyond its own tokens is not passed on
        beyond = torch.arange(whole.shape[2], device=new.device) >= places[:, :1]
        whole = whole.masked_fill(beyond[:, None, :, None], 0.0)
    return whole.scatter(2, places[:, None, :, None].expand(new.shape), new)


def _attend(torch: Any, node: Any, q: Any, k: Any, v: Any, where: tuple[Any, Any, int], bias: Any, sink: Any) -> Any:
    """The scaled dot product.

    Args:
        q: (batch, heads, queries, width); k, v: (batch, groups, keys, width), all of which a cache has room for.
        where: the queries' places (batch, queries), how many tokens each row has by then (batch,), and the most.
    """
    places, ends, total = where
    heads = q.shape[1]
    k, v = (repeat_heads(cache[:, :, :total], heads) for cache in (k, v))
    s = scores(torch, q, k, attribute(node, "scale", 0.0) or 1 / math.sqrt(q.shape[3]))
    s = capped(torch, s, attribute(node, "softcap", 0.0))
    s = s if bias is None else s + bias[..., :total]
    columns, rows = torch.arange(total, device=q.device), places[:, None, :, None]
    hidden = columns > (rows if attribute(node, "causal", 1) else ends.reshape(-1, 1, 1, 1) - 1)
    if (window := attribute(node, "local_window_size", -1)) > 0:
        hidden = hidden | (columns <= rows - window)
    s = s.masked_fill(hidden, -math.inf)
    if sink is None and not attribute(node, "smooth_softmax", 0):
        return torch.matmul(torch.softmax(s, -1), v)
    # A token that has a score and no value: attention may come to rest on nothing.
    extra = torch.zeros(heads, dtype=s.dtype, device=s.device) if sink is None else sink.to(s.dtype)
    s = torch.cat([s, extra.reshape(1, -1, 1, 1).expand(*s.shape[:3], 1)], -1)
    return torch.matmul(torch.softmax(s, -1)[..., :-1], v)


def _axes(node: Any, c: Constraints) -> None:
    x: dict[str, Any] = {name: operand(node, i) for i, name in enumerate(_NAMES)}
    heads, shared = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
    q, y = x["query"], node.outputs[0]
    groups, group, width = c.fresh(shared), c.fresh(heads // shared), c.fresh(c.sizes(y)[2] // heads)
    queries, keys = product(groups, group, width), product(groups, width)
    c.same(c.dims(y)[2], queries)
    if x["key"] is None:
        c.same(c.dims(q)[2], (*queries, *keys, *keys))
    else:
        c.same(c.dims(q)[2], queries)
        c.same(c.dims(x["key"])[2], keys)
        c.same(c.dims(x["value"])[2], keys)
    for value in (q, x["key"], x["value"]):
        if value is not None:
            c.same(c.dims(value)[0], c.dims(y)[0])
            c.same(c.dims(value)[1], c.dims(y)[1])
    c.hold(width, HELD.format("GroupQueryAttention"))
    c.pin(q, [1], "normalised by GroupQueryAttention's softmax")
    for cache in (x["past_key"], x["past_value"], outcome(node, 1), outcome(node, 2)):
        if cache is not None:
            for dim, target in zip(c.dims(cache), (c.dims(y)[0], groups, None, width), strict=True):
                if target is not None:
                    c.same(dim, target)
            c.pin(cache, [2], "the length of a cache")
    if x["head_sink"] is not None:
        c.same(c.dims(x["head_sink"])[0], product(groups, group))
    if x["attention_bias"] is not None:
        tie_table(c, x["attention_bias"], (c.dims(y)[0], product(groups, group), c.dims(y)[1]))
    for name in ("cos_cache", "sin_cache", "position_ids", "seqlens_k", "total_sequence_length"):
        tie_rows(c, x[name], y, (0, 1))
    for name in _NAMES:
        if name in _UNSUPPORTED:
            c.pin(x[name], None, f"GroupQueryAttention with {_UNSUPPORTED[name]} is not cut")
    c.pin(outcome(node, 3), None, "GroupQueryAttention with scores as an output is not cut")


def _macs(node: Any, s: Sizes) -> int:
    batch, length, hidden = s.shape(node.outputs[0])
    past = operand(node, 3)
    keys = max(length, s.shape(past)[2] + length) if past is not None else length
    return 2 * batch * length * hidden * keys


def _resize(node: Any, s: Sizes) -> Change:
    y = node.outputs[0]
    x = operand(node, 1) or node.inputs[0]
    new = {}
    if s.changed(y, 2):
        width = len(s.kept(y, 2)) // attribute(node, "num_heads")
        heads = s.shape(y)[2] // width
        shared = s.shape(x)[2] // width if operand(node, 1) is not None else (s.shape(x)[2] // width - heads) // 2
        new = {"num_heads": heads, "kv_num_heads": shared}
    return Change(attributes=new)


register({"GroupQueryAttention": _group_query}, axes=_axes, macs=_macs, resize=_resize, domain="com.microsoft")
