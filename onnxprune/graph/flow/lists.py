"""Lists that a loop appends to, as torch scripts write them: what they hold in the end is what a Loop stacks by itself.

SequenceEmpty → Loop (SequenceInsert at the end) → ConcatFromSequence     becomes     Loop → Transpose (→ Reshape)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.values import constant, dims, succeed, take_over


def stack_lists(model: ir.Model) -> None:
    """Let loops give what they append to lists as one tensor, in place; lists that are read otherwise stay."""
    for node in list(model.graph):
        if node.op_type != "Loop" or node.domain not in ("", "ai.onnx") or "body" not in node.attributes:
            continue
        loop = node
        for place in reversed(range(2, len(node.inputs))):
            loop = _without_list(model, loop, place)


def _without_list(model: ir.Model, loop: ir.Node, place: int) -> ir.Node:
    """The loop, with what it appends to a list (its input at `place`) stacked; as it is where that is no such list."""
    body, listed = loop.attributes["body"].as_graph(), loop.outputs[place - 2]
    appended, readers = _appended(loop, body, place), [user for user, _ in listed.uses()]
    ranks = [rank for reader in readers if (rank := _rank(reader, appended)) is not None]
    if appended is None or not readers or len(ranks) < len(readers) or listed.is_graph_output():
        return loop
    stacked = _stacked(model, loop, body, place, appended)
    for reader, rank in zip(readers, ranks, strict=True):
        _join(model, reader, stacked, rank)
    made = stacked.producer()
    assert made is not None
    return made


def _appended(node: ir.Node, body: ir.Graph, place: int) -> ir.Value | None:
    """What a turn puts at the end of a list that begins empty; None where a state is no such list."""
    given, begun = node.inputs[place], body.inputs[place]
    start = given.producer() if given is not None else None
    uses = list(begun.uses())
    ended = body.outputs[place - 1].producer()
    if start is None or start.op_type != "SequenceEmpty" or len(uses) != 1 or ended is None or uses[0][0] is not ended:
        return None
    alone = not list(body.outputs[place - 1].uses()) and begun not in body.outputs
    if ended.op_type != "SequenceInsert" or not alone or any(v is not None for v in ended.inputs[2:]):
        return None
    return ended.inputs[1]


def _rank(reader: ir.Node, part: ir.Value | None) -> int | None:
    """Dimensions of what is in a list, by what joins it; None where it is read otherwise, or that is not told."""
    if reader.op_type != "ConcatFromSequence" or part is None:
        return None
    known, joined = dims(part), dims(reader.outputs[0])
    if known is not None:
        return len(known)
    return None if joined is None else len(joined) - _new_axis(reader)


def _new_axis(reader: ir.Node) -> int:
    return int(reader.attributes.get_int("new_axis", 0))


def _stacked(model: ir.Model, node: ir.Node, body: ir.Graph, place: int, appended: ir.Value) -> ir.Value:
    """The loop without a list, which gives what was appended to it last of all; that output."""
    insert = body.outputs[place - 1].producer()
    assert insert is not None
    body.outputs.pop(place - 1)
    body.outputs.append(_passed(body, appended, node.version or model.opset_imports.get("", 1)))
    body.remove(insert, safe=False)
    insert.replace_input_with(0, None)
    insert.replace_input_with(1, None)
    body.inputs.pop(place)
    inputs = [v for i, v in enumerate(node.inputs) if i != place]
    made = ir.Node(
        "", "Loop", inputs, list(node.attributes.values()), num_outputs=len(node.outputs), name=node.name,
        version=node.version,
    )  # fmt: skip
    node.prepend(made)
    old = [v for i, v in enumerate(node.outputs) if i != place - 2]
    for before, after in zip(old, made.outputs, strict=False):
        take_over(before, after)
    result, listed = made.outputs[-1], node.outputs[place - 2]
    result.name = f"{listed.name}_stacked"
    result.type = appended.type
    listed.replace_all_uses_with(result)
    assert node.graph is not None
    node.graph.remove(node, safe=False)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    return result


def _passed(body: ir.Graph, value: ir.Value, version: int) -> ir.Value:
    """An output of its own, which no other output of the body is."""
    made = ir.node("Identity", [value], name=f"{value.name}_kept", version=version)
    made.outputs[0].name, made.outputs[0].type, made.outputs[0].shape = f"{value.name}_kept", value.type, value.shape
    body.append(made)
    return made.outputs[0]


def _join(model: ir.Model, reader: ir.Node, stacked: ir.Value, rank: int) -> None:
    """What a ConcatFromSequence gives, of [turns, …]: the turns on a new axis, or within one that there is."""
    new, version = _new_axis(reader), reader.version or model.opset_imports.get("", 1)
    axis = int(reader.attributes["axis"].as_int())
    axis += rank + new if axis < 0 else 0
    order = [*range(1, axis + 1), 0, *range(axis + 1, rank + 1)]
    made = [ir.node("Transpose", [stacked], {"perm": order}, name=f"{reader.name}_turns", version=version)]
    if not new:
        name = reader.name or "joined"
        shape = ir.node("Shape", [made[0].outputs[0]], name=f"{name}_shape", version=version)
        head, tail = (_part(model, name, shape.outputs[0], ends, version) for ends in ((0, axis), (axis + 2, rank + 1)))
        rest = constant(model, np.array([-1], dtype=np.int64), f"{name}_rest")
        target = ir.node(
            "Concat", [head.outputs[0], rest, tail.outputs[0]], {"axis": 0}, name=f"{name}_target", version=version
        )
        whole = ir.node("Reshape", [made[0].outputs[0], target.outputs[0]], name=f"{name}_joined", version=version)
        made += [shape, head, tail, target, whole]
    for node in made:
        node.outputs[0].name = f"{node.name}_output"
    succeed(reader, made)


def _part(model: ir.Model, name: str, shape: ir.Value, ends: tuple[int, int], version: int) -> ir.Node:
    bounds = [constant(model, np.array([end], dtype=np.int64), f"{name}_{end}") for end in ends]
    return ir.node("Slice", [shape, *bounds], name=f"{name}_from_{ends[0]}", version=version)
