"""A metric on parts of the rows: class by class, and by their length. A loss may hide in a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Dataset, Example
from onnxprune.measure.metrics import Metric
from onnxprune.measure.metrics.intervals import ANSWERS, DECISIONS, HITS, RANKS, SCORES
from onnxprune.measure.metrics.values import accuracy

Array = NDArray[Any]

_CLASSES = 20
"""Classes that are told apart: those with the most rows."""
_PARTS = 4
"""Parts of equal numbers of rows, by length."""
_FEW = 5
"""Rows that a part has at least."""


@dataclass(frozen=True)
class Slice:
    """A metric of both models on some of the rows.

    Attributes:
        by: `class` or `length`.
        name: of the class; or the lengths, first to last.
        rows: how many rows these are.
        dense, pruned: the metric; of a class, the share of its rows that is answered rightly.
        drop: how much worse the pruned model is there.
        confidence_interval: of the drop, as of the whole; None for fewer than two rows.
    """

    by: str
    name: str
    rows: int
    dense: float
    pruned: float
    drop: float
    confidence_interval: tuple[float, float] | None


def slices(
    metric: Metric, dataset: Dataset, dense: Array, pruned: Array, *, level: float = 0.95, seed: int = 0
) -> tuple[Slice, ...]:
    """The metric on parts of the rows.

    Args:
        dense, pruned: [rows, k] of the metric, in the order of the rows.
        level: of the intervals.
        seed: of the intervals' draws.

    Returns:
        By class where labels are numbers of classes and rows are right or wrong, then by length where that varies;
        nothing where all rows are of one part.
    """
    if metric.pairwise or len(dense) != len(dataset):
        return ()

    def of(by: str, name: str, part: Array, metric: Metric) -> Slice:
        sides = dense[part], pruned[part]
        values = metric.value(sides[0]), metric.value(sides[1])
        interval = metric.interval(*sides, level=level, seed=seed)
        return Slice(by, name, len(part), *values, metric.drop(*values), interval)

    found = [of("class", name, part, _share(metric)) for name, part in _by_class(metric, dataset)]
    lengths = [(name, part) for name, part in _by_length(dataset) if _defined(metric, dense[part])]
    return (*found, *(of("length", name, part, metric) for name, part in lengths))


def _defined(metric: Metric, rows: Array) -> bool:
    """Whether rows have a value: a correlation has none where all rows are to be scored alike."""
    return metric.family not in (SCORES, RANKS) or np.ptp(rows[:, 1]) > 0


def _share(metric: Metric) -> Metric:
    """What of a metric can be told of one class alone: how many rows are right."""
    return metric if metric.family is HITS else replace(metric, value=accuracy, family=ANSWERS)


def _by_class(metric: Metric, dataset: Dataset) -> Iterator[tuple[str, Array]]:
    labels = [example.label for example in dataset.examples]
    known = metric.family in (ANSWERS, DECISIONS, HITS) and all(isinstance(label, int) for label in labels)
    if not known or metric.teacher:
        return
    counts = Counter(labels)
    often = sorted(label for label, count in counts.most_common(_CLASSES) if count >= _FEW)
    if len(counts) < 2:
        return
    for label in often:
        yield dataset.classes.get(label, str(label)), np.flatnonzero([own == label for own in labels])


def _by_length(dataset: Dataset) -> Iterator[tuple[str, Array]]:
    """Parts of about as many rows each; rows of one length are in one part."""
    lengths = np.array([_length(example, dataset) for example in dataset.examples])
    if len(lengths) < _PARTS * _FEW or lengths.min() == lengths.max():
        return
    bounds = np.unique(np.quantile(lengths, np.arange(1, _PARTS) / _PARTS, method="lower"))
    part = np.searchsorted(bounds, lengths)
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        low, high = lengths[rows].min(), lengths[rows].max()
        if len(rows) >= _FEW:
            yield f"{low:,}" if low == high else f"{low:,} to {high:,}", rows


def _length(example: Example, dataset: Dataset) -> int:
    """Tokens that are no padding; of a sound, its samples or frames; 1 of what has no length."""
    if example.real is not None:
        return int(example.real.sum())
    if example.tokens > 1:
        return example.tokens
    sound = next((a for n, a in sorted(example.feeds.items()) if a.dtype.kind == "f" and a.ndim in (2, 3)), None)
    return int(sound.shape[-1]) if sound is not None and "audio" in dataset.kind else 1
