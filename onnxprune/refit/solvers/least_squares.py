"""Linear regression of a layer's wanted outputs on the inputs that stay, from streamed moments.

The compensation step of every method: min Σ_t w_t ‖y_t − Wᵀx_t − b‖² + λ · mean(diag H) · ‖W − W₀‖², where H is the
Gram matrix of the kept inputs. The pull is toward a prior W₀ (the weights that are there), never toward zero, and
the intercept is free: it takes up the mean of what was removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.refit.solvers.linalg import Array, Factored, Ints, as_rows, product, shifted, solve
from onnxprune.refit.solvers.statistics import Moments, Statistics, Tokens

INFINITE = float("inf")
"""As λ: the prior's weights stay and only the intercept is fitted."""

SINGLE, SAMPLED = 256, 256
"""Inputs from which on strengths are chosen in single precision, and outputs of a product that choose one."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted linear map.

    Attributes:
        weight: [n, m], zero outside the kept inputs.
        bias: [m].
        strength: the λ it was fitted with; `INFINITE` when only the intercept was; None when it is the prior itself.
    """

    weight: Array
    bias: Array
    strength: float | None


def error(moments: Statistics, weight: npt.ArrayLike, bias: npt.ArrayLike | float = 0.0) -> float:
    """Σ_t w_t ‖y_t − Wᵀx_t − b‖² over the tokens behind `moments`, exactly. weight [n, m], bias [m]."""
    w = np.asarray(weight, dtype=np.float64)
    offset = moments.y_mean - moments.x_mean @ w - np.asarray(bias, dtype=np.float64)
    if isinstance(moments, Tokens):
        left = moments.y - product(moments.x, w)
        return float(np.vdot(left, left)) + moments.count * float(offset @ offset)
    spread = float(moments.syy.sum() + np.sum(w * (product(moments.sxx, w) - 2.0 * moments.sxy)))
    return max(spread, 0.0) + moments.count * float(offset @ offset)


def ridge_path(
    moments: Moments, kept: npt.ArrayLike, prior: npt.ArrayLike, strengths: Sequence[float], *, intercept: bool = True
) -> list[Fit]:
    """The ridge solutions for every λ in `strengths`, from one eigendecomposition of the kept inputs' Gram matrix.

    Args:
        moments: of the calibration tokens.
        kept: bool mask [n], or indices, of the inputs that stay.
        prior: W₀ [n, m]; its rows outside `kept` play no part.
        strengths: values of λ ≥ 0, relative to the mean diagonal of the kept Gram matrix. Zero gives the solution of
            least change (directions no token excites keep the prior); `INFINITE` keeps the prior.
        intercept: fit b, unpenalised; otherwise b = 0.
    """
    w0 = np.array(prior, dtype=np.float64)
    rows = as_rows(kept, len(moments.x_mean))
    mask = np.zeros(len(w0), dtype=bool)
    mask[rows] = True
    w0[~mask] = 0.0
    h, c = moments.sxx[np.ix_(rows, rows)], moments.sxy[rows]
    if not intercept:
        h = h + moments.count * np.outer(moments.x_mean[rows], moments.x_mean[rows])
        c = c + moments.count * np.outer(moments.x_mean[rows], moments.y_mean)
    _check_finite(h, c)
    values, vectors = _spectrum(h)
    scale = float(np.trace(h)) / max(len(rows), 1)
    pull = vectors.T @ (c - h @ w0[rows])
    fits = []
    for strength in strengths:
        weight = w0.copy()
        weight[rows] += vectors @ (_gain(values, strength, scale)[:, None] * pull)
        bias = moments.y_mean - moments.x_mean @ weight if intercept else np.zeros(w0.shape[1])
        fits.append(Fit(weight, bias, float(strength)))
    return fits


def ridge(
    moments: Moments, kept: npt.ArrayLike, prior: npt.ArrayLike, strength: float, *, intercept: bool = True
) -> Fit:
    """`ridge_path` at one λ: where that is above zero a linear system, which is cheaper than a spectrum."""
    equations = _Equations(moments, as_rows(kept, len(moments.x_mean)), prior)
    if not (intercept and strength > 0 and equations.scale > 0):
        return ridge_path(moments, kept, prior, [strength], intercept=intercept)[0]
    return equations.fit(strength)


