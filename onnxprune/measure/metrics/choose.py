"""Which metric fits: guessed from labels and outputs, and said; or by the user's name for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.errors import DataError, UsageError, near
from onnxprune.measure.metrics import intervals, observe, values
from onnxprune.measure.metrics.observe import Metric
from onnxprune.probe.divergence import Divergence, Kind, Measure

VOCABULARY = 1000
"""More classes per token than any tag set, fewer than any vocabulary."""


class _Fit:
    """What the choice is made from: the outputs that count, their widths and ranks, and the labels."""

    def __init__(self, divergence: Divergence, samples: Mapping[str, np.ndarray], labels: Sequence[Any] | None) -> None:
        self.samples = samples
        self.labels = [label for label in labels or () if label is not None]
        self.scores = [m for m in divergence.measures if m.kind in (Kind.KL, Kind.PROBABILITY_KL)]
        self.first = (self.scores or list(divergence.measures))[0]
        names = [m.output for m in divergence.measures]
        self.start = next((n for n in names if n.lower().startswith("start")), None)
        self.end = next((n for n in names if n.lower().startswith("end")), None)

    @property
    def width(self) -> int:
        """Classes of the first output; 1 for a single score."""
        array = self.samples[self.first.output]
        return array.shape[self.first.axis] if array.ndim > 1 else 1

    @property
    def rank(self) -> int:
        return self.samples[self.first.output].ndim

    @property
    def regressed(self) -> bool:
        """Whether the first output is a row's own few values, no vector of features."""
        return self.first.kind is Kind.MSE and self.rank == 2 and self.width > 1 and self.width % 64 != 0

    @property
    def label_rank(self) -> int:
        return np.ndim(self.labels[0]) if self.labels else -1

    @property
    def whole_labels(self) -> bool:
        """Whether every label is a whole number."""
        return bool(self.labels) and self.label_rank == 0 and all(float(label).is_integer() for label in self.labels)

    @property
    def threshold(self) -> float | None:
        """Where a single score says yes: 0.5 for probabilities, 0 for logits; None where there are classes."""
        if self.width > 1:
            return None
        scores = self.samples[self.first.output]
        return 0.5 if scores.size and scores.min() >= 0 and scores.max() <= 1 else 0.0


def _decisions(name: str, value: values.Value, family: intervals.Family) -> Callable[[_Fit], Metric]:
    return lambda fit: Metric(name, observe.decisions(fit.first.output, fit.threshold), value, family)


def _correlation(name: str, value: values.Value, family: intervals.Family) -> Callable[[_Fit], Metric]:
    return lambda fit: Metric(name, observe.single_scores(fit.first.output), value, family)


def _tokens(name: str, outside: int | None, value: values.Value, family: intervals.Family) -> Callable[[_Fit], Metric]:
    return lambda fit: Metric(name, observe.token_counts(fit.first.output, outside), value, family)


def _answers(name: str, exact: bool) -> Callable[[_Fit], Metric]:
    def build(fit: _Fit) -> Metric:
        if fit.start is None or fit.end is None:
            raise UsageError(f"metric {name} needs outputs for the answer's start and end; the graph has none")
        return Metric(name, observe.answer_overlap(fit.start, fit.end, exact), values.mean, intervals.HITS)

    return build


def _perplexity(fit: _Fit) -> Metric:
    observed = observe.token_likelihood(fit.first.output)
    family = intervals.LIKELIHOODS
    return Metric("perplexity", observed, values.perplexity, family, higher_is_better=False, next_token=not fit.labels)


def _agreement(fit: _Fit) -> Metric:
    decided = observe.teacher_decisions({m.output: m.axis for m in fit.scores})
    return Metric("agreement", decided, values.ratio, intervals.RATIOS, teacher=True)


def _cosine(fit: _Fit) -> Metric:
    return Metric("cosine", observe.teacher_cosines([fit.first.output]), values.ratio, intervals.RATIOS, teacher=True)


def _teacher_spearman(fit: _Fit) -> Metric:
    return Metric(
        "teacher_spearman", observe.teacher_scores(fit.first.output), values.spearman, intervals.RANKS, teacher=True
    )


def _explained(fit: _Fit) -> Metric:
    observed = observe.distances(fit.first.output)
    return Metric("explained_variance", observed, values.explained, intervals.EXPLAINED, teacher=True)


def _r2(fit: _Fit) -> Metric:
    return Metric("r2", observe.distances(fit.first.output), values.explained, intervals.EXPLAINED)


_BUILDERS: dict[str, Callable[[_Fit], Metric]] = {
    "accuracy": _decisions("accuracy", values.accuracy, intervals.ANSWERS),
    "f1": _decisions("f1", values.f1, intervals.DECISIONS),
    "matthews": _decisions("matthews", values.matthews, intervals.DECISIONS),
    "top5": lambda fit: Metric("top5", observe.top_hits(fit.first.output, 5), values.mean, intervals.HITS),
    "pearson": _correlation("pearson", values.pearson, intervals.SCORES),
    "spearman": _correlation("spearman", values.spearman, intervals.RANKS),
    "perplexity": _perplexity,
    "token_f1": _tokens("token_f1", 0, values.micro_f1, intervals.COUNTS),
    "token_accuracy": _tokens("token_accuracy", None, values.ratio, intervals.RATIOS),
    "miou": lambda fit: Metric("miou", observe.pixel_overlap(fit.first.output), values.mean_iou, intervals.OVERLAPS),
    "qa_f1": _answers("qa_f1", exact=False),
    "qa_em": _answers("qa_em", exact=True),
    "agreement": _agreement,
    "cosine": _cosine,
    "teacher_spearman": _teacher_spearman,
    "explained_variance": _explained,
    "r2": _r2,
}
NAMES = tuple(_BUILDERS)
_LABEL_FREE = ("agreement", "cosine", "teacher_spearman", "perplexity", "explained_variance")
_NEXT = {
    "decoder_input_ids": "a decoder behind an encoder: the next tokens of its targets are the labels, of the dense "
    "model's own answers where rows have no target",
}
_NEEDS_CLASSES = ("top5", "token_f1", "token_accuracy", "perplexity", "miou", "agreement")


