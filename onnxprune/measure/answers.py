"""What a row's answer is, read from the outputs of two models: a class, a tag for each token, a span, or one score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Batch, Dataset, Example
from onnxprune.measure.metrics import IGNORED
from onnxprune.measure.metrics.choose import VOCABULARY
from onnxprune.measure.metrics.observe import best_spans
from onnxprune.probe.divergence import Divergence, Kind, Measure

Array = NDArray[Any]
Outputs = Mapping[str, Array]

_SCORES = (Kind.KL, Kind.PROBABILITY_KL)
_TOLD = 3
"""Tokens with another tag that are written out, of a row that has more."""


@dataclass(frozen=True)
class Difference:
    """A row that two models answer differently.

    Attributes:
        position: of the row in the dataset.
        dense, pruned: both answers.
        sure: the probability that each model gives its own answer; NaN where none is given.
        label: the right answer; empty where it is not known.
        right: whether each model is right; None where that is not known.
        order: what is shown first has the least.
    """

    position: int
    dense: str
    pruned: str
    sure: tuple[float, float] = (math.nan, math.nan)
    label: str = ""
    right: tuple[bool, bool] | None = None
    order: float = 0.0


class Answers(ABC):
    """One kind of answer, of rows that are read batch by batch.

    Attributes:
        what: `classes`, `tags`, `spans` or `scores`.
    """

    what: str

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._found: list[Difference] = []

    @abstractmethod
    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        """Both models' outputs for one batch."""

    def differences(self) -> Sequence[Difference]:
        """The rows whose answer is another one; of `scores`, all rows."""
        return self._found

    def moved(self) -> tuple[float, float, float] | None:
        """Of `scores`, how far they moved in the median and at most, and the standard deviation of the dense ones."""
        return None


def answers_of(dataset: Dataset, divergence: Divergence, batch: Batch, outputs: Outputs) -> Answers | None:
    """What reads the answers of these rows: from the first vector of class scores, if there is one.

    Args:
        batch, outputs: some rows, and the dense model's outputs for them.

    Returns:
        None where rows have no one answer that could be told: vectors, values, texts, maps.
    """
    scores = [m for m in divergence.measures if m.kind in _SCORES]
    if (single := next((m for m in scores if m.single), None)) is not None:
        return Classes(dataset, single)
    spans = [m.output for m in scores if m.positional]
    ends = [next((n for n in spans if n.lower().startswith(side)), None) for side in ("start", "end")]
    if ends[0] is not None and ends[1] is not None:
        return Spans(dataset, ends[0], ends[1])
    tokens = {a.shape for a in batch.feeds.values() if a.ndim == 2 and a.dtype.kind in "iu"}
    for measure in scores:
        held = outputs[measure.output]
        if held.ndim == 3 and held.shape[:2] in tokens and measure.axis in (-1, 2):
            return Tags(dataset, measure) if _tags(dataset, held.shape[2]) else None
    first = divergence.measures[0]
    rows = outputs[first.output]
    if not scores and first.kind is Kind.MSE and rows.size == len(batch) and not dataset.pairs:
        return Scores(dataset, first.output)
    return None


def _tags(dataset: Dataset, classes: int) -> bool:
    """Whether so many classes a token are tags, no vocabulary: tokens are labelled, or have numbers beyond."""
    if classes >= VOCABULARY:
        return False
    if any(isinstance(example.label, np.ndarray) and example.label.ndim == 1 for example in dataset.examples):
        return True
    held = (a for example in dataset.examples for a in example.feeds.values() if a.ndim == 2 and a.dtype.kind in "iu")
    return any(int(array.max(initial=0)) >= classes for array in held)


