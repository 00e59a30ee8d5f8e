"""Operators of com.microsoft that ONNX Runtime's optimiser makes out of several: norms with what precedes them …

Source: onnxruntime's ContribOperators.md and its CPU kernels, which the tests compare with.
"""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph.ops.base import Constraints, Sizes, attribute, broadcast, outcome, register, tie_broadcast
from onnxprune.graph.ops.conv import conv, conv_axes, conv_macs, conv_resize
from onnxprune.graph.ops.linear import gemm, gemm_axes, gemm_macs


def _bias_gelu(approximate: str) -> Any:
    def run(torch: Any, node: Any, x: Any, bias: Any = None) -> Any:
        return torch.nn.functional.gelu(x if bias is None else x + bias, approximate=approximate)

    return run


def _quick_gelu(torch: Any, node: Any, x: Any) -> Any:
    return x * torch.sigmoid(attribute(node, "alpha", 1.702) * x)


register(
    {
        "Gelu": _bias_gelu("none"),
        "BiasGelu": _bias_gelu("none"),
        "FastGelu": _bias_gelu("tanh"),
        "QuickGelu": _quick_gelu,
    },
    axes=broadcast,
    domain="com.microsoft",
)


# -- norms -------------------------------------------------------------------------------------------------------


def _normed(torch: Any, x: Any, epsilon: float, *, centre: bool) -> tuple[Any, Any, Any]:
    """(the last axis normalised, its mean, one over its spread)."""
    mean = x.mean(-1, keepdim=True)
    centred = x - mean if centre else x
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
    return centred * inverse, mean, inverse


def _skip_layer_norm(torch: Any, node: Any, x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None) -> Any:
    return _skip_norm(torch, node, x, skip, gamma, beta, bias, 1e-12, True)


def _skip_rms_norm(torch: Any, node: Any, x: Any, skip: Any, gamma: Any, bias: Any = None) -> Any:
    return _skip_norm(torch, node, x, skip, gamma, None, bias, 1e-5, False)


def _skip_norm(
    torch: Any, node: Any, x: Any, skip: Any, gamma: Any, beta: Any, bias: Any, epsilon: float, centre: bool
) -> Any:
    total = x + skip
    total = total if bias is None else total + bias
    y, mean, inverse = _normed(torch, total, attribute(node, "epsilon", epsilon), centre=centre)
    y = y * gamma
    y = y if beta is None else y + beta
    return (y, mean, inverse, total)[: len(node.outputs)] if len(node.outputs) > 1 else y


def _skip_norm_axes(node: Any, c: Constraints) -> None:
    y = node.outputs[0]
    for value in node.inputs:
        if value is not None:
            tie_broadcast(c, value, y)
    for extra in node.outputs[1:]:
        if extra.name:
            tie_broadcast(c, extra, y)
    c.pin(y, [len(c.sizes(y)) - 1], f"normalised by {node.op_type}")


register(
    {"SkipLayerNormalization": _skip_layer_norm, "SkipSimplifiedLayerNormalization": _skip_rms_norm},
    axes=_skip_norm_axes,
    domain="com.microsoft",
)


def _embed(
    torch: Any, node: Any, ids: Any, segments: Any, words: Any, positions: Any, types: Any, gamma: Any, beta: Any,
    mask: Any = None, places: Any = None,
) -> Any:  # fmt: skip
    total = words[ids.to(torch.int64)]
    total = total + (positions[: ids.shape[1]] if places is None else positions[places.to(torch.int64)])
    if segments is not None and types is not None:
        total = total + types[segments.to(torch.int64)]
    y, *_ = _normed(torch, total, attribute(node, "epsilon", 1e-12), centre=True)
    y = y * gamma + beta
    counted = (
        torch.zeros(ids.shape[0], dtype=torch.int32, device=ids.device)
        if mask is None
        else (mask == 1).sum(1).to(torch.int32)
    )
    return (y, counted, total)[: len(node.outputs)] if len(node.outputs) > 1 else y


def _embed_axes(node: Any, c: Constraints) -> None:
    y = node.outputs[0]
    for table in node.inputs[2:5]:
        if table is not None:
            c.same(c.dims(table)[1], c.dims(y)[2])
            c.pin(table, [0], "indexed")
    for vector in node.inputs[5:7]:
        c.same(c.dims(vector)[0], c.dims(y)[2])
    for axis in (0, 1):
        c.same(c.dims(node.inputs[0])[axis], c.dims(y)[axis])
    for value in (*node.inputs[:2], *node.inputs[7:], outcome(node, 1), outcome(node, 2)):
        c.pin(value, None, "tokens and what is counted of them")
    c.pin(y, [2], "normalised by EmbedLayerNormalization")


