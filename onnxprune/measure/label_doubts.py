"""Do the labels belong to this model and these rows? What the dense model alone says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.measure.metrics import intervals
from onnxprune.measure.metrics.observe import Metric

Array = NDArray[Any]

_FEWEST = 10
"""Rows below which the dense model's luck says nothing of its labels."""
_SURE = 1.64
"""Standard deviations above chance that are no luck (one-sided 5%)."""
_BETTER = 0.2
"""Another reading of the labels that fits so much better is likely the right one."""
_NOTHING = 0.05
"""A metric of counts below this: nothing is right."""
_HINT = "do the labels, the tokenizer and the preprocessing belong to this model?"


def label_doubts(metric: Metric, dense: Array) -> tuple[str, ...]:
    """Warnings about labelled rows.

    Args:
        metric: what the statistics are of; one whose labels are the dense model's outputs has none to doubt.
        dense: the dense model's statistics, [rows, k], in the rows' order.
    """
    if metric.teacher or not len(dense):
        return ()
    if metric.family in (intervals.ANSWERS, intervals.DECISIONS):
        return _of_classes(dense[:, 0], dense[:, 1])
    if metric.family in (intervals.SCORES, intervals.RANKS):
        return _of_scores(metric, dense)
    if metric.family is intervals.LIKELIHOODS:
        return ()
    value = metric.value(dense)
    if value < _NOTHING and len(dense) >= _FEWEST:
        return (f"the dense model's own {metric.name} on these rows is {value:.3f}: {_HINT}",)
    return ()


def _of_classes(predicted: Array, label: Array) -> tuple[str, ...]:
    classes, counts = np.unique(label, return_counts=True)
    if len(classes) == 1 and len(label) > 1:
        return (
            f"all {len(label)} evaluation rows have the label {classes[0]:g}: accuracy is only how often that one is "
            "found, and always answering it would be right on every row",
        )
    if len(label) < _FEWEST:
        return ()
    rows, hits = len(label), float((predicted == label).mean())
    most, share = classes[counts.argmax()], float(counts.max()) / rows
    chance = sum(float((predicted == c).mean() * (label == c).mean()) for c in classes)
    for said, fits in (
        _renumbered(predicted, label),
        ("the labels of the row before fit", float((predicted == np.roll(label, 1)).mean())),
        ("the labels of the row after fit", float((predicted == np.roll(label, -1)).mean())),
    ):
        if said and fits - hits > max(_BETTER, 3 * np.sqrt(fits * (1 - fits) / rows)):
            return (f"the dense model is right on {hits:.0%} of the evaluation rows; {said} {fits:.0%} of them",)
    bar = max(share, chance)
    if hits - bar > _SURE * np.sqrt(max(bar * (1 - bar), 1e-12) / rows):
        return ()
    than = f"always answering class {most:g} would be on {share:.0%}" if share >= chance else f"chance is {chance:.0%}"
    worse = "" if hits < bar else ", and so many rows cannot tell the two apart"
    return (f"the dense model is right on {hits:.0%} of the evaluation rows, {than}{worse}: {_HINT}",)


def _renumbered(predicted: Array, label: Array) -> tuple[str, float]:
    """(what other numbering of the classes fits, share of the rows it fits); empty where it is the labels' own."""
    known = np.unique(label)
    to = {}
    for c in known:
        answers, counts = np.unique(predicted[label == c], return_counts=True)
        to[c] = answers[counts.argmax()]
    if len(set(to.values())) < len(to) or all(c == t for c, t in to.items()):
        return "", 0.0
    fits = float(np.mean([to[c] == p for p, c in zip(predicted, label, strict=True)]))
    names = ", ".join(f"{c:g} as {t:g}" for c, t in list(to.items())[:6])
    return f"read otherwise ({names}{', …' if len(to) > 6 else ''}) the labels fit", fits


def _of_scores(metric: Metric, dense: Array) -> tuple[str, ...]:
    rows = len(dense)
    if rows > 1 and np.ptp(dense[:, 1]) == 0:
        return (f"all {rows} evaluation rows have the label {dense[0, 1]:g}: a correlation with it says nothing",)
    value = metric.value(dense)
    if rows < _FEWEST or value > _SURE / np.sqrt(rows):
        return ()
    against = "run against" if value < -_SURE / np.sqrt(rows) else "do not follow"
    return (f"the dense model's scores {against} the labels ({metric.name} {value:.3f} on {rows} rows): {_HINT}",)


def few_rows(metric: Metric, rows: int, drop: float, interval: tuple[float, float] | None, wide: float) -> str | None:
    """What so few rows cannot tell, for metrics that are fractions or correlations; None where they can."""
    if interval is None:
        return f"{rows} evaluation row{'s' if rows != 1 else ''} cannot tell how much {metric.name} falls"
    reach = interval[1] - drop
    if not metric.higher_is_better or reach <= wide:
        return None
    return (
        f"{rows} evaluation rows cannot tell a fall of {metric.name} by less than {reach * 100:.1f} points from none: "
        "give more"
    )
