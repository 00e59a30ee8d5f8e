"""From statistics of rows [rows, k] to a metric; of many weightings of the rows at once, as an interval's draws are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Value:
    """A metric of statistics [rows, k].

    Attributes:
        drawn: statistics, and weights [draws, rows] -> the metric of every draw, [draws].
    """

    drawn: Callable[[Array, Array], Array]

    def __call__(self, rows: Array) -> float:
        """The metric, all rows alike; 0 of no rows."""
        return float(self.drawn(rows, np.ones((1, len(rows))))[0]) if len(rows) else 0.0


@Value
def mean(rows: Array, weights: Array) -> Array:
    """Mean of the first column: accuracy from hits, F1 from each row's F1."""
    return _divided(weights @ rows[:, 0], weights.sum(1))


@Value
def ratio(rows: Array, weights: Array) -> Array:
    """Sum of the first column over the sum of the second: token accuracy from hits and counts."""
    return _divided(*(weights @ rows[:, :2]).T)


@Value
def accuracy(rows: Array, weights: Array) -> Array:
    """Share of (prediction, label) rows that agree."""
    return _divided(weights @ (rows[:, 0] == rows[:, 1]).astype(np.float64), weights.sum(1))


@Value
def f1(rows: Array, weights: Array) -> Array:
    """F1 of (prediction, label) rows: of class 1 if there are only classes 0 and 1, else the mean over classes."""
    classes = np.unique(rows[:, :2])
    if set(classes.tolist()) <= {0.0, 1.0}:
        classes = np.ones(1)
    predicted, label = _one_hot(rows, classes)
    return np.asarray(_divided(2 * (weights @ (predicted * label)), weights @ (predicted + label)).mean(1))


@Value
def matthews(rows: Array, weights: Array) -> Array:
    """Matthews correlation of (prediction, label) rows, Gorodkin's form for many classes; 0 if either is constant."""
    predicted, label = _one_hot(rows, np.unique(rows[:, :2]))
    weights = weights / weights.sum(1, keepdims=True)
    p, t = weights @ predicted, weights @ label
    both = (weights @ (predicted * label).sum(1)) - (p * t).sum(1)
    return _correlated(both, 1 - (p**2).sum(1), 1 - (t**2).sum(1))


@Value
def pearson(rows: Array, weights: Array) -> Array:
    """Pearson correlation of the two columns; 0 if either is constant."""
    x, y = ((column - column.mean()) / (column.std() or 1.0) for column in rows[:, :2].astype(np.float64).T)
    return _pearson(np.broadcast_to(x, weights.shape), np.broadcast_to(y, weights.shape), weights)


@Value
def spearman(rows: Array, weights: Array) -> Array:
    """Spearman rank correlation of the two columns; ties share their mean rank."""
    x, y = (_weighted_ranks(rows[:, column], weights) for column in (0, 1))
    return _pearson(x, y, weights)


def ranks(values: Array) -> Array:
    """Ranks from 0, ties averaged: [n] -> [n]."""
    return np.asarray(_weighted_ranks(values, np.ones((1, len(values))))[0])


@Value
def perplexity(rows: Array, weights: Array) -> Array:
    """exp(negative log likelihood / tokens) of (nats, tokens) rows."""
    return np.asarray(np.exp(_divided(*(weights @ rows[:, :2]).T)))


@Value
def micro_f1(rows: Array, weights: Array) -> Array:
    """F1 of summed (true positive, false positive, false negative) counts."""
    hit, wrong, missed = (weights @ rows[:, :3]).T
    return _divided(2 * hit, 2 * hit + wrong + missed)


@Value
def mean_iou(rows: Array, weights: Array) -> Array:
    """Mean over the classes seen of intersection / union, each summed over rows: [rows, 2·classes]."""
    intersection, union = np.split(weights @ rows, 2, axis=1)
    return _divided(_divided(intersection, union).sum(1), (union > 0).sum(1))


@Value
def explained(rows: Array, weights: Array) -> Array:
    """1 − residual / variance over rows, of rows (squared distance, squared norm of the target, target …)."""
    residual, squares = weights @ rows[:, 0], weights @ rows[:, 1]
    spread = squares - np.square(weights @ rows[:, 2:]).sum(1) / weights.sum(1)
    return np.asarray(np.where(spread > 1e-12 * squares, 1 - _divided(residual, spread), 0.0))


def _divided(above: Array, below: Array) -> Array:
    """A quotient; 0 where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0))


def _one_hot(rows: Array, classes: Array) -> tuple[Array, Array]:
    """Predictions and labels [rows, classes] of (prediction, label) rows."""
    predicted, label = ((column[:, None] == classes).astype(np.float64) for column in rows[:, :2].T)
    return predicted, label


def _weighted_ranks(values: Array, weights: Array) -> Array:
    """Ranks from 0, ties averaged, where a row of weight w stands for w rows: [n], [draws, n] -> [draws, n]."""
    order = np.argsort(values, kind="stable")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    held = np.add.reduceat(weights[:, order], starts, axis=1)
    averaged: Array = np.cumsum(held, 1) - (held + 1) / 2
    return np.asarray(averaged[:, inverse])


def _pearson(x: Array, y: Array, weights: Array) -> Array:
    """Correlation of x with y [draws, n]."""
    weights = weights / weights.sum(1, keepdims=True)
    x, y = (side - (weights * side).sum(1, keepdims=True) for side in (x, y))
    return _correlated((weights * x * y).sum(1), (weights * x * x).sum(1), (weights * y * y).sum(1))


def _correlated(both: Array, first: Array, second: Array) -> Array:
    """A covariance over the root of two variances, which are about 1; what rounding alone leaves is none."""
    there = np.minimum(first, second) > 1e-12
    return _divided(both, np.sqrt(np.where(there, first * second, 0.0)))


def bootstrap_interval(
    statistic: Callable[[Array], float], rows: int, *, seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile bootstrap interval (Efron 1979) of a statistic of rows.

    Args:
        statistic: indices of the rows drawn [rows] -> its value; a paired difference reads both sides at the same rows.
        rows: how many rows there are.
        seed: the same seed gives the same interval.
        resamples: how often rows are drawn, with replacement.
        level: the probability that the interval holds the true value.

    Returns:
        (low, high), or None for fewer than two rows: one row says nothing about spread.
    """
    if rows < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = [statistic(rng.integers(0, rows, rows)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
