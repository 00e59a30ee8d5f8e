"""Weights that are integers (or halves) in the file and numbers to everything else.

A quantised weight is (codes − zero point) · scale, whatever operators say so. Analysis, scores and refits see its
numbers; a cut takes codes, and the scales and zero points that go with them, so that nothing is rounded anew; new
numbers are rounded to its grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UnsupportedError
from onnxprune.graph.stored import SMALL, Taken

GIVE_FLOATS = "quantised in a form that is not cut: give the float model; `--quantize int8` gives it back"
"""What is said where integers cannot be told for weights."""
ORDERED = (
    "its inputs are quantised in an order of their own (g_idx): quantise without it (act_order or desc_act off), or "
    "give the float model"
)
"""What is said where inputs that share a scale do not stand together."""
FIXED_BLOCK = 16
"""The smallest block for which runtimes have kernels of their own: from here on, blocks stay as large as they are."""
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Types in which numbers are stored as they are, rounded."""
GROWTH = 2 ** (1 / 8)
"""Scales that have become too small grow by powers of this: numbers that are on such a grid are found to be on it."""
_STEPS = 40
"""The most that a scale grows: 32 times."""
_EXACT = 1e-3
"""Steps that numbers may lie beside a grid that they came from: they were stored in single precision."""
_FURTHER = 2
"""Scales that are tried beyond the first on which numbers fit, for the one that they came from: rounding takes a step
off their range, after which a smaller one may do."""


@dataclass(frozen=True)
class Names:
    """What the parts of a quantised weight are called in the file; an empty name is chosen anew."""

    codes: str = ""
    scale: str = ""
    zero: str = ""
    node: str = ""


@dataclass(frozen=True)
class Form:
    """How a file writes a quantised weight.

    Attributes:
        operators: "DequantizeLinear", "QuantizeLinear" (rounded at run time, and back), or "Cast" (Cast, Sub, Mul;
            Cast alone of halves, whose scale is unwritten).
        ranks: of the scale and of the zero point as they are written.
        axis: of DequantizeLinear, as it is written.
        attributes: others of it, and of QuantizeLinear.
        fixed_block: whether the operators take blocks of some sizes only.
        unwritten: "scale" or "zero", where the operators know it without being told.
        told: whether the block that an index belongs to stands beside, index by index, in 32 bits.
    """

    operators: str
    names: Names
    ranks: tuple[int, int] = (0, 0)
    axis: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    fixed_block: bool = False
    unwritten: tuple[str, ...] = ()
    told: bool = False


