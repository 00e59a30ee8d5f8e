"""Evidence from ONNX Runtime on small graphs whose accuracy and drift are known."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxprune.data import Dataset, Example
from onnxprune.errors import DataError, UsageError
from onnxprune.measure import scoring_sessions
from onnxprune.measure.validation import Teacher, compare, validate
from onnxprune.probe.divergence import Kind

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 4)).astype(np.float32)


def text_model(output: str, body: str, shape: str, **weights: np.ndarray) -> bytes:
    """A graph over token ids [batch, tokens]."""
    header = f"g (int64[batch, tokens] input_ids) => (float[{shape}] {output})"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {header} {{ {body} }}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return bytes(model.SerializeToString())


def classifier(table: np.ndarray) -> bytes:
    """Mean of the tokens' vectors: logits [batch, classes]."""
    body = "e = Gather(table, input_ids)  logits = ReduceMean <axes = [1], keepdims = 0> (e)"
    return text_model("logits", body, "batch, classes", table=table)


def encoder(table: np.ndarray) -> bytes:
    """The same at norm 1."""
    body = """e = Gather(table, input_ids)  m = ReduceMean <axes = [1], keepdims = 0> (e)
    n = ReduceL2 <axes = [1]> (m)  sentence_embedding = Div(m, n)"""
    return text_model("sentence_embedding", body, "batch, width", table=table)


def language_model(table: np.ndarray, causal: bool) -> bytes:
    """Logits [batch, tokens, vocabulary] from running sums (causal) or from the sum of all tokens."""
    summed = "s = CumSum(e, one)" if causal else "a = ReduceSum(e, one)  s = Add(e, a)"
    shape = {"one": np.array(1, np.int64) if causal else np.array([1], np.int64)}
    body = f"e = Gather(table, input_ids)  {summed}  logits = MatMul(s, out)"
    return text_model("logits", body, "batch, tokens, vocabulary", table=table, out=table.T.copy(), **shape)