class Classes(Answers):
    """One class a row."""

    what = "classes"

    def __init__(self, dataset: Dataset, measure: Measure) -> None:
        super().__init__(dataset)
        self.measure = measure

    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        sides = [_probabilities(outputs[self.measure.output], self.measure) for outputs in (expected, found)]
        before, after = (side.argmax(1) for side in sides)
        for row in np.flatnonzero(before != after):
            answers = int(before[row]), int(after[row])
            sure = float(sides[0][row, answers[0]]), float(sides[1][row, answers[1]])
            self._found.append(_chosen(self.dataset, int(batch.index[row]), answers, sure))


class Tags(Answers):
    """A class for each token that counts: each that has a label, or each that is no padding."""

    what = "tags"

    def __init__(self, dataset: Dataset, measure: Measure) -> None:
        super().__init__(dataset)
        self.measure = measure

    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        sides = [_probabilities(outputs[self.measure.output], self.measure) for outputs in (expected, found)]
        before, after = (side.argmax(2) for side in sides)
        for row in np.flatnonzero((before != after).any(1)):
            example = self.dataset.examples[batch.index[row]]
            labels = _token_labels(example, before.shape[1])
            real = np.ones(before.shape[1], bool) if batch.real is None else batch.real[row]
            counted = real if labels is None else labels != IGNORED
            other = np.flatnonzero((before[row] != after[row]) & counted)
            if not len(other):
                continue
            sure = [side[row, other].max(1) for side in sides]
            first = int((sure[0] + sure[1]).argmax())  # the token of which both are surest
            right = None
            if labels is not None:
                right = tuple(bool((tags[row] == labels)[counted].all()) for tags in (before, after))
            self._found.append(
                Difference(
                    int(batch.index[row]),
                    self._told(example, other, before[row]),
                    self._told(example, other, after[row]),
                    (float(sure[0][first]), float(sure[1][first])),
                    "" if labels is None else self._told(example, other, labels),
                    right,  # type: ignore[arg-type]  # of two
                    -float(sure[0][first] + sure[1][first]),
                )
            )

    def _told(self, example: Example, tokens: Array, tags: Array) -> str:
        """ "Rome: B-LOC, Ann: O"; tokens by their number where their text is not known."""
        told = [f"{_word(example, int(t))}: {_named(self.dataset, int(tags[t]))}" for t in tokens[:_TOLD]]
        return ", ".join(told) + (f", and {len(tokens) - _TOLD} more" if len(tokens) > _TOLD else "")


class Spans(Answers):
    """An answer that stands in the row: from one token to another."""

    what = "spans"

    def __init__(self, dataset: Dataset, start: str, end: str) -> None:
        super().__init__(dataset)
        self.start, self.end = start, end

    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        spans, sure = zip(*(self._read(outputs, batch) for outputs in (expected, found)), strict=True)
        for row in np.flatnonzero((spans[0] != spans[1]).any(1)):
            example = self.dataset.examples[batch.index[row]]
            both = [(int(side[row, 0]), int(side[row, 1])) for side in spans]
            label, right = "", None
            if isinstance(example.label, np.ndarray) and example.label.ndim == 2:
                gold = [(int(first), int(last)) for first, last in example.label]
                label, right = _text_of(example, *gold[0]), (both[0] in gold, both[1] in gold)
            confidence = float(sure[0][row]), float(sure[1][row])
            told = _text_of(example, *both[0]), _text_of(example, *both[1])
            self._found.append(Difference(int(batch.index[row]), *told, confidence, label, right, -sum(confidence)))

    def _read(self, outputs: Outputs, batch: Batch) -> tuple[NDArray[np.int64], Array]:
        """Best spans [rows, 2], and how probable each is [rows]."""
        sides = [outputs[name].astype(np.float64) for name in (self.start, self.end)]
        if batch.real is not None and batch.real.shape == sides[0].shape:
            sides = [np.where(batch.real, side, -np.inf) for side in sides]
        spans = best_spans(*sides)
        rows = np.arange(len(spans))
        sure = [_softmax(side)[rows, spans[:, i]] for i, side in enumerate(sides)]
        return spans, sure[0] * sure[1]


