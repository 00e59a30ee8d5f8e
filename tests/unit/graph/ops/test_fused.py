"""The fused operators of com.microsoft, and Attention of the standard, compute what ONNX Runtime's CPU kernels do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ops_tools import Case, assert_agrees, in_torch

from onnxprune.errors import UnsupportedError

_RNG = np.random.default_rng(11)
MICROSOFT = "com.microsoft"


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def packed() -> Iterator[Case]:
    # Batch 2, length 4, hidden 10, heads 3, width 8.
    x, w, b = normal(2, 4, 10), normal(10, 72), normal(72)

    def case(label: str, mask: Any = None, past: Any = None, bias: Any = None, **attributes: Any) -> Case:
        outputs = (1, 1) if past is not None else (1,)
        return Case(
            "Attention",
            [x, w, b, mask, past, bias],
            {"num_heads": 3, **attributes},
            MICROSOFT,
            outputs=outputs,
            label=label,
        )

    some = (_RNG.random((2, 4)) > 0.4).astype(np.int32)
    some[:, 0] = 1
    yield case("plain")
    yield case("ends", counts(4, 2))
    yield case("ends-starts", counts(4, 3, 0, 1))
    yield case("rows", some)
    yield case("rows-filter", some, mask_filter_value=-3.0)
    yield case("tables", (_RNG.random((2, 4, 4)) > 0.4).astype(np.int32))
    yield case("causal", unidirectional=1)
    yield case("causal-rows", some, unidirectional=1)
    yield case("causal-ends", counts(4, 2), unidirectional=1)
    yield case("scale", scale=0.7)
    yield case("bias", None, None, normal(2, 3, 4, 4))
    yield case("bias-broadcast", some, None, normal(1, 1, 4, 4))
    yield case("past", None, normal(2, 2, 3, 5, 8))
    yield case("past-causal", None, normal(2, 2, 3, 5, 8), unidirectional=1)
    yield case(
        "past-rows", np.concatenate([np.ones((2, 5), np.int32), some], 1), normal(2, 2, 3, 5, 8), unidirectional=1
    )
    yield Case(
        "Attention",
        [x, w[:, :63], b[:63]],
        {"num_heads": 3, "qkv_hidden_sizes": [24, 24, 15]},
        MICROSOFT,
        label="narrow",
    )


def separate() -> Iterator[Case]:
    # Batch 2, queries 4, keys 5, heads 3, widths 8 and 6.
    q, k, v, b = normal(2, 4, 24), normal(2, 5, 24), normal(2, 5, 18), normal(66)

    def case(label: str, *rest: Any, outputs: tuple[int, ...] = (1,), **attributes: Any) -> Case:
        return Case(
            "MultiHeadAttention",
            [q, k, v, *rest],
            {"num_heads": 3, **attributes},
            MICROSOFT,
            outputs=outputs,
            label=label,
        )

    some = (_RNG.random((2, 5)) > 0.4).astype(np.int32)
    yield case("plain")
    yield case("bias", b)
    yield case("ends", b, counts(5, 2))
    yield case("rows", None, some)
    yield case("rows-filter", None, some, mask_filter_value=-2.0)
    yield case("tables", None, (_RNG.random((2, 4, 5)) > 0.4).astype(np.int32))
    yield case("score-bias", b, some, normal(2, 1, 4, 5))
    yield case("score-bias-broadcast", b, None, normal(1, 3, 4, 5), scale=0.4)
    yield case("presents", b, None, None, outputs=(1, 1, 1))
    same = normal(2, 4, 24)
    yield Case("MultiHeadAttention", [q, same, same], {"num_heads": 3, "unidirectional": 1}, MICROSOFT, label="causal")
    cross = normal(2, 3, 5, 8)
    yield Case("MultiHeadAttention", [q, cross, cross], {"num_heads": 3}, MICROSOFT, label="cross")
    past = normal(2, 3, 7, 8)
    for causal in (0, 1):
        attributes = {"num_heads": 3, "unidirectional": causal}
        rest = [normal(72), None, None, past, past + 1]
        yield Case(
            "MultiHeadAttention",
            [q, same, same, *rest],
            attributes,
            MICROSOFT,
            outputs=(1, 1, 1),
            label=f"past-{causal}",
        )


def grouped() -> Iterator[Case]:
    # Two key heads of two query heads each, width 16.
    heads = {"num_heads": 4, "kv_num_heads": 2}
    angles = [normal(32, 8), normal(32, 8)]
    q, k, v = normal(2, 6, 64), normal(2, 6, 32), normal(2, 6, 32)

    def prompt(label: str, *rest: Any, ends: tuple[int, ...] = (5, 5), **attributes: Any) -> Case:
        inputs = [q, k, v, None, None, counts(*ends), counts(6), *rest]
        return Case("GroupQueryAttention", inputs, heads | attributes, MICROSOFT, outputs=(1, 1, 1), label=label)

    yield prompt("prompt")
    yield prompt("scale", scale=0.2)
    yield prompt("softcap", softcap=1.5)
    yield prompt("window", local_window_size=2)
    yield prompt("rotary", *angles, do_rotary=1)
    yield prompt("rotary-interleaved", *angles, do_rotary=1, rotary_interleaved=1)
    yield prompt("score-bias", None, None, None, normal(2, 4, 6, 6))
    yield prompt("smooth", smooth_softmax=1)
    yield prompt("sink", None, None, None, None, normal(4))
    yield prompt("both-ways", causal=0)
    yield prompt("both-ways-short", causal=0, ends=(5, 3))
    places = np.array([[3, 4, 5, 6, 7, 8], [0, 0, 0, 1, 2, 3]])
    yield prompt("positions", *angles, places, do_rotary=1)
    packed = np.concatenate([q, k, v], -1)
    yield Case(
        "GroupQueryAttention",
        [packed, None, None, None, None, counts(5, 5), counts(6)],
        heads,
        MICROSOFT,
        outputs=(1, 1, 1),
        label="packed",
    )
    past = [normal(2, 2, 7, 16), normal(2, 2, 7, 16)]
    step = [q[:, :1], k[:, :1], v[:, :1], *past]
    rotary = heads | {"do_rotary": 1}
    yield Case(
        "GroupQueryAttention",
        [*step, counts(7, 7), counts(8), *angles],
        rotary,
        MICROSOFT,
        outputs=(1, 1, 1),
        label="step",
    )
    yield Case(
        "GroupQueryAttention",
        [*step, counts(6, 3), counts(7)],
        heads,
        MICROSOFT,
        outputs=(1, 1, 1),
        label="static-cache",
    )
    more = [q[:1, :3], k[:1, :3], v[:1, :3], past[0][:1], past[1][:1]]
    yield Case(
        "GroupQueryAttention",
        [*more, counts(9), counts(10), *angles],
        rotary,
        MICROSOFT,
        outputs=(1, 1, 1),
        label="chunk",
    )


def norms() -> Iterator[Case]:
    x, skip, vectors = normal(2, 3, 8), normal(2, 3, 8), [normal(8) for _ in range(3)]
    for op_type, most in (("SkipLayerNormalization", 3), ("SkipSimplifiedLayerNormalization", 2)):
        for count in range(1, most + 1):
            yield Case(
                op_type,
                [x, skip, *vectors[:count]],
                {"epsilon": 1e-3},
                MICROSOFT,
                outputs=(1, 0, 0, 1),
                label=str(count),
            )
        yield Case(op_type, [x, skip[:1], vectors[0]], {}, MICROSOFT, label="row")
        yield Case(op_type, [x, skip[0], vectors[0]], {}, MICROSOFT, label="matrix")
    words, places, kinds = normal(9, 8), normal(6, 8), normal(2, 8)
    ids, segments, mask = (_RNG.integers(0, n, (2, 4)).astype(np.int32) for n in (9, 2, 2))
    positions = counts(3, 1, 0, 2)[None].repeat(2, 0)

    def embed(label: str, inputs: list[Any]) -> Case:
        return Case("EmbedLayerNormalization", inputs, {"epsilon": 1e-5}, MICROSOFT, outputs=(1, 1, 1), label=label)

    yield embed("full", [ids, segments, words, places, kinds, *vectors[:2], mask])
    yield embed("no-segments", [ids, None, words, places, None, *vectors[:2]])
    yield embed("positions", [ids, segments, words, places, kinds, *vectors[:2], mask, positions])
    yield Case("SimplifiedLayerNormalization", [x, vectors[0]], {"epsilon": 1e-3})


def others() -> Iterator[Case]:
    x, w, b = normal(2, 3, 8), normal(5, 3, 3), normal(5)
    for name, parameters in (
        ("Relu", []),
        ("Tanh", []),
        ("Sigmoid", []),
        ("LeakyRelu", [0.2]),
        ("Clip", [-0.5, 0.5]),
        ("HardSigmoid", [0.3, 0.4]),
    ):
        attributes: dict[str, Any] = {"activation": name, "activation_params": parameters or None, "pads": [1, 1]}
        yield Case("FusedConv", [x, w, b], attributes, MICROSOFT, label=name)
    yield Case(
        "FusedGemm",
        [x[0], w[0].T @ normal(3, 8), None],
        {"activation": "LeakyRelu", "activation_alpha": 0.3, "transB": 0, "transA": 1},
        MICROSOFT,
    )
    positions = np.array([[0, 3, 2], [5, 1, 4]])
    angles = [normal(9, 4), normal(9, 4)]
    for interleaved in (0, 1):
        attributes = {"interleaved": interleaved}
        yield Case(
            "RotaryEmbedding", [normal(2, 3, 16), positions, *angles], attributes, MICROSOFT, label=f"{interleaved}"
        )
        yield Case(
            "RotaryEmbedding",
            [normal(2, 2, 3, 8), positions, *angles],
            attributes,
            MICROSOFT,
            label=f"4d-{interleaved}",
        )
    yield Case("RotaryEmbedding", [normal(2, 3, 16), np.array([2]), *angles], {}, MICROSOFT, label="offset")
    partly = {"num_heads": 2, "rotary_embedding_dim": 4}
    yield Case(
        "RotaryEmbedding",
        [normal(2, 3, 16), positions, *(a[:, :2].copy() for a in angles)],
        partly,
        MICROSOFT,
        label="partly",
    )


def standard() -> Iterator[Case]:
    q, k, v = normal(2, 4, 3, 8), normal(2, 2, 5, 8), normal(2, 2, 5, 6)
    past = [normal(2, 2, 4, 8), normal(2, 2, 4, 6)]

    def case(label: str, *rest: Any, outputs: tuple[int, ...] = (1,), opset: int = 23, **attributes: Any) -> Case:
        return Case("Attention", [q, k, v, *rest], attributes, opset=opset, outputs=outputs, label=label)

    yield case("plain")
    yield case("causal", is_causal=1)
    yield case("capped", softcap=0.7, scale=0.4)
    yield case("mask", normal(3, 5))
    yield case("mask-heads", normal(2, 4, 3, 5) > -0.5)
    yield case("past", None, *past, outputs=(1, 1, 1))
    yield case("past-causal", normal(3, 9), *past, outputs=(1, 1, 1), is_causal=1)
    yield case("scores", outputs=(1, 0, 0, 1))
    flat = [normal(2, 3, 32), normal(2, 5, 16), normal(2, 5, 12)]
    yield Case("Attention", [*flat, normal(2, 1, 3, 5)], {"q_num_heads": 4, "kv_num_heads": 2}, opset=23, label="flat")
    yield case("lengths", None, None, None, np.array([5, 3]), opset=24)


CASES = [case for family in (packed, separate, grouped, norms, others, standard) for case in family()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_runtime(case: Case) -> None:
    assert_agrees(case)


def test_packed_heads_are_separate_ones() -> None:
    """ONNX Runtime's CPU kernel has no packed form (B, S, H, 3, D); it stands for the separate one."""
    parts = [normal(2, 4, 24) for _ in range(3)]
    attributes = {"num_heads": 3}
    together = np.stack([p.reshape(2, 4, 3, 8) for p in parts], 3)
    (expected,) = in_torch(Case("MultiHeadAttention", parts, attributes, MICROSOFT))
    (all_three,) = in_torch(Case("MultiHeadAttention", [together], attributes, MICROSOFT))
    (two,) = in_torch(Case("MultiHeadAttention", [parts[0], together[:, :, :, 1:]], attributes, MICROSOFT))
    np.testing.assert_allclose(all_three, expected, 1e-5, 1e-6)
    np.testing.assert_allclose(two, expected, 1e-5, 1e-6)


