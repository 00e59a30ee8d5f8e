"""Tensors and names in a model file: whole, unique, and text that can be written again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.errors import ModelError, UnsupportedError, one_line
from onnxprune.graph.intake import attributes
from onnxprune.graph.intake.attributes import MOST_DIMENSIONS
from onnxprune.graph.intake.external_data import Place, check_overlaps, place_of
from onnxprune.graph.intake.sparse import made_dense

_FIELDS = {
    "FLOAT": "float_data", "COMPLEX64": "float_data", "DOUBLE": "double_data", "COMPLEX128": "double_data",
    "INT64": "int64_data", "UINT64": "uint64_data", "UINT32": "uint64_data", "STRING": "string_data",
}  # fmt: skip
"""Where a tensor keeps its values if not as raw bytes; of all other types in int32_data."""


_TYPES = frozenset(ir.DataType) - {ir.DataType.UNDEFINED}


def check(proto: Any, file: Path) -> dict[str, Place]:
    """Where the external initializers of a ModelProto lie, by name.

    Raises:
        ModelError: a tensor, a node or a name is damaged.
        UnsupportedError: external data where none are read.
    """
    places: list[Place] = []
    outer = True
    for graph in _graphs(proto, file):
        seen: set[str] = set()
        for tensor in graph.initializer:
            if tensor.name in seen:
                raise ModelError(
                    f"{file}: two initializers are called {one_line(tensor.name, 80)}: the file is damaged"
                )
            seen.add(tensor.name)
            if (place := _checked(file, tensor)) is not None:
                if not outer:
                    raise UnsupportedError(f"{file}: external data of {one_line(tensor.name, 80)}, in a subgraph")
                places.append(place)
        made_dense(graph, file)
        outer = False
    check_overlaps(file, places)
    return {place.tensor: place for place in places}


def _graphs(proto: Any, file: Path) -> Iterator[Any]:
    """The graph and the bodies in it and in the functions; their nodes are checked on the way."""
    yield proto.graph
    _check_ends(file, proto.graph)
    version = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    open_nodes = [*proto.graph.node]
    inside = [n for f in proto.functions for n in f.node]
    for nodes, in_function in ((open_nodes, False), (inside, True)):
        stack = nodes
        while stack:
            node = stack.pop()
            _check_node(file, node, in_function)
            if not in_function:
                _check_arity(file, node, version)
            for attribute in node.attribute:
                for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                    yield graph
                    stack.extend(graph.node)


_LISTS = {"sequence_type": "a sequence of values", "optional_type": "optional", "sparse_tensor_type": "sparse"}
"""Kinds of values that sessions take and give as something else than an array."""


def _check_ends(file: Path, graph: Any) -> None:
    """Every input that a caller must give says of which element type it is, and none is a list, nor is an output.

    Maps, and lists of those, are put aside before (`maps`).
    """
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind in _LISTS and not (what == "output" and value.type.sequence_type.elem_type.HasField("map_type")):
                raise UnsupportedError(
                    f"{file}: {what} {one_line(value.name, 80)} is {_LISTS[kind]}, where tensors are fed and compared: "
                    "export the graph with every tensor by itself"
                )
    held = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in held and value.type.WhichOneof("value") in (None, "tensor_type"):
            kind = value.type.tensor_type.elem_type
            if kind not in _TYPES:
                raise ModelError(f"{file}: input {one_line(value.name, 80)} has no known element type: export it again")


def _check_arity(file: Path, node: Any, version: int) -> None:
    """A node of the default domain has as many inputs and outputs, and the attributes, that its operator asks for."""
    known = _schema(node.op_type, version) if node.domain in ("", "ai.onnx") else None
    if known is None:
        return
    counts = (len(node.input), len(node.output))
    for what, count, (low, high) in zip(("inputs", "outputs"), counts, (known.inputs, known.outputs), strict=True):
        if not low <= count <= high:
            told = str(low) if low == high else f"{low} or more" if high > MOST_DIMENSIONS else f"{low} to {high}"
            raise ModelError(
                f"{_named(file, node, version)} has {count} {what}, and the operator {told}: the file is damaged"
            )
    for attribute in node.attribute:
        kind = known.kinds.get(attribute.name)
        if kind is not None and attribute.type not in (0, kind):  # old exporters state none
            told = one_line(attribute.name, 40)
            raise ModelError(f"{_named(file, node, version)}: {told} is of another type: the file is damaged")
    if missing := sorted(known.required - {a.name for a in node.attribute}):
        raise ModelError(f"{_named(file, node, version)} lacks {', '.join(missing)}: the file is damaged")


def _named(file: Path, node: Any, version: int | None = None) -> str:
    """A node, as messages name it."""
    opset = "" if version is None else f", opset {version}"
    name = one_line(node.name or next(iter(node.output), ""), 80)
    return f"{file}: node {name} ({one_line(node.op_type, 40)}{opset})"


@dataclass(frozen=True)
class _Schema:
    """An operator's fewest and most inputs and outputs, the types of its attributes, and those that it must have."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    kinds: Mapping[str, int]
    required: frozenset[str]


