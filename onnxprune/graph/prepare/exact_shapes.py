"""Rules under which a name stands for one size: what may be rewritten may rest on no guess.

ONNX Runtime's inference guesses where it cannot know: dimensions that meet are taken for equal (one of them may be 1),
a run-time size for different from a number, a slice's end for within its dimension. To understand a graph that is good
enough; to write numbers into it, or to choose a branch of an `If`, it is not. These rules say what holds for every size
that the graph runs at, and give a new name to what they cannot tell. `self` is the library's inference at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROADCASTS = frozenset(
    (
        "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
        "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
    )
)  # fmt: skip
"""Operators whose output has the shape that their inputs broadcast to."""

_ENDLESS = 2**31 - 1
"""Slice bounds from here on mean "to the end"."""


def equal(self: Any, node: Any) -> None:
    """Numbers that a comparison of sizes gives, where it comes out the same for every size."""
    verdicts: list[bool | None] = []

    def compare(pair: Sequence[Any]) -> bool:
        verdicts.append(_same(pair[0], pair[1]))
        return bool(verdicts[-1])

    self._compute_on_sympy_data(node, compare)
    if None in verdicts:
        del self.sympy_data_[node.output[0]]


def _same(a: Any, b: Any) -> bool | None:
    """Whether two sizes are equal; None where it depends on the sizes of dimensions (any of which may be 0)."""
    import sympy

    difference = sympy.sympify(a) - sympy.sympify(b)
    sizes = {s: sympy.Dummy(integer=True, nonnegative=True) for s in difference.free_symbols}
    zero = sympy.simplify(difference.xreplace(sizes)).is_zero
    return None if zero is None else bool(zero)


def quotient(self: Any, node: Any, rule: Any) -> None:
    """Whole numbers divided; a quotient of floating-point numbers is no size before it is rounded."""
    import onnx

    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    if self.known_vi_[node.output[0]].type.tensor_type.elem_type not in kinds:
        rule(node)


def squeeze(self: Any, node: Any, rule: Any) -> None:
    """Without axes the rank of the result depends on which dimensions are 1: unknown where one is dynamic."""
    stated = (len(node.input) > 1 and node.input[1]) or any(a.name == "axes" for a in node.attribute)
    if stated or all(isinstance(d, int) for d in self._get_shape(node, 0)):
        rule(node)
    else:
        _forget(self, node.output[0])


def choice(self: Any, node: Any, rule: Any) -> None:
    """`If`: what both branches agree on; where their ranks differ, nothing is known of the output."""
    rule(node)
    if self._try_get_value(node, 0) is not None:
        return
    branches = [a.g for a in node.attribute if a.name in ("then_branch", "else_branch")]
    for place, output in enumerate(node.output):
        kinds = [branch.output[place].type for branch in branches]
        shapes = [kind.tensor_type.shape for kind in kinds if kind.tensor_type.HasField("shape")]
        if kinds[0].HasField("tensor_type") and (len(shapes) < 2 or len(shapes[0].dim) != len(shapes[1].dim)):
            _forget(self, output)


def _forget(self: Any, output: str) -> None:
    import onnx

    self.known_vi_[output].type.CopyFrom(onnx.TypeProto())


def broadcast(self: Any, first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Shapes broadcast; two names may stand for 1 and n either way, so that their meeting has a name of its own."""
    rank = max(len(first), len(second))
    sides = [[1] * (rank - len(shape)) + list(shape) for shape in (first, second)]
    return [_met(self, a, b) for a, b in zip(*sides, strict=True)]


def _met(self: Any, a: Any, b: Any) -> Any:
    if b in (a, 1):
        return a
    if a == 1 or isinstance(b, int):
        return b
    if isinstance(a, int):
        return a
    first, second = (self.symbolic_dims_.get(name) for name in (a, b))
    if first is not None and second is not None:
        # Where one is never the larger it is equal, or 1 (what is cut off at a table's length: Min(512, n) beside n).
        if _within(first, second):
            return b
        if _within(second, first):
            return a
    return fresh(self)


def fresh(self: Any) -> str:
    """A name that nothing else has: the same in every round, so that what it was found equal to is remembered."""
    self.named += 1
    return str(self._new_symbolic_dim(f"open{self.prefix_}_{self.visited}", self.named))


