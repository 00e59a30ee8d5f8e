"""Damage done to files, at random and the same for the same seed: bytes, JSON documents, protobuf messages."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import Message

NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    5,
    7,
    64,
    127,
    128,
    255,
    256,
    65_535,
    10**6,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    -(2**31),
    -(2**63),
)
"""Where whole numbers end, and what lies beside that."""
VALUES: tuple[Any, ...] = (
    None, True, False, *NUMBERS, 2**64, 2**70, 0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, "", " ", "0.6",
    "1", "NaN", "x" * 5000, "\0", "../../up", "/etc/passwd", "é", "\ud83d", "\u202e", "%s%n{0}", [], {}, [[]], [None],
    [1, "a", None], {"": None}, {"a": {"b": [0]}}, ["x", "x"], list(range(300)),
)  # fmt: skip
"""What a document could hold where something else belongs."""


def broken(chance: random.Random, data: bytes) -> bytes:
    """Bytes with some of them flipped, lost, doubled, replaced by numbers, or cut off."""
    held = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 12))):
        at = chance.randrange(len(held) + 1)
        span = chance.choice((1, 1, 2, 4, 8, 64))
        match chance.randrange(8):
            case 0 | 1:
                if at < len(held):
                    held[at] ^= 1 << chance.randrange(8)
            case 2:
                held[at : at + span] = chance.randbytes(span)
            case 3:
                del held[at : at + span]
            case 4:
                other = chance.randrange(len(held) + 1)
                held[at:at] = held[other : other + span]
            case 5:
                number = chance.choice(NUMBERS) & (2**64 - 1)
                width = chance.choice((1, 2, 4, 8))
                held[at : at + width] = (number & (2 ** (8 * width) - 1)).to_bytes(width, "little")
            case 6:
                held[at : at + 1] = chance.choice(
                    (b'"', b"[", b"]", b"{", b"}", b",", b":", b"\n", b"-", b"\xff", b"\0")
                )
            case _:
                if chance.random() < 0.3:
                    del held[at:]
    return bytes(held)


def changed(chance: random.Random, document: Any) -> Any:
    """A JSON document with a few values replaced, lost, doubled, renamed, swapped, wrapped or nested deeply."""
    held = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(held))
        if not places:
            return copy.deepcopy(chance.choice(VALUES))
        parent, key = chance.choice(places)
        match chance.randrange(10):
            case 0 | 1 | 2 | 3:
                parent[key] = copy.deepcopy(chance.choice(VALUES))
            case 4:
                del parent[key]
            case 5:
                if isinstance(parent, list):
                    parent.insert(key, copy.deepcopy(parent[key]))
                else:
                    parent[chance.choice(("", "a", "a.b", "0", "a/b", str(key) + "x"))] = parent.pop(key)
            case 6:
                other, there = chance.choice(places)
                value = copy.deepcopy(other[there]) if _still(other, there) else None
                parent[key] = value
            case 7:
                if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
                    parent[key] = parent[key] + chance.choice((1, -1, 0.5, 1000, -1000))
                elif isinstance(parent[key], str):
                    parent[key] = broken(chance, parent[key].encode("utf-8", "replace")).decode("utf-8", "replace")
            case 8:
                parent[key] = chance.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))
            case _:
                for _ in range(chance.choice((3, 30, 400))):
                    parent[key] = [parent[key]]
    return held


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    stack = [document]
    while stack:
        held = stack.pop()
        items = (
            list(held.items()) if isinstance(held, dict) else list(enumerate(held)) if isinstance(held, list) else []
        )
        for key, value in items:
            yield held, key
            stack.append(value)


def _still(parent: Any, key: Any) -> bool:
    return key in parent if isinstance(parent, dict) else isinstance(key, int) and key < len(parent)


def mutated(chance: random.Random, model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with a few fields of its messages, whichever they are, changed, and at times its structure."""
    held = onnx.ModelProto()
    held.CopyFrom(model)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
        if chance.random() < 0.45:
            chance.choice(_STRUCTURES)(chance, held.graph, held)
        else:
            messages = list(_messages(held))
            # One kind of message first: else nearly all changes would be to one of the many nodes.
            kind = chance.choice(sorted({m.DESCRIPTOR.name for m in messages}))
            _field(chance, chance.choice([m for m in messages if m.DESCRIPTOR.name == kind]), held)
    return held


def _messages(message: Message) -> Iterator[Message]:
    stack = [message]
    while stack:
        held = stack.pop()
        yield held
        for field, value in held.ListFields():
            if field.type == field.TYPE_MESSAGE:
                stack.extend(value if field.is_repeated else [value])


def _field(chance: random.Random, message: Message, model: onnx.ModelProto) -> None:
    """Change one field of a message: mostly one that is set."""
    fields = [f for f, _ in message.ListFields()] if chance.random() < 0.85 else list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = chance.choice(fields)
    if field.is_repeated:
        _repeated(chance, getattr(message, field.name), field, model)
    elif field.type == field.TYPE_MESSAGE:
        if chance.random() < 0.4:
            message.ClearField(field.name)
        else:
            same = [m for m in _messages(model) if m.DESCRIPTOR is field.message_type]
            copied = type(getattr(message, field.name))()
            if same:
                copied.CopyFrom(chance.choice(same))
            getattr(message, field.name).CopyFrom(copied)
    elif chance.random() < 0.1:
        message.ClearField(field.name)
    else:
        value = _scalar(chance, field, getattr(message, field.name), model)
        if value is not None:
            setattr(message, field.name, value)


