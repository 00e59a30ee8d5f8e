"""From one batch's outputs and labels to statistics, one row per example: what a metric is computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError
from onnxprune.measure.metrics.intervals import ANSWERS, DECISIONS, HITS, Family, drop_interval
from onnxprune.measure.metrics.values import Value

Array = NDArray[Any]
Outputs = Mapping[str, Array]
Observe = Callable[[Outputs, Any, Array | None], Array]
"""(outputs [rows, …] by name, labels, real [rows, tokens] or None) -> statistics [rows, k].

Labels are one per row; for a metric whose teacher is the dense model, that model's outputs."""

IGNORED = -100
"""Token label that does not count (the convention of PyTorch's cross entropy)."""
VOID = 255
"""Pixel label that does not count (the convention of Pascal VOC and ADE20K)."""
LONGEST_ANSWER = 30
"""Tokens in an answer, as in SQuAD's usual evaluation."""


@dataclass(frozen=True)
class Metric:
    """A task metric bound to the outputs it reads.

    Attributes:
        name: as the user names it.
        observe: outputs and labels of a batch -> statistics [rows, k].
        value: statistics [rows, k] -> the metric.
        family: what kind of statistics they are, for intervals.
        higher_is_better: false for perplexity.
        teacher: the labels are the dense model's outputs.
        pairwise: a statistic is an embedding, and `value` gets (cosine, label) of pairs of rows.
        next_token: the labels are the row's own tokens, one ahead.
        reason: why this metric, in words.
    """

    name: str
    observe: Observe
    value: Value
    family: Family
    higher_is_better: bool = True
    teacher: bool = False
    pairwise: bool = False
    next_token: bool = False
    reason: str = ""

    def drop(self, dense: float, pruned: float) -> float:
        """How much worse the pruned model is, in the metric's own unit; negative where it is better."""
        return dense - pruned if self.higher_is_better else pruned - dense

    def counts_answers(self, rows: Array) -> bool:
        """Whether a row is right or wrong, with little or nothing in between."""
        single = self.name == "agreement" and bool((rows[:, 1] == 1).all())
        return single or self.family in (ANSWERS, DECISIONS, HITS)

    def interval(
        self, dense: Array, pruned: Array, *, groups: Array | None = None, level: float = 0.95, seed: int = 0
    ) -> tuple[float, float] | None:
        """Interval of the drop from statistics of the same rows (`intervals.drop_interval`)."""

        def drop(dense: Array, pruned: Array, weights: Array) -> Array:
            worse = self.value.drawn(dense, weights) - self.value.drawn(pruned, weights)
            return worse if self.higher_is_better else -worse

        return drop_interval(
            self.family, drop, dense, pruned, teacher=self.teacher, groups=groups, level=level, seed=seed
        )


def class_ids(labels: Sequence[Any], classes: int) -> NDArray[np.int64]:
    """Labels as class ids [rows].

    Raises:
        DataError: a label that is no class of the model.
    """
    ids = np.asarray(labels).astype(np.int64).reshape(len(labels))
    if len(ids) and (ids.min() < 0 or ids.max() >= classes):
        raise DataError(
            f"label {ids.min() if ids.min() < 0 else ids.max()} is no class of a model with {classes} classes"
        )
    return ids


def decisions(output: str, threshold: float | None = None) -> Observe:
    """(prediction, label): the highest class; or, given a threshold, whether the row's single score lies above it."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        scores = outputs[output]
        if threshold is None:
            return np.stack([scores.argmax(-1), class_ids(labels, scores.shape[-1])], 1).astype(np.float64)
        return np.stack([scores.reshape(len(scores)) > threshold, np.asarray(labels)], 1).astype(np.float64)

    return observe


def top_hits(output: str, top: int) -> Observe:
    """(1,) if fewer than `top` classes score higher than the label."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        scores = outputs[output]
        own = np.take_along_axis(scores, class_ids(labels, scores.shape[-1])[:, None], -1)
        return np.asarray((scores > own).sum(-1, keepdims=True) < top, np.float64)

    return observe