@dataclass(frozen=True, eq=False)
class Parts:
    """What a quantised weight is made of, in the order of axes in which it is stored.

    Attributes:
        codes: integers, or floats of 8 or 16 bits.
        scale: of as many axes; along each it has one number, one for every index, or one for every `block` of them.
        zero: the same of zero points; None where they are 0. They may lie between codes, as floats.
        block: indices that share a scale along the axis `along`; 0 where there is no such axis.
        owners: the number of the scale of each index along it, where those that share one do not stand together.
    """

    codes: ir.TensorProtocol
    scale: np.ndarray
    zero: np.ndarray | None
    block: int = 0
    along: int = 0
    owners: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape.numpy())

    def spread(self, parameter: np.ndarray) -> np.ndarray:
        """A scale or zero point as broadcasts against the codes."""
        if not self.block or parameter.shape[self.along] == 1:
            return parameter
        if self.owners is not None:
            return parameter.take(self.owners, self.along)
        wide = np.repeat(parameter, self.block, axis=self.along)
        return wide.take(np.arange(self.shape[self.along]), self.along)

    def numbers(self) -> np.ndarray:
        """float32, or the scale's own type where that is wider."""
        codes = self.codes.numpy()
        whole = codes.astype(np.int64) if codes.dtype.kind in "iub" or _whole(self.codes.dtype) else codes
        centred = whole if self.zero is None else whole - self.spread(self._points(whole.dtype))
        scale = self.spread(self.scale)
        kind = np.float64 if scale.dtype == np.float64 else np.float32
        return np.asarray(centred.astype(kind) * scale.astype(kind))

    def take(self, indices: np.ndarray, axis: int) -> Parts:
        """Some indices along an axis, in their order.

        Raises:
            UnsupportedError: the indices do not keep as many of every block that they keep something of.
        """
        codes = Taken(self.codes, [(indices, axis)], self.codes.name)
        if not self.block or axis != self.along:
            return replace(
                self, codes=codes, scale=_taken(self.scale, indices, axis), zero=_taken(self.zero, indices, axis)
            )
        if self.owners is not None:
            if not np.array_equal(indices, np.arange(self.shape[axis])):
                raise UnsupportedError(f"{self.codes.name}: {ORDERED}")
            return self
        owners = indices // self.block
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        lengths = np.diff(starts, append=len(owners))
        whole = len(lengths) == 0 or bool((lengths[:-1] == lengths[0]).all() and lengths[-1] <= lengths[0])
        if not whole or len(set(owners[starts].tolist())) < len(starts):
            raise UnsupportedError(
                f"{self.codes.name}: quantised in blocks of {self.block}, of which different numbers of indices would "
                "be left"
            )
        kept, block = owners[starts], int(lengths[0]) if len(lengths) else self.block
        scale, zero = _taken(self.scale, kept, axis), _taken(self.zero, kept, axis)
        return replace(self, codes=codes, scale=scale, zero=zero, block=block)

    def rounded(self, numbers: np.ndarray) -> Parts:
        """The nearest numbers that can be written: on the scales there are, or on larger ones where they overflow."""
        wide = np.asarray(numbers, dtype=np.float64)
        scale, zero = self._grid(wide)
        parts = replace(self, scale=scale, zero=zero)
        shift = 0 if zero is None else parts.spread(zero).astype(np.float64)
        codes = steps_of(wide / parts.spread(scale).astype(np.float64), self.codes.dtype, shift)
        kind = self.codes.dtype
        return replace(parts, codes=ir.Tensor(codes.astype(kind.numpy()), dtype=kind, name=self.codes.name))

    def _grid(self, wide: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(scale, zero point) on which some numbers fit."""
        if self.half:
            return self.scale, self.zero
        low, high = _range(self.codes.dtype)
        zero = np.zeros_like(self.scale, np.float64) if self.zero is None else np.asarray(self.zero, np.float64)
        zero = np.broadcast_to(zero, self.scale.shape)
        moves = self.zero is not None and not self._symmetric()
        base = np.where(self.scale.astype(np.float64) > 0, self.scale.astype(np.float64), np.finfo(np.float32).tiny)
        if wide.size == zero.size == 1:  # its own scale is enough for a number alone
            most = high - zero if wide.item() >= 0 else zero - low
            needed = np.abs(wide.reshape(base.shape)) / np.maximum(most, 1)
            return np.where((most > 0) & (needed > 0), needed, base).astype(self.scale.dtype), self.zero
        found, shift = base.copy(), zero.copy()
        first = np.full(base.shape, _STEPS)
        settled = np.zeros(base.shape, dtype=bool)
        for power in range(_STEPS):
            scale = (base * GROWTH**power).astype(self.scale.dtype).astype(np.float64)
            steps = wide / self.spread(scale)
            whole = self._coded(steps, self.spread(zero)) if self._integers else self._floats(steps)
            least = np.minimum(self._over_slices(np.minimum, whole), 0)
            most = np.maximum(self._over_slices(np.maximum, whole), 0)
            fits = (most - least <= high - low) if moves else (least + zero >= low) & (most + zero <= high)
            apart = self._over_slices(np.maximum, np.abs(steps - whole) / (1 if self._integers else _spacing(whole)))
            exact = fits & (apart <= _EXACT) & (power - first <= _FURTHER)
            chosen = (fits & (first == _STEPS)) | (exact & ~settled)
            found = np.where(chosen, scale, found)
            moved = np.where(most + zero > high, high - most, np.where(least + zero < low, low - least, zero))
            shift = np.where(chosen & moves, moved, shift)
            first = np.where(fits, np.minimum(first, power), first)
            settled |= exact
            if (settled | (power - first >= _FURTHER)).all():
                break
        found = np.where(first == _STEPS, scale, found)  # what fits on no scale is clipped on the largest
        return found.astype(self.scale.dtype), None if self.zero is None else shift.astype(self.zero.dtype)

    @property
    def half(self) -> bool:
        """Whether the codes are numbers in half precision, which need no scale."""
        return self.codes.dtype in HALVES

    @property
    def _integers(self) -> bool:
        return _whole(self.codes.dtype)

    def _points(self, kind: np.dtype[Any]) -> np.ndarray:
        """Zero points as numbers of another type; those between codes stay what they are."""
        assert self.zero is not None
        return self.zero if self.between else self.zero.astype(kind)

    @property
    def between(self) -> bool:
        """Whether zero points may lie between codes."""
        return self._integers and self.zero is not None and self.zero.dtype.kind == "f"

    def _coded(self, steps: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """The numbers of steps nearest to some at which there are codes."""
        return np.asarray(np.round(steps + zero) - zero if self.between else np.round(steps))

    def _floats(self, steps: np.ndarray) -> np.ndarray:
        """The nearest codes to some numbers of steps, where codes are floats; what overflows stays as it is."""
        low, high = _range(self.codes.dtype)
        near = np.clip(steps, low, high).astype(self.codes.dtype.numpy()).astype(np.float64)
        over = (steps < low * (1 + _EXACT)) | (steps > high * (1 + _EXACT))
        return np.where(over, steps, near)

    def _symmetric(self) -> bool:
        """Whether zero points are where products of integers are quickest, and have to stay there."""
        low, high = _range(self.codes.dtype)
        return self.zero is None or bool((np.asarray(self.zero, np.float64) == (low + high + 1) // 2).all())

    def _over_slices(self, ufunc: np.ufunc, array: np.ndarray) -> np.ndarray:
        """A reduction over all that share a scale, in the scale's shape."""
        for axis, size in enumerate(self.scale.shape):
            if size == 1:
                array = ufunc.reduce(array, axis=axis, keepdims=True)
            elif self.block and axis == self.along:
                starts = np.arange(size) * self.block
                if self.owners is not None:
                    order = np.argsort(self.owners, kind="stable")
                    array, starts = array.take(order, axis), np.searchsorted(self.owners[order], np.arange(size))
                array = ufunc.reduceat(array, starts, axis=axis)
        return array


class Quantised(ir.LazyTensor):
    """The numbers of a quantised weight as a tensor; they are computed each time that they are read.

    Attributes:
        parts: as they are stored.
        form: how they are written.
        perm: how the stored axes are turned into this tensor's (`numpy.transpose`).
    """

    __slots__ = ("form", "parts", "perm")

    def __init__(
        self, parts: Parts, form: Form, dtype: ir.DataType, name: str | None, perm: Sequence[int] | None = None
    ) -> None:
        self.parts, self.form = parts, form
        self.perm = tuple(range(len(parts.shape))) if perm is None else tuple(perm)

        def make() -> ir.Tensor[Any]:
            numbers = parts.numbers().transpose(self.perm)
            return ir.Tensor(np.ascontiguousarray(numbers).astype(dtype.numpy(), copy=False), dtype=dtype, name=name)

        super().__init__(make, dtype, ir.Shape([parts.shape[a] for a in self.perm]), name=name)

    def take(self, takes: Sequence[tuple[np.ndarray, int]], name: str | None) -> Quantised:
        """Of some indices along some axes of this tensor, one after another."""
        parts = self.parts
        for indices, axis in takes:
            parts = parts.take(indices, self.perm[axis])
        return Quantised(parts, self.form, self.dtype, name, self.perm)

    def rounded(self, numbers: np.ndarray) -> Quantised:
        """The nearest numbers that can be written so."""
        parts = self.parts.rounded(np.asarray(numbers, np.float64).transpose(np.argsort(self.perm)))
        return Quantised(parts, self.form, self.dtype, self.name, self.perm)

    def times(self, factor: float) -> Quantised:
        """Times a positive number: the codes are the same."""
        scale = np.asarray(self.parts.scale * factor).astype(self.parts.scale.dtype)
        return Quantised(replace(self.parts, scale=scale), self.form, self.dtype, self.name, self.perm)

    def turned(self, perm: Sequence[int], name: str | None) -> Quantised:
        """With its axes in another order."""
        return Quantised(self.parts, self.form, self.dtype, name, [self.perm[a] for a in perm])

    def block_along(self, axis: int) -> int:
        """Indices that share a scale along an axis; 0 where none do, or all."""
        return self.parts.block if self.parts.block and self.perm[axis] == self.parts.along else 0

    def ordered_along(self, axis: int) -> bool:
        """Whether indices that share a scale along an axis do not stand together."""
        return bool(self.block_along(axis)) and self.parts.owners is not None

    def contents(self, shape: Sequence[int] | None = None) -> list[tuple[int, ir.DataType]]:
        """(count, element type) of codes, scales and zero points, as they are or once the tensor has another shape."""
        sizes = tuple(self.shape.numpy()) if shape is None else tuple(shape)
        stored = [sizes[a] for a in np.argsort(self.perm)]
        counts = [self._count(axis, size, stored[axis]) for axis, size in enumerate(self.parts.scale.shape)]
        kind, numbers = self.parts.codes.dtype, ir.DataType.from_numpy(self.parts.scale.dtype)
        found = [(math.prod(stored), numbers if self.form.operators == "QuantizeLinear" else kind)]
        if "scale" not in self.form.unwritten:
            found.append((math.prod(counts), numbers))
        if self.parts.zero is not None and "zero" not in self.form.unwritten:
            count = math.prod(counts) if self.form.ranks[1] or self.form.operators != "DequantizeLinear" else 1
            found.append((count, numbers if self.form.operators == "Cast" or self.parts.between else kind))
        if self.form.told:
            found.append((stored[-1], ir.DataType.INT32))
        return found

    @property
    def whole_blocks(self) -> bool:
        """Whether blocks go as a whole: other sizes have no kernels, or slow ones. Else each loses as many indices."""
        return self.parts.block >= FIXED_BLOCK or self.form.fixed_block

    def _count(self, axis: int, size: int, now: int) -> int:
        if size == 1 or now == self.parts.shape[axis]:
            return size
        if self.parts.block and axis == self.parts.along:
            return now // self.parts.block if self.whole_blocks else size
        return now


def nearest(tensor: ir.TensorProtocol | None, numbers: np.ndarray) -> np.ndarray:
    """What a tensor can hold of some numbers: those of a quantised one rounded to its grid, others as they are."""
    if not isinstance(tensor, Quantised):
        return numbers
    return np.asarray(tensor.rounded(numbers).numpy()).astype(numbers.dtype, copy=False)


def taken(tensor: ir.TensorProtocol, takes: Sequence[tuple[np.ndarray, int]], name: str | None) -> ir.TensorProtocol:
    """Some indices of a tensor along some axes, one after another; what is large is made when it is read."""
    if isinstance(tensor, Quantised):
        return tensor.take(takes, name)
    found = Taken(tensor, takes, name)
    return found if tensor.nbytes > SMALL else ir.Tensor(found.numpy(), dtype=tensor.dtype, name=name)


def _taken(parameter: Any, indices: np.ndarray, axis: int) -> Any:
    return parameter if parameter is None or parameter.shape[axis] == 1 else parameter.take(indices, axis)


def _whole(kind: ir.DataType) -> bool:
    return not kind.is_floating_point()


def _range(kind: ir.DataType) -> tuple[float, float]:
    """The least and the largest code of a type."""
    if _whole(kind):
        signed = kind.is_signed()
        return (-(2 ** (kind.bitwidth - 1)) if signed else 0), 2 ** (kind.bitwidth - signed) - 1
    import ml_dtypes

    info = ml_dtypes.finfo(kind.numpy())  # type: ignore[no-untyped-call]
    return float(info.min), float(info.max)


def _spacing(codes: np.ndarray) -> np.ndarray:
    """What codes that are floats lie apart, about: they have two or three bits of mantissa, and go down to 2⁻¹⁷."""
    return np.asarray(np.maximum(np.abs(codes) / 8, 2.0**-17))


def steps_of(steps: np.ndarray, kind: ir.DataType, shift: Any) -> np.ndarray:
    """The codes nearest to some numbers of steps from zero: whole ones, or as they are, where codes are floats."""
    low, high = _range(kind)
    if not _whole(kind):
        return np.asarray(np.clip(steps + shift, low, high))
    # QuantizeLinear adds a zero point, which is whole, to what it has rounded.
    whole = np.round(np.round(steps) + shift if np.array_equal(shift, np.round(shift)) else steps + shift)
    return np.asarray(np.clip(whole, low, high)).astype(np.int64)