def name_open(self: Any, node: Any) -> None:
    """Give names to dimensions that onnx's own inference leaves open: it numbers them anew at every node."""
    inputs = [self._try_get_shape(node, i) for i in range(len(node.input))]
    for output in filter(None, node.output):
        tensor = self.known_vi_[output].type.tensor_type
        if not tensor.HasField("shape"):
            continue
        dims = tensor.shape.dim
        unnamed = [d for d in dims if not _known(self, d)]
        if unnamed and node.op_type in BROADCASTS and all(shape is not None for shape in inputs):
            shape: list[Any] = []
            for other in inputs:
                shape = broadcast(self, shape, other)
            for dim, size in zip(dims, shape, strict=True):
                _write(dim, size)
        else:
            for dim in unnamed:
                _write(dim, fresh(self))


def _known(self: Any, dim: Any) -> bool:
    return dim.HasField("dim_value") or (bool(dim.dim_param) and dim.dim_param in self.symbolic_dims_)


def _write(dim: Any, size: Any) -> None:
    if isinstance(size, int):
        dim.dim_value = size
    else:
        dim.dim_param = str(size)


def slices(self: Any, node: Any, rule: Any) -> None:
    """A slice's length, where its bounds are provably within the dimension they cut."""
    before = self._get_sympy_shape(node, 0)
    rule(node)
    if len(node.input) < 3:
        return
    starts, ends, axes = (_listed(self._try_get_value(node, i)) for i in (1, 2, 3))
    if starts is None or ends is None:
        return
    dims = self.known_vi_[node.output[0]].type.tensor_type.shape.dim
    for axis, start, end in zip(range(len(before)) if axes is None else axes, starts, ends, strict=False):
        size = before[int(axis)]
        bounds = [b for b in (start, end) if not _number(b)]
        if bounds and not (_within(start, end) and all(_within(0, b) for b in bounds) and _ends(end, size)):
            _write(dims[int(axis)], fresh(self))


def _listed(value: Any) -> list[Any] | None:
    return None if value is None else [*value] if hasattr(value, "__iter__") else [value]


def _number(value: Any) -> bool:
    return isinstance(value, int) or bool(getattr(value, "is_number", True))


def _ends(end: Any, size: Any) -> bool:
    """Whether where a slice ends is known: within a symbolic dimension, or cut off at a number."""
    return _number(end) or _number(size) or _within(end, size) or _within(size, end)


def _within(a: Any, b: Any) -> bool:
    """Whether a <= b for every size; Min is what it is the least of."""
    import sympy

    if _number(b) and _number(a):
        return int(b) >= _ENDLESS or bool(a <= b) or int(b) < 0
    if _number(b):
        return bool(int(b) >= _ENDLESS)
    if isinstance(b, sympy.Min):
        return all(_within(a, part) for part in b.args)
    if isinstance(a, sympy.Min) and any(_within(part, b) for part in a.args if part != a):
        return True
    return (sympy.sympify(b) - sympy.sympify(a)).is_nonnegative is True


def same_padding(self: Any, node: Any, shape: list[Any], first: int) -> list[Any]:
    """Spatial sizes of a convolution that pads so as to give ceil(size / stride), from axis `first` on."""
    import sympy

    sizes = self._get_sympy_shape(node, 0)
    strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), None)
    for axis in range(first, len(shape)):
        if not _number(sizes[axis]):
            shape[axis] = sympy.ceiling(sizes[axis] / (strides[axis - first] if strides else 1))
    return shape


def pads_itself(node: Any) -> bool:
    """Whether a convolution's output size is its input's by the stride."""
    return any(a.name == "auto_pad" and a.s in (b"SAME_UPPER", b"SAME_LOWER") for a in node.attribute)


def resize(self: Any, node: Any, rule: Any) -> None:
    """Sizes under whole factors and halves; under others a rounding in single precision decides."""
    before = self._get_sympy_shape(node, 0)
    rule(node)
    scales = self._try_get_value(node, 2 if len(node.input) > 2 else 1)
    if scales is None or len(scales) != len(before):
        return
    dims = self.known_vi_[node.output[0]].type.tensor_type.shape.dim
    for dim, size, scale in zip(dims, before, scales, strict=True):
        if not _number(size) and float(scale) * 256 % 1:
            _write(dim, fresh(self))
