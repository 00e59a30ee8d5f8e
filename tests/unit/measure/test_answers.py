"""Rows with another answer are found and told, whatever an answer is: a class, tags, a span, a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnxprune.data import Dataset, Example
from onnxprune.measure.flips import Flips, FlipTally
from onnxprune.probe.divergence import Divergence, Kind, Measure

PIECES = ("", " Ann", " lives", " in", " Ro", "me", "")


def flips(
    measures: Sequence[Measure], dense: dict[str, Any], pruned: dict[str, Any], *, labels: Sequence[Any] = (),
    pieces: tuple[str, ...] = (), classes: dict[int, str] | None = None, real: Any = None, most: int = 12,
) -> Flips | None:  # fmt: skip
    """What is told of rows of seven tokens."""
    rows = len(next(iter(dense.values())))
    shown = [None if real is None else np.asarray(real, bool)[None]] * rows
    examples = tuple(
        Example({"ids": np.full((1, 7), 9 + row)}, labels[row] if len(labels) else None, None, f"rows:{row + 1}",
                shown[row], "Ann lives in Rome", pieces)
        for row in range(rows)
    )  # fmt: skip
    dataset = Dataset(examples, "tensors", classes=classes or {})
    tally = FlipTally(dataset, Divergence(tuple(measures)), most)
    for batch in dataset.batches(2):
        sides = ({name: np.asarray(side[name])[batch.index] for name in side} for side in (dense, pruned))
        tally.add(batch, *sides)
    return tally.result()


def tagged(*rows: str) -> np.ndarray:
    """Scores [rows, tokens, 3] whose largest are the digits of each row."""
    return np.eye(3)[[[int(digit) for digit in row] for row in rows]] * 4


TAGS = Measure("logits", Kind.KL)
NAMES = {0: "O", 1: "PER", 2: "LOC"}


def test_tags_are_told_word_by_word() -> None:
    label = np.array([-100, 1, 0, 0, 2, -100, -100])
    dense, pruned = tagged("0100220", "0100220", "0000000"), tagged("0100020", "0100200", "0200000")
    held = flips([TAGS], {"logits": dense}, {"logits": pruned}, labels=[label] * 3, pieces=PIECES, classes=NAMES)
    assert held is not None and (held.what, held.count, held.rows, held.lost, held.won) == ("tags", 2, 3, 1, 0)
    told = {(f.dense, f.pruned, f.label) for f in held.shown}
    assert told == {("Rome: LOC", "Rome: O", "Rome: LOC"), ("Ann: O", "Ann: LOC", "Ann: PER")}
    assert 0.9 < held.shown[0].dense_confidence < 1


def test_without_labels_all_tokens_count_that_are_no_padding_and_numbers_name_them() -> None:
    dense, pruned = tagged("0000000", "0000000"), tagged("0000001", "1111100")
    held = flips([TAGS], {"logits": dense}, {"logits": pruned}, real=[1] * 6 + [0])
    assert held is not None and (held.count, held.lost, held.won) == (1, None, None)
    assert held.shown[0].pruned == "token 1: 1, token 2: 1, token 3: 1, and 2 more"


def test_tokens_are_those_of_the_row_and_classes_no_vocabulary() -> None:
    queries = tagged("010", "010")
    assert flips([TAGS], {"logits": queries}, {"logits": queries}) is None
    for vocabulary in (1000, 20):  # more than any tag set; or enough for every token that is read
        words = np.zeros((2, 7, vocabulary))
        assert flips([TAGS], {"logits": words}, {"logits": words}) is None


def test_where_a_row_that_moved_has_no_label_nobody_says_who_was_right() -> None:
    label = np.array([-100, 1, 0, 0, 2, -100, -100])
    dense, pruned = tagged("0100220", "0100020"), tagged("0100020", "0100220")
    sides = {"logits": dense}, {"logits": pruned}
    held, some = (flips([TAGS], *sides, labels=labels, pieces=PIECES) for labels in ([label, label], [label, None]))
    assert held is not None and some is not None and held.count == some.count == 2
    assert (held.lost, held.won) == (1, 1) and (some.lost, some.won) == (None, None)


def spans(*rows: tuple[int, int]) -> dict[str, np.ndarray]:
    sides = np.eye(7)[np.array(rows).T] * 9
    return {"start_logits": sides[0], "end_logits": sides[1]}


SPANS = [Measure(f"{side}_logits", Kind.KL, positional=True) for side in ("start", "end")]


def test_spans_are_told_by_their_text() -> None:
    gold = np.array([[4, 5]])
    held = flips(SPANS, spans((4, 5), (0, 0), (1, 1)), spans((1, 3), (4, 5), (1, 1)), labels=[gold] * 3, pieces=PIECES)
    assert held is not None and (held.what, held.count, held.rows, held.lost, held.won) == ("spans", 2, 3, 1, 1)
    told = {(f.dense, f.pruned, f.label) for f in held.shown}
    assert told == {("Rome", "Ann lives in", "Rome"), ("no answer", "Rome", "Rome")}
    bare = flips(SPANS, spans((4, 5), (2, 2)), spans((1, 3), (2, 2)))
    assert bare is not None and (bare.lost, bare.shown[0].dense, bare.shown[0].label) == (None, "tokens 5 to 6", "")


SCORE = Measure("score", Kind.MSE)


def test_scores_are_told_by_how_far_they_moved() -> None:
    dense, pruned = np.array([[1.0], [2.0], [3.0]]), np.array([[1.1], [1.5], [3.0]])
    held = flips([SCORE], {"score": dense}, {"score": pruned}, labels=[1.0, 2.5, 3.0], most=2)
    assert held is not None and (held.what, held.count, held.lost) == ("scores", 3, None)
    assert held.moved == pytest.approx((0.1, 0.5, np.std(dense)))
    assert [(f.dense, f.pruned, f.label) for f in held.shown] == [("2", "1.5", "2.5"), ("1", "1.1", "1")]
    assert math.isnan(held.shown[0].dense_confidence)


@pytest.mark.parametrize("logits", [True, False])
def test_scores_of_yes_and_no_are_answers(logits: bool) -> None:
    sides = np.array([[0.9], [0.2], [0.7]]), np.array([[0.4], [0.3], [0.6]])
    dense, pruned = (np.log(side / (1 - side)) if logits else side for side in sides)
    held = flips([SCORE], {"score": dense}, {"score": pruned}, labels=[1, 0, 0], classes={1: "spam", 0: "ham"})
    assert held is not None and (held.what, held.count, held.lost, held.won) == ("classes", 1, 1, 0)
    shown = held.shown[0]
    assert (shown.dense, shown.pruned, shown.label, held.moved) == ("spam", "ham", "spam", None)
    assert (shown.dense_confidence, shown.pruned_confidence) == pytest.approx((0.9, 0.6))


def test_vectors_have_no_answer() -> None:
    wide = np.ones((2, 8))
    assert flips([Measure("pooled", Kind.COSINE)], {"pooled": wide}, {"pooled": wide}) is None
