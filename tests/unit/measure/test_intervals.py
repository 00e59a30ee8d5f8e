"""Intervals of a drop: how often the truth lies beyond their upper end, at few rows and few changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxprune.measure.metrics import choose_metric, intervals
from onnxprune.measure.metrics.observe import Metric
from onnxprune.probe.divergence import choose

stats = pytest.importorskip("scipy.stats")
LOGITS = {"logits": np.array([[2.0, -1.0, 0.5], [0.1, 1.0, -2.0]], np.float32)}
SCORES = {"score": np.array([[0.3], [-0.2], [1.7]], np.float32)}


def named(name: str) -> Metric:
    outputs = SCORES if name in ("spearman", "pearson") else LOGITS
    labels = [1.5, 2.5, 0.5] if outputs is SCORES else [0, 1]
    return choose_metric(choose(outputs), outputs, labels, name=name)


def answers(wrong: int, right: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, label) of both models: so many rows went wrong, came right, or are right in both."""
    dense, pruned = np.ones((2, rows, 2))
    pruned[:wrong, 0] = 0
    dense[wrong : wrong + right, 0] = 0
    return dense, pruned


@pytest.mark.parametrize("rows", [10, 50, 60, 100])
def test_the_truth_lies_above_the_upper_end_at_most_as_often_as_is_said(rows: int) -> None:
    metric = named("accuracy")
    most = min(rows, 7)
    upper = {
        (b, c): (metric.interval(*answers(b, c, rows)) or (0, 0))[1]
        for b, c in itertools.product(range(most + 1), repeat=2)
        if b + c <= rows
    }
    for gone, back in itertools.product((0.002, 0.005, 0.01, 0.02, 0.03), (0.0, 0.005, 0.01)):
        trinomial = stats.multinomial(rows, [gone, back, 1 - gone - back])
        counts = [(b, c) for b, c in upper if upper[b, c] < gone - back]
        missed = sum(trinomial.pmf([b, c, rows - b - c]) for b, c in counts)
        assert missed <= 0.0255, (rows, gone, back)


@pytest.mark.parametrize("rows", [3, 10, 60, 400])
def test_rows_that_all_stay_leave_room_for_those_not_seen(rows: int) -> None:
    dense, pruned = answers(0, 0, rows)
    expected = 1 - 0.025 ** (1 / rows)
    assert named("accuracy").interval(dense, pruned) == pytest.approx((-expected, expected))
    for name in ("f1", "matthews"):
        both = np.arange(rows)[:, None] % 2 * np.ones((1, 2))
        low, high = named(name).interval(both, both) or (0, 0)
        assert low < -0.4 * expected < 0 < 0.4 * expected < high
    assert named("agreement").interval(dense, dense) == pytest.approx((0, expected))


def test_one_way_changes_have_the_interval_of_clopper_and_pearson() -> None:
    low, high = named("accuracy").interval(*answers(4, 0, 80)) or (0, 0)
    assert high == pytest.approx(stats.beta.ppf(0.975, 5, 76), rel=0.01)
    assert low < stats.beta.ppf(0.025, 4, 77)  # a row may come right, too
    hits = np.ones((80, 2))
    changed = hits.copy()
    changed[:4, 0] = 0
    low, high = named("agreement").interval(hits, changed) or (0, 0)  # nothing agrees more than the teacher
    assert (low, high) == pytest.approx((stats.beta.ppf(0.025, 4, 77), stats.beta.ppf(0.975, 5, 76)), rel=0.02)


def test_a_higher_level_is_wider_and_the_seed_decides() -> None:
    rng = np.random.default_rng(3)
    dense = np.stack([rng.integers(0, 3, 40), rng.integers(0, 3, 40)], 1).astype(float)
    pruned = np.where(rng.random((40, 1)) < 0.2, np.stack([rng.integers(0, 3, 40), dense[:, 1]], 1), dense)
    for name in ("accuracy", "f1"):
        usual, wide = (named(name).interval(dense, pruned, level=level) or (0, 0) for level in (0.95, 0.99))
        assert wide[0] < usual[0] < usual[1] < wide[1]
    assert named("f1").interval(dense, pruned, seed=1) == named("f1").interval(dense, pruned, seed=1)
    assert named("f1").interval(dense, pruned, seed=1) != named("f1").interval(dense, pruned, seed=2)
    assert named("f1").interval(dense[:1], pruned[:1]) is None


def test_copies_of_a_row_count_as_one() -> None:
    dense, pruned = answers(0, 0, 48)
    found = named("accuracy").interval(dense, pruned, groups=np.arange(48) // 8) or (0, 0)
    assert found == pytest.approx(named("accuracy").interval(*answers(0, 0, 6)), rel=0.05)


@pytest.mark.parametrize("name", ["f1", "matthews", "spearman", "pearson"])
def test_other_metrics_hold_at_few_rows(name: str) -> None:
    """The drop over very many rows, against the upper ends of small draws from them."""
    rng = np.random.default_rng(0)
    many, few, trials = 20_000, 50, 60
    if name in ("f1", "matthews"):
        label = (rng.random(many) < 0.4).astype(float)
        right = np.where(rng.random(many) < 0.1, 1 - label, label)
        worse = np.where(rng.random(many) < 0.02, 1 - right, right)
        dense, pruned = np.stack([right, label], 1), np.stack([worse, label], 1)
    else:
        label = rng.normal(size=many)
        score = label + rng.normal(size=many)
        dense, pruned = np.stack([score, label], 1), np.stack([score + 0.5 * rng.standard_t(4, size=many), label], 1)
    metric = named(name)
    truth = metric.drop(metric.value(dense), metric.value(pruned))
    missed = 0
    for _ in range(trials):
        drawn = rng.integers(0, many, few)
        missed += (metric.interval(dense[drawn], pruned[drawn]) or (0, 0))[1] < truth
    assert missed <= 5  # 1.5 expected; more than 5 has a chance of 0.4%


@pytest.mark.parametrize("classes", [[1], [3], [0, 0, 1], [2, 2, 5, 7]])
def test_the_row_that_hurts_most_was_right_and_is_wrong_whatever_its_class(classes: list[int]) -> None:
    rows = np.repeat(np.array(classes, dtype=float)[:, None], 2, 1)
    found = intervals.DECISIONS.worst(rows, rows)
    assert sorted(before[1] for before, _ in found) == sorted(set(classes) | {after[0] for _, after in found})
    for before, after in found:
        assert before[0] == before[1] == after[1] != after[0]


def test_rows_that_it_takes() -> None:
    assert intervals.rows_to_show(0.01, 0.025) == 368
    for limit, tail in ((0.01, 0.025), (0.05, 0.004), (0.3, 0.025)):
        rows = intervals.rows_to_show(limit, tail)
        assert 1 - tail ** (1 / rows) <= limit < 1 - tail ** (1 / (rows - 1))
    assert intervals.rows_to_show(1.0, 0.025) == 1