def _repeated(chance: random.Random, held: Any, field: Any, model: onnx.ModelProto) -> None:
    place = chance.randrange(len(held)) if len(held) else -1
    choice = chance.randrange(4)
    if choice == 0 and place >= 0:
        del held[place]
    elif field.type == field.TYPE_MESSAGE:
        if choice == 1 and place >= 0:
            held.add().CopyFrom(held[place])
        elif choice == 2:
            same = [m for m in _messages(model) if m.DESCRIPTOR is field.message_type]
            if same:
                copied = type(same[0])()
                copied.CopyFrom(chance.choice(same))
                held.add().CopyFrom(copied)
        elif place >= 0:
            _field(chance, held[place], model)
    elif (value := _scalar(chance, field, held[place] if place >= 0 else None, model)) is not None:
        if choice == 1 or place < 0:
            held.append(value)
        else:
            held[place] = value


def _scalar(chance: random.Random, field: Any, old: Any, model: onnx.ModelProto) -> Any:
    if field.type == field.TYPE_STRING:
        names = [n for node in model.graph.node for n in (*node.input, *node.output, node.op_type, node.domain)]
        names += [t.name for t in model.graph.initializer] or [""]
        return (
            chance.choice(names) if chance.random() < 0.75 else chance.choice(("", "é", "a" * 3000, "%s", "../x", "\t"))
        )
    if field.type == field.TYPE_BYTES:
        return broken(chance, old or b"")
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return chance.choice((0.0, -1.0, math.nan, math.inf, 1e-45, 3e38, 1e-5))
    number = chance.choice(NUMBERS) if chance.random() < 0.5 else (old or 0) + chance.choice((-2, -1, 1, 2))
    if field.type == field.TYPE_ENUM:
        return chance.randrange(0, 30)
    bits = 31 if field.type in (field.TYPE_INT32, field.TYPE_UINT32) else 63
    low = 0 if field.type in (field.TYPE_UINT32, field.TYPE_UINT64) else -(2**bits)
    return min(max(int(number), low), 2**bits - 1)


def _rewired(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """An input from anywhere: of a later node, so that the graph has a cycle, as well."""
    nodes = [n for n in graph.node if n.input]
    values = [n for node in graph.node for n in node.output] + [t.name for t in graph.initializer]
    if nodes and values:
        node = chance.choice(nodes)
        node.input[chance.randrange(len(node.input))] = chance.choice(values)


def _another_operator(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    names = sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain})
    if graph.node:
        chance.choice(graph.node).op_type = chance.choice(names)


