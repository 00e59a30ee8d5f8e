"""Which measure an output gets, and what it computes, against torch's own formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxprune.errors import UnsupportedError
from onnxprune.probe.divergence import Divergence, Kind, Measure, choose, softened


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def unit(*shape: int) -> np.ndarray:
    x = normal(*shape)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x


def softmax(x: np.ndarray) -> np.ndarray:
    e: np.ndarray = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


@pytest.mark.parametrize(
    ("name", "array", "kind", "axis"),
    [
        ("logits", normal(4, 2), Kind.KL, -1),
        ("logits", normal(4, 7, 512), Kind.KL, -1),
        ("logits", normal(4, 21, 8, 8), Kind.KL, 1),
        ("masks_queries_logits", normal(4, 10, 8, 8), Kind.BERNOULLI_KL, -1),
        ("logits", normal(4, 1), Kind.MSE, -1),
        ("output", normal(4, 1000), Kind.KL, -1),
        ("output", normal(4, 768), Kind.MSE, -1),
        ("output", normal(4, 7, 9), Kind.KL, -1),
        ("output", normal(2, 3, 32000), Kind.KL, -1),
        ("output", normal(4, 3, 8, 8), Kind.MSE, -1),
        ("probabilities", softmax(normal(4, 5)), Kind.PROBABILITY_KL, -1),
        ("last_hidden_state", normal(4, 7, 50), Kind.MSE, -1),
        ("sentence_embedding", unit(4, 384), Kind.COSINE, -1),
        ("token_vectors", unit(4, 7, 128), Kind.COSINE, -1),
        ("pred_boxes", normal(4, 7, 4), Kind.MSE, -1),
        ("score", normal(4), Kind.MSE, -1),
    ],
)
def test_choice(name: str, array: np.ndarray, kind: Kind, axis: int) -> None:
    (measure,) = choose({name: array}).measures
    assert (measure.kind, measure.axis) == (kind, axis)
    assert measure.reason


def test_a_pooled_unit_vector_counts_and_the_tokens_below_it_do_not() -> None:
    held = {"token_embeddings": normal(4, 7, 384), "sentence_embedding": unit(4, 384)}
    chosen = choose(held)
    assert chosen.outputs == ("sentence_embedding",)
    assert "token_embeddings: an intermediate beside sentence_embedding" in chosen.description
    assert choose({"token_embeddings": held["token_embeddings"]}).outputs == ("token_embeddings",)


def test_what_is_left_out() -> None:
    chosen = choose(
        {
            "logits": normal(4, 7, 300),
            "present.0.key": normal(4, 2, 7, 8),
            "hidden_states.1": normal(4, 7, 64),
            "ids": np.zeros((4, 7), np.int64),
            "loss": np.float32(3) * np.ones((), np.float32),
            "codebook": normal(16, 8),
        }
    )
    assert chosen.outputs == ("logits",)
    assert {name for name, _ in chosen.excluded} == {"present.0.key", "hidden_states.1", "ids", "loss", "codebook"}


def test_hidden_states_count_where_there_is_nothing_else() -> None:
    chosen = choose({"last_hidden_state": normal(4, 7, 64), "pooler_output": normal(4, 64)})
    assert chosen.outputs == ("last_hidden_state", "pooler_output")


def test_logits_beside_boxes_both_count() -> None:
    assert choose({"logits": normal(4, 7, 92), "pred_boxes": normal(4, 7, 4)}).outputs == ("logits", "pred_boxes")


def test_nothing_to_compare() -> None:
    with pytest.raises(UnsupportedError, match=r"labels: not floating point"):
        choose({"labels": np.zeros((4, 3), np.int64)})


def test_kinds_can_be_given() -> None:
    chosen = choose({"output": normal(4, 1000), "hidden_states": normal(4, 8)}, {"output": (Kind.MSE, "told")})
    assert chosen.measures[0].reason == "told"
    assert [(m.output, m.kind) for m in chosen.measures] == [("output", Kind.MSE), ("hidden_states", Kind.MSE)]


def test_every_batch_is_looked_at() -> None:
    batches = [unit(2, 8), 3 * unit(2, 8)]
    assert choose({"embedding": batches[0]}).measures[0].kind is Kind.COSINE
    assert choose({"embedding": batches}).measures[0].kind is Kind.MSE


def test_kl_is_torch_kl() -> None:
    teacher, student = normal(5, 6, 11), normal(5, 6, 11, seed=1)
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (teacher, student))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean(-1)
    np.testing.assert_allclose(Measure("logits", Kind.KL)(teacher, student), expected.numpy(), rtol=1e-12)


def test_kl_over_channels_of_pixels() -> None:
    teacher, student = normal(2, 5, 3, 4), normal(2, 5, 3, 4, seed=1)
    last = Measure("logits", Kind.KL)(np.moveaxis(teacher, 1, -1), np.moveaxis(student, 1, -1))
    np.testing.assert_allclose(Measure("logits", Kind.KL, axis=1)(teacher, student), last)


def test_bernoulli_kl_is_the_kl_of_two_classes() -> None:
    teacher, student = normal(5, 6), normal(5, 6, seed=1)
    both = (np.stack([x, np.zeros_like(x)], -1) for x in (teacher, student))
    np.testing.assert_allclose(
        Measure("masks", Kind.BERNOULLI_KL)(teacher, student), Measure("logits", Kind.KL)(*both), rtol=1e-6
    )


def test_probabilities_and_logits_agree() -> None:
    teacher, student = normal(5, 6), normal(5, 6, seed=1)
    of_logits = Measure("logits", Kind.KL)(teacher, student)
    of_probabilities = Measure("p", Kind.PROBABILITY_KL)(softmax(teacher), softmax(student))
    np.testing.assert_allclose(of_probabilities, of_logits, rtol=1e-4)


def test_probabilities_that_underflowed_are_finite() -> None:
    teacher, student = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    (value,) = Measure("p", Kind.PROBABILITY_KL)(teacher, student)
    assert 50 < value < 100


def test_cosine_ignores_length_and_sees_tiny_angles() -> None:
    teacher = unit(3, 64)
    measure = Measure("e", Kind.COSINE)
    np.testing.assert_allclose(measure(teacher, 5 * teacher), 0, atol=1e-12)
    np.testing.assert_allclose(measure(teacher, -teacher), 2, rtol=1e-6)
    angle = 1e-5
    a, b = np.array([[1.0, 0.0]]), np.array([[np.cos(angle), np.sin(angle)]])
    np.testing.assert_allclose(measure(a, b), angle**2 / 2, rtol=1e-4)


def test_squared_error_is_relative_to_the_teacher_sample() -> None:
    teacher = normal(6, 7, 9)
    (measure,) = choose({"last_hidden_state": teacher}).measures
    error = measure(teacher, np.zeros_like(teacher))
    assert error.shape == (6,)
    np.testing.assert_allclose(error.mean(), 1, rtol=1e-6)
    far = 1000 * teacher.astype(np.float64)
    np.testing.assert_allclose(measure(far, far + teacher).mean(), 1, rtol=1e-6)


def test_rows_are_summed_over_outputs() -> None:
    held = {"logits": normal(4, 7, 92), "pred_boxes": normal(4, 7, 4)}
    other = {"logits": normal(4, 7, 92, seed=1), "pred_boxes": normal(4, 7, 4, seed=1)}
    chosen = choose(held)
    each = chosen.each(held, other)
    np.testing.assert_allclose(chosen(held, other), each["logits"] + each["pred_boxes"])
    assert (each["logits"] > 0).all() and (each["pred_boxes"] > 0).all()


MEASURES = [
    Measure("x", Kind.KL),
    Measure("x", Kind.PROBABILITY_KL),
    Measure("x", Kind.BERNOULLI_KL),
    Measure("x", Kind.COSINE),
    Measure("x", Kind.MSE, scale=4.0),
]
VALUES = hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(-50, 50, width=32))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind.name)
@given(teacher=VALUES, student=VALUES)
def test_laws(measure: Measure, teacher: np.ndarray, student: np.ndarray) -> None:
    if measure.kind is Kind.PROBABILITY_KL:
        teacher, student = softmax(teacher), softmax(student)
    apart = measure(teacher, student)
    assert apart.shape == (3,)
    assert np.isfinite(apart).all()
    assert (apart >= 0).all()
    np.testing.assert_array_equal(measure(teacher, teacher), 0)
    in_torch = measure(torch.from_numpy(teacher), torch.from_numpy(student))
    np.testing.assert_allclose(in_torch.numpy(), apart, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind.name)
def test_padding_does_not_count(measure: Measure) -> None:
    teacher, student = softmax(normal(2, 5, 6)), softmax(normal(2, 5, 6, seed=1))
    real = np.array([[True] * 3 + [False] * 2, [True] * 5])
    whole = measure(teacher, student)
    masked = measure(teacher, student, real)
    np.testing.assert_allclose(masked[0], measure(teacher[:1, :3], student[:1, :3])[0])
    assert masked[0] != whole[0]
    assert masked[1] == whole[1]
    changed = student.copy()
    changed[0, 3:] = 99
    np.testing.assert_array_equal(measure(teacher, changed, real), masked)
    in_torch = measure(torch.from_numpy(teacher), torch.from_numpy(student), real)
    np.testing.assert_allclose(in_torch.numpy(), masked, rtol=1e-4)


def test_padding_is_no_answer() -> None:
    teacher, student = normal(1, 6), normal(1, 6, seed=1)
    (measure,) = choose({"start_logits": np.repeat(teacher, 3, 0)}).measures
    real = np.array([[True] * 4 + [False] * 2])
    np.testing.assert_allclose(measure(teacher, student, real), measure(teacher[:, :4], student[:, :4]))
    class_scores = Measure("logits", Kind.KL)
    assert class_scores(teacher, student, real) == class_scores(teacher, student)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind.name)
def test_gradients_and_vmap(measure: Measure) -> None:
    def prepared(seed: int) -> Any:
        return torch.from_numpy(softmax(normal(3, 4, 5, seed=seed))).double()

    teacher, student = prepared(0), prepared(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: measure(teacher, x), (student,))
    copies = torch.stack([prepared(1), prepared(2)])
    together = torch.func.vmap(lambda x: measure(teacher, x))(copies)
    torch.testing.assert_close(together, torch.stack([measure(teacher, x) for x in copies]))


def test_half_precision_is_computed_wider() -> None:
    teacher = torch.tensor([[20.0, 0.0], [0.0, 0.25]], dtype=torch.float16)
    found = Measure("logits", Kind.KL)(teacher, teacher + torch.tensor([0.0, 0.5], dtype=torch.float16))
    assert found.dtype == torch.float64
    expected = Measure("logits", Kind.KL)(teacher.numpy(), teacher.numpy() + np.array([0, 0.5]))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-8)


def test_description_names_every_output() -> None:
    chosen = Divergence((Measure("a", Kind.KL, reason="because"),), (("b", "integers"),))
    assert chosen.description == "a: KL (because). Not counted: b: integers"


def test_at_a_temperature_logits_are_divided_and_the_divergence_multiplied_by_its_square() -> None:
    random = np.random.default_rng(3)
    teacher, student = random.normal(size=(2, 5, 3))
    hot = Measure("logits", Kind.KL, temperature=4.0)(teacher, student)
    np.testing.assert_allclose(hot, 16 * Measure("logits", Kind.KL)(teacher / 4, student / 4), rtol=1e-12)
    of_probabilities = Measure("p", Kind.PROBABILITY_KL, temperature=4.0)(softmax(teacher), softmax(student))
    np.testing.assert_allclose(of_probabilities, hot, rtol=1e-9)


def test_only_single_answers_are_softened() -> None:
    random = np.random.default_rng(4)
    samples = {
        "logits": random.normal(size=(6, 3)),
        "token_logits": random.normal(size=(6, 7, 3)),
        "start_logits": random.normal(size=(6, 7)),
        "embedding": -np.eye(8)[:6],
    }
    measures = {m.output: m.temperature for m in softened(choose(samples), 4.0).measures}
    assert measures == {"logits": 4.0, "token_logits": 1.0, "start_logits": 1.0, "embedding": 1.0}


def test_sure_rows_have_a_say_at_a_temperature() -> None:
    """Of a row of which the teacher is sure, halving the logits is nearly nothing at 1 and much at 4."""
    teacher = np.array([[6.0, -6.0], [0.3, -0.3]])
    cold = Measure("logits", Kind.KL)(teacher, teacher / 2)
    hot = Measure("logits", Kind.KL, temperature=4.0)(teacher, teacher / 2)
    assert cold[0] < cold[1]
    assert hot[0] > 10 * hot[1]


@pytest.mark.parametrize("hot", [1.0, 4.0])
@pytest.mark.parametrize("kind", [Kind.KL, Kind.PROBABILITY_KL, Kind.BERNOULLI_KL, Kind.COSINE, Kind.MSE])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_the_smallest_differences_are_resolved_and_none_is_negative(make: Any, kind: Kind, hot: float) -> None:
    """Near its least a divergence is quadratic: a tenth of a difference of 1e-8 is a hundredth of the divergence."""
    random = np.random.default_rng(0)
    teacher, way = 1e-2 * random.normal(size=(2, 40, 6))
    measure = Measure("x", kind, temperature=hot)
    if kind is Kind.PROBABILITY_KL:
        teacher, way = softmax(teacher), softmax(teacher) * way

    def apart(length: float) -> np.ndarray:
        return np.asarray(measure(make(teacher), make(teacher + length * way)))

    small, smaller = apart(1e-7), apart(1e-8)
    assert (smaller > 0).all()
    np.testing.assert_allclose(smaller, small / 100, rtol=2e-2)
    np.testing.assert_array_equal(apart(0.0), 0.0)
    for length in 10.0 ** -np.arange(6, 20):
        assert (apart(length) >= 0).all()


def test_a_small_kl_is_half_the_variance_of_the_change() -> None:
    """KL(p ‖ p + δ) = ½ Var_p(δ) + O(δ³), at differences of 1e-9 of small logits."""
    random = np.random.default_rng(1)
    teacher, change = 1e-2 * random.normal(size=(50, 5)), 1e-9 * random.normal(size=(50, 5))
    p = softmax(teacher)
    variance = (p * change**2).sum(-1) - (p * change).sum(-1) ** 2
    np.testing.assert_allclose(Measure("x", Kind.KL)(teacher, teacher + change), variance / 2, rtol=1e-4)


def test_what_every_layer_has_is_left_out_in_one_breath() -> None:
    caches = tuple((f"present.{layer}.key", "a cache for later calls") for layer in range(3))
    told = Divergence((), (*caches, ("hidden_2", "an intermediate"))).description
    assert told.endswith("Not counted: present.*.key: a cache for later calls; hidden_2: an intermediate")