REFUSED: dict[str, dict[str, Any]] = {
    "a window alone": {"sliding_window_cache": 1, "local_window_size": 5},
    "scores as an output": {"qk_output": 1},
    "a quantised cache": {"k_quant_type": "PER_TENSOR"},
    "padded": {},
}


@pytest.mark.parametrize("why", REFUSED)
def test_caches_of_other_kinds_are_refused(why: str) -> None:
    q, k, past = normal(1, 3, 64), normal(1, 3, 32), normal(1, 2, 8, 16)
    inputs: list[Any] = [q, k, k, past, past, counts(5), np.array(6, dtype=np.int32)]
    inputs += [None] * 9 + [counts(2)] if why == "padded" else []
    heads = {"num_heads": 4, "kv_num_heads": 2}
    with pytest.raises(UnsupportedError, match=why):
        in_torch(Case("GroupQueryAttention", inputs, heads | REFUSED[why], MICROSOFT, outputs=(1, 1, 1)))


def test_tables_wider_than_what_turns_are_refused() -> None:
    """ONNX Runtime's CPU kernel reads their rows askew."""
    inputs = [normal(2, 3, 16), np.array([[0, 1, 2], [0, 1, 2]]), normal(9, 4), normal(9, 4)]
    with pytest.raises(UnsupportedError, match="a part of a head"):
        in_torch(Case("RotaryEmbedding", inputs, {"num_heads": 2, "rotary_embedding_dim": 4}, MICROSOFT))


def test_packed_weights_without_a_bias() -> None:
    """ONNX Runtime's CPU kernel reads a bias even where there is none."""
    x, w = normal(2, 4, 10), normal(10, 72)
    (without,) = in_torch(Case("Attention", [x, w], {"num_heads": 3}, MICROSOFT))
    (with_zeros,) = in_torch(Case("Attention", [x, w, np.zeros(72, np.float32)], {"num_heads": 3}, MICROSOFT))
    np.testing.assert_array_equal(without, with_zeros)