class _Equations:
    """The normal equations (H + λ·scale·I)(W − W₀) = C − HW₀ of a regression with an intercept, for any λ above zero.

    Attributes:
        scale: the mean diagonal of H, which λ is relative to.
    """

    def __init__(self, moments: Moments, rows: Ints, prior: npt.ArrayLike) -> None:
        w0 = np.asarray(prior, dtype=np.float64)
        everything = len(rows) == len(moments.x_mean)
        self.moments, self.rows = moments, rows
        self.h = moments.sxx if everything else moments.sxx[np.ix_(rows, rows)]
        self.start = np.zeros_like(w0)
        self.start[rows] = w0[rows]
        self.pull = moments.sxy[rows] - product(self.h, w0[rows])
        self.scale = float(np.trace(self.h)) / max(len(rows), 1)
        _check_finite(self.h, self.pull)
        self._factors: dict[float, Factored] = {}

    def fit(self, strength: float, outputs: slice = slice(None)) -> Fit:
        """At one λ, of some of the outputs."""
        weight = self.start[:, outputs].copy()
        if strength < INFINITE and self.scale > 0:
            if strength not in self._factors:
                self._factors[strength] = Factored(shifted(self.h, strength * self.scale))
            weight[self.rows] += self._factors[strength].solve(np.ascontiguousarray(self.pull[:, outputs]))
        return Fit(weight, self.moments.y_mean[outputs] - self.moments.x_mean @ weight, float(strength))

    def error(self, held_out: Statistics, strength: float) -> float:
        """Of the fit at a strength, on other tokens."""
        fit = self.fit(strength)
        return error(held_out, fit.weight, fit.bias)


class _FewTokens:
    """The same where there are fewer tokens than inputs, by the tokens' products with one another.

    (XᵀX + λ)⁻¹Xᵀ = Xᵀ(XXᵀ + λ)⁻¹: what is solved has as many rows as there are tokens, and what a fit gives on other
    tokens asks of them for their products with these alone.
    """

    def __init__(self, tokens: Tokens, rows: Ints, prior: npt.ArrayLike) -> None:
        w0 = np.asarray(prior, dtype=np.float64)
        self.tokens, self.rows = tokens, rows
        self.start = np.zeros_like(w0)
        self.start[rows] = w0[rows]
        self.x = np.ascontiguousarray(tokens.x[:, rows])
        self.left = tokens.y - product(self.x, self.start[rows])
        self.kernel = product(self.x, self.x.T)
        self.scale = float(np.trace(self.kernel)) / max(len(rows), 1)
        self._seen: tuple[Tokens, Array, Array, Array, Array] | None = None
        _check_finite(self.kernel, self.left)

    def fit(self, strength: float) -> Fit:
        weight = self.start.copy()
        share = self._shares(strength)
        if share is not None:
            weight[self.rows] += product(self.x.T, share)
        return Fit(weight, self.tokens.y_mean - self.tokens.x_mean @ weight, float(strength))

    def error(self, held_out: Statistics, strength: float) -> float:
        """Of the fit at a strength, on other tokens."""
        if not isinstance(held_out, Tokens):
            fit = self.fit(strength)
            return error(held_out, fit.weight, fit.bias)
        if self._seen is None or self._seen[0] is not held_out:
            between = held_out.x_mean - self.tokens.x_mean
            self._seen = (
                held_out,
                held_out.y - product(held_out.x, self.start),
                product(held_out.x[:, self.rows], self.x.T),
                held_out.y_mean - self.tokens.y_mean - between @ self.start,
                between[self.rows] @ self.x.T,
            )
        _, left, cross, offset, moved = self._seen
        share = self._shares(strength)
        if share is not None:
            left, offset = left - product(cross, share), offset - moved @ share
        return float(np.vdot(left, left)) + held_out.count * float(offset @ offset)

    def _shares(self, strength: float) -> Array | None:
        """What each token has in the weights [t, m]; None where they stay."""
        if strength == INFINITE or not self.scale > 0:
            return None
        return solve(shifted(self.kernel, strength * self.scale), self.left)


def _equations(statistics: Statistics, rows: Ints, prior: npt.ArrayLike) -> _Equations | _FewTokens:
    kind = _FewTokens if isinstance(statistics, Tokens) else _Equations
    return kind(statistics, rows, prior)  # type: ignore[arg-type]


