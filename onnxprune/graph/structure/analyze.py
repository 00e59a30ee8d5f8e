"""Finding what can be cut: axis groups, residual branches, and why the rest is pinned.

`analyze` states every node's constraints to the axis solver and reads the answer. It knows operators, never
architectures: heads are the axis over which two activations are multiplied batch by batch, neurons what one weight
writes and another reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxprune.errors import UnsupportedError, reading
from onnxprune.graph import ops
from onnxprune.graph.axes import DYNAMIC, Layout, atoms_of, repeated
from onnxprune.graph.dimensions import hold_graphs, row_axis
from onnxprune.graph.model import Model
from onnxprune.graph.nested import bodies
from onnxprune.graph.ops.normalize import narrows
from onnxprune.graph.plan import Group, Pin, Reader, Structure
from onnxprune.graph.structure.ties import IN_BODY, Ties
from onnxprune.graph.structure.twins import branches_of, mirrors


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


def _batch(model: Model, layouts: dict[str, tuple[Layout, ...]]) -> int | None:
    """The atom of the batch: the dimension of the inputs on which rows stand, where it is dynamic."""
    if hold_graphs(model.inputs):
        return None
    for spec in model.inputs:
        axis = row_axis(spec.shape)
        if spec.shape and not isinstance(spec.shape[axis], int) and spec.name in layouts:
            (term, *others) = layouts[spec.name][axis]
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
        recurrent = operator is not None and operator.states > 0
        own = operator is not None and index == operator.states > 0 and value.const_value is not None
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
    by_weights = {a for a, uses_of in readers.items() if any(reader.weight is not None for _, reader in uses_of)}
    kinds = _kinds(graph, layouts, free, pairs, by_weights)
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


def _kinds(
    graph: ir.Graph, layouts: dict[str, tuple[Layout, ...]], free: set[int], pairs: set[int], weighted: set[int]
) -> dict[int, str]:
    """What people call an atom.

    Args:
        pairs: atoms contracted between two activations: dimensions of heads, unless weights read them, too (states of
            a recurrence that another attends to).
        weighted: atoms that a weight reads.
    """
    heads: set[int] = set()
    channels: set[int] = set()
    products: set[int] = set()
    for node in graph:
        if node.op_type in ("Conv", "ConvTranspose", "DeformConv"):
            channels |= _atoms(node.inputs[1], layouts)
        operator = ops.lookup(node)
        recurrent = operator is not None and operator.states > 0
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
        elif atom in pairs - weighted or inner.get(atom, set()) & heads:
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
                    merged[size, (IN_BODY.format(node.op_type, node.name),)].append(name)
    return tuple(Pin(size, why, names[0], len(names)) for (size, why), names in merged.items())


def _matrices_inside(body: ir.Graph) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every matrix that belongs to a graph within a node, or to one within that."""
    for graph in (body, *(g for node in body.all_nodes() for g in bodies(node))):
        for value in graph.initializers.values():
            if value.const_value is not None and len(value.const_value.shape) > 1:
                yield value.name or "", tuple(value.const_value.shape.numpy())
