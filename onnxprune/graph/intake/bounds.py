"""What a small file could unfold into: functions that call functions, loops that never end."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import LimitError, ModelError, one_line
from onnxprune.graph.nested import bodies

MOST_NODES = 1_000_000
"""Of a graph whose functions are written out; the largest decoders have some ten thousand."""
MOST_TURNS = 1_000_000
"""Of a loop whose number of turns is a constant; where loops stand in loops, theirs multiplied."""

Function = tuple[str, str, str]
"""Domain, name and overload."""


def check(model: ir.Model, file: Path) -> None:
    """Refuse a graph that grows without bound.

    Raises:
        ModelError: a function calls itself, or a value is read that nothing makes.
        LimitError: too many nodes once its functions are written out, or a loop that never ends.
    """
    nodes = _unfolded(model, file)
    if nodes > MOST_NODES:
        raise LimitError(f"{file}: {nodes:,} nodes once its functions are written out; {MOST_NODES:,} are the most")
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        _check_reads(part, file, frozenset())
    _turns(model.graph, file)
    for function in model.functions.values():
        _turns(function, file)


def _check_reads(part: ir.Graph | ir.Function, file: Path, around: frozenset[ir.Value]) -> None:
    """Every value that is read in a graph, or given by a body in it, is made somewhere.

    Args:
        around: inputs and initializers of the graphs that this one is in.

    Raises:
        ModelError: one is not.
    """
    known = around | set(part.inputs)
    known |= set(part.initializers.values()) if isinstance(part, ir.Graph) else set()
    for node in part:
        where = f"{file}: node {one_line(node.name or node.op_type, 60)}"
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                raise ModelError(f"{where} reads {one_line(value.name or '', 60)}, which nothing makes")
        for body in bodies(node):
            _check_reads(body, file, known)
            for value in body.outputs:
                if value.producer() is None and value not in body.inputs and not value.is_initializer():
                    raise ModelError(f"{where} gives {one_line(value.name or '', 60)}, which nothing in its body makes")


def _unfolded(model: ir.Model, file: Path) -> int:
    """Nodes of the graph with every call written out; functions are counted before those that call them."""
    calls = {key: list(function.all_nodes()) for key, function in model.functions.items()}
    sizes: dict[Function, int] = {}
    open_calls: list[Function] = []
    for start in calls:
        stack = [start]
        while stack:
            key = stack[-1]
            called = {(n.domain, n.op_type, n.overload) for n in calls[key]} & calls.keys()
            missing = [c for c in called if c not in sizes]
            if key in sizes or not missing:
                sizes.setdefault(key, _size(calls[key], sizes))
                stack.pop()
                open_calls = [c for c in open_calls if c != key]
                continue
            if key in open_calls:
                raise ModelError(f"{file}: function {one_line(key[1], 60)} calls itself: the file is damaged")
            open_calls.append(key)
            stack.extend(missing)
    return _size(list(model.graph.all_nodes()), sizes)


def _size(nodes: list[ir.Node], sizes: dict[Function, int]) -> int:
    return sum(sizes.get((n.domain, n.op_type, n.overload), 1) for n in nodes)


def _turns(part: ir.Graph | ir.Function, file: Path) -> int:
    """How often the most repeated node of a graph runs, as far as that is written down.

    Raises:
        LimitError: more often than `MOST_TURNS`.
    """
    most = 1
    for node in part:
        inside = max((_turns(graph, file) for graph in bodies(node)), default=1)
        if node.op_type == "Loop" and node.domain in ("", "ai.onnx"):
            inside *= _own_turns(node, file)
            if inside > MOST_TURNS:
                raise LimitError(
                    f"{file}: the loop {one_line(node.name or '', 60)} takes {inside:,} turns in all; "
                    f"{MOST_TURNS:,} are the most"
                )
        most = max(most, inside)
    return most


def _own_turns(node: ir.Node, file: Path) -> int:
    """A loop ends by its number of turns, or by a condition that its body computes (for which 1 stands here).

    Raises:
        LimitError: by neither.
    """
    turns = _constant(node.inputs[0]) if node.inputs else None
    body = node.attributes["body"].as_graph() if "body" in node.attributes else None
    condition = body.outputs[0] if body is not None and body.outputs else None
    ends = condition is not None and not _passed_on(condition, body) and _constant(condition) is None
    if turns is None and (not node.inputs or node.inputs[0] is None) and not ends:
        raise LimitError(f"{file}: the loop {one_line(node.name or '', 60)} never ends")
    return 1 if turns is None or ends else max(turns, 0)


def _constant(value: ir.Value | None) -> int | None:
    """The number behind a value that is a constant."""
    if value is None:
        return None
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        tensor = producer.attributes["value"].as_tensor()
    return int(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def _passed_on(value: ir.Value, body: ir.Graph | None) -> bool:
    """Whether a value is what came in, unchanged."""
    while (
        (producer := value.producer()) is not None and producer.op_type == "Identity" and producer.inputs[0] is not None
    ):
        value = producer.inputs[0]
    return body is not None and value in list(body.inputs)
