"""From statistics of rows [rows, k] to a metric, and how sure one can be of a difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def mean(rows: Array) -> float:
    """Mean of the first column: accuracy from hits, F1 from each row's F1."""
    return float(rows[:, 0].mean()) if len(rows) else 0.0


def ratio(rows: Array) -> float:
    """Sum of the first column over the sum of the second: token accuracy from hits and counts."""
    return float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1))


def accuracy(rows: Array) -> float:
    """Share of (prediction, label) rows that agree."""
    return float((rows[:, 0] == rows[:, 1]).mean()) if len(rows) else 0.0


def f1(rows: Array) -> float:
    """F1 of (prediction, label) rows: of class 1 if there are only classes 0 and 1, else the mean over classes."""
    predicted, label = rows[:, 0], rows[:, 1]
    classes = np.unique(rows[:, :2])
    if set(classes.tolist()) <= {0.0, 1.0}:
        classes = np.ones(1)
    hit = np.array([np.sum((predicted == c) & (label == c)) for c in classes])
    either = np.array([np.sum(predicted == c) + np.sum(label == c) for c in classes])
    return float(np.mean(2 * hit / np.maximum(either, 1)))


def matthews(rows: Array) -> float:
    """Matthews correlation of (prediction, label) rows, Gorodkin's form for many classes; 0 if either is constant."""
    classes = np.unique(rows[:, :2])
    predicted, label = ((column[:, None] == classes).astype(np.float64) for column in rows[:, :2].T)
    predicted, label = predicted - predicted.mean(0), label - label.mean(0)
    scale = np.sqrt((predicted**2).sum() * (label**2).sum())
    return float((predicted * label).sum() / scale) if scale else 0.0


def pearson(rows: Array) -> float:
    """Pearson correlation of the two columns; 0 if either is constant."""
    x, y = (column - column.mean() for column in rows[:, :2].astype(np.float64).T)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale else 0.0


def spearman(rows: Array) -> float:
    """Spearman rank correlation of the two columns; ties share their mean rank."""
    return pearson(np.stack([ranks(rows[:, 0]), ranks(rows[:, 1])], 1))


def ranks(values: Array) -> Array:
    """Ranks from 0, ties averaged: [n] -> [n]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    averaged: Array = np.cumsum(counts) - (counts + 1) / 2
    return averaged[inverse]


def perplexity(rows: Array) -> float:
    """exp(negative log likelihood / tokens) of (nats, tokens) rows."""
    return float(np.exp(rows[:, 0].sum() / max(rows[:, 1].sum(), 1)))


def micro_f1(rows: Array) -> float:
    """F1 of summed (true positive, false positive, false negative) counts."""
    hit, wrong, missed = rows.sum(0)
    return float(2 * hit / (2 * hit + wrong + missed)) if hit else 0.0


def mean_iou(rows: Array) -> float:
    """Mean over the classes seen of intersection / union, each summed over rows: [rows, 2·classes]."""
    intersection, union = np.split(rows.sum(0), 2)
    seen = union > 0
    return float((intersection[seen] / union[seen]).mean()) if seen.any() else 0.0


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