@lru_cache(maxsize=1024)
def _schema(operator: str, version: int) -> _Schema | None:
    """None for an operator that is not known."""
    import onnx

    try:
        schema: Any = onnx.defs.get_schema(operator, min(max(version, 1), onnx.defs.onnx_opset_version()), "")
    except onnx.defs.SchemaError:
        return None
    return _Schema(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: int(a.type.value) for name, a in schema.attributes.items()},
        frozenset(name for name, a in schema.attributes.items() if a.required),
    )


def _check_node(file: Path, node: Any, in_function: bool) -> None:
    if not node.op_type:
        raise ModelError(f"{_named(file, node)}: no operator is named: the file is damaged")
    for text in (node.name, node.op_type, node.domain, *node.input, *node.output):
        if not _written(text):
            raise ModelError(f"{_named(file, node)}: a name is not UTF-8: the file is damaged")
    names = [a.name for a in node.attribute]
    if len(set(names)) < len(names):
        raise ModelError(f"{_named(file, node)}: an attribute is given twice: the file is damaged")
    for attribute in node.attribute:
        if attribute.ref_attr_name and not in_function:
            raise ModelError(
                f"{_named(file, node)}: attribute {one_line(attribute.name, 40)} is a reference, outside of a function"
            )
        for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
            if _checked(file, tensor) is not None:
                raise UnsupportedError(f"{_named(file, node)}: external data in an attribute: make it an initializer")
    attributes.check(node, file)


def _written(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(file: Path, tensor: Any) -> Place | None:
    """Whether a TensorProto has the values that its type and shape ask for; where they lie, if outside.

    Raises:
        ModelError: it does not.
    """
    where = f"{file}: tensor {one_line(tensor.name, 80)}"
    if not _written(tensor.name):
        raise ModelError(f"{where}: its name is not UTF-8: the file is damaged")
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{where}: element type {tensor.data_type} is not known: the file is damaged")
    if len(tensor.dims) > MOST_DIMENSIONS or any(d < 0 for d in tensor.dims):
        shape = one_line(str(list(tensor.dims)), 60)
        raise ModelError(f"{where}: shape {shape} is none that a tensor can have: the file is damaged")
    kind, count = ir.DataType(tensor.data_type), math.prod(tensor.dims)
    if kind == ir.DataType.STRING:
        nbytes = -1
    else:
        if kind.bitwidth < 8 and 8 % kind.bitwidth:
            raise UnsupportedError(f"{where}: elements of {kind.bitwidth} bits are not supported")
        nbytes = -(-count * kind.bitwidth // 8)
        if tensor.data_location == tensor.EXTERNAL:
            return place_of(file, tensor, nbytes)
    if tensor.data_location == tensor.EXTERNAL or tensor.HasField("raw_data"):
        if nbytes < 0 or len(tensor.raw_data) != nbytes:
            raise ModelError(
                f"{where}: {len(tensor.raw_data)} bytes, and its type and shape take {nbytes}: the file is damaged"
            )
        return None
    held = len(getattr(tensor, _FIELDS.get(kind.name, "int32_data")))
    packed = max(8 // kind.bitwidth, 1) if nbytes >= 0 else 1
    wanted = count * 2 if kind.name.startswith("COMPLEX") else -(-count // packed)
    if held != wanted:
        raise ModelError(f"{where}: {held} values, and its type and shape take {wanted}: the file is damaged")
    return None