def dataset(rows: int, labels: Any = None, pairs: bool = False, vocabulary: int = 6) -> Dataset:
    """Random ids in rows of 3 to 5 tokens."""
    rng = np.random.default_rng(7)
    examples = []
    for i in range(rows):
        ids = rng.integers(0, vocabulary, (1, 3 + i % 3))
        label = None if labels is None else labels(ids) if callable(labels) else labels[i // (2 if pairs else 1)]
        examples.append(
            Example({"input_ids": ids, "attention_mask": np.ones_like(ids)}, label, i // 2 if pairs else None)
        )
    return Dataset(tuple(examples), "tokens")


def argmax(table: np.ndarray) -> Any:
    return lambda ids: int(table[ids[0]].mean(0).argmax())


def test_a_model_against_itself_has_no_drop_and_no_drift() -> None:
    model = classifier(W)
    found = validate(model, model, dataset(40, argmax(W)))
    assert found.accuracy.metric == "accuracy"
    assert (found.accuracy.dense, found.accuracy.pruned, found.accuracy.drop) == (1, 1, 0)
    assert found.accuracy.rows == 40
    low, high = found.accuracy.confidence_interval or (0, 0)
    assert low < 0 < high
    assert (found.drift.kl, found.drift.agreement, found.drift.max_abs) == (0, 1, 0)
    assert found.drift.cosine == pytest.approx(1)
    assert "KL" in found.drift.measure
    assert found.coverage.complete


def test_every_row_meets_its_own_label_whatever_the_batches() -> None:
    other = RNG.normal(size=W.shape).astype(np.float32)
    data = dataset(60, argmax(W))
    logits = np.stack([[t[e.feeds["input_ids"][0]].mean(0) for e in data.examples] for t in (W, other)])
    predicted = logits.argmax(-1)
    found = validate(classifier(W), classifier(other), data)
    agreement = (predicted[0] == predicted[1]).mean()
    assert found.accuracy.dense == 1
    assert found.accuracy.pruned == pytest.approx(agreement)
    assert found.accuracy.drop == pytest.approx(1 - agreement)
    low, high = found.accuracy.confidence_interval or (0, 0)
    assert 0 < low < found.accuracy.drop < high
    assert found.drift.agreement == pytest.approx(agreement)
    assert found.drift.max_abs == pytest.approx(np.abs(logits[0] - logits[1]).max(), rel=1e-5)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits)
    assert found.drift.kl == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    assert found.drift.divergence == found.drift.kl


def test_the_interval_follows_the_seed() -> None:
    models = classifier(W), classifier(RNG.normal(size=W.shape).astype(np.float32))
    data = dataset(30, argmax(W))
    first, again, other = (validate(*models, data, seed=s).accuracy.confidence_interval for s in (1, 1, 2))
    assert first == again
    assert other is not None


def test_labels_are_optional() -> None:
    other = classifier(RNG.normal(size=W.shape).astype(np.float32))
    found = validate(classifier(W), other, dataset(30))
    assert found.accuracy.metric == "agreement"
    assert found.accuracy.dense == 1
    assert found.accuracy.pruned == found.drift.agreement
    assert "no labels" in found.accuracy.reason


def test_several_metrics_in_one_pass() -> None:
    found = validate(classifier(W), classifier(W), dataset(20, argmax(W)), metric=["f1", "matthews", "agreement"])
    assert [a.metric for a in (found.accuracy, *found.further)] == ["f1", "matthews", "agreement"]
    assert all(a.pruned == pytest.approx(1) for a in (found.accuracy, *found.further))


def test_pairs_are_compared_by_their_cosines() -> None:
    data = dataset(24, [0.0] * 12, pairs=True)

    def cosines(table: np.ndarray) -> list[float]:
        means = [table[e.feeds["input_ids"][0]].mean(0) for e in data.examples]
        return [
            float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(means[::2], means[1::2], strict=True)
        ]

    data = dataset(24, cosines(W), pairs=True)
    other = RNG.normal(size=W.shape).astype(np.float32)
    found = validate(encoder(W), encoder(other), data)
    assert (found.accuracy.metric, found.accuracy.rows) == ("spearman", 12)
    assert found.accuracy.dense == pytest.approx(1)
    pearson = validate(encoder(W), encoder(other), data, metric="pearson").accuracy
    assert pearson.pruned == pytest.approx(np.corrcoef(cosines(W), cosines(other))[0, 1], rel=1e-4)
    assert found.drift.kl is None
    assert found.drift.agreement is None
    means = [[t[e.feeds["input_ids"][0]].mean(0) for e in data.examples] for t in (W, other)]
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*means, strict=True)]
    assert found.drift.cosine == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_causal_model_is_scored_by_its_next_tokens() -> None:
    table = RNG.normal(size=(20, 4)).astype(np.float32)
    data = dataset(10, vocabulary=20)
    found = validate(language_model(table, True), language_model(table * 2, True), data).accuracy
    assert found.metric == "perplexity"
    assert not found.higher_is_better
    nats, tokens = 0.0, 0
    for example in data.examples:
        ids = example.feeds["input_ids"][0]
        logits = table[ids].cumsum(0) @ table.T
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nats -= log_p[np.arange(len(ids) - 1), ids[1:]].sum()
        tokens += len(ids) - 1
    assert found.dense == pytest.approx(np.exp(nats / tokens), rel=1e-4)
    assert found.drop == pytest.approx(found.pruned - found.dense)


def test_a_model_that_sees_all_tokens_is_not_causal() -> None:
    table = RNG.normal(size=(20, 4)).astype(np.float32)
    model = language_model(table, False)
    assert validate(model, model, dataset(10, vocabulary=20)).accuracy.metric == "agreement"


