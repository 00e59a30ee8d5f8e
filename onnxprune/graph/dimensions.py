"""Dimensions that are known by name: what `floor(height/16)*batch_size` is at given sizes."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Integral
from typing import Any, Protocol

from onnxprune.errors import UsageError

_BATCH = re.compile(r"\w*batch\w*", re.IGNORECASE)
_ROWS = re.compile(rf"b|n|bs|bsz|rows?|samples?|{_BATCH.pattern}", re.IGNORECASE)
"""Names of the dimension on which rows stand; the first beyond doubt."""


def row_axis(shape: Sequence[int | str | None]) -> int:
    """The axis on which an input's rows stand: the first, unless that is a number above 1 or has another name, and a
    later one is called as a batch is (a recurrence's [steps, batch, width])."""
    if not shape or shape[0] in (None, 1) or (isinstance(shape[0], str) and _ROWS.fullmatch(shape[0])):
        return 0
    names = _ROWS if isinstance(shape[0], int) else _BATCH
    return next((i for i, d in enumerate(shape) if isinstance(d, str) and names.fullmatch(d)), 0)


class Indexed(Protocol):
    """An input of which it is known what its values stay below."""

    @property
    def shape(self) -> Sequence[int | str | None]: ...
    @property
    def limit(self) -> int | str | None: ...


def hold_graphs(inputs: Iterable[Indexed]) -> bool:
    """Whether rows are graphs: values of an input are places on the first axis of one, as edges name nodes.

    There is no axis of rows then: what seems to be one holds the parts of a row.
    """
    there = list(inputs)
    firsts = {spec.shape[0] for spec in there if spec.shape}
    return any(isinstance(spec.limit, str) and spec.limit in firsts for spec in there)


_UNREADABLE = (SyntaxError, LookupError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError)
"""What a name that is no expression makes of reading it: names in a file may be anything."""
_MOST_DIGITS = 64


def _power(base: Any, exponent: Any) -> Any:
    """base ** exponent, where that is a size: a name in a file may ask for a number without end."""
    if abs(exponent) > _MOST_DIGITS or abs(base) > 1 << _MOST_DIGITS:
        raise KeyError(f"{base}**{exponent}")
    return base**exponent


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floor": math.floor,
    "ceiling": math.ceil,
    "ceil": math.ceil,
    "Max": max,
    "Min": min,
    "max": max,
    "min": min,
    "Mod": lambda a, b: a % b,
}
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: Fraction(a) / Fraction(b),
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: _power,
}


Monomial = tuple[int, tuple[str, ...]]
"""A whole number times symbols, sorted: 4*batch_size is (4, ("batch_size",))."""


def monomial(dimension: int | str) -> Monomial | None:
    """A dimension as a number times symbols; None where it is anything else (a sum, a quotient)."""
    if isinstance(dimension, int):
        return dimension, ()

    def visit(node: ast.AST) -> Monomial:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value, ()
        if isinstance(node, ast.Name):
            return 1, (node.id,)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            (a, left), (b, right) = visit(node.left), visit(node.right)
            return a * b, tuple(sorted((*left, *right)))
        raise ValueError

    try:
        return visit(ast.parse(dimension, mode="eval").body)
    except _UNREADABLE:
        return None


def quotient(whole: int | str, part: int | str) -> Monomial | None:
    """whole / part, where both are a number times symbols and it comes out even."""
    a, b = monomial(whole), monomial(part)
    if a is None or b is None or not b[0] or a[0] % b[0]:
        return None
    left = list(a[1])
    for symbol in b[1]:
        if symbol not in left:
            return None
        left.remove(symbol)
    return a[0] // b[0], tuple(left)


def evaluate(dimension: int | str, bindings: Mapping[str, int], unknown: Callable[[str], int] | None = None) -> int:
    """The number behind a symbolic dimension such as `floor(height/16)*batch_size`.

    Args:
        bindings: symbol -> size.
        unknown: called for a symbol (or a whole expression that cannot be read) without a binding.

    Raises:
        KeyError: an unbound symbol, and no `unknown`.
    """
    if isinstance(dimension, int):
        return dimension
    if dimension in bindings:
        return bindings[dimension]

    def visit(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            if node.id in bindings:
                return bindings[node.id]
            raise KeyError(node.id)
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](visit(node.left), visit(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -visit(node.operand)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return _FUNCTIONS[node.func.id](*map(visit, node.args))
        raise KeyError(ast.dump(node))

    try:
        return int(visit(ast.parse(dimension, mode="eval").body))
    except _UNREADABLE:
        if unknown is None:
            raise KeyError(dimension) from None
        return unknown(dimension)


_MOST = 1 << 28
"""Elements of one input: what no machine would run a model on is a slip of the hand."""


def least(name: str) -> int:
    """The smallest size of a dimension: a cache may be empty."""
    return 0 if "past" in name else 1


def require_sizes(bindings: Mapping[str, Any], shapes: Mapping[str, Sequence[int | str | None]]) -> None:
    """Refuse what is no size of a dimension.

    Args:
        bindings: dimension -> size.
        shapes: of the graph's inputs.

    Raises:
        UsageError: a size that is no whole number, or too small, or an input that would have more than 2^28 elements.
    """
    for name, size in bindings.items():
        if not isinstance(size, Integral) or size < least(name):
            raise UsageError(f"--shape {name}={size}: a dimension's size is a whole number from {least(name)} on")
    for name, shape in shapes.items():
        elements = math.prod(bindings.get(dim, 1) if isinstance(dim, str) else (dim or 1) for dim in shape)
        told = ",".join(f"{dim}={bindings[dim]}" for dim in shape if isinstance(dim, str) and dim in bindings)
        if told and elements > _MOST:  # what the graph fixes itself is a matter of memory
            raise UsageError(f"--shape {told}: input {name} would have {elements:.3g} elements; give smaller sizes")


def independent(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes without those of sums and products of other names, which follow."""
    names = {name: size for name, size in sizes.items() if name.isidentifier()}

    def follows(name: str, size: int) -> bool:
        try:
            return evaluate(name, names) == size
        except KeyError:
            return False

    return {name: size for name, size in sizes.items() if name in names or not follows(name, size)}
