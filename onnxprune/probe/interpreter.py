"""The interpreter: it runs a graph, or any part of it, with one hook.

`edit` is called at node inputs and graph outputs. The identity gives the forward pass; a multiplication gates; a gate
that requires a gradient gives Fisher scores; recording gives features and Gram matrices. `feeds` may bind any value,
and only the nodes between them and `outputs` run, so that a suffix starts from cached tensors.

It computes with torch, or without it node by node in ONNX Runtime, where nothing is differentiated (engine.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import LimitError, OnnxPruneError, UnsupportedError, out_of_memory, reading, said
from onnxprune.graph import memory, ops
from onnxprune.graph.flow import CHOICE, LEAVE, Flow, condition, enter_of, is_flow
from onnxprune.graph.nested import reads
from onnxprune.graph.values import numeric_outputs
from onnxprune.probe.engine import cast, engine_for
from onnxprune.probe.last_read import LastRead
from onnxprune.probe.turns import Turns, holds

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
    sides: tuple[tuple[str, bool], ...] = ()  # conditions, and how they come out where the node is done at all
    inside: tuple[_Step, ...] = ()  # of a loop's Leave, what is done each turn
    kept: tuple[str, ...] = ()  # of a loop, what is wanted of its last turn


class Interpreter:
    """Runs one graph.

    Args:
        graph: a normalised graph (model.load).
        device: where tensors live, "cpu" or "cuda"; shape arithmetic stays on the CPU.
        lender: of another graph on the same device; initializers that both have are loaded once.

    Attributes:
        flow: which nodes run each turn of a loop, or on one side of a choice. A loop is run as a whole: values inside
            of it are given for all turns, one after another on the first axis, and are not taken as feeds.
        turns: how many turns each loop took when it last ran, by its Leave's name.
    """

    def __init__(self, graph: ir.Graph, device: str = "cpu", lender: Interpreter | None = None) -> None:
        self.graph = graph
        self.device = device
        self.engine = engine_for(device)
        self.lender = lender
        self._held = LastRead(memory.share())
        self._replaced: dict[str, Any] = {}
        self._samples: dict[str, Any] = {}
        self._schedules: dict[tuple[frozenset[str], tuple[str, ...]], list[tuple[_Step, tuple[str, ...]]]] = {}
        self._live: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._reads: dict[ir.Node, tuple[ir.Value, ...]] = {}
        self._calls: dict[ir.Node, Callable[..., Any]] = {}
        self._producers = {v.name: n for n in graph for v in n.outputs if v.name}
        self._producers |= {ops.states_of(n): n for n in graph if _has_states(n)}
        self.flow = Flow(graph)
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
        bound = frozenset(name for name in batches[0] if not self.repeats(name))
        override = weights or {}
        known = [{name: self.place(feeds[name]) for name in bound} for feeds in batches]
        answers: list[dict[str, bool]] = [{} for _ in batches]
        for step, initializers in self._schedule(bound, wanted):
            constants = {name: override[name] if name in override else self.weight(name) for name in initializers}
            for i, values in enumerate(known):
                self._take(step, values, constants, edits[i] if edits is not None else {}, answers[i])
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

    def _take(
        self, step: _Step, values: dict[str, Any], constants: Mapping[str, Any], hooks: Edit, answers: dict[str, bool]
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
        arguments = self._arguments(step.node, step.inputs, values, constants, hooks)
        if self.device != "cpu":
            arguments = _on_one_device(arguments)
        if is_flow(step.node):
            arguments[0] = self._holds(step.inputs[0] or "", values, constants, answers)
        try:
            result = step.call(*arguments)
        except OnnxPruneError:
            raise
        except Exception as error:  # whatever operands that no operator takes make of torch
            kind = LimitError if out_of_memory(error) else UnsupportedError
            raise kind(f"{_describe(step.node)} cannot be computed: {said(error)}") from error
        for name, tensor in zip(step.outputs, result if isinstance(result, (tuple, list)) else (result,), strict=False):
            values[name] = tensor
        self._let_go(step, values)

    @staticmethod
    def _taken(step: _Step, values: Mapping[str, Any], constants: Mapping[str, Any], answers: dict[str, bool]) -> bool:
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
    def _arguments(
        node: ir.Node, names: Iterable[str | None], values: Mapping[str, Any], constants: Mapping[str, Any], hooks: Edit
    ) -> list[Any]:
        found = [None if name is None else constants[name] if name in constants else values[name] for name in names]
        if not hooks:
            return found
        return [
            hooks[usage](x) if (usage := (node.name or "", i)) in hooks and x is not None else x
            for i, x in enumerate(found)
        ]

    @staticmethod
    def _let_go(step: _Step, values: dict[str, Any]) -> None:
        for name in step.done:
            values.pop(name, None)

    def _repeat(self, step: _Step, values: dict[str, Any], constants: Mapping[str, Any], hooks: Edit) -> None:
        """A loop on one batch."""

        def turn(scope: dict[str, Any]) -> None:
            answers: dict[str, bool] = {}  # another turn may answer otherwise
            for inner in step.inside:
                self._take(inner, scope, constants, hooks, answers)

        def arguments(node: ir.Node, scope: dict[str, Any]) -> list[Any]:
            return self._arguments(node, [None if v is None else v.name for v in node.inputs], scope, constants, hooks)

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

    def needed(self, feeds: Iterable[str], outputs: Iterable[str]) -> list[ir.Node]:
        """The nodes between bound values and wanted ones, in order."""
        bound: set[str] = set(feeds)
        seen: set[ir.Node] = set()
        stack = [node for name in outputs if name not in bound and (node := self._producers.get(name)) is not None]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            stack += self.flow.home.get(node, ())
            names = [v.name for v in self._asked(node) if v.name and v.name not in bound]
            stack += [found for name in names if (found := self._producers.get(name)) is not None]
        return self.flow.sorted(seen)

    def repeats(self, name: str) -> bool:
        """Whether a value is made anew each turn of a loop."""
        return self._producers.get(name) in self.flow.home

    def once(self, node: ir.Node) -> bool:
        """Whether a node runs exactly once in a pass: in no loop, and on no side of a choice."""
        return node not in self.flow.home and node not in self.flow.sides

    def live_before(self, stop: str, outputs: Sequence[str]) -> list[str]:
        """The values computed before a node that it, or a later node on the way to `outputs`, reads."""
        key = stop, tuple(outputs)
        if key not in self._live:
            inputs = {v.name or "" for v in self.graph.inputs}
            nodes = self.needed(inputs, outputs)
            # In the middle of a turn nothing can be taken up.
            at = next(self.flow.unit(n) for n in nodes if n.name == stop)
            position = next(i for i, n in enumerate(nodes) if self.flow.unit(n) is at)
            made = {v.name for n in nodes[:position] for v in n.outputs} | inputs
            read = {v.name for n in nodes[position:] for v in self._asked(n)} | set(outputs)
            self._live[key] = sorted(n for n in made & read if n)
        return self._live[key]

    # -- internals ---------------------------------------------------------------------------------------------

    def _lent(self, lender: Interpreter, name: str) -> bool:
        there = lender.graph.initializers.get(name)
        return there is not None and there.const_value is self.graph.initializers[name].const_value

    def _schedule(self, feeds: frozenset[str], wanted: tuple[str, ...]) -> list[tuple[_Step, tuple[str, ...]]]:
        """What is done, step by step, with the initializers that each reads."""
        key = (feeds, wanted)
        if key not in self._schedules:
            steps = self._steps(self.needed(feeds, wanted), wanted, 0)
            held = self.graph.initializers.keys() - feeds
            read = ([*step.inputs, *(name for name, _ in step.sides)] for step in steps)
            known = (tuple(dict.fromkeys(n for n in names if n is not None and n in held)) for names in read)
            self._schedules[key] = list(zip(steps, known, strict=True))
        return self._schedules[key]

    def _steps(self, nodes: Iterable[ir.Node], wanted: Sequence[str], depth: int) -> list[_Step]:
        """Nodes as steps, those of a loop within `depth` others as one."""
        units = self.flow.units(nodes, depth)
        last: dict[str, int] = {}
        for i, (unit, inside) in enumerate(units):
            for node in (unit, *inside):
                for value in (*self._asked(node), *node.outputs):
                    if value.name:
                        last[value.name] = i
                if _has_states(node):
                    last[ops.states_of(node)] = i
        done: dict[int, list[str]] = {}
        made = {v.name for unit, inside in units for n in (unit, *inside) for v in n.outputs}
        for name, at in last.items():
            # What comes from outside of a loop is read in the next turn, too.
            if name not in wanted and (not depth or name in made):
                done.setdefault(at, []).append(name)
        if depth:  # the Leave reads it at the end of the turn
            ended = {v.name for unit, inside in units for n in (unit, *inside) for v in self._ends(n, depth)}
            done = {at: [name for name in names if name not in ended] for at, names in done.items()}
        steps = []
        for i, (unit, inside) in enumerate(units):
            if is_flow(unit) and unit.op_type not in (CHOICE, LEAVE):
                continue  # an Enter is its Leave's
            with reading(f"{_describe(unit)} cannot be computed", UnsupportedError):
                steps.append(self._step(unit, done.get(i, []), inside, wanted, depth))
        return steps

    def _ends(self, node: ir.Node, depth: int) -> Iterable[ir.Value]:
        """What the loop that a node is done in, within `depth` others, ends a turn with."""
        home = self.flow.home.get(node, ())
        return [v for v in home[depth - 1].inputs if v is not None] if len(home) >= depth else []

    def _asked(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """What a node reads, and what says whether it is done. Every schedule asks, and the graph stays as it is."""
        if node not in self._reads:
            asked = (condition(choice) for choice, _ in self.flow.sides.get(node, ()))
            self._reads[node] = tuple(v for v in (*reads(node), *asked) if v is not None)
        return self._reads[node]

    def _call(self, node: ir.Node) -> Callable[..., Any]:
        """What computes a node, likewise for all schedules."""
        if node not in self._calls:
            chosen = is_flow(node)
            self._calls[node] = (
                _chosen(len(node.outputs)) if chosen else self.engine.call(node, self.graph.opset_imports)
            )
        return self._calls[node]

    def _step(
        self, node: ir.Node, done: list[str], inside: Sequence[ir.Node], wanted: Sequence[str], depth: int
    ) -> _Step:
        inputs = tuple(None if v is None else v.name for v in reads(node))
        outputs = ((ops.states_of(node),) if _has_states(node) else ()) + tuple(v.name or "" for v in node.outputs)
        sides = tuple((condition(choice).name or "", side) for choice, side in self.flow.sides.get(node, ()))
        if inside:
            read = dict.fromkeys(v.name for n in (*inside, node) for v in self._asked(n) if v.name)
            own = {v.name for n in inside for v in n.outputs}
            turn = tuple(self._steps(inside, wanted, depth + 1))
            kept = tuple(name for name in wanted if name in own)
            return _Step(node, _none, tuple(n for n in read if n not in own), outputs, tuple(done), sides, turn, kept)
        return _Step(node, self._call(node), inputs, outputs, tuple(done), sides)

    def _load(self, name: str) -> Any:
        tensor = self.graph.initializers[name].const_value
        if tensor is None:
            raise KeyError(name)
        return self.place(self.engine.load(tensor))

    def place(self, tensor: Any) -> Any:
        """An array or tensor as a tensor on the interpreter's device; shapes stay on the CPU. None, for what is not
        computed on the side that was chosen, as it is."""
        if tensor is None:
            return None
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind not in "biufc" and tensor.dtype.name != "bfloat16":
            raise UnsupportedError(f"an input of {tensor.dtype.name} values is not computed with: give numbers")
        tensor = self.engine.array(tensor, place=False)
        if self.device == "cpu" or (tensor.ndim <= 1 and not tensor.is_floating_point()):
            return tensor
        return self.engine.array(tensor)


def _none() -> None:
    """What is done each turn is done by steps of its own."""


def _chosen(half: int) -> Callable[..., Any]:
    """What a Choice gives of its two sides."""
    return lambda condition, *xs: tuple(xs[:half] if condition else xs[half:])


def _has_states(node: ir.Node) -> bool:
    operator = ops.lookup(node)
    return operator is not None and operator.states


def _on_one_device(arguments: list[Any]) -> list[Any]:
    """Bring the operands of a node together: one that was made from shapes may still be on the CPU."""
    devices = {x.device for x in arguments if x is not None}
    if len(devices) < 2:
        return arguments
    target = next(device for device in devices if device.type != "cpu")
    return [x if x is None else x.to(target) for x in arguments]


def _describe(node: ir.Node) -> str:
    domain = f"{node.domain}::" if node.domain else ""
    return f"node {node.name} ({domain}{node.op_type}, opset {node.version})"