def single_scores(output: str) -> Observe:
    """(score, label) of a model with one score a row."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        scores = outputs[output]
        return np.stack([scores.reshape(len(scores)), np.asarray(labels, np.float64).reshape(len(labels))], 1)

    return observe


def embeddings(output: str) -> Observe:
    """The row's vector at norm 1 [rows, width]; token vectors [rows, tokens, width] are averaged over real tokens."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        vectors = outputs[output].astype(np.float64)
        if vectors.ndim == 3:
            weights = np.ones(vectors.shape[:2]) if real is None or real.shape != vectors.shape[:2] else real
            vectors = (vectors * weights[..., None]).sum(1)
        vectors = vectors.reshape(len(vectors), -1)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))

    return observe


def token_likelihood(output: str) -> Observe:
    """(negative log likelihood in nats, tokens) of token labels; `IGNORED` ones do not count."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        scores = outputs[output]
        rows = []
        for row, held in zip(scores, labels, strict=True):
            ids, counted = _token_labels(held, row)
            wide = row[counted].astype(np.float64)
            top = wide.max(-1, keepdims=True, initial=-np.inf)
            log_sum = np.log(np.exp(wide - top).sum(-1)) + top[:, 0]
            rows.append((float((log_sum - wide[np.arange(len(wide)), ids[counted]]).sum()), float(counted.sum())))
        return np.array(rows).reshape(-1, 2)

    return observe


def token_counts(output: str, outside: int | None = 0) -> Observe:
    """(true positive, false positive, false negative) tokens; class `outside` (BIO's O) is no entity.

    With `outside` None: (hits, counted tokens).
    """

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        rows: list[tuple[int, ...]] = []
        for row, held in zip(outputs[output], labels, strict=True):
            ids, counted = _token_labels(held, row)
            predicted, label = row.argmax(-1)[counted], ids[counted]
            hit = predicted == label
            if outside is None:
                rows.append((int(hit.sum()), len(hit)))
            else:
                found, there = predicted != outside, label != outside
                rows.append((int((hit & there).sum()), int((found & ~hit).sum()), int((there & ~hit).sum())))
        return np.array(rows, np.float64)

    return observe


def _token_labels(held: Any, scores: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    ids = np.asarray(held, np.int64).reshape(-1)
    if len(ids) != len(scores):
        raise DataError(f"{len(ids)} token labels for {len(scores)} positions of the model's output")
    counted = ids != IGNORED
    class_ids(ids[counted], scores.shape[-1])
    return ids, counted


def best_spans(starts: Array, ends: Array) -> NDArray[np.int64]:
    """First and last token [rows, 2] of the span with the largest start + end score [rows, tokens], start ≤ end, of up
    to `LONGEST_ANSWER` tokens.
    """
    length = starts.shape[1]
    ahead = np.arange(length)[None, :] - np.arange(length)[:, None]
    allowed = (ahead >= 0) & (ahead < LONGEST_ANSWER)
    best = [
        int(np.where(allowed, s[:, None] + e[None, :], -np.inf).argmax()) for s, e in zip(starts, ends, strict=True)
    ]
    return np.stack(np.divmod(np.asarray(best, np.int64), length), 1)


def answer_overlap(start: str, end: str, exact: bool) -> Observe:
    """(1,) overlap of the best answer span with the gold spans [answers, 2] in tokens: F1, or whether one is met.

    The best span is that of `best_spans`, padding left out.
    """

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        starts, ends = outputs[start].astype(np.float64), outputs[end].astype(np.float64)
        if real is not None and real.shape == starts.shape:
            starts, ends = np.where(real, starts, -np.inf), np.where(real, ends, -np.inf)
        rows = []
        for (first, last), gold in zip(best_spans(starts, ends).tolist(), labels, strict=True):
            spans = np.asarray(gold, np.int64).reshape(-1, 2)
            rows.append(max((_span_score(first, last, int(a), int(b), exact) for a, b in spans), default=0.0))
        return np.array(rows)[:, None]

    return observe


def _span_score(first: int, last: int, gold_first: int, gold_last: int, exact: bool) -> float:
    if exact:
        return float((first, last) == (gold_first, gold_last))
    shared = max(min(last, gold_last) - max(first, gold_first) + 1, 0)
    return 2 * shared / (last - first + 1 + gold_last - gold_first + 1)


def pixel_overlap(output: str) -> Observe:
    """[intersections of every class, unions of every class] per row, at the label's size (scores are resized to it)."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        scores = outputs[output]
        classes = scores.shape[1]
        rows = []
        for row, held in zip(scores, labels, strict=True):
            label = np.asarray(held, np.int64)
            counted = (label != VOID) & (label >= 0)
            class_ids(label[counted], classes)
            predicted = resize_bilinear(row, label.shape).argmax(0)[counted]
            same = np.bincount(predicted[predicted == label[counted]], minlength=classes)
            total = np.bincount(predicted, minlength=classes) + np.bincount(label[counted], minlength=classes)
            rows.append(np.concatenate([same, total - same]))
        return np.array(rows, np.float64)

    return observe


def resize_bilinear(image: Array, size: tuple[int, ...]) -> Array:
    """[channels, h, w] -> [channels, *size], half-pixel centres (PyTorch's `align_corners=False`)."""
    for axis, target in ((1, size[0]), (2, size[1])):
        held = image.shape[axis]
        if held == target:
            continue
        position = np.clip((np.arange(target) + 0.5) * held / target - 0.5, 0, held - 1)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, held - 1)
        part = (position - low).reshape((-1, 1) if axis == 1 else (-1,))
        image = np.take(image, low, axis) * (1 - part) + np.take(image, high, axis) * part
    return image


