"""The interpreter: it runs a graph, or any part of it, with one hook.

`edit` is called at node inputs and graph outputs. The identity gives the forward pass; a multiplication gates; a gate
that requires a gradient gives Fisher scores; recording gives features and Gram matrices. `feeds` may bind any value,
and only the nodes between them and `outputs` run, so that a suffix starts from cached tensors.

It computes with torch, or without it node by node in ONNX Runtime, where nothing is differentiated (engine.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import LimitError, OnnxPruneError, UnsupportedError, out_of_memory, reading, said
from onnxprune.graph import memory, ops
from onnxprune.graph.single_nodes import reads
from onnxprune.graph.values import numeric_outputs
from onnxprune.probe.engine import cast, engine_for

Usage = tuple[str, int]
"""(node name, input index); a graph output is ("", its position)."""

Edit = Mapping[Usage, Callable[[Any], Any]]
"""What the hook does, by usage. A mapping rather than a function, so that untouched nodes cost nothing."""


@dataclass(frozen=True)
class _Step:
    node: ir.Node
    call: Callable[..., Any]
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...]  # values nobody reads after this step


class Held:
    """The tensors read last, as many as a number of bytes holds.

    Args:
        limit: bytes. A tensor that is larger alone is not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._tensors: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str) -> Any:
        """A tensor, if it is still there."""
        if name in self._tensors:
            self._tensors.move_to_end(name)
        return self._tensors.get(name)

    def put(self, name: str, tensor: Any) -> Any:
        """Keep a tensor, in the place of those that were not read for longest; returns it."""
        size = _nbytes(tensor)
        while self._tensors and self.size + size > self.limit:
            self.size -= _nbytes(self._tensors.popitem(last=False)[1])
        if size <= self.limit:
            self._tensors[name] = tensor
            self.size += size
        return tensor


def _nbytes(tensor: Any) -> int:
    return int(tensor.nbytes)


