"""Second moments over tokens: what least squares knows of the data.

Products are taken in single precision over some thousand tokens at a time, and summed in double: batches of rows of one
length are often small, and a sum of large matrices after each would take longer than the products themselves. Where
values are `SINGLE` wide or wider the sums are in single precision as well: a few dozen products of that precision lose
nothing by it, and all layers of a large model at once hold half. Of fewer tokens than what they hold is wide, nothing
is summed: they are kept as they are, which takes less memory and says as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from onnxprune.graph import large_products
from onnxprune.graph.put_away import Store

CHUNK = 4096
"""Tokens in one product."""
STRIP = 256
"""Columns of a symmetric product that are multiplied at once, with themselves and those behind them."""
SINGLE = 1024
"""Width from which on sums of products have the products' precision, and are summed where they are multiplied."""
ENOUGH_TO_MULTIPLY = 512
"""Tokens of such widths that wait to be multiplied: fewer would take longer each."""
WAITING = 2**24
"""The most bytes that wait to be multiplied: a scoring sums dozens of these at once."""
ADDED = 32
"""Tokens whose values are added up in single precision, before that is added to the rest in double."""
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


DIGITS = 8 * float(np.finfo(np.float32).eps)
"""Of what is summed in products of single precision: what may be rounding."""


class Gram:
    """Σ w x xᵀ and Σ w x over tokens."""

    def __init__(self) -> None:
        self._count = 0.0
        self._sums: list[Any] = []
        self._waiting: list[tuple[Any, tuple[Any, ...]]] = []
        self._kept: list[Callable[[], np.ndarray]] = []

    def arrays(self) -> dict[str, np.ndarray]:
        """To be sent elsewhere, or kept: what has been summed, or the tokens where they are."""
        if (few := self._tokens()) is None:
            sums = self.sums()
            return {"count": np.asarray(self._count), **{f"sum.{i}": array for i, array in enumerate(sums)}}
        weight, values = few
        told = {} if weight is None else {"weight": weight.cpu().numpy()}
        return {**told, **{f"value.{i}": value.cpu().numpy() for i, value in enumerate(values)}}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """What `arrays` were of."""
        import torch

        found = cls()
        values = tuple(torch.from_numpy(arrays[name]) for name in sorted(arrays) if name.startswith("value."))
        if values:
            found._waiting = [(torch.from_numpy(arrays["weight"]) if "weight" in arrays else None, values)]
        else:
            found._count = float(arrays["count"])
            found._kept = [partial(np.asarray, arrays[name]) for name in sorted(arrays) if name.startswith("sum.")]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.arrays(),)

    @property
    def nbytes(self) -> int:
        """What it holds."""
        few = self._tokens()
        held = self.sums() if few is None else [x for x in (few[0], *few[1]) if x is not None]
        return sum(int(x.nbytes) for x in held)

    def add(self, x: Any, weight: Any = None) -> None:
        """x [tokens, n]; weight [tokens] or None for ones, in every call or in none."""
        self._take(weight, x.float())

    def _take(self, weight: Any, *values: Any) -> None:
        self._waiting.append((weight, values))
        tokens = sum(v[0].shape[0] for _, v in self._waiting)
        much = tokens >= CHUNK or tokens * sum(v.shape[-1] * v.element_size() for v in values) >= WAITING
        much |= self._in_place(values) and tokens >= ENOUGH_TO_MULTIPLY
        if much and not (self._few and tokens <= values[0].shape[-1]):
            self._flush()

    @property
    def _few(self) -> bool:
        """Whether there is nothing but tokens that wait."""
        return not self._sums and not self._kept and bool(self._waiting)

    def _tokens(self) -> tuple[Any, tuple[Any, ...]] | None:
        """(weights or None, values) of all tokens, where they are fewer than the first value is wide."""
        import torch

        if not self._few:
            return None
        weights, parts = zip(*self._waiting, strict=True)
        if sum(p[0].shape[0] for p in parts) > parts[0][0].shape[-1]:
            return None
        if len(parts) > 1:
            with torch.inference_mode():
                self._waiting = [_joined(weights, parts)]
        return self._waiting[0]

    def _flush(self) -> None:
        import torch

        if not self._waiting:
            return
        weights, parts = zip(*self._waiting, strict=True)
        self._waiting = []
        with torch.inference_mode():  # what was summed first may be an inference tensor
            joined = _joined(weights, parts)
            self._count += _counted(*joined)
            if self._in_place(joined[1]):
                self._sums = self._added(*joined)
                return
            found = self._multiplied(*joined)
            sums = self._sums or [f.new_zeros(f.shape, dtype=torch.float64) for f in found]
            self._sums = [a.add_(b) for a, b in zip(sums, found, strict=True)]

    def _added(self, weight: Any, values: Sequence[Any]) -> list[Any]:
        """The sums with some more tokens; what is below the matrix's diagonal is made when it is asked for."""
        import torch

        (x,) = values
        wx = _scaled(weight, x)
        matrix, total = self._sums or (x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(1, dtype=torch.float64))
        return [_added(wx, x, matrix), total + _summed(wx)]

    def _in_place(self, values: Sequence[Any]) -> bool:
        """Whether products are added to the sums as they are made."""
        return bool(values[0].shape[-1] >= SINGLE)

    def _multiplied(self, weight: Any, values: Sequence[Any]) -> tuple[Any, ...]:
        return self._products(weight, list(values), [_scaled(weight, v) for v in values])

    def _products(self, weight: Any, values: list[Any], scaled: list[Any]) -> tuple[Any, ...]:
        (x,), (wx,) = values, scaled
        return _square(wx, x), _summed(wx)

    def sums(self) -> list[np.ndarray]:
        """What has been summed, in double precision but for wide matrices."""
        import torch

        if self._kept:
            return [read() for read in self._kept]
        few = self._tokens()
        if few is not None:
            return [np.asarray(s.double().cpu().numpy()) for s in self._multiplied(*few)]
        self._flush()
        if self._sums and self._sums[0].dtype != torch.float64:
            with torch.inference_mode():
                _mirrored(self._sums[0])
        return [np.asarray(s.cpu().numpy()) for s in self._sums]

    @property
    def tokens(self) -> np.ndarray | None:
        """[t, n] √w x, in single precision, where there are fewer tokens than that is wide."""
        found = self._tokens()
        if found is None:
            return None
        weight, (x, *_) = found
        scaled = x if weight is None else x * weight.to(x.dtype).sqrt()[:, None]
        return np.asarray(scaled.cpu().numpy())

    def settle(self, width: int) -> None:
        """Make zeros of what no row has reached."""
        import torch

        if not self._kept and not self._waiting and not self._sums:
            self.add(torch.zeros(1, width))

    def put_away(self, store: Store) -> None:
        """Let a store keep the sums: nothing is added any more."""
        if self._tokens() is None:
            self._kept, self._sums = [store.keep(array) for array in self.sums()], []

    def turned(self, basis: np.ndarray) -> Gram:
        """The same of x′ = `basis` x, [n′, n].

        A coordinate of which single precision shows no more than its own rounding, many times enlarged where the
        inverse of almost nothing is in the basis, is silent: such sums would be those of no rows at all.
        """
        import torch

        found, turn = Gram(), torch.from_numpy(basis)
        few = self._tokens()
        if few is not None:
            weight, (x, *_) = few
            found.add(x @ turn.to(x).T, weight)
            return found
        matrix, total = self.sums()[:2]
        found._count = self.count
        before = torch.from_numpy(np.require(matrix, requirements=("C", "W")))
        sums = [(turn @ before.to(turn) @ turn.T).to(before.dtype).numpy(), basis @ total]
        silent = np.diagonal(sums[0]) <= DIGITS * (np.square(basis) @ np.diagonal(matrix))
        sums[0][silent] = 0.0
        sums[0][:, silent] = 0.0
        sums[1][silent] = 0.0
        found._kept = [partial(np.asarray, array) for array in sums]
        return found

    @property
    def count(self) -> float:
        """The weight of all tokens."""
        few = self._tokens()
        if few is not None:
            return _counted(*few)
        self._flush()
        return self._count

    @property
    def matrix(self) -> np.ndarray:
        """[n, n] Σ w x xᵀ."""
        return self.sums()[0]

    @property
    def rows(self) -> np.ndarray:
        """[n, n] Σ w x xᵀ, or of fewer tokens these: what of both is smaller."""
        few = self.tokens
        return self.matrix if few is None or len(few) >= few.shape[1] else few

    @property
    def mean(self) -> np.ndarray:
        """[n] weighted mean of x."""
        return self.sums()[1] / max(self.count, 1e-30)

    @property
    def centred(self) -> np.ndarray:
        """[n, n] Σ w (x − x̄)(x − x̄)ᵀ: what an intercept leaves to the weights."""
        return self.matrix - self.count * np.outer(self.mean, self.mean)


