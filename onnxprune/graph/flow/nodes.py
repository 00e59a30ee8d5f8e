"""The nodes that stand for control flow in an opened graph.

Attributes of Enter and Leave: `kind` ("Loop" or "Scan"), `states` (how many values go from turn to turn), `axes` and
`backwards` (of what is sliced, or stacked: on which axis, and whether from its end), `open` (state · MOST_AXES + axis
of every dimension of a state that turns may change); of a Scan's Leave `along` (the axis of its last input that is gone
along).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

DOMAIN = "onnxprune.flow"
CHOICE, ENTER, LEAVE = "Choice", "Enter", "Leave"
MOST_AXES = 64
"""More axes than a tensor has."""


def is_flow(node: ir.Node) -> bool:
    """Whether a node stands for control flow."""
    return node.domain == DOMAIN


def holds_flow(graph: ir.Graph) -> bool:
    """Whether a graph was opened."""
    return any(is_flow(node) for node in graph)


def ints(node: ir.Node, name: str) -> tuple[int, ...]:
    """An attribute that is a list of integers; none where it is not there."""
    found = node.attributes.get(name)
    return tuple(int(i) for i in found.as_ints()) if found is not None else ()


def condition(choice: ir.Node) -> ir.Value:
    """What a Choice asks."""
    asked = choice.inputs[0]
    assert asked is not None, f"node {choice.name}: its condition is gone"
    return asked


def kind(node: ir.Node) -> str:
    """ "Loop" or "Scan"."""
    return str(node.attributes["kind"].as_string())


def states(node: ir.Node) -> int:
    """How many values go from turn to turn."""
    return int(node.attributes["states"].as_int())


def lead(node: ir.Node) -> int:
    """Where an Enter's states begin, in its inputs and outputs; one less in a Leave's inputs."""
    return 2 if kind(node) == "Loop" else 0


def enter_of(leave: ir.Node) -> ir.Node:
    """The Enter of a Leave, which reads its first output to say so."""
    token = leave.inputs[ends(leave)]
    enter = token.producer() if token is not None else None
    assert enter is not None and enter.op_type == ENTER, f"node {leave.name}: its Enter is gone"
    return enter


def ends(leave: ir.Node) -> int:
    """How many of a Leave's inputs a turn ends with; Enter's token follows, and what a Scan goes along."""
    return len(leave.inputs) - 1 - (kind(leave) == "Scan")


def state_pairs(leave: ir.Node) -> Sequence[tuple[ir.Value, ir.Value, ir.Value, ir.Value]]:
    """Of each state (what it starts as, what a turn begins with, what it ends with, what is left of it)."""
    enter, first = enter_of(leave), lead(leave)
    found = []
    for i in range(states(leave)):
        given, ended = enter.inputs[first + i], leave.inputs[max(first - 1, 0) + i]
        assert given is not None and ended is not None
        found.append((given, enter.outputs[first + i], ended, leave.outputs[i]))
    return found


def slices(enter: ir.Node) -> Sequence[tuple[ir.Value, ir.Value, int]]:
    """What a Scan goes along: (the whole, a turn's part of it, the axis)."""
    if kind(enter) == "Loop":
        return []
    count = states(enter)
    wholes = [v for v in enter.inputs[count:] if v is not None]
    return list(zip(wholes, enter.outputs[count:], ints(enter, "axes"), strict=True))


def stacks(leave: ir.Node) -> Sequence[tuple[ir.Value, ir.Value, int]]:
    """What is kept of every turn: (a turn's part, all together, the axis)."""
    first = max(lead(leave) - 1, 0) + states(leave)
    parts = [v for v in leave.inputs[first : ends(leave)] if v is not None]
    return list(zip(parts, leave.outputs[states(leave) :], ints(leave, "axes"), strict=True))
