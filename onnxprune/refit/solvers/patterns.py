"""Sparsity patterns of one weight matrix [inputs, outputs], and the projection of scores onto each.

A pattern turns additive importance scores (squares: a block's score is the sum of its entries') into the mask that
keeps the most. N:M groups lie along the input axis, as hardware that exploits them wants. A matrix whose sides are
no multiple of the group is taken as if padded with zeros.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UsageError
from onnxprune.graph.plan import Tile
from onnxprune.refit.solvers.linalg import Array, Bools

FORMS = (
    "N:M (2:4, 8:16), ROWSxCOLUMNS:SHARE (4x1:0.5, 16x16:0.5), pattern:ROWSxCOLUMNS:SHARE[:COUNT], "
    "unstructured:SHARE or tiles:SHARE[:WIDTH]"
)

LIBRARY_SIZE = 16

NARROWEST = 192
"""Outputs of a tile below which what a smaller product saves goes into having more of them."""

STEP = 16
"""Numbers of outputs that CPU kernels are made for are multiples of this."""


class Pattern(Protocol):
    """A set of allowed masks."""

    @property
    def rows(self) -> int | None:
        """Input rows that can be decided on their own; None where the choice is over the whole matrix."""

    def learn(self, scores: Array) -> Pattern:
        """The pattern fitted to a matrix's scores [n, m], where it has anything to learn; else itself."""

    def project(self, scores: Array) -> Bools:
        """The allowed mask [n, m] that keeps the most of non-negative scores [n, m]; ties go to the earlier input."""

    def satisfied(self, mask: npt.ArrayLike) -> bool:
        """Whether the non-zeros of a mask (or of a weight matrix) [n, m] are allowed."""


class _Given:
    """A pattern with nothing to learn from the weights."""

    def learn(self, scores: Array) -> Self:
        return self


@dataclass(frozen=True)
class NM(_Given):
    """At most `n` of every `m` consecutive inputs, per output (2:4 on TensorRT)."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise UsageError(f"sparsity {self.n}:{self.m} keeps {self.n} of {self.m}: N must be from 1 to M")

    @property
    def rows(self) -> int | None:
        return self.m

    def project(self, scores: Array) -> Bools:
        groups = _padded(scores, self.m, 1, -1.0).reshape(-1, self.m, scores.shape[1])
        rank = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1, kind="stable")
        return np.asarray((rank < self.n).reshape(-1, scores.shape[1])[: len(scores)])

    def satisfied(self, mask: npt.ArrayLike) -> bool:
        used = np.asarray(mask) != 0
        return bool((_padded(used, self.m, 1, False).reshape(-1, self.m, used.shape[1]).sum(axis=1) <= self.n).all())


@dataclass(frozen=True)
class Blocks(_Given):
    """A share of the matrix's blocks of `height` inputs × `width` outputs, the best of the whole matrix."""

    height: int
    width: int
    share: float

    def __post_init__(self) -> None:
        _check_block(self.height, self.width, self.share)

    @property
    def rows(self) -> int | None:
        return None

    def count(self, shape: tuple[int, int]) -> int:
        """Blocks kept in a matrix of this shape."""
        return _share_of(self.share, math.ceil(shape[0] / self.height) * math.ceil(shape[1] / self.width))

    def project(self, scores: Array) -> Bools:
        count = self.count((scores.shape[0], scores.shape[1]))
        sums = _blocks(scores, self.height, self.width, 0.0).sum(axis=(2, 3))
        chosen = np.isin(np.arange(sums.size), np.argsort(-sums.ravel(), kind="stable")[:count])
        full = np.repeat(np.repeat(chosen.reshape(sums.shape), self.height, axis=0), self.width, axis=1)
        return np.asarray(full[: scores.shape[0], : scores.shape[1]])

    def satisfied(self, mask: npt.ArrayLike) -> bool:
        used = np.asarray(mask) != 0
        blocks = int(_blocks(used, self.height, self.width, False).any(axis=(2, 3)).sum())
        return blocks <= self.count((used.shape[0], used.shape[1]))


