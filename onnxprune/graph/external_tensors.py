"""Which of a model file's tensors lie in other files: the file is gone through field by field, past the numbers in it.

To parse it takes twice its size in memory, for an answer that is mostly no.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from onnxprune.errors import said


def tensors_elsewhere(file: Path) -> list[Any]:
    """The initializers (TensorProto) of a model file whose numbers lie in others; those in it are passed over.

    Raises:
        Exception: of protobuf, where it cannot be parsed.
    """
    import onnx

    try:
        with file.open("rb") as stream:
            tensors = [_without_numbers(stream, tensor) for tensor in _weights(stream, file.stat().st_size)]
    except (EOFError, ValueError):  # damaged, or nothing of the kind: whoever parses all of it says what is wrong
        tensors = list(onnx.load(file, load_external_data=False).graph.initializer)
    return [tensor for tensor in tensors if tensor.data_location == tensor.EXTERNAL]


_GRAPH, _INITIALIZER = 7, 5
"""Of a ModelProto, and of its graph: the fields' numbers."""
_NUMBERS = frozenset((4, 5, 6, 7, 9, 10, 11))
"""Of a TensorProto: the fields that hold its contents."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""How protobuf writes a field."""


class _Field(NamedTuple):
    """A field of a message: its number, how it is written, where it begins, where its contents do and where it ends."""

    number: int
    kind: int
    start: int
    inside: int
    stop: int


def _weights(stream: BinaryIO, size: int) -> list[_Field]:
    graphs = [field for field in _fields(stream, 0, size) if field.number == _GRAPH and field.kind == _BYTES]
    inside = (field for graph in graphs for field in _fields(stream, graph.inside, graph.stop))
    return [field for field in inside if field.number == _INITIALIZER and field.kind == _BYTES]


def _without_numbers(stream: BinaryIO, tensor: _Field) -> Any:
    """A TensorProto but for its contents."""
    import onnx

    told = b""
    for field in list(_fields(stream, tensor.inside, tensor.stop)):
        if field.number not in _NUMBERS:
            stream.seek(field.start)
            told += stream.read(field.stop - field.start)
    try:
        return onnx.TensorProto.FromString(told)
    except Exception as error:  # protobuf's own
        raise ValueError(said(error)) from error


def _fields(stream: BinaryIO, start: int, stop: int) -> Iterator[_Field]:
    """The fields of a message between two places of a file; what is in them is not read.

    Raises:
        EOFError, ValueError: it is none.
    """
    while start < stop:
        stream.seek(start)
        tag = _varint(stream)
        kind = tag & 7
        if kind == _BYTES:
            length = _varint(stream)
            inside = stream.tell()
        else:
            inside = stream.tell()
            if kind == _VARINT:
                _varint(stream)
                length = stream.tell() - inside
            elif kind in (_EIGHT, _FOUR):
                length = 8 if kind == _EIGHT else 4
            else:
                raise ValueError(f"no field is written as {kind}")
        if inside + length > stop:
            raise EOFError
        yield _Field(tag >> 3, kind, start, inside, inside + length)
        start = inside + length


def _varint(stream: BinaryIO) -> int:
    found = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise EOFError
        found |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return found
    raise ValueError("a number does not end")