register({"EmbedLayerNormalization": _embed}, axes=_embed_axes, domain="com.microsoft")


# -- products ----------------------------------------------------------------------------------------------------


def _arranged(x: Any, node: Any, side: str) -> Any:
    """An operand with its matrices in the last two axes, the right way round."""
    if attribute(node, f"transBatch{side}", 0):
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if attribute(node, f"trans{side}", 0) and x.dim() > 1 else x


def _fused_matmul(torch: Any, node: Any, a: Any, b: Any) -> Any:
    y = torch.matmul(_arranged(a, node, "A"), _arranged(b, node, "B"))
    alpha = attribute(node, "alpha", 1.0)
    return y if alpha == 1.0 else y * alpha


def _places(node: Any, side: str, rank: int) -> list[int]:
    """The axes of an operand in the order in which the product takes them."""
    order = list(range(rank))
    if attribute(node, f"transBatch{side}", 0):
        order = [*order[1:-1], order[0], order[-1]]
    if attribute(node, f"trans{side}", 0) and rank > 1:
        order[-2:] = order[:-3:-1]
    return order


def _fused_matmul_axes(node: Any, c: Constraints) -> None:
    a, b = node.inputs
    (y,) = node.outputs
    left, right = _places(node, "A", len(c.sizes(a))), _places(node, "B", len(c.sizes(b)))
    out, sizes = list(c.dims(y)), list(c.sizes(y))
    inner = right[-2] if len(right) > 1 else right[-1]
    c.same(c.dims(a)[left[-1]], c.dims(b)[inner])
    c.reads(node, 0, left[-1])
    c.reads(node, 1, inner)
    if len(right) > 1:
        c.same(c.dims(b)[right[-1]], out.pop())
        sizes.pop()
    if len(left) > 1:
        c.same(c.dims(a)[left[-2]], out.pop())
        sizes.pop()
    for value, order in ((a, left[:-2]), (b, right[:-2])):
        for back, axis in enumerate(reversed(order), start=1):
            if c.sizes(value)[axis] == sizes[-back]:
                c.same(c.dims(value)[axis], out[-back])


def _fused_matmul_macs(node: Any, s: Sizes) -> int:
    shape = s.shape(node.inputs[0])
    return math.prod(s.shape(node.outputs[0])) * shape[_places(node, "A", len(shape))[-1]]


register(
    {"FusedMatMul": _fused_matmul, "TransposeMatMul": _fused_matmul},
    axes=_fused_matmul_axes,
    macs=_fused_matmul_macs,
    domain="com.microsoft",
)


def _activate(torch: Any, name: str | None, x: Any, *parameters: float) -> Any:
    if not name:
        return x
    if name in ("Relu", "Tanh", "Sigmoid"):
        return getattr(torch, name.lower())(x)
    if name == "LeakyRelu":
        return torch.nn.functional.leaky_relu(x, *parameters[:1])
    if name == "Clip":
        return torch.clamp(x, *parameters[:2])
    if name == "HardSigmoid":
        return torch.clamp(parameters[0] * x + parameters[1], 0, 1)
    raise NotImplementedError(f"activation {name}")


def _fused_conv(torch: Any, node: Any, x: Any, w: Any, b: Any = None, z: Any = None) -> Any:
    y = conv(torch, node, x, w, b)
    y = y if z is None else y + z
    return _activate(torch, attribute(node, "activation"), y, *attribute(node, "activation_params", ()))


def _fused_conv_axes(node: Any, c: Constraints) -> None:
    conv_axes(node, c)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        tie_broadcast(c, node.inputs[3], node.outputs[0])


register({"FusedConv": _fused_conv}, axes=_fused_conv_axes, macs=conv_macs, resize=conv_resize, domain="com.microsoft")


def _fused_gemm(torch: Any, node: Any, a: Any, b: Any, c: Any = None) -> Any:
    parameters = [attribute(node, f"activation_{name}") for name in ("alpha", "beta", "gamma")]
    return _activate(
        torch, attribute(node, "activation"), gemm(torch, node, a, b, c), *[p for p in parameters if p is not None]
    )


register({"FusedGemm": _fused_gemm}, axes=gemm_axes, macs=gemm_macs, domain="com.microsoft")
