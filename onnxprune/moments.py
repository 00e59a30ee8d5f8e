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
        self.count = 0.0
        self._sums: list[Any] = []
        self._waiting: list[tuple[Any, ...]] = []

    def add(self, x: Any, weight: Any = None) -> None:
        """x [tokens, n]; weight [tokens] or None for ones."""
        self._take(x.float(), x.float() if weight is None else x.float() * weight[:, None])
        self.count += float(x.shape[0] if weight is None else weight.sum())

    def _take(self, *parts: Any) -> None:
        self._waiting.append(parts)
        tokens = sum(p[0].shape[0] for p in self._waiting)
        if tokens >= CHUNK or tokens * sum(p.shape[-1] * p.element_size() for p in parts) >= WAITING:
            self._flush()

    def _flush(self) -> None:
        import torch

        if not self._waiting:
            return
        found = self._products(*(torch.cat(parts) for parts in zip(*self._waiting, strict=True)))
        self._sums = [a + b for a, b in zip(self._sums, found, strict=True)] if self._sums else list(found)
        self._waiting = []

    def _products(self, *parts: Any) -> tuple[Any, ...]:
        x, scaled = parts
        return (scaled.T @ x).double(), scaled.double().sum(0)

    def sums(self) -> list[np.ndarray]:
        """What has been summed, in double precision."""
        self._flush()
        return [np.asarray(s.cpu().numpy()) for s in self._sums]

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
        """x [tokens, n], y [tokens, m], weight [tokens] or None for ones."""
        one = x.new_ones(x.shape[0]) if weight is None else weight
        self._take(x.float(), x.float() * one[:, None], y.float(), y.float() * one[:, None])
        self.count += float(one.sum())

    def _products(self, *parts: Any) -> tuple[Any, ...]:
        x, scaled, y, target = parts
        squares = (target.double() * y.double()).sum(0)
        return *super()._products(x, scaled), (scaled.T @ y).double(), target.double().sum(0), squares
