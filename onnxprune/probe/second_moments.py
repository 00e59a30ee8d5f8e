"""Second moments over tokens: what least squares knows of the data.

Products are taken in single precision over some thousand tokens at a time, and summed in double: batches of rows of one
length are often small, and a sum of large matrices after each would take longer than the products themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxprune.errors import LimitError
from onnxprune.graph import outputs

CHUNK = 4096
"""Tokens in one product."""
WAITING = 2**24
"""The most bytes that wait to be multiplied: a scoring sums dozens of these at once."""
ENOUGH = 2**16
"""Positions of pictures and signals, over all rows, that are summed over: neighbours are alike, and there are thousands
in a row."""


def drawn(count: int, rows: int, of: int) -> np.ndarray | None:
    """Which of a batch's positions are summed over, so that all rows together have about `ENOUGH`; None for all.

    Args:
        count: positions in the batch.
        rows, of: rows in the batch, and in all.
    """
    quota = -(-ENOUGH * rows // max(of, 1))
    if count <= quota:
        return None
    return np.sort(np.random.default_rng(count).choice(count, quota, replace=False))


class Store:
    """Arrays that are done with for now: the first of them stay in memory, the others go to files that are mapped
    when they are read.

    The files lie in a folder for temporary files, and go with the store.

    Args:
        limit: bytes that stay in memory.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit
        self._folder: outputs.Lasting | None = None
        self._count = 0

    def keep(self, array: np.ndarray) -> Callable[[], np.ndarray]:
        """Put an array away; what is returned gives it back."""
        if array.nbytes <= self.left:
            self.left -= array.nbytes
            return lambda: array
        if self._folder is None:
            self._folder = outputs.Lasting()
        self._count += 1
        folder, file = self._folder, self._folder.path / f"{self._count}.npy"
        free = shutil.disk_usage(folder.path).free
        if free < 2 * array.nbytes:
            raise LimitError(
                f"{folder.path}: {free / 1e9:.1f} GB are free there, too few for the second moments that memory does "
                "not hold; make room, name another folder in TMPDIR, or give --max-memory more"
            )
        np.save(file, array)

        def read() -> np.ndarray:
            assert folder is not None  # it lives as long as what is in it is asked for
            return np.asarray(np.load(file, mmap_mode="c"))

        return read


class Gram:
    """Σ w x xᵀ and Σ w x over tokens."""

    def __init__(self) -> None:
        self._count = 0.0
        self._sums: list[Any] = []
        self._waiting: list[tuple[Any, tuple[Any, ...]]] = []
        self._kept: list[Callable[[], np.ndarray]] = []

    def add(self, x: Any, weight: Any = None) -> None:
        """x [tokens, n]; weight [tokens] or None for ones, in every call or in none."""
        self._take(weight, x.float())

    def _take(self, weight: Any, *values: Any) -> None:
        self._waiting.append((weight, values))
        tokens = sum(v[0].shape[0] for _, v in self._waiting)
        if tokens >= CHUNK or tokens * sum(v.shape[-1] * v.element_size() for v in values) >= WAITING:
            self._flush()

    def _flush(self) -> None:
        import torch

        if not self._waiting:
            return
        weights, parts = zip(*self._waiting, strict=True)
        self._waiting = []
        with torch.inference_mode():  # what was summed first may be an inference tensor
            values = [torch.cat(p) for p in zip(*parts, strict=True)]
            weight = None if weights[0] is None else torch.cat(weights)[:, None].to(values[0].dtype)
            self._count += float(len(values[0]) if weight is None else weight.sum(dtype=torch.float64))
            found = self._products(values, values if weight is None else [v * weight for v in values])
            sums = self._sums or [f.new_zeros(f.shape, dtype=torch.float64) for f in found]
            self._sums = [a.add_(b) for a, b in zip(sums, found, strict=True)]

    def _products(self, values: list[Any], scaled: list[Any]) -> tuple[Any, ...]:
        import torch

        (x,), (wx,) = values, scaled
        return wx.T @ x, wx.sum(0, dtype=torch.float64)

    def sums(self) -> list[np.ndarray]:
        """What has been summed, in double precision."""
        if self._kept:
            return [read() for read in self._kept]
        self._flush()
        return [np.asarray(s.cpu().numpy()) for s in self._sums]

    def put_away(self, store: Store) -> None:
        """Let a store keep the sums: nothing is added any more."""
        self._kept, self._sums = [store.keep(array) for array in self.sums()], []

    @property
    def count(self) -> float:
        """The weight of all tokens."""
        self._flush()
        return self._count

    @property
    def matrix(self) -> np.ndarray:
        """[n, n] Σ w x xᵀ."""
        return self.sums()[0]

    @property
    def mean(self) -> np.ndarray:
        """[n] weighted mean of x."""
        return self.sums()[1] / max(self.count, 1e-30)

    @property
    def centred(self) -> np.ndarray:
        """[n, n] Σ w (x − x̄)(x − x̄)ᵀ: what an intercept leaves to the weights."""
        return self.matrix - self.count * np.outer(self.mean, self.mean)


class Pairs(Gram):
    """The same of inputs x beside targets y: Σ w x xᵀ, Σ w x, Σ w x yᵀ, Σ w y and Σ w y²."""

    def add(self, x: Any, y: Any, weight: Any = None) -> None:  # type: ignore[override]
        """x [tokens, n], y [tokens, m], weight [tokens] or None for ones, in every call or in none."""
        self._take(weight, x.float(), y.float())

    def _products(self, values: list[Any], scaled: list[Any]) -> tuple[Any, ...]:
        import torch

        (x, y), (wx, wy) = values, scaled
        squares = (wy.double() * y.double()).sum(0)  # exactly: little may be left of them about the mean
        return *super()._products([x], [wx]), wx.T @ y, wy.sum(0, dtype=torch.float64), squares