def teacher_decisions(axes: Mapping[str, int]) -> Observe:
    """(positions that decide as the teacher does, positions), over outputs with their class axes, without padding."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        same = [outputs[name].argmax(axis) == labels[name].argmax(axis) for name, axis in axes.items()]
        return np.asarray(np.sum([_per_row(s, real) for s in same], axis=0))

    return observe


def teacher_cosines(names: Sequence[str]) -> Observe:
    """(sum of cosines with the teacher's vectors, positions), over outputs, without padding."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        parts = []
        for name in names:
            student, teacher = outputs[name].astype(np.float64), labels[name].astype(np.float64)
            scale = np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
            parts.append(_per_row((student * teacher).sum(-1) / np.maximum(scale, 1e-24), real))
        return np.asarray(np.sum(parts, axis=0))

    return observe


def teacher_scores(output: str) -> Observe:
    """(score, the teacher's score) of a model with one score a row."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        return np.stack([held[output].reshape(len(held[output])) for held in (outputs, labels)], 1).astype(np.float64)

    return observe


def distances(output: str) -> Observe:
    """(squared distance, squared norm of the target, target …) of an output and its label, or the teacher's output."""

    def observe(outputs: Outputs, labels: Any, real: Array | None) -> Array:
        scores = outputs[output].astype(np.float64)
        scores = scores.reshape(len(scores), -1)
        target = np.asarray(labels[output] if isinstance(labels, Mapping) else list(labels), np.float64)
        target = target.reshape(len(target), -1)
        if target.shape != scores.shape:
            raise DataError(f"labels of {target.shape[1]} numbers for an output of {scores.shape[1]}")
        apart, size = (np.square(side).sum(1) for side in (scores - target, target))
        return np.concatenate([apart[:, None], size[:, None], target], 1)

    return observe


def _per_row(values: Array, real: Array | None) -> Array:
    """[rows, positions…] -> (sum over real positions, how many)."""
    flat = values.reshape(len(values), -1)
    kept = real if real is not None and real.shape == flat.shape else np.ones(flat.shape, bool)
    return np.stack([np.where(kept, flat, 0).sum(1), kept.sum(1)], 1).astype(np.float64)
