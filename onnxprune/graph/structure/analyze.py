"""Finding what can be cut: axis groups, residual branches, and why the rest is pinned.

`analyze` states every node's constraints to the axis solver and reads the answer. It knows operators, never
architectures: heads are the axis over which two activations are multiplied batch by batch, neurons what one weight
writes and another reads.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UnsupportedError, reading
from onnxprune.graph import flow, ops
from onnxprune.graph.axes import DYNAMIC, Layout, Solver, atoms_of, repeated, symbol_size
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.model import Model
from onnxprune.graph.ops.normalize import narrow_axes, narrows
from onnxprune.graph.ops.recurrent import RECURRENCE
from onnxprune.graph.plan import Group, Pin, Reader, Structure
from onnxprune.graph.quantised import GIVE_FLOATS, Quantised
from onnxprune.graph.single_nodes import bodies, reads
from onnxprune.graph.structure.twins import branches_of, mirrors
from onnxprune.graph.values import dims


def analyze(model: Model, *, hidden: bool = False) -> Structure:
    """What can be cut in a model, and why the rest cannot.

    Args:
        hidden: norms do not keep the channels they normalise: the width of the stream is units too ("hidden").
    """
    with reading(f"{model.path or 'the graph'}: cannot be analysed", UnsupportedError):
        return _analyze(model, hidden)


def _analyze(model: Model, hidden: bool) -> Structure:
    ties = Ties(model.graph, hidden=hidden)
    for node in model.graph:
        ties.add(node)
    for value in model.graph.inputs:
        if not value.is_initializer():
            ties.pin(value, None, "an input of the graph")
    for value in model.graph.outputs:
        ties.pin(value, None, "an output of the graph")
    for value in model.graph.initializers.values():
        ties.keep_blocks(value)
    layouts = ties.layouts()
    groups = _groups(model.graph, ties, layouts)
    branches, twins = branches_of(model, layouts, groups)
    inward = sorted(branches, key=lambda b: -len(b.nodes))  # of nested branches the innermost is a group's own
    copies = {t for found in twins.values() for t in found}
    home = {group: branch.id for branch in inward if branch.id not in copies for group in branch.groups}
    groups = tuple(Group(**{**vars(g), "branch": home.get(g.id)}) for g in groups)
    return Structure(
        model.digest, tuple(ties.solver.sizes), layouts, groups, branches, _pins(ties, layouts), _batch(model, layouts),
        twins, mirrors(model),
    )  # fmt: skip


class Ties:
    """The graph's dimensions under the constraints of its operators (`ops.Constraints`)."""

    def __init__(self, graph: ir.Graph, *, hidden: bool = False) -> None:
        self.graph = graph
        self.hidden = hidden
        self.solver = Solver()
        self.read: list[tuple[ir.Node, int, int]] = []
        self.met: list[tuple[ir.Node, int, int, Layout]] = []
        self._symbols: dict[str, int] = {}
        self._sizes: dict[ir.Value, tuple[int, ...] | None] = {}
        self._dims: dict[ir.Value, tuple[Layout, ...]] = {}

    def add(self, node: ir.Node) -> None:
        """State a node's constraints; pin what it touches where it, or a shape, is unknown."""
        operator = ops.lookup(node)
        values = [v for v in (*reads(node), *node.outputs) if v is not None and v.name]
        if flow.is_flow(node) and node.op_type == flow.LEAVE:  # a loop is known from its beginning to its end, or not
            enter = flow.enter_of(node)
            values += [v for v in (*enter.inputs, *enter.outputs) if v is not None and v.name]
        if bodies(node):
            why = _BODY.format(node.op_type, node.name)
        elif operator is None:
            why = f"{node.op_type} ({node.domain or 'ai.onnx'}, opset {node.version}) is not known" + _hint(node)
        elif any(self._known(v) is None and not _is_shape_operand(v) for v in values):
            why = f"the shape around {node.op_type} {node.name} is not known"
        else:
            where = f"node {node.name} ({node.op_type}, opset {node.version}): not formed as its operator asks"
            with reading(where, UnsupportedError):
                (narrow_axes if self.hidden and narrows(node) else operator.axes)(node, self)
            return
        for value in values:
            self.pin(value, None, why)

    # -- ops.Constraints ---------------------------------------------------------------------------------------

    def dims(self, value: ir.Value) -> tuple[Layout, ...]:
        if value not in self._dims:
            self._dims[value] = tuple(self.solver.new(size) for size in self.sizes(value))
        return self._dims[value]

    def sizes(self, value: ir.Value) -> tuple[int, ...]:
        sizes = self._known(value)
        assert sizes is not None
        return sizes

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        return None if value is None or value.const_value is None else value.const_value.numpy()

    def same(self, a: Layout, b: Layout) -> None:
        self.solver.same(a, b)

    def flat(self, a: Sequence[Layout], b: Sequence[Layout]) -> None:
        self.solver.flat(a, b)

    def pin(self, value: ir.Value | None, axes: Iterable[int] | None, why: str) -> None:
        if value is None or self._known(value) is None:
            return
        found = self.dims(value)
        for axis in range(len(found)) if axes is None else axes:
            self.solver.pin(found[axis], why)

    def hold(self, layout: Layout, why: str) -> None:
        self.solver.pin(layout, why)

    def reads(self, node: ir.Node, index: int, axis: int) -> None:
        self.read.append((node, index, axis))

    def meets(self, node: ir.Node, index: int, axis: int, layout: Layout) -> None:
        self.met.append((node, index, axis, layout))

    def fresh(self, size: int) -> Layout:
        return self.solver.new(size)

    # ----------------------------------------------------------------------------------------------------------

    def keep_blocks(self, value: ir.Value) -> None:
        """State that of indices which share a scale as many of every block stay, or all of some blocks.

        The latter where other sizes of blocks have no kernels, or slow ones.
        """
        tensor = value.const_value
        if not isinstance(tensor, Quantised) or self._known(value) is None:
            return
        for axis, (layout, size) in enumerate(zip(self.dims(value), self.sizes(value), strict=True)):
            block = tensor.block_along(axis)
            if not block:
                continue
            if size % block:
                self.solver.pin(layout, f"quantised in blocks of {block}, the last of which is smaller")
                continue
            blocks, inner = self.solver.new(size // block), self.solver.new(block)
            self.solver.flat([layout], [blocks, inner], f"quantised in blocks of {block}")
            self.solver.pin(inner if tensor.whole_blocks else blocks, f"quantised in blocks of {block}")

    def layouts(self) -> dict[str, tuple[Layout, ...]]:
        """Every value's dimensions, resolved."""
        return {v.name or "": tuple(self.solver.resolve(d) for d in found) for v, found in self._dims.items()}

    def _known(self, value: ir.Value) -> tuple[int, ...] | None:
        if value not in self._sizes:
            found = dims(value)
            self._sizes[value] = (
                None if found is None or None in found else tuple(self._size(d) for d in found if d is not None)
            )
        return self._sizes[value]

    def _size(self, dim: int | str) -> int:
        return (
            evaluate(dim, self._symbols, self._new_symbol)
            if isinstance(dim, int) or dim in self._symbols
            else self._parse(dim)
        )

    def _parse(self, dim: str) -> int:
        while True:
            try:
                return evaluate(dim, self._symbols)
            except KeyError as missing:
                name = str(missing.args[0])
                if name == dim and not name.isidentifier():
                    return self._new_symbol(dim)
                self._new_symbol(_first_free(dim, self._symbols) or dim)

    def _new_symbol(self, name: str) -> int:
        self._symbols[name] = symbol_size(len(self._symbols))
        return self._symbols[name]


_QUANTISED = re.compile(r"Q[A-Z]|DynamicQuantize|MatMul(Integer|NBits|Bnb4|Fp)|GatherBlockQuantized|QMoE|.*Quantize")
"""Operators on integers, or on weights of few bits."""


def _hint(node: ir.Node) -> str:
    """What can be done about an operator that is not known."""
    if node.domain == "com.microsoft" and _QUANTISED.match(node.op_type):
        return f": {GIVE_FLOATS}"
    if node.domain == "com.microsoft.nchwc":
        return ": saved from a session for one machine's caches; save it at optimisation level basic or extended"
    return ""


def _is_shape_operand(value: ir.Value) -> bool:
    """Whether a value of unknown shape holds sizes computed at run time: its contents matter, not its own shape."""
    return (
        value.dtype == ir.DataType.INT64
        and all(
            node.op_type in ("Reshape", "Expand", "Slice", "Tile", "ConstantOfShape", "Split", "Resize", "Pad")
            and index > 0
            for node, index in value.uses()
        )
        and bool(value.uses())
    )


def _first_free(expression: str, known: dict[str, int]) -> str | None:
    """The first name in an expression that has no size yet."""
    import ast

    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return next(
        (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id not in known and n.id not in called), None
    )


def _batch(model: Model, layouts: dict[str, tuple[Layout, ...]]) -> int | None:
    """The atom of the batch: the first dimension of the inputs, where it is dynamic."""
    for spec in model.inputs:
        if spec.shape and not isinstance(spec.shape[0], int) and spec.name in layouts:
            (term, *others) = layouts[spec.name][0]
            if len(term) == 1 and not others:
                return next(iter(atoms_of((term,))), None)
    return None


def _groups(graph: ir.Graph, ties: Ties, layouts: dict[str, tuple[Layout, ...]]) -> tuple[Group, ...]:
    """One group per free atom that something reads."""
    readers: dict[int, list[tuple[int, Reader]]] = defaultdict(list)
    position = {node: i for i, node in enumerate(graph)}
    dynamic = {a for a, size in enumerate(ties.solver.sizes) if size >= DYNAMIC}
    pairs: set[int] = set()  # atoms contracted between two activations
    for node, index, axis in ties.read:
        other = node.inputs[1 - index] if index < 2 and len(node.inputs) > 1 else None
        value, name = node.inputs[index], node.name or ""
        assert value is not None
        operator = ops.lookup(node)
        products = operator is not None and operator.macs is not None  # a sum's second operand names its axes
        weighted = products and other is not None and other.const_value is not None
        recurrent = operator is not None and operator.states
        own = recurrent and index == RECURRENCE and value.const_value is not None
        if (value.const_value is not None and not own) or (not weighted and other is not None and index == 1):
            continue  # of two operands one is gated: the activation, or the first
        found = atoms_of(layouts[value.name or ""][axis])
        if found & dynamic and found - dynamic:
            for atom in found:
                ties.solver.pins.setdefault(atom, {})["contracted together with a dynamic dimension"] = None
        weight = other.name if weighted and other is not None else None
        weight_axis = _opposite(ties, layouts, node, index, layouts[value.name or ""][axis]) if weighted else 0
        reader = Reader(name, index, axis, value.name if own else weight, axis if own else weight_axis)
        for atom in found - dynamic:
            readers[atom].append((position[node], reader))
            if products and not weighted and not recurrent:
                pairs.add(atom)
    squares = {a for found in layouts.values() for layout in found for a in repeated(layout)}
    for atom in squares - dynamic:
        ties.solver.pins.setdefault(atom, {})["a dimension holds it twice: pairs of it, flattened"] = None
    for node, index, axis, layout in ties.met:
        for atom in atoms_of(ties.solver.resolve(layout)) - dynamic:
            readers[atom].append((position[node], Reader(node.name or "", index, axis)))
            pairs.add(atom)
    free = {a for a in readers if a not in ties.solver.pins and ties.solver.sizes[a] > 1}
    kinds = _kinds(graph, layouts, free, pairs)
    contexts = _contexts(graph, layouts, free)
    counters: dict[str, int] = defaultdict(int)
    groups = []
    for atom in sorted(free, key=lambda a: min(p for p, _ in readers[a])):
        kind = kinds[atom]
        # A context that stays whole (heads that a cache keeps) still has its own choice at each of its indices.
        context = tuple(c for c in contexts[atom] if 1 < ties.solver.sizes[c] < DYNAMIC and c not in squares)
        shape = (*(ties.solver.sizes[c] for c in context), ties.solver.sizes[atom])
        uses = tuple(dict.fromkeys(r for _, r in sorted(readers[atom], key=lambda pair: pair[0])))
        groups.append(
            Group(f"{kind}.{counters[kind]}", kind, counters[kind], atom, shape, context, uses, None, uses[0].node)
        )
        counters[kind] += 1
    return tuple(groups)


def _opposite(ties: Ties, layouts: Mapping[str, tuple[Layout, ...]], node: ir.Node, index: int, read: Layout) -> int:
    """The axis of the other operand that is contracted with this one; an Einsum may contract several."""
    other = node.inputs[1 - index]
    axes = [a for n, i, a in ties.read if n is node and i == 1 - index]
    found = layouts[other.name or ""] if other is not None else ()
    return next((a for a in axes if found[a] == read), next(iter(axes), 0))


def _kinds(graph: ir.Graph, layouts: dict[str, tuple[Layout, ...]], free: set[int], pairs: set[int]) -> dict[int, str]:
    """What people call an atom."""
    heads: set[int] = set()
    channels: set[int] = set()
    products: set[int] = set()
    for node in graph:
        if node.op_type in ("Conv", "ConvTranspose"):
            channels |= _atoms(node.inputs[1], layouts)
        operator = ops.lookup(node)
        recurrent = operator is not None and operator.states
        if node.op_type in ("MatMul", "Gemm") or recurrent:
            products |= {a for v in node.outputs for a in _atoms(v, layouts)}
        if operator is None or operator.macs is None or len(node.inputs) < 2 or recurrent:
            continue
        if any(v is not None and v.const_value is not None for v in node.inputs[:2]):
            heads |= _fused_heads(node, layouts)
            continue
        # Two activations: what both have and neither loses is a batch axis.
        left, right = (_atoms(v, layouts) for v in node.inputs[:2])
        batched = _batched(node, layouts)
        heads |= (left & right & _atoms(node.outputs[0], layouts)) - pairs if batched is None else batched - pairs
        heads |= _fused_heads(node, layouts)
    inner = _inner(layouts)
    normed = {a for node in graph if narrows(node) for a in _last_axis(node.inputs[0], layouts)}
    kinds = {}
    for atom in free:
        if atom in normed:
            kinds[atom] = "hidden"
        elif atom in heads:
            kinds[atom] = "query_heads" if inner.get(atom, set()) & heads & free else "heads"
        elif atom in pairs or inner.get(atom, set()) & heads:
            kinds[atom] = "head_dims"
        else:
            # Convolutions may pass over what one matrix writes and another reads.
            kinds[atom] = "channels" if atom in channels - products else "neurons"
    return kinds


def _atoms(value: ir.Value | None, layouts: Mapping[str, tuple[Layout, ...]]) -> set[int]:
    found = layouts.get(value.name or "", ()) if value is not None else ()
    return {a for layout in found for a in atoms_of(layout)}


def _last_axis(value: ir.Value | None, layouts: Mapping[str, tuple[Layout, ...]]) -> set[int]:
    """What a norm narrows; beside it may lie heads that are normed one by one."""
    found = layouts.get(value.name or "", ()) if value is not None else ()
    return atoms_of(found[-1]) if found else set()


def _batched(node: ir.Node, layouts: Mapping[str, tuple[Layout, ...]]) -> set[int] | None:
    """Atoms of the axes along which matrices lie that are multiplied one by one; one side may lack them (one key head
    for all queries). None for other operators."""
    if node.op_type not in ("MatMul", "FusedMatMul"):
        return None
    return {a for layout in layouts.get(node.outputs[0].name or "", ())[:-2] for a in atoms_of(layout)}


def _fused_heads(node: ir.Node, layouts: dict[str, tuple[Layout, ...]]) -> set[int]:
    """Heads of a fused attention operator: an axis of its own, or all but the innermost factor of its output's last
    dimension."""
    if node.op_type == "Attention" and len(found := layouts.get(node.outputs[0].name or "", ())) == 4:
        return atoms_of(found[1])
    if not any(name in node.attributes for name in ("num_heads", "q_num_heads")):
        return set()
    found = layouts.get(node.outputs[0].name or "", ())
    return {f for term in (found[-1] if found else ()) for f in term[:-1] if isinstance(f, int)}


def _inner(layouts: dict[str, tuple[Layout, ...]]) -> dict[int, set[int]]:
    """atom -> atoms that stand outside it in some dimension."""
    outside: dict[int, set[int]] = defaultdict(set)

    def visit(layout: Layout, before: set[int]) -> None:
        for term in layout:
            lead = set(before)
            for factor in term:
                if isinstance(factor, int):
                    outside[factor] |= lead
                    lead.add(factor)
                else:
                    visit(factor, lead)
                    lead |= atoms_of(factor)

    for found in layouts.values():
        for layout in found:
            visit(layout, set())
    return outside


def _contexts(graph: ir.Graph, layouts: dict[str, tuple[Layout, ...]], free: set[int]) -> dict[int, tuple[int, ...]]:
    """atom -> outer atoms that precede it in every weight: those may each choose their own units.

    A weight that shows the atom alone (a table over head dimensions) forces one choice for all.
    """
    found: dict[int, tuple[int, ...]] = {}

    def visit(layout: Layout, before: tuple[int, ...]) -> None:
        for term in layout:
            lead = before
            for factor in term:
                if isinstance(factor, int):
                    known = found.get(factor, lead)
                    found[factor] = tuple(a for a in known if a in lead)
                    lead = (*lead, factor)
                else:
                    visit(factor, lead)

    for value in graph.initializers.values():
        for layout in layouts.get(value.name or "", ()):
            visit(layout, ())
    return {atom: found.get(atom, ()) for atom in free}


def _pins(ties: Ties, layouts: dict[str, tuple[Layout, ...]]) -> tuple[Pin, ...]:
    """Pinned atoms that a user may have hoped to cut, by size and reason."""
    where: dict[int, str] = {}
    weights = {
        v.name for v in ties.graph.initializers.values() if v.const_value is not None and len(v.const_value.shape) > 1
    }
    for name, found in layouts.items():
        for layout in found:
            for atom in atoms_of(layout):
                if atom not in where or (where[atom] not in weights and name in weights):
                    where[atom] = name
    merged: dict[tuple[int, tuple[str, ...]], list[str]] = defaultdict(list)
    for atom, reasons in ties.solver.pins.items():
        size = ties.solver.sizes[atom]
        if 1 < size < DYNAMIC and where.get(atom) in weights:
            merged[size, tuple(reasons)].append(where[atom])
    for node in ties.graph:
        for body in bodies(node):
            for name, shape in _matrices_inside(body):
                for size in {size for size in shape if size > 1}:
                    merged[size, (_BODY.format(node.op_type, node.name),)].append(name)
    return tuple(Pin(size, why, names[0], len(names)) for (size, why), names in merged.items())


_BODY = "{} {} holds graphs of its own, which run or not as data decide, and is not cut"


def _matrices_inside(body: ir.Graph) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every matrix that belongs to a graph within a node, or to one within that."""
    for graph in (body, *(g for node in body.all_nodes() for g in bodies(node))):
        for value in graph.initializers.values():
            if value.const_value is not None and len(value.const_value.shape) > 1:
                yield value.name or "", tuple(value.const_value.shape.numpy())
