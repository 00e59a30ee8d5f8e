"""Softmax and normalisations: the normalised axis depends on all its elements at once and is pinned."""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph.ops.base import Change, Constraints, Sizes, attribute, axis_of, outcome, register, tie_broadcast


def _along_axis(compute: Any) -> Any:
    """A function of (torch, x, axis) with the meanings that `axis` has had."""

    def run(torch: Any, node: Any, x: Any) -> Any:
        if (node.version or 13) >= 13:
            return compute(torch, x, axis_of(node, x.dim(), -1))
        # Before opset 13 the input counts as a matrix, rows up to `axis`.
        rows = math.prod(x.shape[: axis_of(node, x.dim(), 1)])
        return compute(torch, x.reshape(rows, -1), 1).reshape(x.shape)

    return run


def _hardmax(torch: Any, x: Any, axis: int) -> Any:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


def _softmax_axes(node: Any, c: Constraints) -> None:
    (source,), (result,) = node.inputs, node.outputs
    rank = len(c.sizes(source))
    for before, after in zip(c.dims(source), c.dims(result), strict=True):
        c.same(before, after)
    modern = (node.version or 13) >= 13
    axis = axis_of(node, rank, -1 if modern else 1)
    c.pin(source, [axis] if modern else range(axis, rank), f"normalised by {node.op_type}")


register(
    {
        "Softmax": _along_axis(lambda torch, x, axis: torch.softmax(x, axis)),
        "LogSoftmax": _along_axis(lambda torch, x, axis: torch.log_softmax(x, axis)),
        "Hardmax": _along_axis(_hardmax),
    },
    axes=_softmax_axes,
)


