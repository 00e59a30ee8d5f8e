"""Labels that cannot be those of the model or of the rows are said, others are not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.measure.label_doubts import few_rows, label_doubts
from onnxprune.measure.metrics import choose_metric
from onnxprune.measure.metrics.observe import Metric
from onnxprune.probe.divergence import choose

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 80)
PREDICTED = np.where(RNG.random(80) < 0.1, (LABELS + 1) % 3, LABELS)


def metric(name: str) -> Metric:
    outputs = {"score": RNG.normal(size=(4, 1))} if name == "spearman" else {"logits": RNG.normal(size=(4, 3))}
    return choose_metric(choose(outputs), outputs, [0, 1, 1, 0], name=name)


def doubts(predicted: np.ndarray, labels: np.ndarray, name: str = "accuracy") -> str:
    return " ".join(label_doubts(metric(name), np.stack([predicted, labels], 1).astype(float)))


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews"])
def test_labels_that_fit_are_not_doubted(name: str) -> None:
    assert not doubts(PREDICTED, LABELS, name)


def test_labels_read_wrongly_are_doubted() -> None:
    assert "read otherwise (0 as 1, 1 as 2, 2 as 0)" in doubts((PREDICTED + 1) % 3, LABELS)
    assert "read otherwise (0 as 1, 1 as 0)" in doubts(1 - PREDICTED % 2, LABELS % 2)
    assert "the row before" in doubts(np.roll(PREDICTED, 1), LABELS)
    assert "the row after" in doubts(np.roll(PREDICTED, -1), LABELS)


def test_a_model_that_guesses_is_doubted() -> None:
    assert "belong to this model?" in doubts(RNG.integers(0, 3, 80), LABELS)
    rare = (np.arange(80) < 8).astype(int)
    assert "always answering class 0 would be on 90%" in doubts(np.where(np.arange(80) < 20, 1, 0), rare)
    assert "always answering class 0 would be on 90%" in doubts(np.zeros(80), rare)


def test_one_label_tells_nothing() -> None:
    assert "have the label 1" in doubts(PREDICTED, np.ones(80))
    assert "have the label 0.5" in doubts(RNG.normal(size=80), np.full(80, 0.5), "spearman")


def test_scores_that_do_not_follow_their_labels() -> None:
    scores = RNG.normal(size=80)
    near = scores + 0.3 * RNG.normal(size=80)
    assert not doubts(scores, near, "spearman")
    assert "run against" in doubts(scores, -near, "spearman")
    assert "do not follow" in doubts(scores, np.roll(near, 1), "spearman")


def test_few_rows_say_how_little_they_tell() -> None:
    said = few_rows(metric("accuracy"), 40, 0.01, (-0.05, 0.12), 0.05) or ""
    assert "40 evaluation rows" in said and "less than 11.0 points" in said
    assert few_rows(metric("accuracy"), 900, 0.01, (-0.01, 0.03), 0.05) is None
    assert "1 evaluation row cannot" in (few_rows(metric("accuracy"), 1, 0.0, None, 0.05) or "")
