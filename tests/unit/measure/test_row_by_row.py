"""Rows with another answer, and the metric on parts of the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from unit.measure.test_validation import W, classifier, dataset, encoder, language_model

from onnxprune.data import Dataset, Example
from onnxprune.measure.metrics import Metric
from onnxprune.measure.metrics.intervals import RANKS, SCORES
from onnxprune.measure.metrics.values import spearman
from onnxprune.measure.slices import slices
from onnxprune.measure.validation import Evidence, validate


def evidence(rows: Dataset, flips: int = 12) -> Evidence:
    """A classifier of 4 classes against one whose first two classes are exchanged."""
    return validate(classifier(W), classifier(W[:, [1, 0, 2, 3]]), rows, flips=flips)


def answers(rows: Dataset) -> list[int]:
    return [int(W[example.feeds["input_ids"][0]].mean(0).argmax()) for example in rows.examples]


def labelled(count: int) -> Dataset:
    """Every row has the dense model's answer as its label."""
    rows = dataset(count)
    examples = tuple(
        replace(e, label=label, source=f"rows.jsonl:{i + 1}", excerpt=f"row {i}")
        for i, (e, label) in enumerate(zip(rows.examples, answers(rows), strict=True))
    )
    return replace(rows, examples=examples, classes={0: "good", 1: "bad"})


def test_rows_with_another_answer_are_counted_and_the_surest_shown() -> None:
    rows = labelled(60)
    turned = [i for i, answer in enumerate(answers(rows)) if answer < 2]
    found = evidence(rows, 3).flips
    assert found is not None
    assert (found.count, found.rows, found.lost, found.won) == (len(turned), 60, len(turned), 0)
    assert len(found.shown) == 3
    sure = [one.dense_confidence + one.pruned_confidence for one in found.shown]
    assert sure == sorted(sure, reverse=True) and all(0.25 < s / 2 <= 1 for s in sure)
    for one in found.shown:
        number = int(one.source.rpartition(":")[2]) - 1
        names = ["good", "bad"]
        answer = answers(rows)[number]
        assert (one.dense, one.pruned, one.label) == (names[answer], names[1 - answer], names[answer])
        assert one.excerpt == f"row {number}" and one.picture == ""


def test_without_labels_nothing_is_right_or_wrong() -> None:
    found = evidence(dataset(40)).flips
    assert found is not None and found.count and found.lost is found.won is None
    assert found.shown[0].label == "" and found.shown[0].dense in "0123"


def test_no_rows_are_given_unless_they_are_asked_for() -> None:
    found = validate(classifier(W), classifier(W[:, [1, 0, 2, 3]]), labelled(60)).flips
    assert found is not None and found.count and not found.shown


@pytest.mark.parametrize("model", [encoder(W), language_model(W, causal=True)])
def test_outputs_without_one_answer_have_no_flips(model: bytes) -> None:
    assert validate(model, model, dataset(24)).flips is None


def test_a_loss_in_one_class_is_seen() -> None:
    rows = labelled(90)
    count = answers(rows)
    found = {one.name: one for one in evidence(rows).slices if one.by == "class"}
    assert set(found) == {("good", "bad", "2", "3")[label] for label in set(count) if count.count(label) >= 5}
    for name, one in found.items():
        assert one.dense == 1 and one.pruned == (0 if name in ("good", "bad") else 1)
        assert one.drop == one.dense - one.pruned
        low, high = one.confidence_interval or (0, 0)
        assert low <= one.drop <= high


def test_parts_by_length_hold_all_rows_once() -> None:
    found = [one for one in evidence(labelled(90)).slices if one.by == "length"]
    assert [one.name for one in found] == ["3", "4", "5"]
    assert sum(one.rows for one in found) == 90


def test_padding_has_no_length_and_one_length_has_no_parts() -> None:
    rows = labelled(60)
    padded = []
    for i, example in enumerate(rows.examples):
        ids = np.zeros((1, 6), np.int64)
        real = np.arange(6)[None] < 1 + i % 4
        padded.append(
            replace(example, feeds={**example.feeds, "input_ids": ids, "attention_mask": ids + real}, real=real)
        )
    found = evidence(replace(rows, examples=tuple(padded))).slices
    assert [one.name for one in found if one.by == "length"] == ["1", "2", "3", "4"]
    same = tuple(e for e in rows.examples if e.feeds["input_ids"].shape[1] == 4)
    assert not [one for one in evidence(replace(rows, examples=same)).slices if one.by == "length"]


def test_sounds_have_a_length() -> None:
    from onnxprune.measure.slices import _by_length

    examples = tuple(Example({"input_values": np.zeros((1, n), np.float32)}) for n in range(100, 140))
    parts = [name for name, _ in _by_length(Dataset(examples, "audio"))]
    assert parts == ["100 to 109", "110 to 119", "120 to 129", "130 to 139"]


def test_a_correlation_of_rows_that_shall_score_alike_is_none() -> None:
    """Labels that follow the length leave nothing to rank within rows of one length."""
    rows = dataset(60)
    lengths = np.array([example.tokens for example in rows.examples])
    scores = np.random.default_rng(0).normal(size=60)
    alike = replace(
        rows, examples=tuple(replace(e, label=float(n)) for e, n in zip(rows.examples, lengths, strict=True))
    )
    for family in (SCORES, RANKS):
        metric = Metric("spearman", lambda *_: np.empty(0), spearman, family)
        told = slices(metric, alike, *(np.stack([scores, lengths], 1) for _ in range(2)))
        parts = {one.name for one in told}
        assert parts <= {name for name in parts if " to " in name}, "one length has one label here"
    assert slices(metric, alike, *(np.stack([scores, scores], 1) for _ in range(2)))
