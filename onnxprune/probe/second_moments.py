"""Second moments over tokens: what least squares knows of the data.

Products are taken in single precision over some thousand tokens at a time, and summed in double: batches of rows of one
length are often small, and a sum of large matrices after each would take longer than the products themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CHUNK = 4096
"""Tokens in one product."""
WAITING = 2**24
"""The most bytes that wait to be multiplied: a scoring sums dozens of these at once."""


class Gram:
    """Σ w x xᵀ and Σ w x over tokens."""

    def __init__(self) -> None:
        self._count = 0.0
        self._sums: list[Any] = []
        self._waiting: list[tuple[Any, tuple[Any, ...]]] = []

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
        self._flush()
        return [np.asarray(s.cpu().numpy()) for s in self._sums]

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
