"""Feeds that nobody gave: of stated sizes, and of plausible values, for timing, checking and counting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError, near

if TYPE_CHECKING:
    from onnxprune.graph.model import InputSpec
    from onnxprune.graph.runtime import Feeds

Array = NDArray[Any]

_BATCH = re.compile(r"batch|^n$|^b$", re.IGNORECASE)
_PAST = re.compile(r"past", re.IGNORECASE)
_SEQUENCE = re.compile(r"seq|len|tokens|^s$|^t$", re.IGNORECASE)


def synthesize(
    inputs: Iterable[InputSpec],
    *,
    batch: int | None = None,
    sequence: int | None = None,
    dims: Mapping[str, int] | None = None,
    examples: Sequence[Feeds] = (),
    seed: int = 0,
    ids: int = 32,
) -> dict[str, Array]:
    """Feeds of given sizes for timing: what they hold is plausible, not meaningful.

    Masks are ones, token types zeros, positions count up, caches (`past…`) are empty; other values are the examples'
    own where there are any, cropped or repeated to the size: some graphs want what every real row has, such as one end
    token, and all of them know a real row's ids.

    Args:
        ids: what token ids stay below: 32 are in every vocabulary.

    Raises:
        UsageError: a dimension that nothing gives a size to, or a size that the graph has fixed otherwise.
    """
    rng = np.random.default_rng(seed)
    there = list(inputs)
    free = any(spec.shape and not isinstance(spec.shape[0], int) for spec in there)
    sizes = _Sizes(batch, sequence, dims or {}, examples, free)
    shapes = [(spec, sizes.shape(spec)) for spec in there]
    named = {d: size for spec, shape in shapes for d, size in zip(spec.shape, shape, strict=True)}
    return {
        spec.name: _values(spec, shape, examples, rng, named.get(spec.limit, spec.limit), ids) for spec, shape in shapes
    }


def unsized(
    inputs: Iterable[InputSpec],
    *,
    batch: int | None = None,
    sequence: int | None = None,
    dims: Mapping[str, int] | None = None,
) -> list[str]:
    """Symbolic dimensions that `synthesize` would ask for."""
    there = list(inputs)
    sizes = _Sizes(batch, sequence, dims or {}, (), free=True)
    open_ = (
        dim
        for spec in there
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str) and axis and sizes.found(spec, axis, dim) is None
    )
    return list(dict.fromkeys(open_))


def require_dimensions(inputs: Iterable[InputSpec], shape: Mapping[str, int], whose: str = "the graph's") -> set[str]:
    """The symbolic dimensions of some inputs, all that a shape may state.

    Raises:
        UsageError: it states another one.
    """
    known = {dim for spec in inputs for dim in spec.shape if isinstance(dim, str)}
    for name in shape:
        if name not in known:
            there = ", ".join(sorted(known)) or "all fixed"
            raise UsageError(f"--shape {name}: {whose} dimensions are {there}{near(name, known)}")
    return known


class _Sizes:
    """Sizes of symbolic dimensions, from what was asked and what was seen."""

    def __init__(
        self, batch: int | None, sequence: int | None, dims: Mapping[str, int], examples: Sequence[Feeds], free: bool
    ) -> None:
        self.batch, self.sequence, self.dims, self.examples = batch, sequence, dims, examples
        self.free = free  # some input's first axis is: a number on another's is no batch

    def shape(self, spec: InputSpec) -> tuple[int, ...]:
        return tuple(self._size(spec, axis, dim) for axis, dim in enumerate(spec.shape))

    def _size(self, spec: InputSpec, axis: int, dim: int | str | None) -> int:
        if isinstance(dim, int):
            if axis == 0 and not self.free and len(spec.shape) > 1 and self.batch not in (None, dim):
                raise UsageError(f"the graph fixes the batch of {spec.name} at {dim}; {self.batch} cannot be timed")
            return dim
        found = self.found(spec, axis, dim)
        if found is None:
            raise UsageError(
                f"dimension {axis} of input {spec.name} ({dim or 'unnamed'}) has no size; name it with --shape "
                f"{dim or 'NAME'}=SIZE, or give --batch and --seq"
            )
        return found

    def found(self, spec: InputSpec, axis: int, dim: str | None) -> int | None:
        """Size of a dimension that the graph does not fix; None where nothing says it."""
        found = self._named(dim, axis) if dim else None
        if found is None and axis == 0:
            found = self.batch or 1
        if found is None and not dim and axis == 1 and spec.dtype.kind in "iu":
            found = self.sequence
        seen = [feeds[spec.name].shape[axis] for feeds in self.examples if spec.name in feeds]
        if found is None and seen:
            found = round(sum(seen) / len(seen))
        return found

    def _named(self, dim: str, axis: int) -> int | None:
        """Size of a dimension by its name; sums such as `past_sequence_length + 1` by their parts."""
        if dim in self.dims:
            return self.dims[dim]
        if "+" in dim:
            parts = [self._named(part.strip(), axis) for part in dim.split("+")]
            return None if None in parts else sum(part for part in parts if part is not None)
        if dim.isdigit():
            return int(dim)
        if _PAST.search(dim):
            return 0
        if _BATCH.search(dim):
            return self.batch or 1
        return self.sequence if _SEQUENCE.search(dim) else None


def _values(
    spec: InputSpec,
    shape: tuple[int, ...],
    examples: Sequence[Feeds],
    rng: np.random.Generator,
    limit: int | str | None,
    ids: int,
) -> Array:
    name = spec.name.lower()
    if "mask" in name and (spec.dtype.kind in "iub" or len(shape) == 2):
        return np.ones(shape, spec.dtype)
    if "mask" in name or "token_type" in name:
        return np.zeros(shape, spec.dtype)
    if "position" in name and spec.dtype.kind in "iu":
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(spec.dtype)
    rows = [feeds[spec.name] for feeds in examples if spec.name in feeds and np.ndim(feeds[spec.name]) == len(shape)]
    if rows and all(np.size(row) for row in rows) and np.prod(shape):
        return _of_rows(rows, shape).astype(spec.dtype)
    if spec.dtype.kind == "f":
        return rng.normal(0.0, 1.0, shape).astype(spec.dtype)
    below = max(min(ids, limit), 1) if isinstance(limit, int) else ids
    if limit is None and len(shape) == 1 and spec.dtype.kind != "b":
        return np.ones(shape, spec.dtype)  # one number a row that looks nothing up: a length, a step, a flag
    if spec.dtype.kind == "b" or not shape or shape[-1] < 2:
        return rng.integers(0, below if spec.dtype.kind != "b" else 1, shape).astype(spec.dtype)
    # Each row holds the same ids in an order of its own: what counts a token (BART's classifier reads at the one end
    # token) finds as many in every row, and the special ones, which are the first of a vocabulary, are among them.
    return rng.permuted(np.broadcast_to(np.arange(shape[-1]) % below, shape), axis=-1).astype(spec.dtype)


def _of_rows(rows: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Real rows at another shape: those whose own is nearest to it, each fitted, on the axis of the batch."""
    if not shape:
        return np.asarray(rows[0])
    single = [row[i : i + 1] for row in rows for i in range(len(row))]
    single.sort(key=lambda row: sum(abs(own - wanted) for own, wanted in zip(row.shape[1:], shape[1:], strict=True)))
    return np.concatenate([fitted(single[i % len(single)], (1, *shape[1:])) for i in range(shape[0])])


def fitted(array: Array, shape: Sequence[int]) -> Array:
    """An array at another shape of the same rank: cropped, or its inner part repeated, axis by axis.

    The first and the last position of an axis stay first and last: a sequence begins and ends with tokens of its own.
    """
    found = np.asarray(array)
    for axis, size in enumerate(shape):
        own = found.shape[axis]
        if own == size or not own:
            continue
        inner = np.arange(1, own - 1) if own > 2 else np.arange(own)
        middle = np.resize(inner, max(size - 2, 0))
        ends = [np.zeros(min(size, 1), np.int64), np.full(int(size > 1), own - 1)]
        found = np.take(found, np.concatenate([ends[0], middle, ends[1]]).astype(np.int64), axis)
    return found
