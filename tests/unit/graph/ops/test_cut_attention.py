"""Law: an attention operator that is cut gives what the gated original gives, without what is cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from ops_tools import Case, assert_cut_is_gated

_RNG = np.random.default_rng(13)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def attention() -> Iterator[Case]:
    # Batch 2, queries 3, keys 4, widths 5 (queries, keys) and 7 (values), heads 6.
    q, k, v = normal(2, 6, 3, 5), normal(2, 6, 4, 5), normal(2, 6, 4, 7)
    yield Case("Attention", [q, k, v], opset=23, free=(2, 3, 5, 6, 7))
    yield Case("Attention", [q, k, v], opset=23, outputs=(1, 0, 0, 1), free=(2, 3, 5, 6, 7), label="scores")
    yield Case("Attention", [q, k, v], {"scale": 0.3, "softcap": 2.0}, opset=23, free=(2, 3, 5, 6, 7), label="scaled")
    yield Case("Attention", [q, k[:, :2], v[:, :2]], {"is_causal": 1}, opset=23, free=(2, 2, 3, 5, 7), label="grouped")
    yield Case("Attention", [q, k[:, :1], v[:, :1], normal(6, 3, 4)], opset=23, free=(2, 3, 5, 6, 7), label="shared")
    past = [normal(2, 2, 5, 5), normal(2, 2, 5, 7)]
    yield Case(
        "Attention",
        [q, k[:, :2], v[:, :2], None, *past],
        opset=23,
        outputs=(1, 1, 1),
        free=(2, 2, 3, 3, 5, 7),
        label="past",
    )
    flat = [normal(2, 3, 30), normal(2, 4, 10), normal(2, 4, 14)]
    yield Case(
        "Attention", flat, {"q_num_heads": 6, "kv_num_heads": 2}, opset=23, free=(2, 2, 3, 3, 5, 7), label="flat"
    )
    yield Case(
        "Attention",
        [*flat, normal(2, 6, 3, 4) > 0],
        {"q_num_heads": 6, "kv_num_heads": 2},
        opset=23,
        free=(2, 2, 3, 3, 5, 7),
        label="flat-mask",
    )
    angles = [normal(9, 4), normal(9, 4)]
    places = np.array([[0, 1, 2], [4, 5, 6]])
    yield Case("RotaryEmbedding", [normal(2, 6, 3, 8), *angles, places], opset=23, free=(6,))
    yield Case(
        "RotaryEmbedding", [normal(2, 3, 48), *angles, places], {"num_heads": 6}, opset=23, free=(6,), label="flat"
    )


def fused_attention() -> Iterator[Case]:
    # Batch 2, length 3, hidden 10, heads 4, widths 6 (queries, keys) and 5 (values).
    domain = "com.microsoft"
    x, w, b = normal(2, 3, 10), normal(10, 72), normal(72)
    yield Case("Attention", [x, w, b], {"num_heads": 4}, domain, free=(2, 4, 6, 6, 10))
    lengths = np.array([3, 2], dtype=np.int32)
    yield Case(
        "Attention",
        [x, w, b, lengths],
        {"num_heads": 4, "unidirectional": 1},
        domain,
        free=(4, 6, 6, 10),
        label="causal",
    )
    sizes = {"num_heads": 4, "qkv_hidden_sizes": [24, 24, 20]}
    yield Case(
        "Attention",
        [x, w[:, :68], b[:68], None, None, normal(2, 4, 3, 3)],
        sizes,
        domain,
        free=(2, 4, 5, 6, 10),
        label="narrow",
    )
    yield Case(
        "Attention",
        [x, w, b, None, normal(2, 2, 4, 5, 6)],
        {"num_heads": 4, "unidirectional": 1},
        domain,
        outputs=(1, 1),
        free=(2, 4, 10),
        label="past",
    )
    q, k, v = normal(2, 3, 24), normal(2, 5, 24), normal(2, 5, 20)
    heads = {"num_heads": 4}
    yield Case("MultiHeadAttention", [q, k, v], heads, domain, free=(2, 3, 4, 5, 6))
    yield Case(
        "MultiHeadAttention",
        [q, k, v, normal(68), None, normal(1, 4, 3, 5)],
        {**heads, "scale": 0.2},
        domain,
        free=(2, 3, 4, 5, 6),
        label="bias",
    )
    yield Case(
        "MultiHeadAttention", [q, normal(2, 4, 5, 6), normal(2, 4, 5, 6)], heads, domain, free=(2, 3, 4), label="cross"
    )
    past = [normal(2, 4, 7, 6), normal(2, 4, 7, 6)]
    yield Case(
        "MultiHeadAttention",
        [q, k, k, None, None, None, *past],
        heads,
        domain,
        outputs=(1, 1, 1),
        free=(2, 3, 4),
        label="past",
    )
    places = np.array([[0, 1, 2], [4, 5, 6]])
    yield Case("RotaryEmbedding", [normal(2, 6, 3, 8), places, normal(9, 4), normal(9, 4)], {}, domain, free=(6,))
    yield Case(
        "RotaryEmbedding", [normal(2, 3, 48), places, normal(9, 4), normal(9, 4)], {}, domain, free=(6,), label="flat"
    )
    yield Case(
        "RotaryEmbedding",
        [normal(2, 3, 48), places, normal(9, 4), normal(9, 4)],
        {"num_heads": 6, "interleaved": 1},
        domain,
        free=(6,),
        label="heads",
    )


def grouped_attention() -> Iterator[Case]:
    # Batch 2, length 3, two key heads of three query heads each, width 16.
    q, k, v = normal(2, 3, 96), normal(2, 3, 32), normal(2, 3, 32)
    ends, total = np.array([2, 2], dtype=np.int32), np.array([3], dtype=np.int32)
    heads = {"num_heads": 6, "kv_num_heads": 2}
    yield Case(
        "GroupQueryAttention",
        [q, k, v, None, None, ends, total],
        heads,
        "com.microsoft",
        outputs=(1, 1, 1),
        free=(2, 3),
    )
    packed = np.concatenate([q, k, v], -1)[:1]
    rotary = {**heads, "do_rotary": 1}
    angles = [normal(16, 8), normal(16, 8)]
    past = [normal(1, 2, 5, 16), normal(1, 2, 5, 16)]
    yield Case(
        "GroupQueryAttention",
        [packed, None, None, *past, ends[:1] + 5, total + 5, *angles],
        rotary,
        "com.microsoft",
        outputs=(1, 1, 1),
        free=(2, 3),
        label="packed",
    )


CASES = [case for family in (attention, fused_attention, grouped_attention) for case in family()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cut_is_gated(case: Case) -> None:
    assert_cut_is_gated(case)
