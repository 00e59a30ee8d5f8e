"""Metrics against scikit-learn, scipy and counts by hand; which one is chosen; how sure it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxprune.errors import DataError, UsageError
from onnxprune.measure.metrics import IGNORED, VOID, bootstrap_interval, choose_metric, observe, values
from onnxprune.probe.divergence import choose

RNG = np.random.default_rng(0)


def decisions(classes: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.integers(0, classes - 1))


@given(decisions(2))
def test_binary_f1(rows: np.ndarray) -> None:
    expected = sklearn.metrics.f1_score(rows[:, 1], rows[:, 0], zero_division=0)
    assert values.f1(rows) == pytest.approx(expected)


@given(decisions(4).filter(lambda rows: rows.max() > 1))
def test_macro_f1(rows: np.ndarray) -> None:
    expected = sklearn.metrics.f1_score(rows[:, 1], rows[:, 0], average="macro", zero_division=0)
    assert values.f1(rows) == pytest.approx(expected)


@given(decisions(3).filter(lambda rows: len(np.unique(rows)) > 1))  # scikit-learn warns about a single class
def test_matthews_and_accuracy(rows: np.ndarray) -> None:
    assert values.matthews(rows) == pytest.approx(sklearn.metrics.matthews_corrcoef(rows[:, 1], rows[:, 0]))
    assert values.accuracy(rows) == pytest.approx(sklearn.metrics.accuracy_score(rows[:, 1], rows[:, 0]))


def test_correlations_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats")
    rows = RNG.integers(0, 6, (50, 2)) + RNG.normal(0, 1e-3, (50, 2)).round(3)
    assert values.spearman(rows) == pytest.approx(stats.spearmanr(*rows.T).statistic)
    assert values.pearson(rows) == pytest.approx(stats.pearsonr(*rows.T).statistic)
    np.testing.assert_array_equal(values.ranks(np.array([3, 1, 3, 2])), [2.5, 0, 2.5, 1])
    assert values.spearman(np.ones((4, 2))) == 0


def test_top_hits_and_their_labels() -> None:
    scores = np.array([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]], np.float32)
    for label, expected in ((4, [1, 1]), (5, [0, 1]), (0, [1, 0])):
        found = observe.top_hits("y", 5)({"y": scores}, [label, label], None)
        np.testing.assert_array_equal(found[:, 0], expected)
    with pytest.raises(DataError, match="label 6 is no class of a model with 6 classes"):
        observe.top_hits("y", 5)({"y": scores}, [0, 6], None)


def test_single_score_decisions() -> None:
    found = observe.decisions("y", 0.0)({"y": np.array([[-1.0], [2.0], [0.5]])}, [0, 1, 0], None)
    np.testing.assert_array_equal(found, [[0, 0], [1, 1], [1, 0]])


def test_perplexity_is_torch_cross_entropy() -> None:
    logits = RNG.normal(0, 3, (2, 5, 11)).astype(np.float32)
    labels = RNG.integers(0, 11, (2, 5))
    labels[0, :2] = IGNORED
    rows = observe.token_likelihood("y")({"y": logits}, list(labels), None)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).reshape(-1, 11), torch.from_numpy(labels.ravel())
    )
    assert values.perplexity(rows) == pytest.approx(float(expected.exp()), rel=1e-6)
    np.testing.assert_array_equal(rows[:, 1], [3, 5])
    silent = observe.token_likelihood("y")({"y": logits[:1]}, [np.full(5, IGNORED)], None)
    np.testing.assert_array_equal(silent, [[0, 0]])


def test_token_labels_must_fit() -> None:
    with pytest.raises(DataError, match="3 token labels for 5 positions"):
        observe.token_counts("y")({"y": np.zeros((1, 5, 4))}, [np.zeros(3)], None)


def test_token_f1_leaves_out_the_outside_class() -> None:
    truth = np.array([0, 1, 2, 0, 1, IGNORED])
    predicted = np.array([0, 1, 1, 2, 0, 2])
    rows = observe.token_counts("y")({"y": np.eye(3)[predicted][None]}, [truth], None)
    # Right: one; wrong class: one (found and missed); found where nothing is: one; missed: one.
    np.testing.assert_array_equal(rows, [[1, 2, 2]])
    counted = truth != IGNORED
    expected = sklearn.metrics.f1_score(truth[counted], predicted[counted], labels=[1, 2], average="micro")
    assert values.micro_f1(rows) == pytest.approx(expected)
    hits = observe.token_counts("y", None)({"y": np.eye(3)[predicted][None]}, [truth], None)
    assert values.ratio(hits) == pytest.approx(2 / 5)


def test_explained_variance_is_scikit_learn_s_r2_of_weighted_rows() -> None:
    rng = np.random.default_rng(0)
    target = 3 + rng.standard_normal((20, 4))
    found = target + 0.5 * rng.standard_normal((20, 4))
    rows = np.column_stack([np.square(target - found).sum(1), np.square(target).sum(1), target])
    weights = rng.uniform(0.1, 3, (2, 20))
    wanted = [
        sklearn.metrics.r2_score(target, found, sample_weight=w, multioutput="variance_weighted") for w in weights
    ]
    np.testing.assert_allclose(values.explained.drawn(rows, weights), wanted)
    assert values.explained(rows) == pytest.approx(
        sklearn.metrics.r2_score(target, found, multioutput="variance_weighted")
    )


def test_mean_iou_sums_over_rows_before_it_divides() -> None:
    truth = RNG.integers(0, 3, (4, 6, 5))
    predicted = np.where(RNG.random(truth.shape) < 0.7, truth, RNG.integers(0, 3, truth.shape))
    truth[0, 0] = VOID
    scores = np.moveaxis(np.eye(4)[predicted], -1, 1)
    rows = observe.pixel_overlap("y")({"y": scores}, list(truth), None)
    counted = truth != VOID
    expected = sklearn.metrics.jaccard_score(truth[counted], predicted[counted], average="macro", labels=[0, 1, 2])
    assert values.mean_iou(rows) == pytest.approx(expected)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (3, 2), (4, 6)])
def test_bilinear_resize_is_torch_interpolate(size: tuple[int, int]) -> None:
    image = RNG.normal(size=(3, 4, 6))
    expected = torch.nn.functional.interpolate(torch.from_numpy(image)[None], size=size, mode="bilinear")[0]
    np.testing.assert_allclose(observe.resize_bilinear(image, size), expected.numpy(), atol=1e-12)


def test_answers() -> None:
    start, end = np.full((1, 40), -30.0), np.zeros((1, 40))
    start[0, 5], end[0, 7], end[0, 2], end[0, 39] = 9, 9, 20, 20  # the highest ends lie before, or too far ahead
    outputs = {"s": start, "e": end}
    f1, exact = observe.answer_overlap("s", "e", False), observe.answer_overlap("s", "e", True)
    assert f1(outputs, [np.array([[5, 7]])], None) == 1
    assert exact(outputs, [np.array([[0, 0], [5, 7]])], None) == 1
    assert exact(outputs, [np.array([[5, 8]])], None) == 0
    assert f1(outputs, [np.array([[6, 9]])], None)[0, 0] == pytest.approx(2 * 2 / (3 + 4))
    assert f1(outputs, [np.array([[20, 22]])], None) == 0
    real = np.ones((1, 40), bool)
    real[0, 7] = False
    assert exact(outputs, [np.array([[5, 7]])], real) == 0


def test_embeddings_average_real_tokens() -> None:
    tokens = RNG.normal(size=(2, 5, 4))
    real = np.array([[True] * 3 + [False] * 2, [True] * 5])
    found = observe.embeddings("e")({"e": tokens}, None, real)
    mean = tokens[0, :3].mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)


def test_agreement_with_a_teacher_skips_padding() -> None:
    teacher = np.eye(3)[[[0, 1, 2, 0], [1, 1, 1, 1]]]
    student = np.eye(3)[[[0, 1, 0, 0], [1, 1, 1, 2]]]
    seen = observe.teacher_decisions({"y": -1})
    np.testing.assert_array_equal(seen({"y": student}, {"y": teacher}, None), [[3, 4], [3, 4]])
    real = np.array([[True, True, True, True], [True, True, True, False]])
    np.testing.assert_array_equal(seen({"y": student}, {"y": teacher}, real), [[3, 4], [3, 3]])
    cosines = observe.teacher_cosines(["y"])({"y": student}, {"y": teacher}, real)
    np.testing.assert_allclose(cosines, [[3, 4], [3, 3]])


# ---- choosing


def chosen(outputs: dict[str, np.ndarray], labels: Any, **options: Any) -> str:
    return choose_metric(choose(outputs), outputs, labels, **options).name


LOGITS = RNG.normal(size=(4, 3)).astype(np.float32)
UNIT = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
TOKENS = RNG.normal(size=(4, 6, 9)).astype(np.float32)


@pytest.mark.parametrize(
    ("outputs", "labels", "options", "expected"),
    [
        ({"logits": LOGITS}, [0, 1, 2, 0], {}, "accuracy"),
        ({"logits": LOGITS}, [0.0, 1.0, 2.0, 0.0], {}, "accuracy"),
        ({"logits": LOGITS[:, :1]}, [0.5, 2.5, 5, 1], {}, "spearman"),
        ({"logits": LOGITS[:, :1]}, [0, 1, 1, 0], {}, "accuracy"),
        ({"logits": TOKENS}, [np.zeros(6)] * 4, {}, "token_f1"),
        ({"logits": np.zeros((2, 3, 2000), np.float32)}, [np.zeros(3)] * 2, {}, "perplexity"),
        ({"logits": TOKENS[..., None].swapaxes(1, 2)}, [np.zeros((6, 1))] * 4, {}, "miou"),
        ({"start_logits": LOGITS, "end_logits": LOGITS}, [np.zeros((1, 2))] * 4, {}, "qa_f1"),
        ({"embedding": UNIT}, [0.1, 0.2], {"pairs": True}, "spearman"),
        ({"embedding": UNIT}, None, {"pairs": True}, "cosine"),
        ({"embedding": UNIT}, None, {}, "cosine"),
        ({"logits": LOGITS}, None, {}, "agreement"),
        ({"logits": LOGITS}, [0.5, 1, 2, 0], {}, "agreement"),
        ({"logits": LOGITS[:, :1]}, None, {}, "teacher_spearman"),
        ({"logits": TOKENS}, None, {"causal": "input_ids"}, "perplexity"),
        ({"logits": LOGITS}, [0, 1, 2, 0], {"name": "matthews"}, "matthews"),
    ],
)
def test_guess(outputs: dict[str, np.ndarray], labels: Any, options: dict[str, Any], expected: str) -> None:
    assert chosen(outputs, labels, **options) == expected


def test_guess_says_why() -> None:
    metric = choose_metric(choose({"logits": LOGITS}), {"logits": LOGITS}, None)
    assert "no labels" in metric.reason
    assert metric.teacher


def test_wrong_requests() -> None:
    with pytest.raises(UsageError, match="accuracy"):
        chosen({"logits": LOGITS}, None, name="acuracy")
    with pytest.raises(DataError, match="needs a label in every row"):
        chosen({"logits": LOGITS}, [0, None, 1, 2], name="accuracy")
    with pytest.raises(UsageError, match="class scores"):
        chosen({"embedding": UNIT}, [1, 2, 0, 1], name="top5")
    with pytest.raises(UsageError, match="start and end"):
        chosen({"logits": LOGITS}, [0, 1, 2, 0], name="qa_f1")
    with pytest.raises(UsageError, match="no output of vectors"):
        chosen({"score": LOGITS[:, :1]}, [0.1, 0.2], pairs=True, name="spearman")


def test_threshold_of_probabilities() -> None:
    scores = np.array([[0.4], [0.6]], np.float32)
    metric = choose_metric(choose({"score": scores}), {"score": scores}, [0, 1])
    assert metric.value(metric.observe({"score": scores}, [0, 1], None)) == 1


def test_the_vector_of_a_row_is_preferred_to_those_of_its_tokens() -> None:
    outputs = {"last_hidden_state": RNG.normal(size=(4, 6, 8)), "pooler_output": RNG.normal(size=(4, 8))}
    metric = choose_metric(choose(outputs), outputs, [1.0, 2.0], pairs=True)
    found = metric.observe(outputs, None, None)
    pooled = outputs["pooler_output"]
    np.testing.assert_allclose(found, pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


def test_drop_is_positive_where_it_is_worse() -> None:
    better = choose_metric(choose({"logits": LOGITS}), {"logits": LOGITS}, [0, 1, 2, 0])
    assert better.drop(0.9, 0.8) == pytest.approx(0.1)
    perplexity = choose_metric(choose({"logits": TOKENS}), {"logits": TOKENS}, None, causal="input_ids")
    assert perplexity.drop(20, 25) == 5 and "causal language model" in perplexity.reason
    behind = choose_metric(choose({"logits": TOKENS}), {"logits": TOKENS}, None, causal="decoder_input_ids")
    assert "behind an encoder" in behind.reason


# ---- intervals


def test_the_interval_is_the_known_one_for_a_mean() -> None:
    sample = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap_interval(lambda drawn: float(sample[drawn].mean()), 400, seed=0) or (0, 0)
    error = 1.96 * sample.std() / 20
    assert low == pytest.approx(sample.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(sample.mean() + error, abs=0.15 * error)


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(2)
    dense = (rng.random(500) < 0.9).astype(float)
    pruned = np.where(rng.random(500) < 0.02, 1 - dense, dense)
    low, high = bootstrap_interval(lambda d: float(dense[d].mean() - pruned[d].mean()), 500, seed=0) or (0, 0)
    assert high - low < 2 * 1.96 * np.sqrt(dense.var() / 500 + pruned.var() / 500) / 2


def test_the_seed_decides_and_one_row_says_nothing() -> None:
    sample = np.arange(20.0)

    def mean(drawn: np.ndarray) -> float:
        return float(sample[drawn].mean())

    assert bootstrap_interval(mean, 20, seed=3) == bootstrap_interval(mean, 20, seed=3)
    assert bootstrap_interval(mean, 20, seed=3) != bootstrap_interval(mean, 20, seed=4)
    assert bootstrap_interval(mean, 1, seed=3) is None