def _layer_norm(torch: Any, node: Any, x: Any, scale: Any = None, bias: Any = None) -> Any:
    axis = axis_of(node, x.dim(), -1)
    shape = tuple(x.shape[axis:])
    epsilon = attribute(node, "epsilon", 1e-5)
    if len(node.outputs) == 1 and scale is not None and tuple(scale.shape) == shape:
        return torch.nn.functional.layer_norm(x, shape, scale, bias, epsilon)
    dims = tuple(range(axis, x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = wide.mean(dims, keepdim=True)
    inverse = torch.rsqrt((wide - mean).square().mean(dims, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype)
    y = y if scale is None else y * scale
    y = y if bias is None else y + bias
    return (y, mean, inverse)[: len(node.outputs)] if len(node.outputs) > 1 else y


def _rms_norm(torch: Any, node: Any, x: Any, scale: Any = None) -> Any:
    axis = axis_of(node, x.dim(), -1)
    dims = tuple(range(axis, x.dim()))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.square().mean(dims, keepdim=True) + attribute(node, "epsilon", 1e-5))
    y = (wide * inverse).to(x.dtype)
    y = y if scale is None else y * scale
    return (y, None, inverse)[: len(node.outputs)] if len(node.outputs) > 1 else y


def narrows(node: Any) -> bool:
    """Whether a norm of the last axis alone can be taken over fewer channels: of those that stay, that is."""
    return node.op_type in _NORMS and len(node.outputs) == 1 and attribute(node, "axis", -1) == -1


def narrow_axes(node: Any, c: Constraints) -> None:
    """The normalised axis as one that the norm reads, in place of one that stays (`--units hidden`)."""
    source = node.inputs[0]
    _tie_norm(node, c)
    c.reads(node, 0, len(c.sizes(source)) - 1)


def _layer_norm_axes(node: Any, c: Constraints) -> None:
    source = node.inputs[0]
    _tie_norm(node, c)
    axis = axis_of(node, len(c.sizes(source)), -1)
    c.pin(source, range(axis, len(c.sizes(source))), f"normalised by {node.op_type}")


def _tie_norm(node: Any, c: Constraints) -> None:
    source, result = node.inputs[0], node.outputs[0]
    axis = axis_of(node, len(c.sizes(source)), -1)
    for before, after in zip(c.dims(source), c.dims(result), strict=True):
        c.same(before, after)
    for value in node.inputs[1:]:
        if value is not None:
            tie_broadcast(c, value, result)
    for extra in (outcome(node, 1), outcome(node, 2)):
        if extra is not None:
            for dim, before in zip(c.dims(extra)[:axis], c.dims(source)[:axis], strict=False):
                c.same(dim, before)


_NORMS = {
    "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm, "SimplifiedLayerNormalization": _rms_norm,
}  # fmt: skip
register(_NORMS, axes=_layer_norm_axes)
register({"SimplifiedLayerNormalization": _rms_norm}, axes=_layer_norm_axes, domain="com.microsoft")


def _per_channel(x: Any, v: Any) -> Any:
    return v.reshape(1, -1, *[1] * (x.dim() - 2))


def _batch_norm(torch: Any, node: Any, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    epsilon = attribute(node, "epsilon", 1e-5)
    if not attribute(node, "training_mode", 0):
        if all(v.dtype == torch.float32 for v in (x, scale, bias, mean, variance)):
            y = torch.nn.functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        else:
            factor = _per_channel(x, scale * torch.rsqrt(variance + epsilon))
            y = (x - _per_channel(x, mean)) * factor + _per_channel(x, bias)
        return (y, mean, variance)[: len(node.outputs)] if len(node.outputs) > 1 else y.to(x.dtype)
    dims = (0, *range(2, x.dim()))
    now_mean, now_variance = x.mean(dims), x.var(dims, unbiased=False)
    y = (x - _per_channel(x, now_mean)) * _per_channel(x, scale * torch.rsqrt(now_variance + epsilon)) + _per_channel(
        x, bias
    )
    momentum = attribute(node, "momentum", 0.9)
    running = (old * momentum + new * (1 - momentum) for old, new in ((mean, now_mean), (variance, now_variance)))
    return (y.to(x.dtype), *running)[: len(node.outputs)]


def _batch_norm_axes(node: Any, c: Constraints) -> None:
    source, result = node.inputs[0], node.outputs[0]
    for before, after in zip(c.dims(source), c.dims(result), strict=True):
        c.same(before, after)
    for value in (*node.inputs[1:], *(v for v in node.outputs[1:] if v.name)):
        c.same(c.dims(value)[0], c.dims(source)[1])
    if attribute(node, "training_mode", 0):
        c.pin(source, [0, *range(2, len(c.sizes(source)))], "normalised by BatchNormalization in training mode")


register({"BatchNormalization": _batch_norm}, axes=_batch_norm_axes)


def _instance_norm(torch: Any, node: Any, x: Any, scale: Any, bias: Any) -> Any:
    dims = tuple(range(2, x.dim()))
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + attribute(node, "epsilon", 1e-5))
    return y * _per_channel(x, scale) + _per_channel(x, bias)


def _instance_norm_axes(node: Any, c: Constraints) -> None:
    _batch_norm_axes(node, c)
    c.pin(node.inputs[0], range(2, len(c.sizes(node.inputs[0]))), "normalised by InstanceNormalization")


register({"InstanceNormalization": _instance_norm}, axes=_instance_norm_axes)


def _group_norm(torch: Any, node: Any, x: Any, scale: Any, bias: Any) -> Any:
    groups, channels = attribute(node, "num_groups"), x.shape[1]
    if scale.shape[0] == groups != channels:  # opset 18: one pair a group
        scale, bias = (v.repeat_interleave(channels // groups) for v in (scale, bias))
    return torch.nn.functional.group_norm(x, groups, scale, bias, attribute(node, "epsilon", 1e-5))


def _group_norm_axes(node: Any, c: Constraints) -> None:
    """Groups do not know of each other: whole ones can go."""
    source, (result,) = node.inputs[0], node.outputs
    for before, after in zip(c.dims(source), c.dims(result), strict=True):
        c.same(before, after)
    channels = c.sizes(source)[1]
    group = c.fresh(attribute(node, "num_groups"))
    inner = c.fresh(channels // attribute(node, "num_groups"))
    c.flat([c.dims(source)[1]], [group, inner])
    c.hold(inner, "normalised by GroupNormalization")
    c.pin(source, range(2, len(c.sizes(source))), "normalised by GroupNormalization")
    for value in node.inputs[1:]:
        c.same(c.dims(value)[0], c.dims(source)[1] if c.sizes(value)[0] == channels else group)


def _group_norm_resize(node: Any, s: Sizes) -> Change:
    if not s.changed(node.inputs[0], 1):
        return Change()
    kept = s.kept(node.inputs[0], 1)
    return Change(attributes={"num_groups": attribute(node, "num_groups") * int(kept.sum()) // len(kept)})


register({"GroupNormalization": _group_norm}, axes=_group_norm_axes, resize=_group_norm_resize)


def _mean_variance(torch: Any, node: Any, x: Any) -> Any:
    dims = tuple(attribute(node, "axes", (0, 2, 3)))
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True).sqrt() + 1e-9)


def _mean_variance_axes(node: Any, c: Constraints) -> None:
    (source,), (result,) = node.inputs, node.outputs
    for before, after in zip(c.dims(source), c.dims(result), strict=True):
        c.same(before, after)
    c.pin(source, attribute(node, "axes", (0, 2, 3)), "normalised by MeanVarianceNormalization")


register({"MeanVarianceNormalization": _mean_variance}, axes=_mean_variance_axes)


def _local_response(torch: Any, node: Any, x: Any) -> Any:
    size = attribute(node, "size")
    squares = x.square().unsqueeze(1)  # channels become the space that the window moves over
    pads = [0, 0] * (x.dim() - 2) + [(size - 1) // 2, size // 2]
    padded = torch.nn.functional.pad(squares, pads).squeeze(1)
    sums = padded.unfold(1, size, 1).sum(-1)
    return x / (attribute(node, "bias", 1.0) + attribute(node, "alpha", 1e-4) / size * sums) ** attribute(
        node, "beta", 0.75
    )


def _local_response_axes(node: Any, c: Constraints) -> None:
    (source,), (result,) = node.inputs, node.outputs
    for before, after in zip(c.dims(source), c.dims(result), strict=True):
        c.same(before, after)
    c.pin(source, [1], "normalised by LRN")


register({"LRN": _local_response}, axes=_local_response_axes)


def _lp_norm(torch: Any, node: Any, x: Any) -> Any:
    norm = torch.linalg.vector_norm(x, attribute(node, "p", 2), axis_of(node, x.dim(), -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


register({"LpNormalization": _lp_norm}, axes=_softmax_axes)
