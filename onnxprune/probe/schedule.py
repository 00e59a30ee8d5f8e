"""In which order the nodes of a graph are done, what each reads, and what nobody reads any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import onnx_ir as ir

from onnxprune.errors import UnsupportedError, reading
from onnxprune.graph import ops
from onnxprune.graph.flow import CHOICE, LEAVE, Flow, condition, is_flow
from onnxprune.graph.nested import reads
from onnxprune.probe.chains import Chain


class Step(NamedTuple):
    """A node, and all that doing it on a batch takes to know.

    Attributes:
        chooses: whether its first operand is a condition.
        usages: where its operands are read (`interpreter.Usage`).
        done: values that nobody reads after this step.
        sides: conditions, and how they come out where the node is done at all.
        inside: of a loop's Leave, what is done each turn.
        kept: of a loop, what is wanted of its last turn.
        parts: of a chain of nodes that is one call, its nodes (chains.py).
        within: of such a chain, where hooks want its nodes one by one, and the initializers whose numbers it rests on.
    """

    node: ir.Node
    call: Callable[..., Any]
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    chooses: bool
    usages: tuple[tuple[str, int], ...]
    done: tuple[str, ...]
    sides: tuple[tuple[str, bool], ...] = ()
    inside: tuple[Step, ...] = ()
    kept: tuple[str, ...] = ()
    parts: tuple[Step, ...] = ()
    within: frozenset[tuple[str, int] | str] = frozenset()


_Names: TypeAlias = tuple[
    tuple[str | None, ...], tuple[str, ...], tuple[tuple[str, bool], ...], tuple[tuple[str, int], ...]
]
"""A node's inputs, outputs, sides and usages, as of `Step`."""


