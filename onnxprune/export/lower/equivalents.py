"""Operators written in terms of simpler ones, for runtimes that lack them. One function an operator, in one table.

Every form is exact, or as close as float32 tells (Erf, Abramowitz and Stegun 7.1.26: 5e-7, and 1e-5 within 1e-4 of
0, which a Gelu multiplies by its input). A rule gets a builder at
the node and returns what takes the node's place, or None where it does not apply. Shapes are fixed by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.export.lower.builder import Builder, array_of, attribute, scalar_of
from onnxprune.graph.values import constant, dims

Build = Callable[[Builder], ir.Value | None]


@dataclass(frozen=True)
class Rule:
    """How an operator is written without itself.

    Attributes:
        needs: operators of the result.
        build: makes it.
    """

    needs: frozenset[str]
    build: Build


def _rank(value: ir.Value | None) -> int | None:
    found = dims(value)
    return None if found is None else len(found)


def _first(b: Builder) -> ir.Value:
    value = b.node.inputs[0]
    assert value is not None
    return value


def _operand(b: Builder, position: int) -> ir.Value | None:
    return b.node.inputs[position] if len(b.node.inputs) > position else None


# ---- normalisation


def _layer_norm(b: Builder) -> ir.Value | None:
    x = _first(b)
    rank = _rank(x)
    if rank is None or any(out.uses() or out.is_graph_output() for out in b.node.outputs[1:]):
        return None
    axes = list(range(attribute(b.node, "axis", -1) % rank, rank))
    apart = b.op("Sub", x, b.reduce_mean(x, axes))
    return _scaled(b, apart, axes)


def _rms_norm(b: Builder) -> ir.Value | None:
    x = _first(b)
    rank = _rank(x)
    if rank is None or any(out.uses() or out.is_graph_output() for out in b.node.outputs[1:]):
        return None
    return _scaled(b, x, list(range(attribute(b.node, "axis", -1) % rank, rank)))


def _scaled(b: Builder, x: ir.Value, axes: list[int]) -> ir.Value:
    """x over its root mean square, times the scale, plus the bias."""
    spread = b.reduce_mean(b.op("Mul", x, x), axes)
    result = b.op("Div", x, b.op("Sqrt", b.op("Add", spread, b.number(attribute(b.node, "epsilon", 1e-5), x))))
    if (scale := _operand(b, 1)) is not None:
        result = b.op("Mul", result, scale)
    bias = _operand(b, 2)
    return result if bias is None else b.op("Add", result, bias)


# ---- activations


def _erf(b: Builder) -> ir.Value | None:
    x = _first(b)
    size = b.op("Abs", x)
    inverse = b.op("Add", b.op("Mul", size, b.number(0.3275911, x)), b.number(1.0, x))
    t = b.op("Div", b.number(1.0, x), inverse)
    total = b.op("Mul", t, b.number(1.061405429, x))
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        total = b.op("Mul", b.op("Add", total, b.number(coefficient, x)), t)
    decay = b.op("Exp", b.op("Mul", b.op("Mul", x, x), b.number(-1.0, x)))
    positive = b.op("Sub", b.number(1.0, x), b.op("Mul", total, decay))
    # The sign, in numbers that half precision holds: what is nearer to 0 than 1/30000 has an erf that near to 0 too.
    steep = b.op("Mul", x, b.number(3e4, x))
    sign = b.op("Max", b.op("Min", steep, b.number(1.0, x)), b.number(-1.0, x))
    return b.op("Mul", sign, positive)


def _gelu(b: Builder) -> ir.Value | None:
    x = _biased(b)
    if attribute(b.node, "approximate", "none") == "tanh" or b.node.op_type == "FastGelu":
        cubed = b.op("Mul", b.op("Mul", b.op("Mul", x, x), x), b.number(0.044715, x))
        inner = b.op("Tanh", b.op("Mul", b.op("Add", x, cubed), b.number(math.sqrt(2 / math.pi), x)))
    else:
        inner = b.op("Erf", b.op("Mul", x, b.number(1 / math.sqrt(2), x)))
    half = b.op("Mul", x, b.number(0.5, x))
    return b.op("Mul", half, b.op("Add", inner, b.number(1.0, x)))


def _biased(b: Builder) -> ir.Value:
    bias = _operand(b, 1)
    return _first(b) if bias is None else b.op("Add", _first(b), bias)


def _quick_gelu(b: Builder) -> ir.Value | None:
    x = _first(b)
    return b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, b.number(attribute(b.node, "alpha", 1.702), x))))


def _swish(b: Builder) -> ir.Value | None:
    x = _first(b)
    alpha = attribute(b.node, "alpha", 1.0)
    return b.op("Mul", x, b.op("Sigmoid", x if alpha == 1.0 else b.op("Mul", x, b.number(alpha, x))))


# ---- choice and logic


def _where(b: Builder) -> ir.Value | None:
    """b + c · (a − b): both branches are finite where they are constants; otherwise it cannot be told."""
    condition, chosen, other = (_operand(b, i) for i in range(3))
    assert condition is not None and chosen is not None and other is not None
    if chosen.dtype is None or not chosen.dtype.is_floating_point():
        return None
    for branch in (chosen, other):
        numbers = array_of(branch)
        if numbers is not None and not np.isfinite(numbers).all():
            return None
    share = b.cast(condition, chosen.dtype)
    return b.op("Add", other, b.op("Mul", share, b.op("Sub", chosen, other)))


def _logical_not(b: Builder) -> ir.Value | None:
    number = b.cast(_first(b), ir.DataType.FLOAT)
    return b.cast(b.op("Sub", b.number(1.0), number), ir.DataType.BOOL)


def _logical_and(b: Builder) -> ir.Value | None:
    left, right = (_operand(b, i) for i in (0, 1))
    assert left is not None and right is not None
    both = b.op("Mul", b.cast(left, ir.DataType.FLOAT), b.cast(right, ir.DataType.FLOAT))
    return b.cast(both, ir.DataType.BOOL)


def _equal(b: Builder) -> ir.Value | None:
    """Of whole numbers: 1 − min(|a − b|, 1)."""
    left, right = (_operand(b, i) for i in (0, 1))
    assert left is not None and right is not None
    if left.dtype is None or not left.dtype.is_integer():
        return None
    apart = b.op("Sub", b.cast(left, ir.DataType.FLOAT), b.cast(right, ir.DataType.FLOAT))
    near = b.op("Sub", b.number(1.0), b.op("Min", b.op("Abs", apart), b.number(1.0)))
    return b.cast(near, ir.DataType.BOOL)


# ---- movement


def _gather(b: Builder) -> ir.Value | None:
    """One position: a slice of it. Rows of a table: GatherND. Constants: looked up now."""
    data, index = _operand(b, 0), _operand(b, 1)
    axis, rank, picked = attribute(b.node, "axis", 0), _rank(data), array_of(index)
    assert data is not None and index is not None
    table = array_of(data)
    if table is not None and picked is not None:
        return constant(b.model, np.take(table, picked, axis=axis), f"{b.node.name}_rows")
    if rank is None:
        return None
    axis %= rank
    if picked is not None and picked.ndim == 0:
        at = int(picked)
        part = b.op("Slice", data, b.number([at]), b.number([at + 1 or np.iinfo(np.int64).max]), b.number([axis]))
        return b.squeeze(part, [axis])
    return None


def _gather_nd(b: Builder) -> ir.Value | None:
    data, index = _operand(b, 0), _operand(b, 1)
    rank, positions = _rank(data), _rank(index)
    if rank is None or positions is None or attribute(b.node, "axis", 0) % rank:
        return None
    assert data is not None and index is not None
    return b.op("GatherND", data, b.unsqueeze(index, [positions]), dtype=data.dtype)


_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "And", "Or", "Equal", "Pow"})
_KEEPS = frozenset({"Cast", "Not", "Neg", "Abs", "Exp", "Sqrt", "Identity", "Clip"})


def _expand(b: Builder) -> ir.Value | None:
    """Left out where every reader broadcasts anyway; otherwise a product with ones."""
    x, result = _first(b), b.node.outputs[0]
    if _spreads_anyway(result):
        return x
    shape = dims(result)
    if shape is None or not all(isinstance(d, int) for d in shape) or x.dtype is None or x.dtype == ir.DataType.BOOL:
        return None
    return b.op("Mul", x, constant(b.model, np.ones(shape, x.dtype.numpy()), f"{b.node.name}_ones"))


def _spreads_anyway(value: ir.Value) -> bool:
    """Whether every way from a value soon meets an operand of the full shape that it broadcasts against."""
    start = value.producer()
    assert start is not None and start.graph is not None
    shrunk = {value}
    for node in start.graph:
        touched = [v for v in node.inputs if v in shrunk]
        if not touched:
            continue
        out = node.outputs[0]
        if node.op_type not in _KEEPS | _BROADCAST:
            return False
        others = [v for v in node.inputs if v is not None and v not in shrunk]
        if node.op_type in _BROADCAST and any(dims(v) is not None and dims(v) == dims(out) for v in others):
            continue
        shrunk.add(out)
    return not any(v.is_graph_output() for v in shrunk)


def _flatten(b: Builder) -> ir.Value | None:
    shape = dims(b.node.outputs[0])
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return b.op("Reshape", _first(b), b.number([int(d) for d in shape if isinstance(d, int)]))


# ---- arithmetic


def _negate(b: Builder) -> ir.Value | None:
    return b.op("Mul", _first(b), b.number(-1.0, _first(b)))


def _reciprocal(b: Builder) -> ir.Value | None:
    return b.op("Div", b.number(1.0, _first(b)), _first(b))


def _absolute(b: Builder) -> ir.Value | None:
    x = _first(b)
    return b.op("Max", x, b.op("Mul", x, b.number(-1.0, x)))


def _minimum(b: Builder) -> ir.Value | None:
    """−max(−a, −b); of two operands."""
    if len(b.node.inputs) != 2:
        return None
    left, right = (b.op("Mul", v, b.number(-1.0, v)) for v in b.node.inputs if v is not None)
    return b.op("Mul", b.op("Max", left, right), b.number(-1.0, left))


def _power(b: Builder) -> ir.Value | None:
    x, exponent = _first(b), scalar_of(_operand(b, 1))
    forms: Mapping[float | None, Callable[[], ir.Value]] = {
        2.0: lambda: b.op("Mul", x, x),
        3.0: lambda: b.op("Mul", b.op("Mul", x, x), x),
        0.5: lambda: b.op("Sqrt", x),
        -1.0: lambda: _reciprocal(b) or x,
    }
    return forms[exponent]() if exponent in forms else None


def _axes(b: Builder) -> list[int] | None:
    rank = _rank(_first(b))
    if rank is None:
        return None
    given = array_of(_operand(b, 1)) if _operand(b, 1) is not None else attribute(b.node, "axes", None)
    if _operand(b, 1) is not None and given is None:
        return None
    if given is None or not len(given):
        return None if attribute(b.node, "noop_with_empty_axes", 0) else list(range(rank))
    return [int(a) % rank for a in given]


def _reduce_sum(b: Builder) -> ir.Value | None:
    axes, shape = _axes(b), dims(_first(b))
    if axes is None or shape is None or not all(isinstance(shape[a], int) for a in axes):
        return None
    count = math.prod(size for a in axes if isinstance(size := shape[a], int))
    mean = b.reduce_mean(_first(b), axes, keep=bool(attribute(b.node, "keepdims", 1)))
    return b.op("Mul", mean, b.number(float(count), _first(b)))


def _reduce_l2(b: Builder) -> ir.Value | None:
    axes = _axes(b)
    if axes is None:
        return None
    x, keep = _first(b), attribute(b.node, "keepdims", 1)
    squares = b.op("Mul", x, x)
    if b.model.opset_imports.get("", 18) >= 13:
        return b.op("Sqrt", b.op("ReduceSum", squares, b.number(axes), keepdims=keep))
    return b.op("Sqrt", b.op("ReduceSum", squares, axes=axes, keepdims=keep))


def _clip(b: Builder) -> ir.Value | None:
    low, high, result = _operand(b, 1), _operand(b, 2), _first(b)
    result = b.op("Max", result, low) if low is not None else result
    return b.op("Min", result, high) if high is not None else result


def _rule(build: Build, *needs: str) -> Rule:
    return Rule(frozenset(needs), build)


_NORM = ("ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div")
RULES: dict[str, tuple[Rule, ...]] = {
    "LayerNormalization": (_rule(_layer_norm, *_NORM),),
    "RMSNormalization": (_rule(_rms_norm, *_NORM),),
    "SimplifiedLayerNormalization": (_rule(_rms_norm, *_NORM),),
    "Erf": (_rule(_erf, "Abs", "Mul", "Add", "Div", "Exp", "Sub", "Max", "Min"),),
    "Gelu": (_rule(_gelu, "Mul", "Add", "Erf", "Tanh"),),
    "BiasGelu": (_rule(_gelu, "Mul", "Add", "Erf"),),
    "FastGelu": (_rule(_gelu, "Mul", "Add", "Tanh"),),
    "QuickGelu": (_rule(_quick_gelu, "Mul", "Sigmoid"),),
    "Swish": (_rule(_swish, "Mul", "Sigmoid"),),
    "Where": (_rule(_where, "Cast", "Add", "Mul", "Sub"),),
    "Not": (_rule(_logical_not, "Cast", "Sub"),),
    "And": (_rule(_logical_and, "Cast", "Mul"),),
    "Equal": (_rule(_equal, "Cast", "Sub", "Abs", "Min"),),
    "Gather": (_rule(_gather, "Slice", "Squeeze"), _rule(_gather_nd, "GatherND", "Unsqueeze")),
    "Expand": (_rule(_expand, "Mul"),),
    "Flatten": (_rule(_flatten, "Reshape"),),
    "Abs": (_rule(_absolute, "Max", "Mul"),),
    "Min": (_rule(_minimum, "Max", "Mul"),),
    "Neg": (_rule(_negate, "Mul"),),
    "Reciprocal": (_rule(_reciprocal, "Div"),),
    "Pow": (_rule(_power, "Mul", "Sqrt", "Div"),),
    "ReduceSum": (_rule(_reduce_sum, "ReduceMean", "Mul"),),
    "ReduceL2": (_rule(_reduce_l2, "ReduceSum", "Mul", "Sqrt"),),
    "Clip": (_rule(_clip, "Max", "Min"),),
}
"""Operator -> the forms it can take, best first."""
