"""Rows that the pruned model answers otherwise than the dense one: how many, and some of them to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxprune.data import Batch, Dataset, picture
from onnxprune.measure.answers import Answers, Difference, answers_of
from onnxprune.probe.divergence import Divergence

Outputs = Mapping[str, NDArray[Any]]

SHOWN = 12
"""Rows that a report shows unless it is told otherwise."""


@dataclass(frozen=True)
class Flip:
    """A row with another answer.

    Attributes:
        source: "file:row".
        dense, pruned: both models' answers: names of classes where there are any, else their numbers; tags of the
            tokens that have another one; the answer's text; or a score.
        dense_confidence, pruned_confidence: the probability that each gives its own answer; NaN of scores.
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
        count: how many there are; of scores, which all move, all rows.
        rows: of how many.
        lost: of them, those that the dense model answers rightly (all tags of the row); None without labels.
        won: of them, those that the pruned model answers rightly.
        shown: some of them, those first in which both models are surest; of scores, those first that moved most.
        what: the kind of answer: `classes`, `tags`, `spans` or `scores`.
        moved: of scores, how far they moved in the median, at most, and the dense ones' standard deviation.
    """

    count: int
    rows: int
    lost: int | None
    won: int | None
    shown: tuple[Flip, ...] = ()
    what: str = "classes"
    moved: tuple[float, float, float] | None = None


class FlipTally:
    """Collects the rows with another answer.

    Args:
        dataset: the rows.
        divergence: what tells which output holds a row's one answer.
        most: rows to show.
    """

    def __init__(self, dataset: Dataset, divergence: Divergence, most: int = SHOWN) -> None:
        self.dataset, self.divergence, self.most = dataset, divergence, max(most, 0)
        self._answers: Answers | None = None
        self._rows = 0

    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        """Both models' outputs for one batch."""
        if not self._rows:
            self._answers = answers_of(self.dataset, self.divergence, batch, expected)
        self._rows += len(batch)
        if self._answers is not None:
            self._answers.add(batch, expected, found)

    def result(self) -> Flips | None:
        """None where rows have no one answer."""
        if self._answers is None:
            return None
        held = self._answers.differences()
        known = [one.right for one in held if one.right is not None]
        lost, won = (sum(right[side] for right in known) for side in (0, 1))
        judged = self._answers.what != "scores" and self.dataset.labels is not None and len(known) == len(held)
        shown = sorted(held, key=lambda one: (one.order, one.position))[: self.most]
        return Flips(
            len(held), self._rows, lost if judged else None, won if judged else None,
            tuple(map(self._flip, shown)), self._answers.what,
            self._answers.moved(),
        )  # fmt: skip

    def _flip(self, one: Difference) -> Flip:
        example = self.dataset.examples[one.position]
        return Flip(
            example.source, one.dense, one.pruned, *one.sure, one.label, example.excerpt, picture(example.feeds)
        )
