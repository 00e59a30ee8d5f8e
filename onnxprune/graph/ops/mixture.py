"""com.microsoft MoE: a mixture of experts, each two products with an activation between them, in one operator.

Shapes, for E experts, T tokens, a stream of H, I neurons an expert, and one or two (SwiGLU) columns F for each neuron:

    x [..., H] of T tokens   router [T, E]   fc1 [E, I·F, H]   fc2 [E, H, I]   biases [E, I·F] and [E, H]

A neuron has one place in all experts. It is written by fc1 and read by fc2, inside, so that a gate on fc2 is a gate on
what the operator reads of itself. Experts are chosen by their number: they stay.

Source: onnxruntime's ContribOperators.md and its CPU kernel, which the tests compare with.
"""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph.ops.base import Constraints, Sizes, attribute, operand, register

FIRST, FIRST_BIAS, SECOND, SECOND_BIAS = 2, 3, 4, 5
"""Which operands are fc1, its bias, fc2 and its bias."""
_THIRD = (6, 7)


def _columns(node: Any) -> int:
    """Outputs of fc1 for each neuron: SwiGLU has a gate and a value, side by side."""
    return 2 if attribute(node, "activation_type", "relu") == "swiglu" else 1


def _obstacle(node: Any, stream: int, fc1: tuple[int, ...], fc2: tuple[int, ...]) -> str | None:
    """Why a mixture is not computed: what ONNX Runtime computes on other devices alone, or in older versions.

    Args:
        stream: the width of x.
        fc1, fc2: shapes.
    """
    gated = attribute(node, "activation_type", "relu") == "swiglu"
    if any(operand(node, index) is not None for index in _THIRD):
        return "MoE with fc3"
    if attribute(node, "use_sparse_mixer", 0):
        return "MoE with a sparse mixer"
    if gated != (attribute(node, "swiglu_fusion", 0) == 1):
        return "MoE whose gates and values do not stand side by side (swiglu_fusion=1)"
    if gated and attribute(node, "swiglu_limit_after_activation", 0):
        return "MoE with a limit behind the activation"
    if len(fc1) != 3 or len(fc2) != 3 or (fc1[1], fc1[2], fc2[1]) != (fc2[2] * _columns(node), stream, stream):
        return "MoE with weights in the order of older versions, [experts, in, out]"
    return None


def _activated(torch: Any, node: Any, x: Any) -> Any:
    """What fc2 reads of what fc1 gives. x [E, T, I·F] -> [E, T, I]"""
    kind, functional = attribute(node, "activation_type", "relu"), torch.nn.functional
    if kind == "swiglu":
        gate, value = x[..., 0::2], x[..., 1::2]
        limit = attribute(node, "swiglu_limit", math.inf)
        gate, value = gate.clamp(max=limit), value.clamp(-limit, limit)
        gate = gate * torch.sigmoid(attribute(node, "activation_alpha", 1.0) * gate)
        return gate * (value + attribute(node, "activation_beta", 0.0))
    if kind == "gelu":
        return functional.gelu(x, approximate="tanh")
    if kind not in ("relu", "silu", "identity"):
        raise NotImplementedError(f"MoE with the activation {kind}")
    return x if kind == "identity" else getattr(functional, kind)(x)


def _shares(torch: Any, node: Any, router: Any) -> Any:
    """How much of each expert every token gets, 0 of all but its k. router [T, E] -> [T, E]"""
    shares = torch.softmax(router, -1)
    best = torch.topk(router, attribute(node, "k", 1), -1).indices
    shares = shares * torch.zeros_like(shares).scatter(-1, best, 1.0)
    return shares / shares.sum(-1, keepdim=True) if attribute(node, "normalize_routing_weights", 0) else shares


def _mixture(torch: Any, node: Any, *inputs: Any) -> tuple[Any, Any]:
    """(what fc2 reads, by the share that its expert has in each token [E, T, I]; the result)"""
    x, router, first, first_bias, second, second_bias = (*inputs, None)[:6]
    if (why := _obstacle(node, x.shape[-1], tuple(first.shape), tuple(second.shape))) is not None:
        raise NotImplementedError(why)
    inner = torch.matmul(x.reshape(1, -1, x.shape[-1]), first.transpose(1, 2))
    inner = inner if first_bias is None else inner + first_bias[:, None]
    shares = _shares(torch, node, router)
    read = _activated(torch, node, inner) * shares.transpose(0, 1)[..., None]
    y = torch.matmul(read, second.transpose(1, 2)).sum(0)
    y = y if second_bias is None else y + torch.matmul(shares, second_bias)
    return read, y.reshape(x.shape)


def _axes(node: Any, c: Constraints) -> None:
    x, router, first, _, second = node.inputs[: SECOND + 1]
    (y,) = node.outputs
    for before, after in zip(c.dims(x), c.dims(y), strict=True):
        c.same(before, after)
    c.flat(list(c.dims(x)[:-1]), [c.dims(router)[0]])
    stream, expert = c.dims(x)[-1], c.dims(router)[1]
    c.hold(stream, "read and written by the experts of MoE")
    c.hold(expert, "experts of MoE are chosen by their number")
    if (why := _obstacle(node, c.sizes(x)[-1], c.sizes(first), c.sizes(second))) is not None:
        for value in node.inputs[FIRST:]:
            c.pin(value, None, f"{why} is not cut")
        return
    for value in node.inputs[FIRST:]:
        if value is not None:
            c.same(c.dims(value)[0], expert)
    unit, columns = c.dims(second)[2], c.fresh(_columns(node))
    for index in (FIRST, FIRST_BIAS):
        if (value := operand(node, index)) is not None:
            c.flat([c.dims(value)[1]], [unit, columns] if _columns(node) > 1 else [unit])
    c.hold(columns, "the gate and the value of a neuron")
    c.reads(node, SECOND, 2)
    for value, axis in ((first, 2), (second, 1), (operand(node, SECOND_BIAS), 1)):
        if value is not None:
            c.same(c.dims(value)[axis], stream)


def _macs(node: Any, s: Sizes) -> int:
    """Each token's products with its k experts."""
    *tokens, width = s.shape(node.inputs[0])
    columns = s.shape(node.inputs[FIRST])[1] + s.shape(node.inputs[SECOND])[2]
    third = operand(node, _THIRD[0])
    columns += s.shape(third)[1] if third is not None else 0
    return math.prod(tokens) * int(attribute(node, "k", 1)) * width * columns


register({"MoE": _mixture}, axes=_axes, macs=_macs, domain="com.microsoft", states=SECOND)
