"""The interpreter: it runs a graph, or any part of it, with one hook.

`edit` is called at node inputs and graph outputs. The identity gives the forward pass; a multiplication gates; a gate
that requires a gradient gives Fisher scores; recording gives features and Gram matrices. `feeds` may bind any value,
and only the nodes between them and `outputs` run, so that a suffix starts from cached tensors.

It computes with torch, or without it node by node in ONNX Runtime, where nothing is differentiated (engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import LimitError, OnnxPruneError, UnsupportedError, out_of_memory, reading, said
from onnxprune.graph import memory
from onnxprune.graph.flow import Flow, enter_of
from onnxprune.graph.values import numeric_outputs
from onnxprune.probe.engine import cast, engine_for
from onnxprune.probe.last_read import LastRead
from onnxprune.probe.schedule import Schedule, Step, describe
from onnxprune.probe.turns import Turns, holds

Usage = tuple[str, int]
"""(node name, input index); a graph output is ("", its position)."""

Edit = Mapping[Usage, Callable[[Any], Any]]
"""What the hook does, by usage. A mapping rather than a function, so that untouched nodes cost nothing."""


class Interpreter:
    """Runs one graph.

    Args:
        graph: a normalised graph (model.load).
        device: where tensors live, "cpu" or "cuda"; shape arithmetic stays on the CPU.
        lender: of another graph on the same device; initializers that both have are loaded once.

    Attributes:
        flow: which nodes run each turn of a loop, or on one side of a choice. A loop is run as a whole: values inside
            of it are given for all turns, one after another on the first axis, and are not taken as feeds.
        schedule: in which order the nodes are done.
        turns: how many turns each loop took when it last ran, by its Leave's name.
    """

    def __init__(self, graph: ir.Graph, device: str = "cpu", lender: Interpreter | None = None) -> None:
        self.graph = graph
        self.device = device
        self.engine = engine_for(device)
        self.lender = lender
        self._held = LastRead(memory.share())
        self._reading = Lock()
        self._replaced: dict[str, Any] = {}
        self._samples: dict[str, Any] = {}
        self.flow = Flow(graph)
        self.schedule = Schedule(
            graph,
            self.flow,
            lambda node: self.engine.call(node, graph.opset_imports),
            lambda: self.engine.chains(graph),
        )
        self.turns: dict[str, int] = {}
        self._regardless = False

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
        regardless: bool = False,
    ) -> list[dict[str, Any]]:
        """Several batches at once, node by node, so that each weight is read once for all of them.

        Args:
            batches: feeds of each, of the same names.
            outputs, weights: as for `run`.
            edits: of each batch.
            regardless: compute what is on either side of a choice, whatever its condition.
        """
        self._regardless = regardless
        wanted = tuple(numeric_outputs(self.graph) if outputs is None else outputs)
        bound = frozenset(name for name in batches[0] if not self.schedule.repeats(name))
        override = weights or {}
        known = [{name: self.place(feeds[name], name) for name in bound} for feeds in batches]
        hooked = [{}] * len(batches) if edits is None else edits
        answers: list[dict[str, bool]] = [{} for _ in batches]
        for step, initializers in self.schedule.between(bound, wanted):
            constants = {name: override[name] if name in override else self.weight(name) for name in initializers}
            for values, hooks, answered in zip(known, hooked, answers, strict=True):
                apart = step.parts and not all(keys.isdisjoint(step.within) for keys in (hooks.keys(), override.keys()))
                for part in step.parts if apart else (step,):
                    self._take(part, values, constants, hooks, answered)
        found = []
        for values, hooks in zip(known, hooked, strict=True):
            own = {n: self._found(n, values, override) for n in wanted}
            for j, value in enumerate(self.graph.outputs):
                if ("", j) in hooks and value.name in own:
                    own[value.name] = hooks["", j](own[value.name])
            found.append(own)
        return found

    def _found(self, name: str, values: Mapping[str, Any], override: Mapping[str, Any]) -> Any:
        known = name in values or name not in self.graph.initializers
        return values[name] if known else override[name] if name in override else self.weight(name)

    def _take(
        self, step: Step, values: dict[str, Any], constants: Mapping[str, Any], hooks: Edit, answers: dict[str, bool]
    ) -> None:
        """One node on one batch: its results come to the values, and what is read for the last time goes.

        Args:
            answers: the conditions that were looked at.
        """
        if step.sides and not self._regardless and not self._taken(step, values, constants, answers):
            values.update(dict.fromkeys((*step.outputs, *step.kept)))
            self._let_go(step, values)
            return
        if step.inside:
            self._repeat(step, values, constants, hooks)
            return
        arguments = _read(step.inputs, values, constants)
        if hooks and not hooks.keys().isdisjoint(step.usages):
            arguments = _edited(step.usages, arguments, hooks)
        if self.device != "cpu":
            arguments = _on_one_device(arguments)
        if step.chooses:
            arguments[0] = self._holds(step.inputs[0] or "", values, constants, answers)
        try:
            result = step.call(*arguments)
        except OnnxPruneError:
            raise
        except Exception as error:  # whatever operands that no operator takes make of torch
            kind = LimitError if out_of_memory(error) else UnsupportedError
            raise kind(f"{describe(step.node)} cannot be computed: {said(error)}") from error
        if isinstance(result, (tuple, list)):
            values.update(zip(step.outputs, result, strict=False))
        else:
            values[step.outputs[0]] = result
        for name in step.done:
            values.pop(name, None)

    @staticmethod
    def _taken(step: Step, values: Mapping[str, Any], constants: Mapping[str, Any], answers: dict[str, bool]) -> bool:
        """Whether all choices that a step is behind fall on its side; an inner one is not asked behind an outer."""
        return all(Interpreter._holds(name, values, constants, answers) == side for name, side in step.sides)

    @staticmethod
    def _holds(name: str, values: Mapping[str, Any], constants: Mapping[str, Any], answers: dict[str, bool]) -> bool:
        """Whether a condition does; it is looked at once, and many nodes ask.

        Raises:
            UnsupportedError: it has no value.
        """
        if name not in answers:
            with reading(f"the condition {name} cannot be told", UnsupportedError):
                answers[name] = holds(constants[name] if name in constants else values[name])
        return answers[name]

    @staticmethod
    def _let_go(step: Step, values: dict[str, Any]) -> None:
        for name in step.done:
            values.pop(name, None)

    def _repeat(self, step: Step, values: dict[str, Any], constants: Mapping[str, Any], hooks: Edit) -> None:
        """A loop on one batch."""

        def turn(scope: dict[str, Any]) -> None:
            answers: dict[str, bool] = {}  # another turn may answer otherwise
            for inner in step.inside:
                self._take(inner, scope, constants, hooks, answers)

        def arguments(node: ir.Node, scope: dict[str, Any]) -> list[Any]:
            read = _read((None if v is None else v.name for v in node.inputs), scope, constants)
            return _edited([(node.name or "", i) for i in range(len(read))], read, hooks)

        loop = Turns(enter_of(step.node), step.node)
        results, kept, self.turns[step.node.name or ""] = loop.run(values, arguments, turn, step.kept)
        values.update(zip(step.outputs, results, strict=True))
        values.update(kept)
        self._let_go(step, values)

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
        with self._reading:  # batches on several threads ask
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
            own = np.require(array, requirements=("C", "W"))  # what was sent by a cluster may be read alone
            self._replaced[name] = cast(self.place(own), self.weight(name))

    def release(self) -> None:
        """Let go of the weights that are kept; they are read anew when they are asked for."""
        self._held = LastRead(self._held.limit)

    # -- internals ---------------------------------------------------------------------------------------------

    def _lent(self, lender: Interpreter, name: str) -> bool:
        there = lender.graph.initializers.get(name)
        return there is not None and there.const_value is self.graph.initializers[name].const_value

    def _load(self, name: str) -> Any:
        tensor = self.graph.initializers[name].const_value
        if tensor is None:
            raise KeyError(name)
        return self.place(self.engine.load(tensor))

    def place(self, tensor: Any, name: str = "") -> Any:
        """An array or tensor as a tensor on the interpreter's device; shapes stay on the CPU. None, for what is not
        computed on the side that was chosen, as it is."""
        if tensor is None:
            return None
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind not in "biufc" and tensor.dtype.name != "bfloat16":
            kind = "text" if tensor.dtype.kind in "OU" else tensor.dtype.name
            raise UnsupportedError(
                f"input {name or 'of the graph'} holds {kind}, which is not computed with: give numbers, to a graph "
                "that begins where what it reads has become numbers"
            )
        tensor = self.engine.array(tensor, place=False)
        if self.device == "cpu" or (tensor.ndim <= 1 and not tensor.is_floating_point()):
            return tensor
        return self.engine.array(tensor)


def _read(names: Iterable[str | None], values: Mapping[str, Any], constants: Mapping[str, Any]) -> list[Any]:
    """What a node reads by these names."""
    return [None if name is None else constants[name] if name in constants else values[name] for name in names]


def _edited(usages: Sequence[Usage], arguments: list[Any], hooks: Edit) -> list[Any]:
    """What a node reads, after the hooks."""
    return [hooks[u](x) if u in hooks and x is not None else x for u, x in zip(usages, arguments, strict=True)]


def _on_one_device(arguments: list[Any]) -> list[Any]:
    """Bring the operands of a node together: one that was made from shapes may still be on the CPU."""
    devices = {x.device for x in arguments if x is not None}
    if len(devices) < 2:
        return arguments
    target = next(device for device in devices if device.type != "cpu")
    return [x if x is None else x.to(target) for x in arguments]
