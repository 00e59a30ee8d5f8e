"""Sufficient statistics of a linear regression, streamed over batches of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxprune.refit.solvers.linalg import Array, product, subtract_product


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of a weighted regression of y on x over tokens; additive over batches.

    The second moments are kept about the running means (Chan, Golub, LeVeque 1983), because the means of real
    activations are large against their spread, and subtracting them at the end would lose digits.

    Attributes:
        count: sum of the token weights (the number of tokens where none are given).
        x_mean, y_mean: [n], [m] weighted means.
        sxx, sxy: [n, n], [n, m] Σ w (x − x̄)(x − x̄)ᵀ and Σ w (x − x̄)(y − ȳ)ᵀ.
        syy: [m] Σ w (y − ȳ)², per output.
    """

    count: float
    x_mean: Array
    y_mean: Array
    sxx: Array
    sxy: Array
    syy: Array

    @classmethod
    def empty(cls, inputs: int, outputs: int) -> Moments:
        """Statistics of no tokens at all."""
        n, m = inputs, outputs
        return cls(0.0, np.zeros(n), np.zeros(m), np.zeros((n, n)), np.zeros((n, m)), np.zeros(m))

    @classmethod
    def from_sums(
        cls,
        count: float,
        x_sum: npt.ArrayLike,
        y_sum: npt.ArrayLike,
        xtx: npt.ArrayLike,
        xty: npt.ArrayLike,
        yty: npt.ArrayLike,
        *,
        take: bool = False,
    ) -> Moments:
        """From plain weighted sums: Σw, Σwx [n], Σwy [m], Σwxxᵀ [n, n], Σwxyᵀ [n, m], Σwy² [m].

        Args:
            take: the matrices are given away: what comes of them may be written over them.
        """
        xm, ym = np.asarray(x_sum, dtype=np.float64), np.asarray(y_sum, dtype=np.float64)
        if count > 0:
            xm, ym = xm / count, ym / count
        made = np.asarray if take else np.array
        sxx, sxy = made(xtx, dtype=np.float64), made(xty, dtype=np.float64)
        subtract_product(sxx, count * xm[None], xm[None])
        subtract_product(sxy, count * xm[None], ym[None])
        syy = np.maximum(np.asarray(yty, dtype=np.float64) - count * ym**2, 0.0)
        return cls(float(count), xm, ym, sxx, sxy, syy)

    @classmethod
    def of(cls, x: npt.ArrayLike, y: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Moments:
        """Statistics of one batch: x [..., n], y [..., m], weights [...] ≥ 0 (zero leaves a token out)."""
        xs = np.asarray(x, dtype=np.float64)
        ys = np.asarray(y, dtype=np.float64)
        xs, ys = xs.reshape(-1, xs.shape[-1]), ys.reshape(-1, ys.shape[-1])
        w = np.ones(len(xs)) if weights is None else np.asarray(weights, dtype=np.float64).reshape(-1)
        if not len(xs) == len(ys) == len(w):
            raise ValueError(f"{len(xs)} rows of x, {len(ys)} of y, {len(w)} weights")
        if w.size and not (np.isfinite(w).all() and w.min() >= 0):
            raise ValueError("token weights must be finite and not negative")
        used = w > 0
        if not used.all():
            xs, ys, w = xs[used], ys[used], w[used]
        count = float(w.sum())
        if count == 0:
            return cls.empty(xs.shape[1], ys.shape[1])
        x_mean, y_mean = w @ xs / count, w @ ys / count
        root = np.sqrt(w)[:, None]
        xc, yc = (xs - x_mean) * root, (ys - y_mean) * root
        return cls(count, x_mean, y_mean, xc.T @ xc, xc.T @ yc, np.einsum("tm,tm->m", yc, yc))

    def add(self, x: npt.ArrayLike, y: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Moments:
        """These statistics and one batch more; shapes as in `of`."""
        return self.merge(Moments.of(x, y, weights))

    def merge(self, other: Statistics) -> Moments:
        """The statistics of both sets of tokens together."""
        if isinstance(other, Tokens):
            other = other.moments
        if other.count == 0 or self.count == 0:
            return self if other.count == 0 else other
        count = self.count + other.count
        share = other.count / count
        dx, dy = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        between = self.count * share
        sxx, sxy = self.sxx + other.sxx, self.sxy + other.sxy
        subtract_product(sxx, -between * dx[None], dx[None])
        subtract_product(sxy, -between * dx[None], dy[None])
        x_mean, y_mean = self.x_mean + share * dx, self.y_mean + share * dy
        return Moments(count, x_mean, y_mean, sxx, sxy, self.syy + other.syy + between * dy**2)

    def with_target(self, weight: npt.ArrayLike, bias: npt.ArrayLike | float = 0.0) -> Moments:
        """The same tokens with y replaced by Wᵀx + b: the layer's own output as the target. weight [n, m]."""
        w = np.asarray(weight, dtype=np.float64)
        sxy = self.sxx @ w
        return replace(
            self,
            y_mean=self.x_mean @ w + np.asarray(bias, dtype=np.float64),
            sxy=sxy,
            syy=np.einsum("nm,nm->m", w, sxy),
        )

    def part(self, outputs: slice) -> Moments:
        """The same of some outputs."""
        return replace(self, y_mean=self.y_mean[outputs], sxy=self.sxy[:, outputs], syy=self.syy[outputs])

    @property
    def moments(self) -> Moments:
        """Themselves, as `Tokens` are summed up."""
        return self

    def gram(self, *, centred: bool = False) -> Array:
        """[n, n] Σ w x xᵀ, or about the mean: the Gram matrix that an intercept leaves to the weights."""
        return self.sxx if centred else self.sxx + self.count * np.outer(self.x_mean, self.x_mean)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The same of fewer tokens than there are inputs, by the tokens themselves: they are fewer numbers than their
    products, and all that these say.

    Attributes:
        count, x_mean, y_mean: as of `Moments`.
        root: [t] √w.
        x, y: [t, n], [t, m] √w (x − x̄) and √w (y − ȳ).
    """

    count: float
    x_mean: Array
    y_mean: Array
    root: Array
    x: Array
    y: Array

    @classmethod
    def of(cls, x: npt.ArrayLike, y: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Tokens:
        """Of x [t, n], y [t, m], weights [t] ≥ 0."""
        xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        w = np.ones(len(xs)) if weights is None else np.asarray(weights, dtype=np.float64)
        count = float(w.sum())
        x_mean, y_mean = w @ xs / max(count, 1e-300), w @ ys / max(count, 1e-300)
        root = np.sqrt(w)
        return cls(count, x_mean, y_mean, root, (xs - x_mean) * root[:, None], (ys - y_mean) * root[:, None])

    def part(self, outputs: slice) -> Tokens:
        """The same of some outputs."""
        return replace(self, y_mean=self.y_mean[outputs], y=self.y[:, outputs])

    def merge(self, other: Tokens | Moments) -> Tokens | Moments:
        """Both sets of tokens together."""
        if isinstance(other, Moments):
            return self.moments.merge(other)
        if other.count == 0 or self.count == 0:
            return self if other.count == 0 else other
        count = self.count + other.count
        share = other.count / count
        x_mean = self.x_mean + share * (other.x_mean - self.x_mean)
        y_mean = self.y_mean + share * (other.y_mean - self.y_mean)
        parts = [part._about(x_mean, y_mean) for part in (self, other)]
        root, x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Tokens(count, x_mean, y_mean, root, x, y)

    def _about(self, x_mean: Array, y_mean: Array) -> tuple[Array, Array, Array]:
        """(root, x, y) about other means."""
        root = self.root[:, None]
        return self.root, self.x + root * (self.x_mean - x_mean), self.y + root * (self.y_mean - y_mean)

    @property
    def moments(self) -> Moments:
        """Summed up."""
        sxx, sxy = product(self.x.T, self.x), product(self.x.T, self.y)
        return Moments(self.count, self.x_mean, self.y_mean, sxx, sxy, np.einsum("tm,tm->m", self.y, self.y))


Statistics = Moments | Tokens
"""What a regression may be told of its tokens."""
