"""Gated space: a plan applied to the original graph by weights and hooks, nothing cut.

A unit is gated at its readers, never at its producers (gelu(b) is not 0): the reading rows of a weight are zeroed, or,
where both operands are activations, one is multiplied. Scores, damage and compensation all work here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.graph import ops
from onnxprune.graph.axes import DYNAMIC, Layout, Mask, atoms_of, flat_mask, index_of
from onnxprune.graph.nested import reads
from onnxprune.graph.ops.normalize import narrows
from onnxprune.graph.plan import Branch, Plan, Reader, Structure
from onnxprune.graph.put_away import Arrays
from onnxprune.graph.quantised import nearest
from onnxprune.graph.quantised_operators import noted
from onnxprune.probe.engine import cast, namespace, to_numpy, wide
from onnxprune.probe.interpreter import Interpreter, Usage


@dataclass(frozen=True)
class Gated:
    """What `Interpreter.run` takes to compute as if the plan were carried out."""

    weights: Mapping[str, Any]
    edit: Mapping[Usage, Callable[[Any], Any]]


class Gates:
    """Turns plans into gates for one model."""

    def __init__(self, structure: Structure, interpreter: Interpreter) -> None:
        self.structure = structure
        self.interpreter = interpreter
        self._uses = Counter(
            v.name for n in interpreter.graph for v in reads(n) if v is not None and v.const_value is not None
        )
        self.usages = _usages(interpreter.graph)
        self._operands = {n.name or "": n for n in interpreter.graph}

    def gated(self, plan: Plan) -> Gated:
        """The weights and hooks that stand for a plan."""
        weights: MutableMapping[str, Any] = (
            _Tensors(plan.weights, self._tensor)
            if isinstance(plan.weights, Arrays)
            else {name: self._tensor(array, name) for name, array in plan.weights.items()}
        )
        edit: dict[Usage, Callable[[Any], Any]] = {}
        masks = plan.masks(self.structure)
        # First of all: what is cut of a product's output goes with its intercept.
        for name, vector in plan.intercepts.items():
            for usage in self.usages[name]:
                _compose(edit, usage, _add(self._like(vector)))
        for reader in dict.fromkeys(r for name in plan.keep for r in self.structure.group(name).readers):
            if reader.weight is None:
                norm = narrows(self._operands[reader.node])
                gate = self._filled(reader, masks) if norm else self._spread(reader, masks)
                _compose(edit, (reader.node, reader.input), gate)
            else:
                layout = self._layouts(reader)[reader.axis]
                kept = self._like(flat_mask(layout, masks, self.structure.sizes))
                if self._outside(reader):
                    _compose(edit, (reader.node, reader.input), self._spread(reader, masks))
                    continue
                weight = weights[reader.weight] if reader.weight in weights else self.interpreter.weight(reader.weight)
                if weight.shape[reader.weight_axis] != len(kept):  # one axis for the inputs of every group
                    _compose(edit, (reader.node, reader.input), self._spread(reader, masks))
                    continue
                weights[reader.weight] = weight * along(kept, reader.weight_axis, weight)
        for name, matrix in plan.maps.items():
            branch = self.structure.branch(name)
            _compose(edit, (branch.add, 1 - branch.operand), _mapped(self._like(matrix)))
        for name in plan.drop:
            self._drop(self.structure.branch(name), plan, weights, edit)
        return Gated(weights, edit)

    def weight(self, plan: Plan, name: str) -> np.ndarray:
        """An initializer as a plan leaves it, in single precision unless the plan says otherwise."""
        if name in plan.weights:
            return plan.weights[name]
        return np.asarray(to_numpy(self.interpreter.weight(name), single=True), dtype=np.float32)

    def writable(self, name: str, array: np.ndarray) -> np.ndarray:
        """What an initializer can hold of some numbers: a quantised one has a grid."""
        return nearest(self.interpreter.graph.initializers[name].const_value, array)

    def complete(self, plan: Plan, feeds: Mapping[str, Any]) -> Plan:
        """The plan with what every dropped branch leaves behind, so that it can be applied without data.

        Args:
            feeds: any valid inputs; the value left behind must not depend on them.

        Raises:
            UnsupportedError: a branch whose gated value is not one number per channel.
        """
        missing = [self.structure.branch(b) for b in plan.drop if b not in plan.rests]
        nothing = {b.id: np.zeros(1, dtype=np.float32) for b in missing if b.reader is None}
        plan = replace(plan, rests={**plan.rests, **nothing})
        missing = [b for b in missing if b.reader is not None]
        if not missing:
            return plan
        gated = self.gated(plan)
        wanted = [b.value for b in missing]
        values = self.interpreter.run(feeds, outputs=wanted, weights=gated.weights, edit=gated.edit)
        if any(x is None for x in values.values()):  # on the side of a choice that these inputs do not take
            (values,) = self.interpreter.run_all(
                [feeds], outputs=wanted, weights=gated.weights, edits=[gated.edit], regardless=True
            )
        rests = {b.id: self._rest(b, values[b.value]) for b in missing}
        return replace(plan, rests={**plan.rests, **rests})

    # ----------------------------------------------------------------------------------------------------------

    def _drop(
        self, branch: Branch, plan: Plan, weights: MutableMapping[str, Any], edit: dict[Usage, Callable[[Any], Any]]
    ) -> None:
        usage = (branch.add, branch.operand)
        if branch.id in plan.rests:
            rest = self._like(plan.rests[branch.id])
            _compose(edit, usage, _constantly(rest))
        elif branch.reader is None:
            _compose(edit, usage, _zero)
        elif (
            branch.reader.weight is not None
            and self._uses[branch.reader.weight] == 1
            and not self.interpreter.streams  # weights that are not held are not copied
        ):
            weights[branch.reader.weight] = self.interpreter.weight(branch.reader.weight) * 0
        else:
            _compose(edit, (branch.reader.node, branch.reader.input), _zero)

    def _rest(self, branch: Branch, value: Any) -> np.ndarray:
        """A tensor that is constant along most axes, with those axes shrunk to 1."""
        rest = to_numpy(value, single=True)
        fixed = [len(t) == 1 and len(t[0]) == 1 for t in self.structure.layouts[branch.value]]
        for axis in range(rest.ndim):
            first = rest.take([0], axis=axis)
            if np.allclose(rest, first, rtol=0, atol=0):
                rest = first
        varying = [axis for axis in range(rest.ndim) if rest.shape[axis] > 1]
        if len(varying) > 1 or not all(fixed[a] or value.shape[a] == rest.shape[a] for a in varying):
            raise UnsupportedError(
                f"{branch.id} (node {branch.add}): what it leaves behind depends on the input; it cannot be dropped"
            )
        return rest

    def _outside(self, reader: Reader) -> bool:
        """Whether what is read is gated, not the weight's rows.

        Weights that are not held are not copied; and what is rounded by its own range has the range of what stays.
        """
        note = noted(self._operands[reader.node])
        return (self.interpreter.streams and not self._recurrent(reader)) or (note is not None and note.dynamic)

    def _recurrent(self, reader: Reader) -> bool:
        """Whether a node may read a unit of its own, which no operand shows."""
        operator = ops.lookup(self._operands[reader.node])
        return operator is not None and operator.states > 0

    def _layouts(self, reader: Reader) -> tuple[Layout, ...]:
        value = self._operands[reader.node].inputs[reader.input]
        assert value is not None
        return self.structure.layouts[value.name or ""]

    def _spread(self, reader: Reader, masks: Mapping[int, Mask]) -> Callable[[Any], Any]:
        """Multiply what a reader reads by its mask.

        Where the units' context lies on other axes (each head its own dimensions), the mask spans those too; an axis
        may hold it together with a dimension known at run time only (batch·heads).
        """
        layouts, sizes = self._layouts(reader), self.structure.sizes
        own = atoms_of(layouts[reader.axis])
        needed = {c for a in own if a in masks for c in masks[a].context} - own
        home = {atom: axis for axis, layout in enumerate(layouts) for atom in atoms_of(layout)}
        outer = tuple(sorted((c for c in needed if c in home), key=home.__getitem__))
        kept = self._like(flat_mask(layouts[reader.axis], masks, sizes, outer))

        def multiply(x: Any) -> Any:
            places = []
            for atom in outer:
                axis = home[atom]
                index = self._like(_indices(layouts[axis], atom, sizes, x.shape[axis]))
                places.append(index.reshape([-1 if i == axis else 1 for i in range(x.ndim) if i != reader.axis]))
            if not places:
                return x * along(kept, reader.axis, x)
            return x * cast(namespace(x).moveaxis(kept[tuple(places)], -1, reader.axis), x)

        return multiply

    def _filled(self, reader: Reader, masks: Mapping[int, Mask]) -> Callable[[Any], Any]:
        """Let a norm see only the channels that stay.

        The others get values that leave its statistics as those of the channels that stay are: one deviation above and
        below the mean in turn, or the root mean square. What the norm makes of them is gated where it is read.

        Raises:
            UsageError: one channel alone is left out, whose value could not keep both mean and deviation.
        """
        kept = flat_mask(self._layouts(reader)[reader.axis], masks, self.structure.sizes)
        gone = int((~kept).sum())
        centred = self._operands[reader.node].op_type == "LayerNormalization"
        signs = np.ones(gone)
        if centred and gone == 1:
            raise UsageError(f"{reader.node}: a norm can do without no channel, or without two or more")
        if centred:
            signs[1::2] = -1
            if gone % 2:
                signs[-1], signs[:-1] = 0.0, signs[:-1] * math.sqrt(gone / (gone - 1))
        pattern = np.zeros(len(kept))
        pattern[~kept] = signs
        stay, wave = self._like(kept), self._like(pattern)

        def fill(x: Any) -> Any:
            seen, xp = wide(x[..., stay]), namespace(x)
            mean = seen.mean(axis=-1, keepdims=True) if centred else 0.0
            deviation = xp.sqrt(((seen - mean) ** 2).mean(axis=-1, keepdims=True))
            return xp.where(stay, x, cast(mean + deviation * wave, x))

        return fill if gone else lambda x: x

    def _tensor(self, array: np.ndarray, name: str) -> Any:
        return cast(self._like(array), self.interpreter.sample(name))

    def _like(self, array: Any) -> Any:
        return self.interpreter.engine.array(array)


class _Tensors(MutableMapping[str, Any]):
    """Weights of a plan as tensors, each made when it is read: not all of them are in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], tensor: Callable[[np.ndarray, str], Any]) -> None:
        self._arrays, self._tensor = arrays, tensor
        self._own: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._own[name] if name in self._own else self._tensor(self._arrays[name], name)

    def __setitem__(self, name: str, tensor: Any) -> None:
        self._own[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays.keys() | self._own.keys())

    def __len__(self) -> int:
        return len(self._arrays.keys() | self._own.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._arrays


def _usages(graph: ir.Graph) -> dict[str, list[Usage]]:
    """Value name -> where it is read, the graph's outputs included."""
    found: dict[str, list[Usage]] = {v.name or "": [] for n in graph for v in n.outputs}
    for node in graph:
        for index, value in enumerate(reads(node)):
            if value is not None:
                found.setdefault(value.name or "", []).append((node.name or "", index))
    for index, value in enumerate(graph.outputs):
        found.setdefault(value.name or "", []).append(("", index))
    return found


def _compose(edit: dict[Usage, Callable[[Any], Any]], usage: Usage, then: Callable[[Any], Any]) -> None:
    first = edit.get(usage)
    edit[usage] = then if first is None else lambda x: then(first(x))


def along(vector: Any, axis: int, tensor: Any) -> Any:
    """A vector in the type of a tensor, shaped to meet one of its axes."""
    return cast(vector, tensor).reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])


