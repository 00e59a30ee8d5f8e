"""Class scores or values? What tells them apart besides an output's name and shape.

A KL over classes does not see a shift that all classes share: for class scores that is right, for values it is ruin. So
an output is taken for class scores by its shape only where nothing speaks against it: labels, `--metric`, or values
that no classifier gives out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxprune.data import Dataset
    from onnxprune.probe.divergence import Divergence, Kind

OF_CLASSES = ("accuracy", "f1", "matthews", "top5", "agreement", "token_f1", "token_accuracy", "miou", "perplexity")
"""Metrics of class scores."""
OF_VALUES = ("pearson", "spearman", "cosine", "teacher_spearman", "explained_variance", "r2")
"""Metrics of values and vectors."""
BY_SHAPE = "class scores by shape"
"""How the reason begins where nothing but the shape says so."""

_FEWEST = 8
"""Rows below which values show nothing of what they are."""
_EVEN = 0.98
"""Mean entropy of a softmax, relative to the most, from which on it decides nothing."""


def against_scores(arrays: Sequence[np.ndarray]) -> str | None:
    """Why these values [rows, …, width] are no class scores; None where nothing says so."""
    if sum(len(a) for a in arrays) < _FEWEST:
        return None
    wide = np.concatenate([a.reshape(-1, a.shape[-1]).astype(np.float64) for a in arrays])
    if not np.isfinite(wide).all() or not wide.size:
        return None
    if wide.min() >= 0:
        return "values: none is negative, and rows do not sum to one as probabilities do"
    shifted = wide - wide.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1).mean() / np.log(wide.shape[-1])
    if entropy > _EVEN:
        return (
            f"values: as class scores they would decide nothing (their softmax has {entropy:.1%} of the most entropy)"
        )
    return None


def decided(
    divergence: Divergence, samples: Mapping[str, Sequence[np.ndarray] | np.ndarray], dataset: Dataset
) -> dict[str, tuple[Kind, str]]:
    """Outputs whose kind labels or `--metric` know better than names, shapes and values: output -> (kind, reason)."""
    from onnxprune.probe.divergence import SCORES, Kind

    doubtful = {
        m.output: m
        for m in divergence.measures
        if m.reason.startswith(BY_SHAPE) or (m.kind is Kind.MSE and _width(samples[m.output]) > 1)
    }
    found: dict[str, tuple[Kind, str]] = {}
    by_name = any(m.kind in SCORES for m in divergence.measures if m.output not in doubtful)
    for name, measure in doubtful.items():
        wanted = _wanted(dataset, _first(samples[name]))
        if wanted is None:
            continue
        classes, reason = wanted
        if not classes and measure.kind is not Kind.MSE:
            found[name] = Kind.MSE, f"values, {reason}"
        elif classes and measure.kind is Kind.MSE and not by_name and not found:
            found[name] = Kind.KL, f"class scores, {reason}"
    return found


def _wanted(dataset: Dataset, sample: np.ndarray) -> tuple[bool, str] | None:
    """(whether it holds class scores, who says so)."""
    for metric in dataset.asked:
        if metric in OF_CLASSES:
            return True, f"as --metric {metric} reads it"
        if metric in OF_VALUES:
            return False, f"as --metric {metric} reads it"
    labels = [label for label in dataset.labels or () if label is not None]
    if not labels or sample.ndim != 2:
        return None
    width = sample.shape[1]
    shapes = {np.shape(label) for label in labels}
    if shapes == {(width,)}:
        return False, f"as the labels of {width} numbers are"
    if shapes == {()} and not dataset.pairs and width % 64 and all(_is_class(label, width) for label in labels):
        return True, "as the labels number classes"
    return None


def _is_class(label: Any, width: int) -> bool:
    return float(label).is_integer() and 0 <= float(label) < width


def _width(arrays: Sequence[np.ndarray] | np.ndarray) -> int:
    sample = _first(arrays)
    return int(sample.shape[-1]) if sample.ndim > 1 else 1


def _first(arrays: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    return arrays if isinstance(arrays, np.ndarray) else arrays[0]