class Schedule:
    """The order of one graph's nodes, whatever is bound and wanted; what was asked once is remembered.

    Args:
        flow: of the graph.
        computes: node -> what computes it.
        chained: gives the chains of nodes that are done in one call, where they can be; asked when first they matter.
    """

    def __init__(
        self,
        graph: ir.Graph,
        flow: Flow,
        computes: Callable[[ir.Node], Callable[..., Any]],
        chained: Callable[[], Iterable[Chain]] = tuple,
    ) -> None:
        self.graph, self.flow = graph, flow
        self._computes, self._chained = computes, chained
        self._between: dict[tuple[frozenset[str], tuple[str, ...]], list[tuple[Step, tuple[str, ...]]]] = {}
        self._live: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._leading: dict[tuple[str, ...], frozenset[str]] = {}
        self._reads: dict[ir.Node, tuple[ir.Value, ...]] = {}
        self._calls: dict[ir.Node, Callable[..., Any]] = {}
        self._named: dict[ir.Node, _Names] = {}
        self._producers = {v.name: n for n in graph for v in n.outputs if v.name}
        self._producers |= {ops.states_of(n): n for n in graph if _has_states(n)}

    @cached_property
    def _chains(self) -> list[Chain]:
        return [chain for chain in self._chained() if all(self.once(node) for node in chain.nodes)]

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

    def leads(self, stop: str, outputs: Sequence[str]) -> bool:
        """Whether a node is on the way to `outputs`: what only a label is made of is not."""
        key = tuple(outputs)
        if key not in self._leading:
            inputs = {v.name or "" for v in self.graph.inputs}
            self._leading[key] = frozenset(n.name or "" for n in self.needed(inputs, outputs))
        return stop in self._leading[key]

    def read_by(self, stop: str) -> list[str]:
        """The values that a node reads."""
        node = next(n for n in self.graph if n.name == stop)
        return sorted({v.name for v in self._asked(node) if v.name} - self.graph.initializers.keys())

    def live_before(self, stop: str, outputs: Sequence[str]) -> list[str]:
        """The values computed before a node that leads to `outputs` that it, or a later one on the way, reads."""
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

    def between(self, feeds: frozenset[str], wanted: tuple[str, ...]) -> list[tuple[Step, tuple[str, ...]]]:
        """What is done, step by step, with the initializers that each reads."""
        key = (feeds, wanted)
        if key not in self._between:
            steps = self._steps(self.needed(feeds, wanted), wanted, 0)
            held = self.graph.initializers.keys() - feeds
            read = ([*_read(step), *(name for name, _ in step.sides)] for step in steps)
            known = (tuple(dict.fromkeys(n for n in names if n is not None and n in held)) for names in read)
            self._between[key] = list(zip(steps, known, strict=True))
        return self._between[key]

    def _steps(self, nodes: Iterable[ir.Node], wanted: Sequence[str], depth: int) -> list[Step]:
        """Nodes as steps, those of a loop within `depth` others as one."""
        units, chains = self._gathered(self.flow.units(nodes, depth), wanted if not depth else None)
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
            steps.append(self._step(unit, done.get(i, []), inside, wanted, depth))
            chain = chains.get(unit)
            if chain is not None:
                count = len(chain.nodes)
                steps[-count:] = [_in_one(chain, tuple(steps[-count:]))]
        return steps

    def _gathered(
        self, units: list[tuple[ir.Node, list[ir.Node]]], wanted: Sequence[str] | None
    ) -> tuple[list[tuple[ir.Node, list[ir.Node]]], dict[ir.Node, Chain]]:
        """Units with the nodes of each chain one after another, and the chains that are whole, by their last nodes.

        Nobody else reads what is inside of a chain, so that its nodes can wait for the last of them.
        """
        there = {unit for unit, _ in units} if wanted is not None else set()
        asked = wanted or ()
        whole = {
            chain.nodes[-1]: chain
            for chain in self._chains
            if there.issuperset(chain.nodes) and not any(n.outputs[0].name in asked for n in chain.nodes[:-1])
        }
        waiting = {node for chain in whole.values() for node in chain.nodes[:-1]}
        found: list[tuple[ir.Node, list[ir.Node]]] = []
        for unit, inside in units:
            if unit in whole:
                found += [(node, []) for node in whole[unit].nodes]
            elif unit not in waiting:
                found.append((unit, inside))
        return found, whole

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
            with reading(f"{describe(node)} cannot be computed", UnsupportedError):
                self._calls[node] = _chosen(len(node.outputs)) if is_flow(node) else self._computes(node)
        return self._calls[node]

    def _step(
        self, node: ir.Node, done: list[str], inside: Sequence[ir.Node], wanted: Sequence[str], depth: int
    ) -> Step:
        inputs, outputs, sides, usages = self._names(node)
        if inside:
            read = dict.fromkeys(v.name for n in (*inside, node) for v in self._asked(n) if v.name)
            own = {v.name for n in inside for v in n.outputs}
            turn = tuple(self._steps(inside, wanted, depth + 1))
            kept = tuple(name for name in wanted if name in own)
            inputs = tuple(n for n in read if n not in own)
            return Step(node, _none, inputs, outputs, False, (), tuple(done), sides, turn, kept)
        return Step(node, self._call(node), inputs, outputs, is_flow(node), usages, tuple(done), sides)

    def _names(self, node: ir.Node) -> _Names:
        """What a step says of its node in every schedule."""
        if node not in self._named:
            inputs = tuple(None if v is None else v.name for v in reads(node))
            outputs = ((ops.states_of(node),) if _has_states(node) else ()) + tuple(v.name or "" for v in node.outputs)
            sides = tuple((condition(choice).name or "", side) for choice, side in self.flow.sides.get(node, ()))
            self._named[node] = inputs, outputs, sides, tuple((node.name or "", i) for i in range(len(inputs)))
        return self._named[node]


def _read(step: Step) -> list[str | None]:
    """What a step reads, done in one call or not."""
    return [*step.inputs, *(name for part in step.parts for name in part.inputs)]


def _in_one(chain: Chain, parts: tuple[Step, ...]) -> Step:
    """The step of a whole chain. Hooks at its first operand act as ever: that is what a product reads."""
    usages = tuple((node.name or "", i) for node, i in chain.operands)
    first = usages[:1] if len(usages) > 1 else ()
    within = {usage for part in parts for usage in part.usages}.difference(first)
    inputs = tuple(value.name if (value := node.inputs[i]) is not None else None for node, i in chain.operands)
    done = tuple(name for part in parts for name in part.done)
    last = parts[-1]
    return last._replace(
        call=chain.call,
        inputs=inputs,
        usages=usages,
        done=done,
        parts=parts,
        within=frozenset({*within, *chain.numbers}),
    )


def _none() -> None:
    """What is done each turn is done by steps of its own."""


def _chosen(half: int) -> Callable[..., Any]:
    """What a Choice gives of its two sides."""
    return lambda condition, *xs: tuple(xs[:half] if condition else xs[half:])


def _has_states(node: ir.Node) -> bool:
    operator = ops.lookup(node)
    return operator is not None and operator.states > 0


def describe(node: ir.Node) -> str:
    """A node, as messages name it."""
    domain = f"{node.domain}::" if node.domain else ""
    return f"node {node.name} ({domain}{node.op_type}, opset {node.version})"