def test_padding_does_not_count() -> None:
    table = RNG.normal(size=(20, 4)).astype(np.float32)
    ids = RNG.integers(0, 20, (1, 6))
    real = np.array([[True] * 4 + [False] * 2])
    models = language_model(table, True), language_model(table * 1.5, True)

    def drift(*rows: np.ndarray) -> Any:
        examples = tuple(Example({"input_ids": row}, real=real) for row in rows)
        return validate(*models, Dataset(examples, "tokens"))

    other = np.concatenate([ids[:, :4], (ids[:, 4:] + 3) % 20], 1)
    short = validate(*models, Dataset((Example({"input_ids": ids[:, :4]}),), "tokens"))
    for padded in (drift(ids), drift(other)):
        assert padded.drift.kl == pytest.approx(short.drift.kl)
        assert padded.accuracy.pruned == pytest.approx(short.accuracy.pruned)


def test_one_teacher_serves_many_and_keeps_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(40, argmax(W))
    model = classifier(W)
    other = classifier(RNG.normal(size=W.shape).astype(np.float32))
    from onnxprune.graph import runtime

    ran: list[Any] = []
    original = runtime.run

    def counting(opened: Any, *arguments: Any) -> Any:
        ran.append(opened)
        return original(opened, *arguments)

    expected = validate(model, other, data)
    monkeypatch.setattr(runtime, "run", counting)
    kept = Teacher(model, data, max_rows=4)
    tight = Teacher(model, data, max_rows=4, keep_bytes=100)
    for teacher, runs in ((kept, 1), (tight, 2)):
        assert compare(teacher, other) == expected
        ran.clear()
        compare(teacher, other)
        assert (len({id(opened) for opened in ran}) == runs) is True


def test_the_dense_model_goes_when_all_of_its_outputs_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not in memory beside the pruned one, nor while further budgets are planned."""
    sessions: list[weakref.ref[Any]] = []
    beside: list[int] = []
    original = scoring_sessions.opened

    def opening(*given: Any, **named: Any) -> Any:
        gc.collect()
        beside.append(sum(session() is not None for session in sessions))
        session = original(*given, **named)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(scoring_sessions, "opened", opening)
    model, pruned, data = classifier(W), classifier(2 * W), dataset(10)
    kept = Teacher(model, data, max_rows=4)
    expected = compare(kept, pruned)
    assert beside == [0, 0]
    assert compare(kept, pruned) == expected
    assert beside == [0, 0, 0]
    tight = Teacher(model, data, max_rows=4, keep_bytes=100)
    assert compare(tight, pruned) == expected
    assert beside == [0, 0, 0, 0, 1]


def test_progress_counts_rows() -> None:
    calls: list[tuple[int, int]] = []
    validate(classifier(W), classifier(W), dataset(9), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(3, 9), (6, 9), (9, 9)]


def test_a_divergence_can_be_given() -> None:
    from onnxprune.probe.divergence import Divergence, Measure

    teacher = Teacher(classifier(W), dataset(9), divergence=Divergence((Measure("logits", Kind.MSE),)))
    drift = compare(teacher, classifier(2 * W)).drift
    assert drift.kl is None
    assert drift.divergence > 0


def test_wrong_rows_and_names() -> None:
    model = classifier(W)
    with pytest.raises(DataError, match="no rows"):
        validate(model, model, Dataset((), "tokens"))
    with pytest.raises(UsageError, match="unknown"):
        validate(model, model, dataset(3), metric="bleu")
    with pytest.raises(DataError, match="label 9 is no class"):
        validate(model, model, dataset(3, [0, 9, 1]))
    with pytest.raises(DataError, match="input_ids"):
        examples = tuple(replace(e, feeds={"ids": e.feeds["input_ids"]}) for e in dataset(3).examples)
        validate(model, model, Dataset(examples, "tokens"))


@pytest.mark.slow
def test_published_figures(sst2_folder: Path, stsb_folder: Path, assets: Path) -> None:
    from onnxprune.data import read
    from onnxprune.graph.model import load

    for folder, name, value in ((sst2_folder, "sst2", 0.8968), (stsb_folder, "stsb", 0.8672)):
        model = load(folder)
        data = read(assets / "data" / name / "dev.jsonl", model.inputs, outputs=model.outputs, folder=folder)
        found = validate(folder / "model.onnx", folder / "model.onnx", data).accuracy
        assert found.dense == pytest.approx(value, abs=5e-4)
