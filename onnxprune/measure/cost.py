"""Exact costs of a plan at a stated shape: multiply-accumulates, parameters, bytes.

Nothing is run, but where a shape depends on data: that one is seen in a run.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import ModelError, one_line
from onnxprune.graph import joined, ops, prepare
from onnxprune.graph.axes import Mask, atoms_of, kept_ratio
from onnxprune.graph.dimensions import hold_graphs, require_sizes
from onnxprune.graph.model import Model
from onnxprune.graph.model_files import size as size_of_file
from onnxprune.graph.nested import reads
from onnxprune.graph.plan import Branch, Group, Plan, Structure
from onnxprune.graph.quantised import Quantised
from onnxprune.graph.sizes_told import sizes_told
from onnxprune.measure.shapes import CutShapes, DenseShapes

logger = logging.getLogger(__name__)

INTEGERS = ("UINT8", "INT8", "UINT4", "INT4", "UINT2", "INT2")
"""Element types of weights beside those of floating point; wider integers are shapes and indices."""
BYTES_OF_LENGTHS = 16
"""What a tensor's own shape and length take in a file."""


class Costs:
    """What a model costs under any plan.

    Args:
        bindings: symbol -> size ("batch_size" -> 1): the shape at which MACs are counted.
    """

    def __init__(self, model: Model, structure: Structure, bindings: Mapping[str, int]) -> None:
        self.model = model
        self.structure = structure
        self.bindings = dict(bindings)
        self.shapes = DenseShapes(model, self.bindings)
        self._dropped: dict[tuple[str, ...], frozenset[str]] = {}
        self._scopes: dict[tuple[str, ...], tuple[frozenset[str], frozenset[str]]] = {}

    def macs(self, plan: Plan | None = None) -> int:
        """Multiply-accumulates of MatMul, Gemm, Conv, Einsum and attention operators (FLOPs are twice that)."""
        return sum(self.by_node(plan).values())

    def by_op(self, plan: Plan | None = None) -> dict[str, int]:
        """MACs per operator type."""
        total: Counter[str] = Counter()
        for node, macs in self.by_node(plan).items():
            total[self._nodes[node].op_type if node in self._nodes else "MatMul"] += macs
        return dict(total)

    def by_node(self, plan: Plan | None = None, only: Collection[str] | None = None) -> dict[str, int]:
        """MACs per node; nodes of dropped branches are not there.

        Args:
            only: nodes to count; None for all.
        """
        masks, gone = self._cut(plan)
        sizes = self._sizes(masks)
        found = {}
        for name in self._counted if only is None else only:
            if name not in gone and name in self._counted:
                found[name] = self._macs(name, sizes)
        for weight, tiles in plan.tiles.items() if plan is not None else ():
            whole = math.prod(sizes.shape(self.model.graph.initializers[weight]))
            for name in self._readers_of[weight] & found.keys():
                found[name] = found[name] * sum(t.area for t in tiles) // whole
        for branch in self._mapped(plan, only):
            skip, value = self._ends(branch)
            macs = math.prod(sizes.shape(skip)) * sizes.shape(value)[-1]
            found[f"{branch.add}_map"] = macs * self._times(branch.add)
        return found

    def _macs(self, name: str, sizes: CutShapes) -> int:
        node = self._nodes[name]
        operator = ops.lookup(node)
        assert operator is not None and operator.macs is not None
        try:
            return int(operator.macs(node, sizes)) * self._times(name)
        except IndexError as error:
            said = f"node {one_line(name, 80)} ({node.op_type}): its inputs have fewer axes than it takes"
            raise ModelError(f"{said}: the file is damaged") from error

    def behind(self, groups: Collection[Group]) -> int:
        """Multiply-accumulates that would go with all units of some groups, each counted once: those of a convolution
        between two of them belong to both, and are no more than they are."""
        masks = {g.atom: Mask(np.zeros(g.shape, dtype=bool), g.context) for g in groups}
        shown, _ = self._showing
        touched = set().union(*(shown[g.atom] for g in groups)) & self._counted.keys()
        whole, without = self._sizes({}), self._sizes(masks)
        return sum(self._macs(name, whole) - self._macs(name, without) for name in touched)

    def params(self, plan: Plan | None = None) -> int:
        """Numbers in weights: those of floating point, and the integers of 8 bits or fewer with their scales."""
        return _numbers(self._weights(plan))

    def bytes(self, plan: Plan | None = None) -> int:
        """Bytes of all weights; the file adds some kilobytes of graph."""
        return _bytes(self._weights(plan))

    def total(self, kind: str, plan: Plan | None = None) -> float:
        """The cost that a budget of `kind` (flops, params, size) limits; a size is that of the file, read or written.

        Of several graphs it is that of all: multiply-accumulates of a call of each (`Model.calls`), a weight that
        several hold once among the parameters, and in each of their files.

        Without a plan it is the cost of the model as it was given, which a budget is a share of: a vector that several
        uses share, of which each has a copy of its own here, is one.
        """
        if kind == "size":
            if plan is None and self.model.path is not None:
                return float(sum(map(size_of_file, self.model.files)))
            return float(self.bytes(plan) + self._frame)
        if kind == "params" and plan is None:
            return float(self.params() - _numbers(self._weights(None, only=self._added)))
        return float({"flops": self.macs, "params": self.params}[kind](plan))

    @cached_property
    def _added(self) -> list[str]:
        """Initializers that are copies of others."""
        return [name for name, value in self.model.graph.initializers.items() if value.meta.get(prepare.COPY)]

    @cached_property
    def _frame(self) -> int:
        """Bytes of a file that is written that are no weights: nodes, names, shapes; of several, all together."""
        if self.model.parts:
            return sum(map(self._framed, joined.written(self.model, self.model.normal).values()))
        return self._framed(self.model.clone().normal)

    @staticmethod
    def _framed(model: ir.Model) -> int:
        clone = prepare.written(model)
        for value in clone.graph.initializers.values():
            if value.const_value is not None:
                empty = np.zeros(0, dtype=np.float32)
                value.const_value = ir.Tensor(empty, name=value.name)
        with prepare.forgotten(clone):
            bare = len(ir.to_proto(clone).SerializeToString())
        return bare + BYTES_OF_LENGTHS * len(clone.graph.initializers)

    def part(self, kind: str, groups: Sequence[Group], plan: Plan) -> float:
        """What is counted of the nodes and weights that show some groups, or lie in their branches.

        Plans that differ in these groups alone differ by this much, and it is counted in a fraction of the time.
        """
        nodes, weights = self._around(groups)
        if kind == "flops":
            return float(sum(self.by_node(plan, nodes).values()))
        counted = self._weights(plan, nodes, weights)
        return float(_bytes(counted) if kind == "size" else _numbers(counted))

    def unit_costs(self, kind: str, group: Group) -> float:
        """What one unit of a group costs on average, everything else whole: what goes with half of them."""
        units = group.shape[-1]
        if units < 2:
            return 0.0
        half = units // 2
        keep = np.zeros(group.shape, dtype=bool)
        keep[..., :half] = True
        plan = Plan(self.structure.digest, {group.id: tuple(int(i) for i in np.flatnonzero(keep))})
        return (self.total(kind, Plan(self.structure.digest)) - self.total(kind, plan)) / int((~keep).sum())

    def offered(self, group: Group, counts: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which of some ascending numbers of units are worth choosing between; here all are."""
        return np.ones(len(counts), dtype=np.bool_)

    def map_cost(self, kind: str, branch: str) -> float:
        """What a linear map in the place of a residual branch costs."""
        gone = Plan(self.structure.digest, drop=(branch,))
        mapped = replace(gone, maps={branch: np.zeros((0, 0), dtype=np.float32)})
        return self.total(kind, mapped) - self.total(kind, gone)

    def branch_cost(self, kind: str, branch: str) -> float:
        """What a whole residual branch costs."""
        none = Plan(self.structure.digest)
        return self.total(kind, none) - self.total(kind, replace(none, drop=(branch,)))

    # ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _nodes(self) -> dict[str, ir.Node]:
        return {n.name or "": n for n in self.model.graph}

    @cached_property
    def _counted(self) -> dict[str, None]:
        """The nodes that have multiply-accumulates, in order."""
        known = ((name, ops.lookup(node)) for name, node in self._nodes.items())
        return {name: None for name, operator in known if operator is not None and operator.macs is not None}

    @cached_property
    def _owners(self) -> Mapping[str, list[int]]:
        """Node -> which of several graphs it belongs to."""
        return joined.owners(self.model.graph, self.model.parts)

    def _times(self, node: str) -> int:
        """How often a node is counted: once, or each turn of the loops around it, as often as its graph is called."""
        turns = self.shapes.turns(self._nodes[node])
        if not self.model.calls:
            return turns
        parts = [self.model.parts[place] for place in self._owners.get(node, ())]
        return turns * max((self.model.calls.get(part.file.stem, 1) for part in parts), default=1)

    def _sizes(self, masks: Mapping[int, Mask]) -> CutShapes:
        return CutShapes(self.shapes, self.structure, masks)

    @property
    def sizes(self) -> dict[str, int]:
        """Symbol -> size, where what is left is counted: as bound, and as data decided here."""
        return {**self.shapes.observed, **self.bindings}

    def dense_shape(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape under the bindings, before any cut."""
        return self.shapes.of(value)

    def _copies(self, weight: str) -> int:
        """In how many files a weight lies."""
        if not self.model.parts:
            return 1
        places = {place for node in self._readers_of.get(weight, ()) for place in self._owners.get(node, ())}
        return max(len({self.model.parts[place].source for place in places}), 1)

    @cached_property
    def _showing(self) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
        """(nodes that are counted, additions where a linear map may be; weights) by the atoms that they show."""
        nodes: dict[int, set[str]] = defaultdict(set)
        weights: dict[int, set[str]] = defaultdict(set)
        for name in (*self._counted, *(b.add for b in self.structure.branches)):
            node = self._nodes[name]
            for value in (*node.inputs, *node.outputs):
                for layout in self.structure.layouts.get(value.name or "", ()) if value is not None else ():
                    for atom in atoms_of(layout):
                        nodes[atom].add(name)
        for name in self.model.graph.initializers:
            for layout in self.structure.layouts.get(name, ()):
                for atom in atoms_of(layout):
                    weights[atom].add(name)
        return nodes, weights

    def _around(self, groups: Sequence[Group]) -> tuple[frozenset[str], frozenset[str]]:
        """(nodes, weights) that change with the numbers of some groups' units, or leave with their branches."""
        key = tuple(g.id for g in groups)
        if key not in self._scopes:
            named = self.structure.with_twins(g.branch for g in groups if g.branch)
            branches = [self.structure.branch(b) for b in named]
            gone = self._may_leave(branches)
            shown, held = self._showing
            nodes = gone.union((b.add for b in branches), *(shown[g.atom] for g in groups))
            inside = {w for w, readers in self._readers_of.items() if readers & gone}
            weights = inside.union(*(held[g.atom] for g in groups)) & self.model.graph.initializers.keys()
            self._scopes[key] = nodes, frozenset(weights)
        return self._scopes[key]

    def _may_leave(self, branches: Sequence[Branch]) -> frozenset[str]:
        """The nodes that leave with some branches, whichever others left before: what several share goes last."""
        every = self._gone([b.id for b in self.structure.branches]) if branches else frozenset()
        stack, found = [n for b in branches for n in b.nodes], set()
        while stack:
            name = stack.pop()
            if name in every and name not in found:
                found.add(name)
                stack.extend(p.name or "" for v in reads(self._nodes[name]) if v is not None and (p := v.producer()))
        return frozenset(found)

    def touching(self, group: Group) -> tuple[frozenset[str], frozenset[str]]:
        """(nodes and weights whose cost changes with a group's width, those that change if its branch leaves, too)."""
        shown, held = self._showing
        return frozenset(shown[group.atom] | held[group.atom]), frozenset().union(*self._around([group]))

    @cached_property
    def _users(self) -> dict[ir.Value, list[str]]:
        users: dict[ir.Value, list[str]] = defaultdict(list)
        for name, node in self._nodes.items():
            for value in reads(node):
                if value is not None:
                    users[value].append(name)
        return users

    @cached_property
    def _readers_of(self) -> dict[str, set[str]]:
        readers: dict[str, set[str]] = defaultdict(set)
        for name, node in self._nodes.items():
            for value in reads(node):
                if value is not None and value.const_value is not None:
                    readers[value.name or ""].add(name)
        return readers

    def _cut(self, plan: Plan | None) -> tuple[Mapping[int, Mask], frozenset[str]]:
        if plan is None:
            return {}, frozenset()
        return plan.masks(self.structure), self._gone(self.structure.with_twins(plan.drop))

    def _gone(self, drop: Sequence[str]) -> frozenset[str]:
        """The nodes of dropped branches, and those that nobody else reads then (an encoder without its decoder)."""
        key = tuple(drop)
        if key not in self._dropped:
            self._dropped[key] = self._unread_without(key)
        return self._dropped[key]

    def _unread_without(self, drop: Sequence[str]) -> frozenset[str]:
        gone = {n for b in drop for n in self.structure.branch(b).nodes}
        for name, node in reversed(self._nodes.items()) if gone else ():
            users = [u for value in node.outputs for u in self._users.get(value, ())]
            if users and not any(v.is_graph_output() for v in node.outputs) and all(u in gone for u in users):
                gone.add(name)
        return frozenset(gone)

    def _weights(
        self, plan: Plan | None, nodes: Collection[str] | None = None, only: Collection[str] | None = None
    ) -> list[tuple[int, int]]:
        """(numbers in weights, bytes) of every initializer that stays, or of `only` some and the maps at some nodes.

        Bytes are those in all files that have it.
        """
        masks, gone = self._cut(plan)
        found = []
        for name in self.model.graph.initializers if only is None else only:
            value = self.model.graph.initializers[name]
            tensor = value.const_value
            if tensor is None or (gone and (users := self._readers_of.get(name)) and users <= gone):
                continue
            sizes, layouts = tensor.shape.numpy(), self.structure.layouts.get(name, ())
            if masks and layouts:
                sizes = tuple(kept_ratio(layout, masks, self.structure.sizes)[0] for layout in layouts)
            if isinstance(tensor, Quantised):
                pieces = [_counted(count, kind, weights=True) for count, kind in tensor.contents(sizes)]
                found += [(numbers, size * self._copies(name)) for numbers, size in pieces]
                continue
            tiles = plan.tiles.get(name) if plan is not None else None
            count = math.prod(sizes) if tiles is None else sum(t.area for t in tiles)
            numbers, size = _counted(count, tensor.dtype)
            found.append((numbers, size * self._copies(name)))
        shapes = self._sizes(masks)
        for branch in self._mapped(plan, nodes):
            skip, value = self._ends(branch)
            count = shapes.shape(skip)[-1] * shapes.shape(value)[-1]
            found.append(_counted(count, value.dtype or ir.DataType.FLOAT))
        return found

    def _mapped(self, plan: Plan | None, at: Collection[str] | None = None) -> list[Branch]:
        """Dropped branches that leave a linear map behind, `at` some additions or anywhere."""
        names = self.structure.with_twins(b for b in plan.drop if b in plan.maps) if plan is not None else ()
        dropped = [self.structure.branch(b) for b in names]
        return [b for b in dropped if at is None or b.add in at]

    def _ends(self, branch: Branch) -> tuple[ir.Value, ir.Value]:
        """The stream that a branch is added to, and what it adds."""
        add = self._nodes[branch.add]
        skip, value = add.inputs[1 - branch.operand], add.inputs[branch.operand]
        assert skip is not None and value is not None
        return skip, value


def _counted(count: int, kind: ir.DataType, *, weights: bool = False) -> tuple[int, int]:
    """(numbers in weights, bytes) of some elements."""
    numbers = weights or kind.is_floating_point() or kind.name in INTEGERS
    return (count if numbers else 0), math.ceil(count * kind.itemsize)


def _numbers(weights: Sequence[tuple[int, int]]) -> int:
    return sum(count for count, _ in weights)


def _bytes(weights: Sequence[tuple[int, int]]) -> int:
    return sum(size for _, size in weights)


def default_bindings(model: Model, shape: Mapping[str, int]) -> dict[str, int]:
    """Every symbol of the inputs bound: as stated, as the weights tell, the batch to 1; the rest must be stated."""
    bindings = {**sizes_told(model.graph), **shape}
    inputs = model.inputs
    for spec in () if hold_graphs(inputs) else inputs:
        if spec.shape and isinstance(spec.shape[0], str):
            bindings.setdefault(spec.shape[0], 1)
    require_sizes(bindings, {spec.name: spec.shape for spec in inputs})
    return bindings


def symbols(model: Model) -> Sequence[str]:
    """The names of the inputs' dynamic dimensions."""
    return list(dict.fromkeys(d for spec in model.inputs for d in spec.shape if isinstance(d, str)))
