"""Positions that nobody reads: a classifier takes one token of its last block, and the block computes all of them.

A Gather or Slice that picks constant positions off an axis asks its operand for those alone. Read backwards from
there, an operator can be asked for them too if the axis passes through it: element-wise sums, norms over another axis,
products that do not contract it, a softmax beside it. What says so is the operator's own `axes`, stated for this one
node: positions can be left out of an axis just as units can. Where the axis ends (the keys and values of attention
read every token) the positions are picked instead. The result is the same numbers, computed once instead of for
every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph import ops
from onnxprune.graph.axes import atoms_of
from onnxprune.graph.ops.index import gathered
from onnxprune.graph.ops.layout import sliced
from onnxprune.graph.quantised import taken
from onnxprune.graph.structure.ties import Ties
from onnxprune.graph.values import constant, dims
from onnxprune.rewrite import cleanup
from onnxprune.rewrite.cut import carry_out

_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Places:
    """Positions on one axis of a value: counted from the front, or from behind (negative) where the size is open."""

    axis: int
    at: tuple[int, ...]

    def __or__(self, other: Places) -> Places:
        return Places(self.axis, _ordered({*self.at, *other.at}))

    def within(self, held: Places) -> tuple[int, ...]:
        """Where these positions lie in a value that holds others too."""
        return tuple(held.at.index(i) for i in self.at)


@dataclass(frozen=True)
class Narrowed:
    """A node that computes a few positions only.

    Attributes:
        at: the positions.
        axes: its operands and results that show them -> axis.
        change: how its operands and attributes follow.
    """

    at: tuple[int, ...]
    axes: Mapping[ir.Value, int]
    change: ops.Change


def drop_unread(model: ir.Model) -> bool:
    """Compute only what is read of each axis, in place; whether anything was left out.

    Args:
        model: shapes of its values are known (`shapes.infer`).
    """
    picks = {node: places for node in model.graph if (places := _picked(node)) is not None}
    few = _Few(model, picks)
    paying = {node: places for node, places in picks.items() if few.saves(node)}
    if not paying:
        return False
    if len(paying) < len(picks):
        few = _Few(model, paying)
    few.carry_out()
    cleanup.tidy(model)
    return True


class _Few:
    """Which nodes compute a few positions only, if some readers pick a few.

    Args:
        picks: Gathers and Slices -> what they read of their first operand.
    """

    def __init__(self, model: ir.Model, picks: Mapping[ir.Node, Places]) -> None:
        self.model, self.picks = model, picks
        self.nodes: dict[ir.Node, Narrowed] = {}
        self._cuts: dict[tuple[ir.Value, Places], ir.Value] = {}
        for node in reversed(model.graph):
            if node not in picks and (found := self._narrowed(node)) is not None:
                self.nodes[node] = found

    def saves(self, pick: ir.Node) -> bool:
        """Whether a product computes less for this reader's sake."""
        seen: set[ir.Node] = set()
        open_nodes = [pick.inputs[0].producer() if pick.inputs[0] is not None else None]
        while open_nodes:
            node = open_nodes.pop()
            if node is None or node in seen or node not in self.nodes:
                continue
            seen.add(node)
            operator = ops.lookup(node)
            if operator is not None and operator.macs is not None:
                return True
            open_nodes += [v.producer() for v in self.nodes[node].axes if v not in node.outputs]
        return False

    # -- what is asked for -------------------------------------------------------------------------------------

    def _wanted(self, value: ir.Value) -> Places | None:
        """The positions that all readers of a value read together; None for all of them, or most: picking is work."""
        if value.is_graph_output():
            return None
        found: Places | None = None
        for reader, index in value.uses():
            own = self._read(reader, index, value)
            if own is None or (found is not None and found.axis != own.axis):
                return None
            found = own if found is None else found | own
        size = (dims(value) or ())[found.axis] if found is not None else None
        return None if found is None or (isinstance(size, int) and 2 * len(found.at) > size) else found

    def _read(self, reader: ir.Node, index: int, value: ir.Value) -> Places | None:
        if reader in self.picks:
            return self.picks[reader] if index == 0 else None
        narrowed = self.nodes.get(reader)
        axis = narrowed.axes.get(value) if narrowed is not None else None
        return None if narrowed is None or axis is None else Places(axis, narrowed.at)

    def _narrowed(self, node: ir.Node) -> Narrowed | None:
        """How a node can compute what is asked of its results and no more; None where it cannot."""
        results = [v for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
        wanted = [self._wanted(v) for v in results]
        asked = [(v, w) for v, w in zip(results, wanted, strict=True) if w is not None]
        if not asked or len(asked) < len(wanted):
            return None
        axes = _passing(self.model.graph, node, {v: w.axis for v, w in asked})
        if axes is None:
            return None
        at = _ordered({i for _, w in asked for i in w.at})
        change = _change(node, axes, len(at))
        return None if change is None else Narrowed(at, axes, change)

    # -- carrying it out ---------------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Change the graph."""
        given = {
            v: Places(node.axes[v], node.at)
            for made, node in self.nodes.items()
            for v in made.outputs
            if v in node.axes
        }
        for node, narrowed in self.nodes.items():
            for index, value in enumerate(node.inputs):
                if value is None or value not in narrowed.axes:
                    continue
                needs = Places(narrowed.axes[value], narrowed.at)
                held = given.get(value)
                if held is None:
                    node.replace_input_with(index, self._cut(value, needs))
                elif held != needs:
                    node.replace_input_with(index, self._cut(value, Places(needs.axis, needs.within(held))))
            carry_out(self.model, node, narrowed.change)
        for value, places in given.items():
            shape = list(dims(value) or ())
            shape[places.axis] = len(places.at)
            value.shape = ir.Shape(shape)
        for node, places in self.picks.items():
            source = node.inputs[0]
            if source is not None and source in given:
                self._renumber(node, places.within(given[source]), given[source])

    def _cut(self, value: ir.Value, places: Places) -> ir.Value:
        """A value's positions alone; made once for all who read them."""
        key = (value, places)
        if key not in self._cuts:
            self._cuts[key] = self._made(value, places)
        return self._cuts[key]

    def _made(self, value: ir.Value, places: Places) -> ir.Value:
        name = f"{value.name}_at_{places.axis}_" + "_".join(str(i).replace("-", "m") for i in places.at)
        if value.const_value is not None:
            some = taken(value.const_value, [(np.array(places.at), places.axis)], name)
            return constant(self.model, some, name)
        node = self._pick(value, places, name)
        node.version = self.model.opset_imports.get("", 13)
        result = node.outputs[0]
        shape = list(dims(value) or ())
        shape[places.axis] = len(places.at)
        result.name, result.type, result.shape = f"{name}_output", value.type, ir.Shape(shape)
        producer = value.producer()
        if producer is None:
            self.model.graph.insert_before(self.model.graph[0], node)
        else:
            producer.append(node)
        return result

    def _pick(self, value: ir.Value, places: Places, name: str) -> ir.Node:
        """A Slice where the positions are neighbours, which every provider has; else a Gather."""
        bounds = _bounds(places.at)
        if bounds is None:
            index = self._numbers(list(places.at), f"{name}_index")
            return ir.node("Gather", [value, index], {"axis": places.axis}, name=name)
        listed = zip((*bounds, places.axis), ("start", "end", "axis"), strict=True)
        return ir.node("Slice", [value, *(self._numbers([n], f"{name}_{role}") for n, role in listed)], name=name)

    def _renumber(self, node: ir.Node, at: tuple[int, ...], held: Places) -> None:
        """Let a reader find its positions in a value that holds few."""
        if node.op_type == "Gather":
            old = node.inputs[1]
            assert old is not None and old.const_value is not None
            shape = old.const_value.shape.numpy()
            index = constant(self.model, np.array(at, dtype=np.int64).reshape(shape), f"{node.name}_index")
            node.replace_input_with(1, index)
        elif len(at) == len(held.at) and not node.outputs[0].is_graph_output():
            source = node.inputs[0]
            assert source is not None and node.graph is not None
            node.outputs[0].replace_all_uses_with(source)
            node.graph.remove(node, safe=True)
        else:
            bounds = _bounds(at)
            assert bounds is not None  # neighbours stay neighbours: what lies between them would be held, too
            for role, number in enumerate(bounds, start=1):
                node.replace_input_with(role, self._numbers([number], f"{node.name}_bound"))

    def _numbers(self, numbers: list[int], name: str) -> ir.Value:
        return constant(self.model, np.array(numbers, dtype=np.int64), name)


def _picked(node: ir.Node) -> Places | None:
    """What a node reads of its first operand, where those are constant positions of one axis."""
    source = node.inputs[0] if node.inputs else None
    if node.domain not in ("", "ai.onnx") or source is None or source.const_value is not None:
        return None
    find = {"Gather": gathered, "Slice": sliced}.get(node.op_type)
    known = dims(source)
    found = find(node, known) if find is not None and known is not None else None
    return None if found is None else Places(found[0], found[1])


def _passing(graph: ir.Graph, node: ir.Node, results: Mapping[ir.Value, int]) -> dict[ir.Value, int] | None:
    """Operands and results of a node that show the same axis as these results do; None where it does not pass."""
    if ops.lookup(node) is None:
        return None
    ties = Ties(graph)
    ties.add(node)
    resolve = ties.solver.resolve
    found = {resolve(ties.dims(v)[axis]) for v, axis in results.items()}
    layout = found.pop()
    if found or len(layout) != 1 or len(layout[0]) != 1 or not isinstance(layout[0][0], int):
        return None
    atom = layout[0][0]
    if atom in ties.solver.pins or any(
        atom in atoms_of(resolve(ties.dims(value)[axis]))
        for reader, index, axis in ties.read
        if (value := reader.inputs[index]) is not None
    ):
        return None
    axes: dict[ir.Value, int] = {}
    for value in (*node.inputs, *node.outputs):
        if value is None or not value.name or value in axes or dims(value) is None:
            continue
        shown = [axis for axis, dim in enumerate(map(resolve, ties.dims(value))) if atom in atoms_of(dim)]
        if len(shown) > 1 or any(resolve(ties.dims(value)[axis]) != layout for axis in shown):
            return None
        axes |= dict.fromkeys([value] if shown else [], shown[0] if shown else 0)
    return axes if any(v in axes for v in node.inputs) else None


def _change(node: ir.Node, axes: Mapping[ir.Value, int], count: int) -> ops.Change | None:
    """How a node's operands and attributes follow; None where that needs more than the numbers of positions."""
    operator = ops.lookup(node)
    assert operator is not None
    if operator.resize is None:
        return ops.Change()
    try:
        return operator.resize(node, _Sizes(node, axes, count))
    except _WhichOnesError:
        return None


class _WhichOnesError(Exception):
    """An operator asks which positions stay, where only their number is known."""


class _Sizes:
    """A node's dimensions with few positions on one axis (`ops.Sizes`)."""

    def __init__(self, node: ir.Node, axes: Mapping[ir.Value, int], count: int) -> None:
        self.axes, self.count = axes, count
        self.ties = Ties(node.graph if isinstance(node.graph, ir.Graph) else ir.Graph([], [], nodes=[]))

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        found = list(self.ties.sizes(value))
        if value in self.axes:
            found[self.axes[value]] = self.count
        return tuple(found)

    def changed(self, value: ir.Value, axis: int) -> bool:
        return self.axes.get(value) == axis

    def ratio(self, value: ir.Value, axis: int) -> tuple[int, int]:
        return self.shape(value)[axis], self.ties.sizes(value)[axis]

    def kept(self, value: ir.Value, axis: int) -> np.ndarray:
        if self.changed(value, axis):
            raise _WhichOnesError
        return np.ones(self.ties.sizes(value)[axis], dtype=bool)

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        return self.ties.constant(value)


def _ordered(at: set[int]) -> tuple[int, ...]:
    """Positions from the front, then those counted from behind."""
    return tuple(sorted(at, key=lambda i: (i < 0, i)))


def _bounds(at: tuple[int, ...]) -> tuple[int, int] | None:
    """(start, end) of a Slice that takes these positions; None where they are not neighbours."""
    if list(at) != list(range(at[0], at[0] + len(at))) or at[0] < 0 <= at[-1]:
        return None
    return at[0], at[-1] + 1 if at[-1] != -1 else _END
