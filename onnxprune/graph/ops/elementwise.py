"""Operators that act on each element alone; their dimensions move together under numpy's broadcasting."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.graph.ops.base import Constraints, attribute, broadcast, register, tie_broadcast

_CAST = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip


def torch_dtype(torch: Any, code: int) -> Any:
    """The torch type of an ONNX element type.

    Raises:
        NotImplementedError: strings and the types of fewer than 8 bits.
    """
    if int(code) not in _CAST:
        raise NotImplementedError(f"element type {code} is not in torch")
    return getattr(torch, _CAST[int(code)])


def _div(torch: Any, node: Any, a: Any, b: Any) -> Any:
    # ONNX divides integers toward zero.
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(torch: Any, node: Any, a: Any, b: Any) -> Any:
    return torch.fmod(a, b) if attribute(node, "fmod", 0) else torch.remainder(a, b)


def _gelu(torch: Any, node: Any, x: Any) -> Any:
    return torch.nn.functional.gelu(x, approximate=attribute(node, "approximate", "none"))


def _clip(torch: Any, node: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    low = attribute(node, "min") if low is None else low
    high = attribute(node, "max") if high is None else high
    x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))


def _dropout(torch: Any, node: Any, x: Any, *_: Any) -> Any:
    if len(node.outputs) == 1:
        return x  # in training mode the result is random (in ONNX Runtime too); this is its expectation
    # The mask says what is kept, and before opset 12 what is not.
    return x, torch.full_like(x, (node.version or 13) >= 12, dtype=torch.bool)


def _pow(torch: Any, node: Any, x: Any, exponent: Any) -> Any:
    return torch.pow(x, exponent).to(x.dtype)


def _prelu(torch: Any, node: Any, x: Any, slope: Any) -> Any:
    return torch.where(x < 0, x * slope, x)


def _shift(torch: Any, node: Any, x: Any, amount: Any) -> Any:
    return (
        torch.bitwise_left_shift(x, amount)
        if attribute(node, "direction") == "LEFT"
        else torch.bitwise_right_shift(x, amount)
    )


def _shrink(torch: Any, node: Any, x: Any) -> Any:
    bias, threshold = attribute(node, "bias", 0.0), attribute(node, "lambd", 0.5)
    small = torch.where(x < -threshold, x + bias, torch.zeros_like(x))
    return torch.where(x > threshold, x - bias, small).to(x.dtype)


def _fold(name: str) -> Any:
    """An operator of one or more operands as a chain of a two-operand torch function."""

    def run(torch: Any, node: Any, *xs: Any) -> Any:
        result = xs[0]
        for x in xs[1:]:
            result = getattr(torch, name)(result, x)
        return result

    return run


def _mean(torch: Any, node: Any, *xs: Any) -> Any:
    return _fold("add")(torch, node, *xs) / len(xs)


def _activation(name: str, **defaults: float) -> Any:
    """A torch.nn.functional activation whose attributes have ONNX's defaults."""

    def run(torch: Any, node: Any, x: Any) -> Any:
        return getattr(torch.nn.functional, name)(x, *[float(attribute(node, k, v)) for k, v in defaults.items()])

    return run


def _hard_sigmoid(torch: Any, node: Any, x: Any) -> Any:
    return torch.clamp(attribute(node, "alpha", 0.2) * x + attribute(node, "beta", 0.5), 0, 1)


def _selu(torch: Any, node: Any, x: Any) -> Any:
    alpha, gamma = attribute(node, "alpha", 1.6732632423543772), attribute(node, "gamma", 1.0507009873554805)
    return gamma * torch.where(x > 0, x, alpha * (torch.exp(x) - 1))


def _thresholded_relu(torch: Any, node: Any, x: Any) -> Any:
    return torch.where(x > attribute(node, "alpha", 1.0), x, torch.zeros_like(x))


def _swish(torch: Any, node: Any, x: Any) -> Any:
    alpha = attribute(node, "alpha", 1.0)
    return torch.nn.functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def _is_inf(torch: Any, node: Any, x: Any) -> Any:
    positive, negative = attribute(node, "detect_positive", 1), attribute(node, "detect_negative", 1)
    return (torch.isposinf(x) & bool(positive)) | (torch.isneginf(x) & bool(negative))


def _cast(torch: Any, node: Any, x: Any) -> Any:
    return x.to(torch_dtype(torch, attribute(node, "to")))


register(
    {
        "Add": "add", "Sub": "sub", "Mul": "mul", "Div": _div, "Pow": _pow, "Mod": _mod, "PRelu": _prelu,
        "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor", "Not": "logical_not",
        "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge",
        "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
        "BitwiseNot": "bitwise_not", "BitShift": _shift,
        "Where": "where", "Min": _fold("minimum"), "Max": _fold("maximum"), "Sum": _fold("add"), "Mean": _mean,
        "Abs": "abs", "Neg": "neg", "Sign": "sign", "Exp": "exp", "Log": "log", "Sqrt": "sqrt",
        "Reciprocal": "reciprocal",
        "Floor": "floor", "Ceil": "ceil", "Round": "round", "Erf": "erf", "IsNaN": "isnan", "IsInf": _is_inf,
        "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan",
        "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh",
        "Relu": "relu", "Sigmoid": "sigmoid", "Softplus": _activation("softplus"), "Softsign": _activation("softsign"),
        "LeakyRelu": _activation("leaky_relu", alpha=0.01), "ThresholdedRelu": _thresholded_relu,
        "Elu": _activation("elu", alpha=1.0), "Celu": _activation("celu", alpha=1.0), "Selu": _selu,
        "HardSigmoid": _hard_sigmoid, "HardSwish": _activation("hardswish"),
        "Mish": _activation("mish"), "Gelu": _gelu, "Swish": _swish, "Shrink": _shrink,
        "Clip": _clip, "Cast": _cast, "Identity": lambda torch, node, x: x, "Dropout": _dropout,
    },
    axes=broadcast,
)  # fmt: skip


def _equal_axes(node: Any, c: Constraints) -> None:
    """As broadcasting ties them; what is compared with 0, 1, 2 … is a vocabulary, as its table would be (`Gather`)."""
    broadcast(node, c)
    for value in node.inputs:
        axis = _counted_axis(c.constant(value))
        if axis is not None:
            c.pin(value, [axis], "a vocabulary, compared one by one")


def _counted_axis(array: Any) -> int | None:
    """The axis along which a constant counts from 0, all others being 1; None where none is such."""
    if array is None or array.size < 2 or max(array.shape) != array.size:
        return None
    counts = bool((array.ravel() == np.arange(array.size)).all())
    return int(np.argmax(array.shape)) if counts else None


register({"Equal": "eq"}, axes=_equal_axes)


def _first_axes(node: Any, c: Constraints) -> None:
    tie_broadcast(c, node.inputs[0], node.outputs[0])


# The second operand lends its type alone.
register({"CastLike": lambda torch, node, x, like: x.to(like.dtype)}, axes=_first_axes)
