"""One metric of both models, gathered row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Batch, Dataset
from onnxprune.errors import DataError, reading
from onnxprune.measure.label_doubts import few_rows, label_doubts
from onnxprune.measure.metrics import IGNORED, Metric
from onnxprune.measure.slices import Slice, slices

Array = NDArray[Any]
Outputs = Mapping[str, Array]

_FAR = 0.05
"""An interval that reaches farther than this above the drop (five points) is said to tell little."""


@dataclass(frozen=True)
class Accuracy:
    """A task metric of both models on the same rows.

    Attributes:
        metric: its name.
        dense, pruned: its values, as fractions (0.897) or in its own unit (perplexity).
        drop: how much worse the pruned model is, in the same unit; negative where it is better.
        rows: examples (or pairs) it was computed on.
        confidence_interval: of the drop, paired (`metrics.intervals`); None for fewer than two rows.
        higher_is_better: false for perplexity.
        reason: why this metric.
        level: the probability that the interval holds the true drop.
        distinct: how many of the rows are no copies of others.
    """

    metric: str
    dense: float
    pruned: float
    drop: float
    rows: int
    confidence_interval: tuple[float, float] | None
    higher_is_better: bool = True
    reason: str = ""
    level: float = 0.95
    distinct: int = 0


class MetricTally:
    """One metric's statistics of both models, row by row.

    Attributes:
        doubts: what these rows and labels cannot tell; known with the result.
    """

    def __init__(self, dataset: Dataset, metric: Metric) -> None:
        self.metric, self.dataset = metric, dataset
        self.dense: list[Array | None] = [None] * len(dataset)
        self.pruned: list[Array | None] = [None] * len(dataset)
        self.doubts: tuple[str, ...] = ()

    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        """Both models' outputs for one batch.

        Raises:
            DataError: the rows' labels do not fit the metric.
        """
        labels: Any = expected
        if self.metric.next_token:
            labels = _next_tokens(batch)
        elif not self.metric.teacher:
            labels = [self.dataset.examples[i].label for i in batch.index]
        for outputs, store in ((expected, self.dense), (found, self.pruned)):
            with reading(f"metric {self.metric.name}: the rows' labels do not fit it", DataError):
                observed = self.metric.observe(outputs, labels, batch.real)
            for position, row in zip(batch.index, observed, strict=True):
                store[position] = row

    def result(self, seed: int, level: float) -> Accuracy:
        """The metric over all rows."""
        dense, pruned = self._rows(self.dense), self._rows(self.pruned)
        metric = self.metric
        both = metric.value(dense), metric.value(pruned)
        groups = self._groups()
        interval = metric.interval(dense, pruned, groups=groups, level=level, seed=seed)
        drop = metric.drop(*both)
        few = few_rows(metric, len(dense), drop, interval, _FAR)
        self.doubts = (*label_doubts(metric, dense), *([few] if few else ()))
        return Accuracy(
            metric.name, *both, drop, len(dense), interval, metric.higher_is_better, metric.reason, level,
            len(dense) if groups is None else len(np.unique(groups)),
        )  # fmt: skip

    def slices(self, seed: int, level: float) -> tuple[Slice, ...]:
        """The metric on parts of the rows."""
        if self.metric.pairwise:
            return ()
        dense, pruned = self._rows(self.dense), self._rows(self.pruned)
        return slices(self.metric, self.dataset, dense, pruned, level=level, seed=seed)

    @property
    def counts_answers(self) -> bool:
        """Whether its rows are right or wrong."""
        return self.metric.counts_answers(self._rows(self.dense))

    def _groups(self) -> Array | None:
        """Which rows are copies of each other; None where none are."""
        keys = self.dataset.keys
        if len(set(keys)) == len(keys):
            return None
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        groups = np.array([numbers[key] for key in keys])
        if self.metric.pairwise or len(groups) == len(self.dataset):
            return groups
        return None  # sides of pairs, each judged on its own

    def _rows(self, stored: Sequence[Array | None]) -> Array:
        rows = np.array(stored)
        if not self.metric.pairwise:
            return rows
        first, second, labels = zip(*self.dataset.pairs, strict=True)
        cosines = (rows[list(first)] * rows[list(second)]).sum(-1)
        return np.stack([cosines, np.asarray(labels, np.float64)], 1)


def token_input(feeds: Mapping[str, Array]) -> str | None:
    """The input whose tokens the outputs follow: the decoder's where there is one."""
    return next((n for n in ("decoder_input_ids", "input_ids") if n in feeds and feeds[n].ndim == 2), None)


def _next_tokens(batch: Batch) -> list[Array]:
    name = token_input(batch.feeds)
    if name is None:
        raise DataError("perplexity without labels needs input_ids: the row's own next tokens are the labels")
    ids = batch.feeds[name].astype(np.int64)
    if batch.real is not None and batch.real.shape == ids.shape:
        ids = np.where(batch.real, ids, IGNORED)
    return [np.append(row[1:], IGNORED) for row in ids]
