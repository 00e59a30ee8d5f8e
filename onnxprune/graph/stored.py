"""Weights in one place: in their file, mapped each time they are read and let go with the array, or in memory.

`onnx_ir.ExternalTensor` keeps its mapping, so that every weight that was ever looked at counts as the process's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

SMALL = 1 << 16
"""Bytes up to which a tensor is kept: shape operands and biases are read over and over."""


class Stored(ir.ExternalTensor):
    """An external tensor whose large contents are never kept."""

    __slots__ = ()

    def numpy(self) -> np.ndarray:
        """The contents, read-only; they are mapped as long as the array lives."""
        if self.nbytes <= SMALL:
            return np.asarray(super().numpy())
        if self.dtype.bitwidth < 8:
            self._check_validity()
            self._check_path_containment()
            return self._unpacked()
        return self._mapped("r")

    def private(self) -> np.ndarray:
        """The same, where whoever writes to it writes to memory of its own: what torch takes without a copy."""
        return np.array(self.numpy()) if self.nbytes <= SMALL or self.dtype.bitwidth < 8 else self._mapped("c")

    def _mapped(self, mode: Literal["r", "c"]) -> np.ndarray:
        self._check_validity()
        self._check_path_containment()
        kind = np.dtype(self.dtype.numpy()).newbyteorder("<")
        mapped = np.memmap(self.path, kind, mode, self.offset or 0, tuple(self.shape.numpy()))
        return mapped.view(np.ndarray)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype=dtype)  # type: ignore[call-overload, no-any-return]

    def tobytes(self) -> bytes:
        """The contents as they lie in the file."""
        self._check_path_containment()
        with Path(self.path).open("rb") as stream:
            stream.seek(self.offset or 0)
            return stream.read(self.nbytes)

    def _unpacked(self) -> np.ndarray:
        """Elements of less than a byte, each in its own."""
        array = np.asarray(super().numpy())
        self._array = None
        self.raw = None
        return array


class Held(ir.Tensor[Any]):
    """A tensor whose array is in memory already, and is lent to who computes with it: read-only, but for torch, which
    takes no such arrays.

    Args:
        array: is copied; the other arguments are those of `ir.Tensor`.
    """

    __slots__ = ()

    def __init__(self, array: np.ndarray, *args: Any, **named: Any) -> None:
        own = np.array(array, order="C").view()
        own.flags.writeable = False
        super().__init__(own, *args, **named)

    def private(self) -> np.ndarray:
        """The array; nobody writes to it."""
        array = self.numpy()
        return array if array.base is None else np.asarray(array.base)


class Taken(ir.LazyTensor):
    """A tensor of some indices of another along some axes, in another order perhaps; made when it is read.

    Args:
        source: of what.
        takes: (indices, axis) pairs, one after another.
    """

    __slots__ = ()

    def __init__(self, source: ir.TensorProtocol, takes: Sequence[tuple[np.ndarray, int]], name: str | None) -> None:
        shape = list(source.shape.numpy())
        for indices, axis in takes:
            shape[axis] = len(indices)

        def make() -> ir.Tensor[Any]:
            array = source.numpy()
            for indices, axis in takes:
                array = array.take(indices, axis)
            return ir.Tensor(np.ascontiguousarray(array), dtype=source.dtype, name=name)

        super().__init__(make, source.dtype, ir.Shape(shape), name=name)
