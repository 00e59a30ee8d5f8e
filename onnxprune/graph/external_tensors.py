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
            tensors = _Fields(stream).tensors(file.stat().st_size)
    except (EOFError, ValueError):  # damaged, or nothing of the kind: whoever parses all of it says what is wrong
        tensors = list(onnx.load(file, load_external_data=False).graph.initializer)
    return [tensor for tensor in tensors if tensor.data_location == tensor.EXTERNAL]


_GRAPH, _INITIALIZER = 7, 5
"""Of a ModelProto, and of its graph: the fields' numbers."""
_NUMBERS = frozenset((4, 5, 6, 7, 9, 10, 11))
"""Of a TensorProto: the fields that hold its contents."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""How protobuf writes a field."""
_MOST = 300_000
"""Fields that are looked at, in a second or two: a hostile file of some megabytes has millions."""


class _Field(NamedTuple):
    """A field of a message: its number, how it is written, where it begins, where its contents do and where it ends."""

    number: int
    kind: int
    start: int
    inside: int
    stop: int


class _Fields:
    """The fields of messages in a file.

    Attributes:
        left: how many more are looked at, before it is left to a parser in another language.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.left = stream, _MOST

    def tensors(self, size: int) -> list[Any]:
        """The initializers of a model of so many bytes, but for their contents."""
        graphs = [field for field in self._between(0, size) if field.number == _GRAPH and field.kind == _BYTES]
        inside = (field for graph in graphs for field in self._between(graph.inside, graph.stop))
        found = [field for field in inside if field.number == _INITIALIZER and field.kind == _BYTES]
        return [self._without_numbers(field) for field in found]

    def _without_numbers(self, tensor: _Field) -> Any:
        import onnx

        told = []
        for field in list(self._between(tensor.inside, tensor.stop)):
            if field.number not in _NUMBERS:
                self._stream.seek(field.start)
                told.append(self._stream.read(field.stop - field.start))
        try:
            return onnx.TensorProto.FromString(b"".join(told))
        except Exception as error:  # protobuf's own
            raise ValueError(said(error)) from error

    def _between(self, start: int, stop: int) -> Iterator[_Field]:
        """The fields of a message between two places of the file; what is in them is not read.

        Raises:
            EOFError, ValueError: it is none, or there are too many.
        """
        while start < stop:
            self.left -= 1
            if self.left < 0:
                raise ValueError("too many fields")
            self._stream.seek(start)
            tag = self._varint()
            kind = tag & 7
            if kind == _BYTES:
                length = self._varint()
                inside = self._stream.tell()
            else:
                inside = self._stream.tell()
                if kind == _VARINT:
                    self._varint()
                    length = self._stream.tell() - inside
                elif kind in (_EIGHT, _FOUR):
                    length = 8 if kind == _EIGHT else 4
                else:
                    raise ValueError(f"no field is written as {kind}")
            if inside + length > stop:
                raise EOFError
            yield _Field(tag >> 3, kind, start, inside, inside + length)
            start = inside + length

    def _varint(self) -> int:
        found = 0
        for shift in range(0, 70, 7):
            byte = self._stream.read(1)
            if not byte:
                raise EOFError
            found |= (byte[0] & 127) << shift
            if byte[0] < 128:
                return found
        raise ValueError("a number does not end")