def _square(wx: Any, x: Any) -> Any:
    """wxᵀx [n, n] of x and its rows weighted, [t, n] both: what is below the diagonal is what is above it."""
    return (
        large_products.matmul(wx.T, x)
        if x.shape[1] < 2 * STRIP
        else _mirrored(_added(wx, x, x.new_zeros(x.shape[1], x.shape[1])))
    )


def _added(wx: Any, x: Any, into: Any) -> Any:
    """The same, added to a matrix in place where that is on the diagonal's strips or above them."""
    width = x.shape[1]
    for start in range(0, width, STRIP):
        end = min(start + STRIP, width)
        large_products.add_product(into[start:end, start:], wx[:, start:end].T, x[:, start:])
    return into


def _mirrored(found: Any) -> Any:
    """A matrix of which what is below the diagonal's strips is made what is above them, in place."""
    width = found.shape[1]
    for start in range(0, width, STRIP):
        end = min(start + STRIP, width)
        found[end:, start:end] = found[start:end, end:].T
    return found


def _summed(values: Any) -> Any:
    """[n] in double precision, of values [tokens, n]: `ADDED` at a time in single, which takes a tenth of the time."""
    whole = len(values) - len(values) % ADDED
    found = values[whole:].sum(0).double()
    return found + values[:whole].reshape(-1, ADDED, values.shape[1]).sum(1).double().sum(0) if whole else found


