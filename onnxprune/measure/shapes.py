"""Shapes at the stated sizes: of the dense graph, and of what a plan leaves of it.

Nothing is run, but where a shape, or the turns of a loop, depend on data: those are seen in a run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import OnnxPruneError, UnsupportedError
from onnxprune.graph import ops
from onnxprune.graph.axes import Layout, Mask, atoms_of, kept_ratio
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.flow import Flow, enter_of
from onnxprune.graph.flow.nodes import slices
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Structure
from onnxprune.graph.values import dims
from onnxprune.probe.interpreter import Interpreter

logger = logging.getLogger(__name__)


class DenseShapes:
    """Shapes of a graph before any cut.

    Args:
        bindings: symbol -> size.
    """

    def __init__(self, model: Model, bindings: Mapping[str, int]) -> None:
        self.model, self.bindings = model, bindings
        self._shapes: dict[str, tuple[int, ...]] = {}

    def of(self, value: ir.Value) -> tuple[int, ...]:
        """A value's shape under the bindings, before any cut."""
        name = value.name or ""
        if name not in self._shapes:
            sizes = self._known(value)
            if None in sizes and name not in self._seen:
                raise UnsupportedError(f"value {name}: its shape is not known, so its cost cannot be counted")
            self._shapes[name] = self._seen[name] if None in sizes else tuple(s for s in sizes if s is not None)
        return self._shapes[name]

    def _known(self, value: ir.Value) -> list[int | None]:
        """Sizes as far as inference names them, none of a scalar; one that is unknown of a value without a shape."""
        found = dims(value)
        return [None] if found is None else [self._size(d) for d in found]

    def _size(self, dim: int | str | None) -> int | None:
        try:
            return None if dim is None else evaluate(dim, self.bindings)
        except KeyError:
            return None

    def _runs(self, wanted: Sequence[str] | None = None) -> list[tuple[Interpreter, dict[str, Any]]]:
        """The graph on made-up inputs at the stated sizes; where it compares an input with a number, again with that
        (a rate that a side of an If is for).

        Raises:
            OnnxPruneError: it runs on none of them.
        """
        feeds = dict(synthesize(self.model.inputs, dims=self.bindings))
        others = dict(feeds)
        for value in self.model.graph.inputs:
            for node, index in value.uses():
                other = node.inputs[1 - index] if node.op_type == "Equal" else None
                if other is not None and other.const_value is not None and other.const_value.size == 1:
                    name = value.name or ""
                    others[name] = np.full_like(feeds[name], other.const_value.numpy().item())
                    break
        tries = [feeds] if all(others[name] is feeds[name] for name in feeds) else [feeds, others]
        found: list[tuple[Interpreter, dict[str, Any]]] = []
        for i, one in enumerate(tries):
            machine = Interpreter(self.model.graph)
            try:
                found.append((machine, machine.run(one, outputs=wanted)))
            except OnnxPruneError:
                if i + 1 == len(tries) and not found:
                    raise
        return found

    @property
    def _seen(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes that inference does not name, around the nodes that cost: seen in a run on made-up inputs.

        Raises:
            UsageError: an input has a dimension that the bindings do not name.
            UnsupportedError: the graph does not run on made-up inputs.
        """
        found = self._run_once
        if isinstance(found, OnnxPruneError):
            raise found.with_traceback(None)
        return found

    @cached_property
    def _run_once(self) -> Mapping[str, tuple[int, ...]] | OnnxPruneError:
        """What the run showed, or why there is none: every value asks, and a run takes as long each time it fails."""
        try:
            return self._shown()
        except OnnxPruneError as error:
            return error

    def _shown(self) -> Mapping[str, tuple[int, ...]]:
        around = {v.name: v for n in self._costly for v in (*n.inputs, *n.outputs) if v is not None and v.name}
        wanted = [name for name, value in around.items() if None in self._known(value)]
        # What a condition left out did not cost anything; values of all turns lie one after another.
        sizes: dict[str, tuple[int, ...]] = {name: (0,) * len(dims(around[name]) or ()) for name in wanted}
        for machine, values in self._runs(wanted):
            for name, x in values.items():
                if x is not None:
                    node = around[name].producer()
                    loops = self._flow.home.get(node, ()) if node is not None else ()
                    turns = math.prod(machine.turns[leave.name or ""] for leave in loops)
                    sizes[name] = (x.shape[0] // max(turns, 1), *x.shape[1:]) if x.ndim else ()
        return sizes

    @cached_property
    def observed(self) -> Mapping[str, int]:
        """Dimensions whose sizes data decide (tokens that a router sends to an expert), as the run of `_seen` had them.

        What is left of a graph has them under the same names: another router would send others elsewhere.
        """
        values = (v for n in self._costly for v in (*n.inputs, *n.outputs) if v is not None)
        unknown = {v.name or "": v for v in values if None in self._known(v)}
        if not unknown or isinstance(self._run_once, OnnxPruneError):
            return {}
        return {
            dim: size
            for name, value in unknown.items()
            for dim, size in zip(dims(value) or (), self._seen.get(name, ()), strict=False)
            if isinstance(dim, str) and self._size(dim) is None
        }

    @cached_property
    def _costly(self) -> Sequence[ir.Node]:
        """The nodes that have multiply-accumulates."""
        return [n for n in self.model.graph if (found := ops.lookup(n)) is not None and found.macs is not None]

    @cached_property
    def _flow(self) -> Flow:
        return Flow(self.model.graph)

    def turns(self, node: ir.Node) -> int:
        """How often a node is done: once, or each turn of the loops around it."""
        return math.prod(self._turns(leave) for leave in self._flow.home.get(node, ()))

    def _turns(self, leave: ir.Node) -> int:
        """How often a loop goes round, where it is run: as long as what a Scan goes along, or seen in a run."""
        enter = enter_of(leave)
        for whole, _, axis in slices(enter):
            return self.of(whole)[axis]
        return self._looped.get(leave.name or "", 1)

    @cached_property
    def _looped(self) -> Mapping[str, int]:
        """Turns of each Loop in a run on made-up inputs; none of one that did not run, or where nothing does."""
        try:
            return {name: turns for machine, _ in self._runs() for name, turns in machine.turns.items()}
        except OnnxPruneError as error:
            logger.info("turns of loops are counted as one: %s", error)
            return {}


class CutShapes:
    """Dimensions under a plan (`ops.Sizes`), dynamic ones at their stated size."""

    def __init__(self, dense: DenseShapes, structure: Structure, masks: Mapping[int, Mask]) -> None:
        self.dense, self.structure = dense, structure
        self.masks = masks
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._ratios: dict[Layout, tuple[int, int]] = {}

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        name = value.name or ""
        found = self._shapes.get(name)
        if found is None:
            dense = self.dense.of(value)
            layouts = self.structure.layouts.get(name, ())
            if self.masks and layouts:
                dense = tuple(self._scaled(size, layout) for size, layout in zip(dense, layouts, strict=True))
            found = self._shapes[name] = dense
        return found

    def _scaled(self, size: int, layout: Layout) -> int:
        """A size after the cut; what was tied has one layout, which is looked at once."""
        ratio = self._ratios.get(layout)
        if ratio is None:
            cut = atoms_of(layout) & self.masks.keys()
            ratio = kept_ratio(layout, self.masks, self.structure.sizes) if cut else (1, 1)
            self._ratios[layout] = ratio
        return size * ratio[0] // ratio[1]

    def changed(self, value: ir.Value, axis: int) -> bool:
        return bool(atoms_of(self.structure.layouts[value.name or ""][axis]) & self.masks.keys())

    def ratio(self, value: ir.Value, axis: int) -> tuple[int, int]:
        return kept_ratio(self.structure.layouts[value.name or ""][axis], self.masks, self.structure.sizes)

    def kept(self, value: ir.Value, axis: int) -> np.ndarray:
        raise NotImplementedError("costs count, they do not index")

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        return None if value is None or value.const_value is None else value.const_value.numpy()