class Interpreter:
    """Runs one graph.

    Args:
        graph: a normalised graph (model.load).
        device: where tensors live, "cpu" or "cuda"; shape arithmetic stays on the CPU.
        lender: of another graph on the same device; initializers that both have are loaded once.
    """

    def __init__(self, graph: ir.Graph, device: str = "cpu", lender: Interpreter | None = None) -> None:
        self.graph = graph
        self.device = device
        self.engine = engine_for(device)
        self.lender = lender
        self._held = Held(memory.share())
        self._replaced: dict[str, Any] = {}
        self._samples: dict[str, Any] = {}
        self._schedules: dict[tuple[frozenset[str], tuple[str, ...]], tuple[list[_Step], frozenset[str]]] = {}
        self._live: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._producers = {v.name: n for n in graph for v in n.outputs if v.name}
        self._producers |= {ops.states_of(n): n for n in graph if _has_states(n)}
        self._order = {n: i for i, n in enumerate(graph)}

    def run(
        self,
        feeds: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        weights: Mapping[str, Any] | None = None,
        edit: Edit | None = None,
    ) -> dict[str, Any]:
        """Compute values.

        Args:
            feeds: value name -> numpy array or torch tensor; graph inputs, or any inner value.
            outputs: names of the values wanted, or of states (`ops.states_of`); by default the graph's outputs that
                hold numbers.
            weights: initializer name -> tensor that stands in for it.
            edit: usage -> function of the tensor that is read there.

        Returns:
            name -> tensor.

        Raises:
                UnsupportedError: an operator that neither torch nor ONNX Runtime computes; names node, type and opset.
            KeyError: a graph input that is needed and not fed.
        """
        return self.run_all([feeds], outputs=outputs, weights=weights, edits=[edit or {}])[0]

    def run_all(
        self,
        batches: Sequence[Mapping[str, Any]],
        *,
        outputs: Sequence[str] | None = None,
        weights: Mapping[str, Any] | None = None,
        edits: Sequence[Edit] | None = None,
    ) -> list[dict[str, Any]]:
        """Several batches at once, node by node, so that each weight is read once for all of them.

        Args:
            batches: feeds of each, of the same names.
            outputs, weights: as for `run`.
            edits: of each batch.
        """
        wanted = tuple(numeric_outputs(self.graph) if outputs is None else outputs)
        steps, initializers = self._schedule(frozenset(batches[0]), wanted)
        override = weights or {}
        known = [{name: self.place(tensor) for name, tensor in feeds.items()} for feeds in batches]
        for step in steps:
            constants = {
                name: override[name] if name in override else self.weight(name)
                for name in step.inputs
                if name in initializers
            }
            for i, values in enumerate(known):
                self._take(step, values, constants, edits[i] if edits is not None else {})
        found = []
        for i, values in enumerate(known):
            own = {n: self._found(n, values, override) for n in wanted}
            hooks = edits[i] if edits is not None else {}
            for j, value in enumerate(self.graph.outputs):
                if ("", j) in hooks and value.name in own:
                    own[value.name] = hooks["", j](own[value.name])
            found.append(own)
        return found

    def _found(self, name: str, values: Mapping[str, Any], override: Mapping[str, Any]) -> Any:
        known = name in values or name not in self.graph.initializers
        return values[name] if known else override[name] if name in override else self.weight(name)

    def _take(self, step: _Step, values: dict[str, Any], constants: Mapping[str, Any], hooks: Edit) -> None:
        """One node on one batch: its results come to the values, and what is read for the last time goes."""
        arguments = [
            None if name is None else constants[name] if name in constants else values[name] for name in step.inputs
        ]
        if hooks:
            arguments = [
                hooks[usage](x) if (usage := (step.node.name or "", i)) in hooks else x for i, x in enumerate(arguments)
            ]
        if self.device != "cpu":
            arguments = _on_one_device(arguments)
        try:
            result = step.call(*arguments)
        except OnnxPruneError:
            raise
        except Exception as error:  # whatever operands that no operator takes make of torch
            kind = LimitError if out_of_memory(error) else UnsupportedError
            raise kind(f"{_describe(step.node)} cannot be computed: {said(error)}") from error
        for name, tensor in zip(step.outputs, result if isinstance(result, (tuple, list)) else (result,), strict=False):
            values[name] = tensor
        for name in step.done:
            values.pop(name, None)

    @cached_property
    def streams(self) -> bool:
        """Whether the weights are more than may be held at once, so that passes over one batch read them anew."""
        tensors = [v.const_value for v in self.graph.initializers.values() if v.const_value is not None]
        return sum(t.nbytes for t in tensors) > self._held.limit

    def weight(self, name: str) -> Any:
        """An initializer as a tensor; the last ones read are kept (they share the model's memory on the CPU)."""
        if self.lender is not None and self._lent(self.lender, name):
            return self.lender.weight(name)
        if name in self._replaced:
            return self._replaced[name]
        kept = self._held.get(name)
        if kept is None:
            # Kept for later runs that may need gradients, which tensors made in inference mode cannot enter.
            with self.engine.lasting():
                kept = self._held.put(name, self._load(name))
        return kept

    def sample(self, name: str) -> Any:
        """An empty tensor of an initializer's type: large ones are not read for that more than once."""
        if name not in self._samples:
            self._samples[name] = self.engine.empty_like(self.weight(name))
        return self._samples[name]

    def replace(self, weights: Mapping[str, np.ndarray]) -> None:
        """Compute with other numbers in the place of some initializers from now on, in their types."""
        for name, array in weights.items():
            self._replaced[name] = cast(self.place(np.ascontiguousarray(array)), self.weight(name))

    def release(self) -> None:
        """Let go of the weights that are kept; they are read anew when they are asked for."""
        self._held = Held(self._held.limit)

    def needed(self, feeds: Iterable[str], outputs: Iterable[str]) -> list[ir.Node]:
        """The nodes between bound values and wanted ones, in order."""
        bound, seen = set(feeds), set()
        stack = [name for name in outputs if name not in bound]
        while stack:
            node = self._producers.get(stack.pop())
            if node is None or node in seen:
                continue
            seen.add(node)
            stack.extend(v.name for v in reads(node) if v is not None and v.name and v.name not in bound)
        return sorted(seen, key=self._order.__getitem__)

    def live_before(self, stop: str, outputs: Sequence[str]) -> list[str]:
        """The values computed before a node that it, or a later node on the way to `outputs`, reads."""
        key = stop, tuple(outputs)
        if key not in self._live:
            inputs = {v.name or "" for v in self.graph.inputs}
            nodes = self.needed(inputs, outputs)
            position = next(i for i, n in enumerate(nodes) if n.name == stop)
            made = {v.name for n in nodes[:position] for v in n.outputs} | inputs
            read = {v.name for n in nodes[position:] for v in n.inputs if v is not None} | set(outputs)
            self._live[key] = sorted(n for n in made & read if n)
        return self._live[key]

    # -- internals ---------------------------------------------------------------------------------------------

    def _lent(self, lender: Interpreter, name: str) -> bool:
        there = lender.graph.initializers.get(name)
        return there is not None and there.const_value is self.graph.initializers[name].const_value

    def _schedule(self, feeds: frozenset[str], wanted: tuple[str, ...]) -> tuple[list[_Step], frozenset[str]]:
        key = (feeds, wanted)
        if key not in self._schedules:
            nodes = self.needed(feeds, wanted)
            last: dict[str, int] = {}
            for i, node in enumerate(nodes):
                for value in (*reads(node), *node.outputs):
                    if value is not None and value.name:
                        last[value.name] = i
                if _has_states(node):
                    last[ops.states_of(node)] = i
            done: dict[int, list[str]] = {}
            for name, at in last.items():
                if name not in wanted:
                    done.setdefault(at, []).append(name)
            steps = []
            for i, node in enumerate(nodes):
                with reading(f"{_describe(node)} cannot be computed", UnsupportedError):
                    steps.append(self._step(node, done.get(i, [])))
            read = {name for step in steps for name in step.inputs if name is not None} | set(wanted)
            self._schedules[key] = steps, frozenset(n for n in read if n in self.graph.initializers and n not in feeds)
        return self._schedules[key]

    def _step(self, node: ir.Node, done: list[str]) -> _Step:
        inputs = tuple(None if v is None else v.name for v in reads(node))
        outputs = ((ops.states_of(node),) if _has_states(node) else ()) + tuple(v.name or "" for v in node.outputs)
        return _Step(node, self.engine.call(node, self.graph.opset_imports), inputs, outputs, tuple(done))

    def _load(self, name: str) -> Any:
        tensor = self.graph.initializers[name].const_value
        if tensor is None:
            raise KeyError(name)
        return self.place(self.engine.load(tensor))

    def place(self, tensor: Any) -> Any:
        """An array or tensor as a tensor on the interpreter's device; shapes stay on the CPU."""
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind not in "biufc":
            raise UnsupportedError(f"an input of {tensor.dtype.name} values is not computed with: give numbers")
        tensor = self.engine.array(tensor, place=False)
        if self.device == "cpu" or (tensor.ndim <= 1 and not tensor.is_floating_point()):
            return tensor
        return self.engine.array(tensor)


def _has_states(node: ir.Node) -> bool:
    operator = ops.lookup(node)
    return operator is not None and operator.states


def _on_one_device(arguments: list[Any]) -> list[Any]:
    """Bring the operands of a node together: one that was made from shapes may still be on the CPU."""
    target = next((x.device for x in arguments if x is not None and x.device.type != "cpu"), None)
    return arguments if target is None else [x if x is None else x.to(target) for x in arguments]


def _describe(node: ir.Node) -> str:
    domain = f"{node.domain}::" if node.domain else ""
    return f"node {node.name} ({domain}{node.op_type}, opset {node.version})"