def scale_units(moments: Moments, units: npt.ArrayLike, prior: npt.ArrayLike, strength: float = 0.0) -> Fit:
    """The best single factor per unit: W = s_unit · W₀, with an intercept; λ pulls the factors toward 1.

    A far smaller model than `ridge` (one number per head or neuron), for when rows are too few for a full refit.

    Args:
        units: int [n] the unit each input belongs to; −1 for inputs that are gone.
        prior: W₀ [n, m].
        strength: relative to the mean diagonal of the factors' Gram matrix.
    """
    ids = np.asarray(units, dtype=np.int64)
    w0 = np.array(prior, dtype=np.float64)
    w0[ids < 0] = 0.0
    present, index = np.unique(ids[ids >= 0], return_inverse=True)
    member = np.zeros((len(ids), len(present)))
    member[np.flatnonzero(ids >= 0), index] = 1.0
    # The regressors are z_u = W₀_uᵀ x_u, vectors of m outputs: their Gram matrix sums <z_u, z_v> over the tokens.
    gram = member.T @ (moments.sxx * (w0 @ w0.T)) @ member
    pull = member.T @ np.sum(w0 * (moments.sxy - moments.sxx @ w0), axis=1)
    values, vectors = np.linalg.eigh(gram)
    denominator = np.maximum(values, 0.0) + strength * float(np.trace(gram)) / max(len(present), 1)
    floor = len(present) * np.finfo(np.float64).eps * float(values.max(initial=0.0))
    gain = np.divide(1.0, denominator, out=np.zeros_like(denominator), where=denominator > floor)
    factors = 1.0 + vectors @ (gain * (vectors.T @ pull))
    weight = w0 * (member @ factors)[:, None]
    return Fit(weight, moments.y_mean - moments.x_mean @ weight, float(strength))


def fit_held_out(
    train: Statistics,
    held_out: Statistics,
    kept: npt.ArrayLike,
    prior: npt.ArrayLike,
    prior_bias: npt.ArrayLike,
    strengths: Sequence[float] = (1e-3, 1e-2, 1e-1, INFINITE),
    *,
    both: bool = False,
) -> tuple[Fit, float]:
    """The fit on `train` that errs little on `held_out`, which may be the prior itself: never worse than doing nothing.

    The error on other tokens falls and rises once along λ, all but always: from the middle of `strengths` the search
    walks downhill, and most of them are never fitted.

    Args:
        prior, prior_bias: [n, m], [m] what stands if no fit helps (with the prior's removed rows at zero).
        strengths: values of λ to choose from.
        both: fit once more, at the strength that was chosen, on all tokens.

    Returns:
        (the fit, its error on `held_out`, of the fit on `train`, relative to the prior's).
    """
    return fit_each_held_out(train, held_out, kept, prior, prior_bias, strengths, [slice(None)], both=both)[0]


def fit_each_held_out(
    train: Statistics,
    held_out: Statistics,
    kept: npt.ArrayLike,
    prior: npt.ArrayLike,
    prior_bias: npt.ArrayLike,
    strengths: Sequence[float],
    parts: Sequence[slice],
    *,
    both: bool = False,
) -> list[tuple[Fit, float]]:
    """`fit_held_out` of several products of the same inputs: each has its own strength, and all share factorisations.

    A strength is one number that is chosen by thousands of tokens: `SAMPLED` outputs of a product say which, and where
    there are `SINGLE` inputs or more single precision does. What is chosen is fitted in double, for all outputs.

    Args:
        prior, prior_bias: [n, m], [m], the products' outputs side by side.
        parts: which of the outputs are each product's.
    """
    rows = as_rows(kept, len(train.x_mean))
    bias = np.array(prior_bias, dtype=np.float64)
    if isinstance(train, Tokens):
        return [_by_tokens(train, held_out, rows, prior, bias, strengths, part, both) for part in parts]
    equations = _Equations(train, rows, prior)
    trial = _Trial(equations, held_out, bias)
    chosen = [trial.chosen(np.arange(len(bias))[part], strengths) for part in parts]
    del trial  # its factors go before others are made
    final = _Equations(train.merge(held_out), rows, equations.start) if both else equations
    found = []
    for part, (strength, change) in zip(parts, chosen, strict=True):
        if strength is None:
            found.append((Fit(equations.start[:, part], bias[part], None), 1.0))
        else:
            found.append((final.fit(strength, part), change))
    return found


def _by_tokens(
    train: Tokens,
    held_out: Statistics,
    rows: Ints,
    prior: npt.ArrayLike,
    bias: Array,
    strengths: Sequence[float],
    part: slice,
    both: bool,
) -> tuple[Fit, float]:
    """`fit_held_out` of some outputs, where there are fewer tokens to learn from than inputs."""
    train, held_out = replace(train, y=train.y[:, part], y_mean=train.y_mean[part]), held_out.part(part)
    equations = _equations(train, rows, np.asarray(prior)[:, part])
    untouched, bias = equations.start, bias[part]
    before = error(held_out, untouched, bias)
    found: dict[float, float] = {}

    def judged(strength: float) -> float:
        if strength not in found:
            found[strength] = equations.error(held_out, strength)
        return found[strength]

    if INFINITE in strengths:
        judged(INFINITE)
    _walk_downhill(sorted(s for s in strengths if s != INFINITE), judged)
    best = min(found, key=found.__getitem__, default=INFINITE)
    if not found or not found[best] < before:
        return Fit(untouched, bias, None), 1.0
    if both:
        equations = _equations(train.merge(held_out), rows, untouched)
    return equations.fit(best), found[best] / before