@dataclass(frozen=True)
class Library:
    """Every block of `height` inputs × `width` outputs takes one of a few masks of `keep` entries (Wang 2024).

    Attributes:
        size: masks in the library.
        masks: the library itself, each mask row by row, once learnt from a matrix.
    """

    height: int
    width: int
    keep: int
    size: int = LIBRARY_SIZE
    masks: tuple[tuple[bool, ...], ...] | None = None

    def __post_init__(self) -> None:
        _check_block(self.height, self.width, 1.0)
        if not 0 < self.keep <= self.height * self.width or self.size < 1:
            raise UsageError(f"no library of {self.size} masks keeps {self.keep} of {self.height}x{self.width} entries")

    @property
    def rows(self) -> int | None:
        return self.height

    def learn(self, scores: Array) -> Library:
        """With the `size` most frequent top-`keep` masks over the blocks; among equals, those that keep more."""
        flat = _blocks(scores, self.height, self.width, 0.0).reshape(-1, self.height * self.width)
        top = np.argsort(-flat, axis=1, kind="stable")[:, : self.keep]
        masks = np.zeros(flat.shape, dtype=bool)
        np.put_along_axis(masks, top, True, axis=1)
        distinct, index, counts = np.unique(masks, axis=0, return_inverse=True, return_counts=True)
        worth = np.bincount(index.ravel(), weights=(flat * masks).sum(axis=1), minlength=len(distinct))
        order = np.lexsort((-worth, -counts))[: self.size]
        learnt = tuple(tuple(bool(x) for x in distinct[i]) for i in order)
        return Library(self.height, self.width, self.keep, self.size, learnt)

    def project(self, scores: Array) -> Bools:
        masks = np.array((self if self.masks else self.learn(scores)).masks, dtype=bool)
        blocks = _blocks(scores, self.height, self.width, 0.0)
        flat = blocks.reshape(-1, self.height * self.width)
        chosen = masks[np.argmax(flat @ masks.T.astype(np.float64), axis=1)].reshape(blocks.shape)
        full = chosen.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * self.height, -1)
        return np.asarray(full[: scores.shape[0], : scores.shape[1]])

    def satisfied(self, mask: npt.ArrayLike) -> bool:
        used = _blocks(np.asarray(mask) != 0, self.height, self.width, False).reshape(-1, self.height * self.width)
        used = np.unique(used, axis=0)
        if self.masks:
            return bool(_within(used, np.array(self.masks)).any(axis=1).all())
        # A mask inside another needs no place of its own (cut-off edges, weights that happen to be zero).
        largest = int((_within(used, used).sum(axis=1) == 1).sum())
        return largest <= self.size and bool((used.sum(axis=1) <= self.keep).all())


