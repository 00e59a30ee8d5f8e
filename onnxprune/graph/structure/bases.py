"""Which dimensions within heads may change their basis, and which weights show them.

They may where everything between the weights that make them and the product that reads them is linear in them as a
whole: it moves, repeats, adds, or scales them alike. What tells one dimension from another (the angles of rotary
positions, the gain of a norm on queries) holds the basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.axes import Layout, atoms_of, index_of
from onnxprune.graph.plan import Group, Structure
from onnxprune.graph.quantised import Quantised

MOVING = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Expand", "Flatten", "Cast", "Neg", "Dropout", "Split")
).union(("Slice", "Gather", "Concat", "Tile"))
"""Operators that hand dimensions on as they are (`Neg` turns all of them around)."""
FUSED = frozenset(("Attention", "MultiHeadAttention"))
"""Operators that multiply queries with keys, and weigh values, within."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A weight's axis that holds a group's dimensions.

    Attributes:
        positions: [rows, copies, dimensions] on that axis: for each outer unit that has a basis of its own, all places
            at which its dimensions stand (queries beside keys, the query heads that share a key head).
    """

    weight: str
    axis: int
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Basis:
    """Dimensions that may be written in another basis.

    Attributes:
        read: the weight that reads them, for values; None where queries and keys meet.
        shown: the other weights that have them.
    """

    group: Group
    read: Shown | None
    shown: tuple[Shown, ...]


class Held(Exception):
    """Why a group's dimensions keep their basis."""


def basis_of(graph: ir.Graph, structure: Structure, group: Group) -> Basis:
    """Where a group's basis is to be changed.

    Raises:
        Held: it may not be; says why.
    """
    if len({r.node for r in group.readers}) != 1:
        raise Held("several products read them")
    atom, reader = group.atom, group.readers[0]
    layouts = structure.layouts
    shown: dict[tuple[str, int], Shown] = {}
    read = None
    for node in graph:
        having = {
            i: [axis for axis, layout in enumerate(layouts.get(v.name or "", ())) if atom in atoms_of(layout)]
            for i, v in enumerate(node.inputs)
            if v is not None
        }
        having = {i: axes for i, axes in having.items() if axes}
        if not having:
            continue
        if any(len(axes) > 1 for axes in having.values()):
            raise Held(f"{node.op_type} {node.name} has them twice")
        _require_linear(node, structure, atom, having, reads=node.name == reader.node)
        for i, (axis,) in having.items():
            value = node.inputs[i]
            assert value is not None
            if value.const_value is None:
                continue
            if value.const_value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
                raise Held(f"{value.name} holds no floating-point numbers that can be changed")
            if isinstance(value.const_value, Quantised) and not value.const_value.parts.half:
                raise Held(f"{value.name} is quantised: in another basis its numbers lie on no grid")
            found = Shown(value.name or "", axis, positions(layouts[value.name or ""][axis], group, structure.sizes))
            if node.name == reader.node and (found.weight, axis) == (reader.weight, reader.weight_axis):
                read = found
            else:
                shown[found.weight, axis] = found
    if reader.weight is not None and (read is None or (read.weight, read.axis) in shown):
        raise Held(f"{reader.weight} is read elsewhere, too")
    if not shown:
        raise Held("no weight makes them")
    return Basis(group, read, tuple(shown.values()))


def rotatable(graph: ir.Graph, structure: Structure, group: Group) -> bool:
    """Whether a group's basis may be changed."""
    try:
        basis_of(graph, structure, group)
    except Held:
        return False
    return True


def positions(layout: Layout, group: Group, sizes: tuple[int, ...]) -> np.ndarray:
    """[rows, copies, dimensions]: where the dimensions of each outer unit stand on an axis.

    Raises:
        Held: not as often for each.
    """
    own = index_of(layout, group.atom, sizes)
    outer = [index_of(layout, atom, sizes) for atom in group.context]
    if any((index < 0).any() and (own[index < 0] >= 0).any() for index in outer):
        raise Held("a weight shows them without the heads that they belong to")
    *context, width = group.shape
    row = np.ravel_multi_index([np.maximum(i, 0) for i in outer], context) if outer else np.zeros(len(own), dtype=int)
    rows = int(np.prod(context)) if context else 1
    found = [[np.flatnonzero((own == d) & (row == r)) for d in range(width)] for r in range(rows)]
    copies = {len(places) for line in found for places in line}
    if len(copies) != 1 or copies == {0}:
        raise Held("a weight shows some of them more often than others")
    return np.array(found).transpose(0, 2, 1)


def _require_linear(
    node: ir.Node, structure: Structure, atom: int, having: dict[int, list[int]], *, reads: bool
) -> None:
    """Raise `Held` unless a node does the same whatever basis the dimensions are written in.

    Args:
        having: input -> the axis that has them.
        reads: whether it is the node that they disappear in.
    """
    layouts = structure.layouts
    after = [layout for v in node.outputs for layout in layouts.get(v.name or "", ()) if atom in atoms_of(layout)]
    kind = node.op_type
    why = f"{kind} {node.name} tells them apart"
    if kind in ("MatMul", "FusedMatMul", "Gemm", "Einsum"):
        # In one operand they are passed on, in two they are contracted, in a bias they are added.
        product = [i for i in having if i < 2]
        ok = not after if reads else len(product) == 1 and bool(after)
        if kind == "Gemm" and not reads:
            ok = ok and (len(node.inputs) < 3 or node.inputs[2] is None or 2 in having)
        if kind == "FusedMatMul" and "activation" in node.attributes:
            ok = False
    elif kind == "Conv":
        ok = set(having) <= {1, 2} and 1 in having and (len(node.inputs) < 3 or node.inputs[2] is None or 2 in having)
    elif kind in FUSED:
        # Of queries and keys they disappear; of values they are in no other part of the operands. Heads are in all.
        parts = [t for i, (axis,) in having.items() for t in _terms(node, i, axis, structure) if atom in atoms_of((t,))]
        apart = len(parts) == len(having) and (node.domain == "com.microsoft" or having.keys() == {2})
        ok = not ops.attribute(node, "do_rotary", 0) and (not after if reads else apart and not having.keys() & {0})
    elif kind in ("Add", "Sub"):
        ok = len(having) == 2
    elif kind in ("Mul", "Div"):
        ok = set(having) == {0} or (kind == "Mul" and set(having) == {1})
    elif kind in MOVING:
        # Whole dimensions: their product with what lies around them is the same before and after.
        ok = bool(after) or not reads
        if kind in ("Split", "Slice", "Gather", "Concat"):
            before = {t for v in node.inputs if v is not None for x in layouts.get(v.name or "", ()) for t in x}
            ok = all(t in before for layout in after for t in layout if atom in atoms_of((t,)))
    else:
        ok = False
    if not ok:
        raise Held(why)


def _terms(node: ir.Node, index: int, axis: int, structure: Structure) -> Layout:
    value = node.inputs[index]
    assert value is not None
    return structure.layouts[value.name or ""][axis]