def _indices(layout: Layout, atom: int, sizes: Sequence[int], length: int) -> np.ndarray:
    """Which index of `atom` each of the `length` positions of an axis belongs to, dynamic factors at real size."""
    static = math.prod(sizes[a] for a in atoms_of(layout) if sizes[a] < DYNAMIC)
    real = {a: length // static for a in atoms_of(layout) if sizes[a] >= DYNAMIC}
    return index_of(layout, atom, [real.get(a, size) for a, size in enumerate(sizes)])


def places(
    layouts: Sequence[Layout], context: Sequence[int], sizes: Sequence[int], lengths: Sequence[int]
) -> np.ndarray:
    """Which index of the outer atoms `context`, as one number, each position of a tensor's axes belongs to.

    Returns:
        int64, broadcast to `lengths` where an axis holds none of them.
    """
    found = np.zeros([1] * len(lengths), dtype=np.int64)
    for atom in context:
        axis = next(a for a, layout in enumerate(layouts) if atom in atoms_of(layout))
        index = _indices(layouts[axis], atom, sizes, lengths[axis])
        found = found * sizes[atom] + index.reshape([-1 if a == axis else 1 for a in range(len(lengths))])
    return found


def _add(vector: Any) -> Callable[[Any], Any]:
    return lambda x: x + cast(vector, x)


def _mapped(matrix: Any) -> Callable[[Any], Any]:
    return lambda x: x + (x @ cast(matrix[1:], x) + cast(matrix[0], x))


def _constantly(rest: Any) -> Callable[[Any], Any]:
    return lambda x: namespace(x).broadcast_to(cast(rest, x), x.shape)


def _zero(x: Any) -> Any:
    return x * 0