@dataclass(frozen=True)
class Tiles(_Given):
    """Outputs side by side, in tiles that each read one contiguous range of the inputs, `share` of them.

    The form that a Slice and a smaller dense MatMul exploit on any runtime (tile-wise sparsity, Guo et al., SC 2020).

    Attributes:
        width: the fewest outputs in a tile; None for two tiles of at least `NARROWEST`.
    """

    share: float
    width: int | None = None

    def __post_init__(self) -> None:
        _check_block(1, 1 if self.width is None else self.width, self.share)

    @property
    def rows(self) -> int | None:
        return None

    @property
    def least(self) -> int:
        """The fewest outputs that a matrix in tiles has."""
        return 2 * NARROWEST if self.width is None else self.width

    def bounds(self, outputs: int) -> list[tuple[int, int]]:
        """(first, last) outputs of each tile: evenly many, in steps that kernels like; one tile where they are few."""
        count = max(outputs // self.least if self.width else min(outputs // NARROWEST, 2), 1)
        step = STEP if outputs >= count * 4 * STEP else 1
        ends = [round(i * outputs / count / step) * step for i in range(count)] + [outputs]
        return list(itertools.pairwise(ends))

    def length(self, inputs: int) -> int:
        """How many inputs a tile reads."""
        return _share_of(self.share, inputs)

    def ranges(self, scores: Array) -> list[tuple[int, int]]:
        """The range of inputs (start, stop) of each tile that keeps the most of the scores, in order."""
        length = self.length(len(scores))
        found = []
        for first, last in self.bounds(scores.shape[1]):
            running = np.concatenate([[0.0], np.cumsum(scores[:, first:last].sum(axis=1))])
            start = int(np.argmax(running[length:] - running[: len(running) - length]))
            found.append((start, start + length))
        return found

    def project(self, scores: Array) -> Bools:
        mask = np.zeros(scores.shape, dtype=bool)
        for (first, last), (start, stop) in zip(self.bounds(scores.shape[1]), self.ranges(scores), strict=True):
            mask[start:stop, first:last] = True
        return mask

    def satisfied(self, mask: npt.ArrayLike) -> bool:
        used = np.asarray(mask) != 0
        read = [np.flatnonzero(used[:, first:last].any(axis=1)) for first, last in self.bounds(used.shape[1])]
        return all(not len(rows) or rows[-1] - rows[0] < self.length(len(used)) for rows in read)


@dataclass(frozen=True)
class Tiled(_Given):
    """Tiles whose ranges are chosen already."""

    tiles: tuple[Tile, ...]

    @property
    def rows(self) -> int | None:
        return None

    def project(self, scores: Array) -> Bools:
        mask = np.zeros(scores.shape, dtype=bool)
        for tile in self.tiles:
            mask[tile.start : tile.stop, tile.first : tile.last] = True
        return mask

    def satisfied(self, mask: npt.ArrayLike) -> bool:
        used = np.asarray(mask) != 0
        return not (used & ~self.project(used.astype(np.float64))).any()


def parse(text: str) -> Pattern:
    """The pattern a user names: `2:4`, `4x1:0.5` (or `block:4x1:0.5`), `pattern:4x4:0.5:16` (16 masks),
    `unstructured:0.5`, `tiles:0.5` or `tiles:0.5:384` (outputs a tile).

    Blocks are inputs × outputs; a share is what is kept. Unstructured are blocks of one weight.

    Raises:
        UsageError: the text is none of these.
    """
    kind, *rest = text.strip().split(":")
    try:
        match kind, len(rest):
            case "block", 2:
                height, width = map(int, rest[0].split("x"))
                return Blocks(height, width, float(rest[1]))
            case "unstructured", 1:
                return Blocks(1, 1, float(rest[0]))
            case "pattern", 2 | 3:
                height, width = map(int, rest[0].split("x"))
                _check_block(height, width, float(rest[1]))
                size = int(rest[2]) if len(rest) > 2 else LIBRARY_SIZE
                return Library(height, width, _share_of(float(rest[1]), height * width), size)
            case "tiles", 1 | 2:
                return Tiles(float(rest[0]), *map(int, rest[1:]))
            case _, 1 if "x" in kind:
                height, width = map(int, kind.split("x"))
                return Blocks(height, width, float(rest[0]))
            case _, 1:
                return NM(int(kind), int(rest[0]))
    except ValueError:
        pass
    raise UsageError(f"sparsity {text!r} is not understood; write {FORMS}")


def _check_block(height: int, width: int, share: float) -> None:
    if height < 1 or width < 1:
        raise UsageError(f"a block of {height}x{width} is empty")
    if not 0 < share <= 1:
        raise UsageError(f"share {share} is what is kept: more than 0, at most 1")


def _share_of(share: float, whole: int) -> int:
    """How many of `whole` a share keeps: rounded, at least one."""
    return min(whole, max(1, math.floor(share * whole + 0.5)))


def _within(masks: Bools, others: Bools) -> Bools:
    """[a, b] whether mask a [a, k] has no entry outside b [b, k]."""
    return np.asarray(masks.astype(np.float64) @ (~others).T.astype(np.float64) == 0)


def _padded(x: npt.NDArray[Any], rows: int, columns: int, fill: float | bool) -> npt.NDArray[Any]:
    return np.pad(x, ((0, -len(x) % rows), (0, -x.shape[1] % columns)), constant_values=fill)


def _blocks(x: npt.NDArray[Any], height: int, width: int, fill: float | bool) -> npt.NDArray[Any]:
    """[n, m] -> [n / height, m / width, height, width]."""
    full = _padded(x, height, width, fill)
    return full.reshape(len(full) // height, height, -1, width).transpose(0, 2, 1, 3)
