"""Values are not taken for class scores because of their shape, and what decides is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import written

import onnxprune
from onnxprune.data import Dataset, Example
from onnxprune.errors import UsageError
from onnxprune.measure.validation import validate
from onnxprune.pipeline import verbs
from onnxprune.probe.divergence import Kind, choose, choose_for

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(40, 5))


def kind(values: np.ndarray, name: str = "y", labels: Any = None, metric: str | None = None) -> tuple[Kind, str]:
    examples = [Example({"x": np.ones((1, 1))}, None if labels is None else labels[i]) for i in range(len(values))]
    found = choose_for(Dataset(tuple(examples), "tensors").read_by(metric), {name: values}).measures[0]
    return found.kind, found.reason


@pytest.mark.parametrize("low", [0.0, 0.45])
@pytest.mark.parametrize("width", [2, 4, 10])
def test_coordinates_are_values(low: float, width: int) -> None:
    for values in (RNG.uniform(low, 1 - low, (40, width)), 224 * RNG.uniform(low, 1 - low, (40, width))):
        assert kind(values) == (Kind.MSE, "values: none is negative, and rows do not sum to one as probabilities do")


def test_values_about_zero_that_decide_nothing_are_values() -> None:
    found = kind(0.1 * RNG.normal(size=(40, 5)))
    assert found[0] is Kind.MSE and "would decide nothing" in found[1]


def test_what_may_be_class_scores_is_taken_for_them_and_said() -> None:
    assert kind(LOGITS) == (Kind.KL, "class scores by shape: rank 2, 5 wide")
    assert kind(np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True))[0] is Kind.PROBABILITY_KL
    assert kind(RNG.uniform(0, 1, (40, 5)), "logits") == (Kind.KL, "class scores by name")
    assert choose({"y": np.abs(LOGITS[:3])}).measures[0].kind is Kind.KL  # three rows show nothing


def test_labels_know_better() -> None:
    assert kind(np.abs(LOGITS), labels=[i % 5 for i in range(40)]) == (
        Kind.KL,
        "class scores, as the labels number classes",
    )
    assert kind(LOGITS, labels=list(LOGITS + 0.1)) == (Kind.MSE, "values, as the labels of 5 numbers are")
    assert kind(LOGITS, labels=[i % 5 for i in range(40)])[0] is Kind.KL


def test_the_metric_knows_best() -> None:
    assert kind(LOGITS, metric="explained_variance") == (Kind.MSE, "values, as --metric explained_variance reads it")
    assert kind(LOGITS, metric="cosine")[0] is Kind.MSE
    assert kind(np.abs(LOGITS), metric="agreement") == (Kind.KL, "class scores, as --metric agreement reads it")
    assert kind(LOGITS, "logits", metric="cosine") == (Kind.KL, "class scores by name")  # measured so, not read so


MLP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 8] x) => (float[batch, 4] y)
{ h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)  y = Sigmoid(z) }
"""


def test_a_regressor_is_judged_by_explained_variance_the_whole_way(tmp_path: Path) -> None:
    path = written(tmp_path, MLP, {"a": (8, 24), "b": (24, 4)})
    rows = [{"x": RNG.normal(size=(1, 8)).astype(np.float32)} for _ in range(120)]
    common: dict[str, Any] = {"units": ("neurons",), "round_to": 1, "measure_latency": False}
    report = onnxprune.prune(path, flops=0.8, calibration=rows, **common).report
    assert report.accuracy is not None and report.drift is not None
    assert report.accuracy.metric == "explained_variance" and "none is negative" in report.accuracy.reason
    assert report.drift.kl is None and report.drift.agreement is None
    assert report.accuracy.pruned == pytest.approx(report.drift.explained_variance, abs=0.05)
    assert "none is negative" in report.recipe["divergence"]
    assert report.accuracy.confidence_interval is not None
    assert 0 <= report.accuracy.confidence_interval[0] < report.accuracy.drop < report.accuracy.confidence_interval[1]
    asked = onnxprune.prune(path, flops=0.8, calibration=rows, metric="agreement", **common).report
    assert asked.accuracy is not None and asked.accuracy.metric == "agreement"
    assert "as --metric agreement reads it" in asked.recipe["divergence"]


def test_labels_of_many_numbers_make_an_r2(tmp_path: Path) -> None:
    path = written(tmp_path, MLP, {"a": (8, 24), "b": (24, 4)})
    x = RNG.normal(size=(60, 1, 8)).astype(np.float32)
    from onnxprune.graph import runtime

    y = runtime.run(runtime.session(path), {"x": x[:, 0]}, ["y"])["y"]
    labels = y + RNG.normal(0, 0.1, y.shape)
    rows = Dataset(tuple(Example({"x": a}, b) for a, b in zip(x, labels, strict=True)), "tensors")
    found = validate(path, path, rows).accuracy
    assert found.metric == "r2"
    assert found.dense == pytest.approx(1 - np.square(y - labels).sum() / np.square(labels - labels.mean(0)).sum())


@pytest.mark.parametrize("size", [0, -1, -5, 10**12])
def test_sizes_that_are_none_are_refused(tmp_path: Path, size: int) -> None:
    path = written(tmp_path, MLP, {"a": (8, 24), "b": (24, 4)})
    with pytest.raises(UsageError, match="batch="):
        verbs.inspect(path, {"batch": size})
    with pytest.raises(UsageError, match="batch="):
        onnxprune.prune(path, flops=0.5, shape={"batch": size}, units=("neurons",), measure_latency=False)