class Scores(Answers):
    """One number a row: yes or no where labels are 0 and 1, else a degree."""

    what = "scores"

    def __init__(self, dataset: Dataset, output: str) -> None:
        super().__init__(dataset)
        self.output = output
        self._index: list[int] = []
        self._dense: list[float] = []
        self._pruned: list[float] = []
        labels = [example.label for example in dataset.examples]
        self.decides = all(isinstance(label, int | float) and label in (0, 1) for label in labels)
        if self.decides:
            self.what = "classes"

    def add(self, batch: Batch, expected: Outputs, found: Outputs) -> None:
        self._index += batch.index.tolist()
        self._dense += expected[self.output].astype(np.float64).reshape(-1).tolist()
        self._pruned += found[self.output].astype(np.float64).reshape(-1).tolist()

    def differences(self) -> Sequence[Difference]:
        if self.decides:
            return self._decided()
        return [
            Difference(at, f"{before:.4g}", f"{after:.4g}", label=_number(self.dataset, at), order=-abs(after - before))
            for at, before, after in zip(self._index, self._dense, self._pruned, strict=True)
        ]

    def moved(self) -> tuple[float, float, float] | None:
        if self.decides or not self._dense:
            return None
        apart = np.abs(np.subtract(self._pruned, self._dense))
        return float(np.median(apart)), float(apart.max()), float(np.std(self._dense))

    def _decided(self) -> list[Difference]:
        dense, pruned = np.array(self._dense), np.array(self._pruned)
        if not (dense.min() >= 0 and dense.max() <= 1):  # no probabilities: logits of a yes
            dense, pruned = (1 / (1 + np.exp(-np.clip(side, -700, 700))) for side in (dense, pruned))
        found = []
        for row in np.flatnonzero((dense > 0.5) != (pruned > 0.5)):
            answers = int(dense[row] > 0.5), int(pruned[row] > 0.5)
            sure = [float(p if yes else 1 - p) for p, yes in zip((dense[row], pruned[row]), answers, strict=True)]
            found.append(_chosen(self.dataset, self._index[row], answers, (sure[0], sure[1])))
        return found


def _chosen(dataset: Dataset, position: int, answers: tuple[int, int], sure: tuple[float, float]) -> Difference:
    label = dataset.examples[position].label
    known = isinstance(label, int) or (isinstance(label, float) and label.is_integer())
    told = _named(dataset, int(label)) if known else ""
    right = (int(label) == answers[0], int(label) == answers[1]) if known else None
    dense, pruned = (_named(dataset, answer) for answer in answers)
    return Difference(position, dense, pruned, sure, told, right, -sum(sure))


def _named(dataset: Dataset, number: int) -> str:
    return dataset.classes.get(number, str(number))


def _number(dataset: Dataset, position: int) -> str:
    label = dataset.examples[position].label
    return f"{label:.4g}" if isinstance(label, int | float) else ""


def _token_labels(example: Example, length: int) -> Array | None:
    label = example.label
    return label if isinstance(label, np.ndarray) and label.shape == (length,) else None


def _word(example: Example, token: int) -> str:
    """The word that begins with a token."""
    pieces = example.pieces
    if token >= len(pieces) or not pieces[token].strip():
        return f"token {token + 1}"
    end = next((i for i in range(token + 1, len(pieces)) if not pieces[i] or pieces[i][0].isspace()), len(pieces))
    return "".join(pieces[token:end]).strip()


def _text_of(example: Example, first: int, last: int) -> str:
    """What stands from one token to another."""
    if not example.pieces:
        return f"token {first + 1}" if first == last else f"tokens {first + 1} to {last + 1}"
    return " ".join("".join(example.pieces[first : last + 1]).split()) or "no answer"


def _probabilities(scores: Array, measure: Measure) -> Array:
    """The same shape of class scores or probabilities, classes last."""
    wide = np.asarray(scores, np.float64)
    return wide if measure.kind is Kind.PROBABILITY_KL else _softmax(wide)


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))