def _attribute(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """One that the operator may have, with a value that it may not."""
    node = chance.choice(graph.node or [onnx.NodeProto()])
    try:
        known = sorted(onnx.defs.get_schema(node.op_type, 17, node.domain).attributes) or ["axis"]
    except onnx.defs.SchemaError:
        known = ["axis", "axes", "perm", "to"]
    value = chance.choice((0, 1, -1, 99, 2**40, [0], [1, 0], [-1, 5], [0, 0, 0, 0], 0.5, "same", [2**31, 2]))
    node.attribute.append(onnx.helper.make_attribute(chance.choice(known), value))


def _opset(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    chosen = chance.choice(("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "made.up"))
    model.opset_import.append(onnx.helper.make_opsetid(chosen, chance.choice((*range(-1, 28), 10**9))))
    if chance.random() < 0.7:
        del model.opset_import[0]


def _retyped(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """An initializer of another element type, with as many bytes as that asks for."""
    if not graph.initializer:
        return
    tensor = chance.choice(graph.initializer)
    tensor.data_type = chance.randrange(1, 24)
    width = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
    count = math.prod(tensor.dims)
    if 0 <= count < 10**6:
        tensor.raw_data = chance.randbytes(count * width.get(tensor.data_type, 1))


def _reshaped(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """An initializer of another shape with as many values, or with zeros and none."""
    if graph.initializer:
        tensor = chance.choice(graph.initializer)
        count = math.prod(tensor.dims)
        shapes = [[count], [1, *tensor.dims], [*tensor.dims, 1], list(reversed(tensor.dims)), []]
        shape = chance.choice(shapes) if chance.random() < 0.8 else [*tensor.dims, 0]
        del tensor.dims[:]
        tensor.dims.extend(shape)
        if math.prod(shape) == 0:
            tensor.raw_data = b""


def _poisoned(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """Weights that are not finite, huge, tiny or all the same."""
    floats = [t for t in graph.initializer if t.data_type == 1 and t.raw_data]
    if floats:
        tensor = chance.choice(floats)
        value = chance.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01\0\0\0", b"\0\0\0\0"))
        count = len(tensor.raw_data) // 4
        if chance.random() < 0.5:
            tensor.raw_data = value * count
        elif count:
            at = 4 * chance.randrange(count)
            tensor.raw_data = tensor.raw_data[:at] + value + tensor.raw_data[at + 4 :]


def _body(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """Control flow around a value: an If, or a Loop of any number of turns."""
    if not graph.node:
        return
    h, node = onnx.helper, chance.choice(graph.node)
    if not node.input:
        return
    slot, tag = chance.randrange(len(node.input)), f"made{chance.randrange(10**6)}"
    source = node.input[slot]
    if chance.random() < 0.5:
        graph.initializer.append(onnx.numpy_helper.from_array(_truth(), f"{tag}_c"))
        ends = [h.make_tensor_value_info(f"{tag}_b", 1, None)]
        inside = h.make_graph([h.make_node("Identity", [source], [f"{tag}_b"])], "b", [], ends)
        made = h.make_node("If", [f"{tag}_c"], [tag], then_branch=inside, else_branch=inside)
    else:
        turns = chance.choice((0, 1, 3, 1000, 2**20, 2**31, 2**60, -1))
        graph.initializer.append(h.make_tensor(f"{tag}_n", 7, [], [turns]))
        held = [
            h.make_tensor_value_info(f"{tag}_{n}", t, s) for n, t, s in (("i", 7, []), ("k", 9, []), ("s", 1, None))
        ]
        ends = [h.make_tensor_value_info(f"{tag}_{n}", t, None) for n, t in (("q", 9), ("r", 1))]
        steps = [
            h.make_node("Identity", [f"{tag}_k"], [f"{tag}_q"]),
            h.make_node("Identity", [f"{tag}_s"], [f"{tag}_r"]),
        ]
        made = h.make_node("Loop", [f"{tag}_n", "", source], [tag], body=h.make_graph(steps, "b", held, ends))
    node.input[slot] = tag
    place = next(i for i, n in enumerate(graph.node) if n is node or n == node)
    nodes = [*graph.node[:place], made, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(nodes)


def _truth() -> Any:
    import numpy as np

    return np.array(True)


def _grown(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """A value made large: repeated, expanded, padded."""
    if not graph.node:
        return
    node = chance.choice(graph.node)
    if not node.input:
        return
    slot, tag = chance.randrange(len(node.input)), f"grown{chance.randrange(10**6)}"
    size = chance.choice((1, 2, 1000, 10**6, 2**31, 2**40))
    graph.initializer.append(onnx.helper.make_tensor(f"{tag}_s", 7, [2], [size, chance.choice((1, size))]))
    kind = chance.choice(("Expand", "Tile", "Reshape", "ConstantOfShape", "Pad"))
    sources = [f"{tag}_s"] if kind == "ConstantOfShape" else [node.input[slot], f"{tag}_s"]
    made = onnx.helper.make_node(kind, sources, [tag])
    node.input[slot] = tag
    nodes = [made, *graph.node] if chance.random() < 0.2 else None
    if nodes is None:
        place = next(i for i, n in enumerate(graph.node) if n == node)
        nodes = [*graph.node[:place], made, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(nodes)


def _ends(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """Other sizes, types or names of what goes in and out."""
    held = chance.choice([*graph.input, *graph.output] or [onnx.ValueInfoProto()])
    kind = held.type.tensor_type
    match chance.randrange(4):
        case 0:
            if kind.shape.dim:
                kind.shape.dim[chance.randrange(len(kind.shape.dim))].dim_value = chance.choice(NUMBERS)
        case 1:
            kind.elem_type = chance.randrange(0, 24)
        case 2:
            kind.shape.dim.add().dim_param = chance.choice(("batch", "seq", "", "2*batch", "n n"))
        case _:
            names = [n for node in graph.node for n in node.output]
            if names:
                held.name = chance.choice(names)


def _shuffled(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    nodes = list(graph.node)
    chance.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def _function(chance: random.Random, graph: onnx.GraphProto, model: onnx.ModelProto) -> None:
    """A function of the model in a node's place; at times it calls itself, or another a great many times."""
    if not graph.node:
        return
    h, node = onnx.helper, chance.choice(graph.node)
    inputs, outputs = [f"i{k}" for k in range(len(node.input))], [f"o{k}" for k in range(len(node.output))]
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    del inner.input[:], inner.output[:]
    inner.input.extend(inputs)
    inner.output.extend(outputs)
    name = f"F{chance.randrange(3)}"
    if chance.random() < 0.2:
        inner.op_type, inner.domain = f"F{chance.randrange(3)}", "made.up"
    opsets = list(model.opset_import)
    model.functions.append(h.make_function("made.up", name, inputs, outputs, [inner], opsets))
    if all(o.domain != "made.up" for o in model.opset_import):
        model.opset_import.append(h.make_opsetid("made.up", 1))
    node.op_type, node.domain = name, "made.up"
    del node.attribute[:]


_STRUCTURES = (
    _rewired, _another_operator, _attribute, _opset, _retyped, _reshaped, _poisoned, _body, _grown, _ends, _shuffled,
    _function,
)  # fmt: skip