def _scaled(weight: Any, values: Any) -> Any:
    """Each token's values times its weight."""
    return values if weight is None else values * weight[:, None].to(values.dtype)


def _joined(weights: Sequence[Any], parts: Sequence[tuple[Any, ...]]) -> tuple[Any, tuple[Any, ...]]:
    import torch

    return None if weights[0] is None else torch.cat(list(weights)), tuple(map(torch.cat, zip(*parts, strict=True)))


def _counted(weight: Any, values: Sequence[Any]) -> float:
    """The weight of some tokens."""
    import torch

    return float(len(values[0]) if weight is None else weight.sum(dtype=torch.float64))


class Pairs(Gram):
    """The same of inputs x beside targets y: Σ w x xᵀ, Σ w x, Σ w x yᵀ, Σ w y and Σ w y², all in double precision: what
    a fit leaves is a small difference of these."""

    def add(self, x: Any, y: Any, weight: Any = None) -> None:  # type: ignore[override]
        """x [tokens, n], y [tokens, m], weight [tokens] or None for ones, in every call or in none."""
        self._take(weight, x.float(), y.float())

    def _products(self, weight: Any, values: list[Any], scaled: list[Any]) -> tuple[Any, ...]:
        (x, y), (wx, wy) = values, scaled
        total, count = _summed(wy), _counted(weight, (y,))
        # About the mean of these tokens: little may be left of squares about it, which are many times larger.
        middle = (total / max(count, 1e-30)).float()
        apart = y - middle
        centre = middle.double()
        squares = _summed(_scaled(weight, apart * apart)) + 2.0 * centre * total - count * centre * centre
        return *super()._products(weight, [x], [wx]), large_products.matmul(wx.T, y), total, squares

    def _in_place(self, values: Sequence[Any]) -> bool:
        return False

    def few(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
        """The tokens' x, y and weights, where they are fewer than x is wide."""
        found = self._tokens()
        if found is None:
            return None
        weight, (x, y) = found
        return x.cpu().numpy(), y.cpu().numpy(), None if weight is None else weight.float().cpu().numpy()
