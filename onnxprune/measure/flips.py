"""Rows that the pruned model answers otherwise than the dense one: how many, and some of them to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Batch, Dataset, picture
from onnxprune.probe.divergence import Divergence, Kind, Measure

Array = NDArray[Any]
Outputs = Mapping[str, Array]

SHOWN = 12
"""Rows that a report shows unless it is told otherwise."""


@dataclass(frozen=True)
class Flip:
    """A row with another answer.

    Attributes:
        source: "file:row".
        dense, pruned: both models' answers: names of classes where there are any, else their numbers.
        dense_confidence, pruned_confidence: the probability that each gives its own answer.
        label: the right answer, where it is known and one of the classes; else empty.
        excerpt: the beginning of the row's text; empty without one.
        picture: a small picture as a data URI; empty without one.
    """

    source: str
    dense: str
    pruned: str
    dense_confidence: float
    pruned_confidence: float
    label: str = ""
    excerpt: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Flips:
    """The rows with another answer.

    Attributes:
        count: how many there are.
        rows: of how many.
        lost: of them, those that the dense model answers rightly; None without labels.
        won: of them, those that the pruned model answers rightly.
        shown: some of them, those first in which both models are surest.
    """

    count: int
    rows: int
    lost: int | None
    won: int | None
    shown: tuple[Flip, ...] = ()


class FlipTally:
    """Collects the rows with another answer.

    Args:
        dataset: the rows.
        divergence: what tells which output holds a row's one answer.
        most: rows to show.
    """

    def __init__(self, dataset: Dataset, divergence: Divergence, most: int = SHOWN) -> None:
        self.dataset, self.most = dataset, max(most, 0)
        self.measure = answering(divergence)
        self._rows = 0
        self._found: list[tuple[float, int, tuple[int, int], tuple[float, float]]] = []

    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        """Both models' outputs for one batch."""
        if self.measure is None:
            return
        sides = [_probabilities(outputs[self.measure.output], self.measure) for outputs in (expected, found)]
        before, after = (side.argmax(1) for side in sides)
        self._rows += len(batch)
        for row in np.flatnonzero(before != after):
            answers = int(before[row]), int(after[row])
            sure = float(sides[0][row, answers[0]]), float(sides[1][row, answers[1]])
            self._found.append((-sum(sure), int(batch.index[row]), answers, sure))

    def result(self) -> Flips | None:
        """None where rows have no one answer."""
        if self.measure is None:
            return None
        labels = [self._label(position) for _, position, _, _ in self._found]
        known = any(isinstance(example.label, int) for example in self.dataset.examples)
        lost = sum(label == answers[0] for label, (_, _, answers, _) in zip(labels, self._found, strict=True))
        won = sum(label == answers[1] for label, (_, _, answers, _) in zip(labels, self._found, strict=True))
        shown = tuple(self._flip(*one[1:]) for one in sorted(self._found)[: self.most])
        return Flips(len(self._found), self._rows, lost if known else None, won if known else None, shown)

    def _label(self, position: int) -> int | None:
        label = self.dataset.examples[position].label
        return label if isinstance(label, int) else None

    def _flip(self, position: int, answers: tuple[int, int], sure: tuple[float, float]) -> Flip:
        example, label = self.dataset.examples[position], self._label(position)
        dense, pruned = (self._named(answer) for answer in answers)
        told = "" if label is None else self._named(label)
        return Flip(example.source, dense, pruned, *sure, told, example.excerpt, picture(example.feeds))

    def _named(self, answer: int) -> str:
        return self.dataset.classes.get(answer, str(answer))


def answering(divergence: Divergence) -> Measure | None:
    """The output that holds a row's one answer: the first vector of class scores."""
    scores = (Kind.KL, Kind.PROBABILITY_KL)
    return next((m for m in divergence.measures if m.single and m.kind in scores), None)


def _probabilities(scores: Array, measure: Measure) -> Array:
    """[rows, classes] of class scores or probabilities."""
    wide = np.asarray(scores, np.float64)
    if measure.kind is Kind.PROBABILITY_KL:
        return wide
    raised = np.exp(wide - wide.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))
