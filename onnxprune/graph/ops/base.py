"""What an operator is to this program: four meanings, registered by table.

`run` computes it in torch, `axes` says which dimensions move together, `macs` what it costs, and `resize` how its
shape operands and attributes follow a cut. A family file registers one line per operator; an operator that is not
registered pins everything it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxprune.graph.axes import Layout

if TYPE_CHECKING:
    import onnx_ir as ir

Run = Callable[..., Any]
"""run(torch, node, *inputs) -> tensor or tuple of tensors; absent optional inputs are None."""


class Constraints(Protocol):
    """What `axes` may say about a node. Dimensions are layouts; `dims` gives them for a value, axis by axis.

    `pin` keeps whole axes of a value, `hold` a layout: one factor of an axis (the D of H·D) while the others stay free.
    `reads` says that an axis disappears, `meets` that one factor of it does, within a product of two activations.
    """

    def dims(self, value: ir.Value) -> Sequence[Layout]: ...
    def sizes(self, value: ir.Value) -> tuple[int, ...]: ...
    def constant(self, value: ir.Value | None) -> np.ndarray | None: ...
    def same(self, a: Layout, b: Layout) -> None: ...
    def flat(self, a: Sequence[Layout], b: Sequence[Layout]) -> None: ...
    def pin(self, value: ir.Value | None, axes: Iterable[int] | None, why: str) -> None: ...
    def reads(self, node: ir.Node, index: int, axis: int) -> None: ...
    def meets(self, node: ir.Node, index: int, axis: int, layout: Layout) -> None: ...
    def fresh(self, size: int) -> Layout: ...
    def hold(self, layout: Layout, why: str) -> None: ...


class Sizes(Protocol):
    """What `resize` and `macs` may ask: dimensions after the cut."""

    def shape(self, value: ir.Value) -> tuple[int, ...]: ...
    def changed(self, value: ir.Value, axis: int) -> bool: ...
    def kept(self, value: ir.Value, axis: int) -> np.ndarray: ...
    def ratio(self, value: ir.Value, axis: int) -> tuple[int, int]: ...
    def constant(self, value: ir.Value | None) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Change:
    """What a cut asks of one node.

    Attributes:
        elements: input index -> {position: number}: single numbers of a shape operand.
        inputs: input index -> a whole new operand.
        attributes: name -> new value.
    """

    elements: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    inputs: Mapping[int, np.ndarray] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """The four meanings. `run` may name a torch function by string ("nn.functional.gelu").

    Attributes:
        states: the operand that meets what the operator made itself, which `run` gives in front of the outputs; 0 where
            there is none.
    """

    run: str | Run
    axes: Callable[[ir.Node, Constraints], None]
    macs: Callable[[ir.Node, Sizes], int] | None = None
    resize: Callable[[ir.Node, Sizes], Change] | None = None
    states: int = 0


_TABLE: dict[tuple[str, str], Operator] = {}


def register(
    runs: Mapping[str, str | Run],
    axes: Callable[[ir.Node, Constraints], None],
    *,
    macs: Callable[[ir.Node, Sizes], int] | None = None,
    resize: Callable[[ir.Node, Sizes], Change] | None = None,
    domain: str = "",
    states: int = 0,
) -> None:
    """Register a family: operator type -> its torch meaning, with axes, macs and resize in common."""
    for op_type, run in runs.items():
        _TABLE[domain, op_type] = Operator(run, axes, macs, resize, states)


def lookup(node: ir.Node) -> Operator | None:
    """The operator behind a node, or None where it is not known."""
    return _TABLE.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def registered() -> Iterable[tuple[str, str]]:
    """All (domain, operator type) pairs."""
    return _TABLE.keys()


def states_of(node: ir.Node) -> str:
    """The name under which the interpreter gives what an operator reads of what it made itself; no value of a graph."""
    return f"{node.name}\0states"


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value as plain Python."""
    found = node.attributes.get(name)
    if found is None or found.value is None:
        return default
    return found.value.decode() if isinstance(found.value, bytes) else found.value


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def outcome(node: ir.Node, index: int) -> ir.Value | None:
    """An output that may be absent, or stand without a name."""
    return node.outputs[index] if index < len(node.outputs) and node.outputs[index].name else None


def axis_of(node: ir.Node, rank: int, default: int) -> int:
    """The `axis` attribute, counted from the front."""
    axis = int(attribute(node, "axis", default))
    return axis + rank if axis < 0 else axis


# -- axes that families share ------------------------------------------------------------------------------------


def broadcast(node: ir.Node, c: Constraints) -> None:
    """Element-wise with numpy's broadcasting: equal dimensions move together, a 1 follows no one."""
    for result in node.outputs:
        for value in node.inputs:
            if value is not None and result.name:
                tie_broadcast(c, value, result)


def tie_broadcast(c: Constraints, value: ir.Value, result: ir.Value, *, skip: int = 0) -> None:
    """Tie a value's dimensions to the result's, right-aligned, leaving out the last `skip`."""
    sizes, dims = c.sizes(value), c.dims(value)
    out_sizes, out_dims = c.sizes(result), c.dims(result)
    for back in range(1 + skip, min(len(sizes), len(out_sizes)) + 1):
        if sizes[-back] == 1 and out_sizes[-back] != 1:
            continue
        if sizes[-back] == out_sizes[-back]:
            c.same(dims[-back], out_dims[-back])
        else:
            c.pin(value, [len(sizes) - back], "broadcast against a dimension of unknown size")
            c.pin(result, [len(out_sizes) - back], "broadcast against a dimension of unknown size")


def opaque(node: ir.Node, c: Constraints) -> None:
    """The tool can compute the operator but does not cut through it."""
    for value in (*node.inputs, *node.outputs):
        c.pin(value, None, f"{node.op_type} is not cut through")