class _Trial:
    """What strengths err on held-out tokens.

    A change D of the prior W₀ changes the error by <D, HD> − 2<D, C − HW₀>, of the held-out tokens' H and C, and what
    the intercept leaves: small differences, which single precision holds. Of few tokens it is what they are left with.
    """

    def __init__(self, equations: _Equations, held_out: Statistics, bias: Array) -> None:
        rows, start = equations.rows, equations.start
        self.equations, self.held, self.bias = equations, held_out, bias
        kind = np.float32 if len(rows) >= SINGLE else np.float64
        self.own, self.pull = (np.asarray(a, dtype=kind) for a in (equations.h, equations.pull))
        if isinstance(held_out, Tokens):
            left = held_out.y - product(held_out.x, start)
            self.spread = np.einsum("tm,tm->m", left, left)
            self.x, self.left = (np.asarray(a, dtype=kind) for a in (held_out.x[:, rows], left))
        else:
            seen = _Equations(held_out, rows, start)
            self.h, self.rest = (np.asarray(a, dtype=kind) for a in (seen.h, seen.pull))
            self.spread = held_out.syy - np.sum(start[rows] * (held_out.sxy[rows] + seen.pull), axis=0)
        self._factors: dict[float, Factored] = {}

    def _moved(self, change: npt.NDArray[Any], some: Ints) -> float:
        """How the error about the means changes with some outputs' weights [rows, some]."""
        if isinstance(self.held, Tokens):
            given = product(np.ascontiguousarray(self.x), change)
            return float(np.sum(given * (given - 2 * self.left[:, some]), dtype=np.float64))
        return float(np.sum(change * (product(self.h, change) - 2 * self.rest[:, some]), dtype=np.float64))

    def chosen(self, outputs: Ints, strengths: Sequence[float]) -> tuple[float | None, float]:
        """(the strength, None for the prior; its error relative to the prior's) of some outputs."""
        some = outputs[:: max(len(outputs) // SAMPLED, 1)]
        start, train = self.equations.start[:, some], self.equations.moments
        spread = float(self.spread[some].sum())
        drift = self.held.x_mean - train.x_mean

        def left(fitted: Array) -> float:
            return float(np.sum(fitted**2)) * self.held.count

        shift = self.held.y_mean[some] - train.y_mean[some] - drift @ start
        before = max(spread, 0.0) + left(self.held.y_mean[some] - self.held.x_mean @ start - self.bias[some])
        found = {INFINITE: max(spread, 0.0) + left(shift)} if INFINITE in strengths else {}

        def judged(strength: float) -> float:
            if strength not in found:
                change = self._factor(strength).solve(np.ascontiguousarray(self.pull[:, some]))
                found[strength] = max(spread + self._moved(change, some), 0.0) + left(
                    shift - drift[self.equations.rows] @ change
                )
            return found[strength]

        if self.equations.scale > 0:
            _walk_downhill(sorted(s for s in strengths if s != INFINITE), judged)
        best = min(found, key=found.__getitem__, default=None)
        if best is None or not found[best] < before:
            return None, 1.0
        return best, found[best] / before

    def _factor(self, strength: float) -> Factored:
        if strength not in self._factors:
            self._factors[strength] = Factored(shifted(self.own, strength * self.equations.scale))
        return self._factors[strength]


def _walk_downhill(points: Sequence[float], value: Callable[[float], float]) -> None:
    """Evaluate from the middle one on, to the side that is lower, for as long as it falls."""
    at = start = len(points) // 2
    if points:
        value(points[at])
    for step in (1, -1):
        while 0 <= at + step < len(points) and value(points[at + step]) < value(points[at]):
            at += step
        if at != start:
            return


def _check_finite(h: Array, c: Array) -> None:
    if not (np.isfinite(h).all() and np.isfinite(c).all()):
        raise DataError("layer inputs or outputs overflow on some calibration row; remove it or run the model in fp32")


def _spectrum(h: Array) -> tuple[Array, Array]:
    """Eigenvalues, none below zero, and eigenvectors of a Gram matrix."""
    values, vectors = np.linalg.eigh(h)
    return np.maximum(values, 0.0), vectors


def _gain(values: Array, strength: float, scale: float) -> Array:
    """1 / (eigenvalue + λ), zero where that is rounding only, or where the strength is infinite."""
    if not strength >= 0:
        raise ValueError(f"ridge strength {strength} is not a number from 0 up")
    if not np.isfinite(strength) or not scale > 0:
        return np.zeros_like(values)
    denominator = values + strength * scale
    floor = len(values) * np.finfo(np.float64).eps * float(values.max(initial=0.0))
    return np.divide(1.0, denominator, out=np.zeros_like(denominator), where=denominator > floor)