def require_known(names: str | Sequence[str] | None) -> None:
    """Refuse names that are none; before any work, where they were asked for.

    Raises:
        UsageError: names the first, and all that there are.
    """
    for name in (names,) if isinstance(names, str) else names or ():
        if name not in _BUILDERS:
            raise UsageError(f"metric {name!r} is unknown; choose from {', '.join(NAMES)}{near(name, NAMES)}")


def choose_metric(
    divergence: Divergence,
    samples: Mapping[str, np.ndarray],
    labels: Sequence[Any] | None,
    *,
    pairs: bool = False,
    causal: str | None = None,
    together: bool = False,
    name: str | None = None,
) -> Metric:
    """The metric for these outputs and labels.

    Args:
        divergence: how the graph's outputs are compared; tells class scores from vectors.
        samples: the dense model's outputs for one batch, by name, [rows, …].
        labels: one per row (of pairs: one per pair), None where a row has none.
        pairs: whether rows come in pairs whose embeddings are compared.
        causal: the input of tokens of which the graph predicts each next one; None where it does no such thing.
        together: whether a row is a batch that the graph fixes, with a label for each that it holds.
        name: the user's choice, one of `NAMES`; None to guess.

    Raises:
        UsageError: an unknown name, or one that these outputs cannot serve.
        DataError: the metric needs labels and some rows have none.
    """
    fit = _Fit(divergence, samples, labels)
    require_known(name)
    chosen, reason = (name, "as asked") if name is not None else _guess(fit, pairs, causal, together)
    if chosen not in _LABEL_FREE and (labels is None or len(fit.labels) < len(labels)):
        raise DataError(f"metric {chosen} needs a label in every row, and some have none")
    if chosen in _NEEDS_CLASSES and not fit.scores:
        raise UsageError(f"metric {chosen} needs an output of class scores; {divergence.description}")
    if pairs and chosen in ("spearman", "pearson"):
        vectors = _vectors(divergence.measures, samples)
        value, family = (
            (values.spearman, intervals.RANKS) if chosen == "spearman" else (values.pearson, intervals.SCORES)
        )
        return Metric(chosen, observe.embeddings(vectors), value, family, pairwise=True, reason=reason)
    return replace(_BUILDERS[chosen](fit), reason=reason)


def _guess(fit: _Fit, pairs: bool, causal: str | None, together: bool) -> tuple[str, str]:
    if pairs and fit.labels:
        return "spearman", f"cosine similarity of pairs ({fit.first.output}) against their scores"
    if together and fit.scores and fit.rank == 3 and fit.label_rank == 1:
        return "token_accuracy", f"class labels of the rows of each batch, {fit.width} classes"
    if fit.labels and (found := _guess_labelled(fit)):
        return found
    said = "the rows have no labels" if not fit.labels else "the labels fit none of the outputs"
    if fit.scores and causal and fit.rank == 3 and not fit.labels:
        return "perplexity", _NEXT.get(causal, "a causal language model: each row's next tokens are its labels")
    if fit.scores:
        return "agreement", f"{said}: decisions are compared with the dense model's"
    if fit.regressed:
        return "explained_variance", f"{said}: values ({fit.first.reason}) are compared with the dense model's"
    if fit.width > 1:
        return "cosine", f"{said}: vectors are compared with the dense model's"
    return "teacher_spearman", f"{said}: scores are ranked against the dense model's"


def _guess_labelled(fit: _Fit) -> tuple[str, str] | None:
    if fit.start and fit.end and fit.label_rank == 2:
        return "qa_f1", "answer spans, F1 in tokens"
    if fit.scores and fit.rank == 2 and fit.whole_labels:
        return "accuracy", f"class labels, {fit.width} classes"
    if not fit.scores and fit.width == 1 and fit.label_rank == 0:
        if set(map(float, fit.labels)) <= {0.0, 1.0}:
            return "accuracy", f"labels 0 and 1, one score above {fit.threshold:g}"
        return "spearman", "numbers as labels, one score a row"
    if fit.scores and fit.rank == 3 and fit.label_rank == 1:
        if fit.width >= VOCABULARY:
            return "perplexity", "token labels from a vocabulary"
        return "token_f1", f"token labels, {fit.width} classes, class 0 outside"
    if not fit.scores and fit.rank == 2 and fit.label_rank == 1 and len(fit.labels[0]) == fit.width:
        return "r2", f"labels of {fit.width} numbers, as many as the output's"
    if fit.scores and fit.rank == 4 and fit.label_rank == 2:
        return "miou", f"label maps, {fit.width} classes"
    return None


def _vectors(measures: Sequence[Measure], samples: Mapping[str, np.ndarray]) -> str:
    """The output that holds a row's embedding: one vector a row if there is one, else token vectors."""
    wide = [m.output for m in measures if samples[m.output].ndim in (2, 3) and samples[m.output].shape[-1] > 1]
    if not wide:
        raise UsageError("pairs are compared by their embeddings, and the graph has no output of vectors")
    return min(wide, key=lambda name: samples[name].ndim)
