"""Multiply-accumulates of each operator that has any, against the count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from ops_tools import Case, Node


def zeros(*shape: int, kind: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype=kind)


MICROSOFT = "com.microsoft"
GROUPED = {"num_heads": 4, "kv_num_heads": 2}
ENDS = [np.array([2, 2], dtype=np.int32), np.array([3], dtype=np.int32)]

COUNTS = [
    (Case("MatMul", [zeros(2, 3, 5), zeros(5, 7)]), 2 * 3 * 5 * 7),
    (Case("MatMul", [zeros(5), zeros(5, 7)], label="vector"), 5 * 7),
    (Case("Gemm", [zeros(5, 3), zeros(7, 5)], {"transA": 1, "transB": 1}), 3 * 5 * 7),
    (Case("Einsum", [zeros(2, 3, 5), zeros(5, 7, 4)], {"equation": "bsd,dhk->bhsk"}), 2 * 3 * 5 * 7 * 4),
    # Pair by pair; what each pair is scaled by costs nothing.
    (
        Case("Einsum", [zeros(2, 3, 5), zeros(2, 5, 7), zeros(2, 3)], {"equation": "blm,bmd,bl->bld"}, label="scaled"),
        2 * 3 * 5 * 7,
    ),
    (
        Case("Einsum", [zeros(2, 3), zeros(3, 5), zeros(5, 7)], {"equation": "ab,bc,cd->ad"}, label="chain"),
        2 * 3 * 5 + 2 * 5 * 7,
    ),
    (Case("Einsum", [zeros(2, 3), zeros(2, 5)], {"equation": "ab,ac->abc"}, label="outer"), 2 * 3 * 5),
    (Case("FusedMatMul", [zeros(2, 5, 3), zeros(2, 5, 7)], {"transA": 1}, MICROSOFT), 2 * 3 * 5 * 7),
    (Case("Conv", [zeros(2, 6, 8, 8), zeros(4, 6, 3, 3)], {"strides": [2, 2]}), 2 * 4 * 3 * 3 * 6 * 9),
    (Case("Conv", [zeros(2, 6, 8, 8), zeros(6, 1, 3, 3)], {"group": 6}, label="depthwise"), 2 * 6 * 6 * 6 * 9),
    (Case("ConvTranspose", [zeros(2, 6, 4, 4), zeros(6, 5, 3, 3)], {"strides": [2, 2]}), 2 * 6 * 4 * 4 * 5 * 9),
    (Case("MatMulInteger", [zeros(3, 5, kind=np.uint8), zeros(5, 7, kind=np.uint8)]), 3 * 5 * 7),
    # Heads 4 (of which 2 have keys), queries 3, keys 6, widths 5 and 7.
    (Case("Attention", [zeros(2, 4, 3, 5), zeros(2, 2, 6, 5), zeros(2, 2, 6, 7)], opset=23), 2 * 4 * 3 * 6 * (5 + 7)),
    (
        Case(
            "Attention",
            [zeros(2, 3, 20), zeros(2, 6, 10), zeros(2, 6, 14), None, zeros(2, 2, 4, 5), zeros(2, 2, 4, 7)],
            {"q_num_heads": 4, "kv_num_heads": 2},
            opset=23,
            outputs=(1, 1, 1),
            label="flat-past",
        ),
        2 * 4 * 3 * (6 + 4) * (5 + 7),
    ),
    # Hidden 10, heads 4, length 3, widths 6 and 5: the projections, the products, the weighted sums.
    (
        Case(
            "Attention",
            [zeros(2, 3, 10), zeros(10, 68), zeros(68)],
            {"num_heads": 4, "qkv_hidden_sizes": [24, 24, 20]},
            MICROSOFT,
            label="packed",
        ),
        2 * 3 * 10 * 68 + 2 * 4 * 3 * 3 * (6 + 5),
    ),
    (
        Case(
            "Attention",
            [zeros(2, 3, 10), zeros(10, 72), zeros(72), None, zeros(2, 2, 4, 7, 6)],
            {"num_heads": 4},
            MICROSOFT,
            outputs=(1, 1),
            label="packed-past",
        ),
        2 * 3 * 10 * 72 + 2 * 4 * 3 * (3 + 7) * (6 + 6),
    ),
    (
        Case("MultiHeadAttention", [zeros(2, 3, 24), zeros(2, 5, 24), zeros(2, 5, 20)], {"num_heads": 4}, MICROSOFT),
        2 * 4 * 3 * 5 * (6 + 5),
    ),
    (
        Case(
            "GroupQueryAttention",
            [zeros(2, 3, 64), zeros(2, 3, 32), zeros(2, 3, 32), None, None, *ENDS],
            GROUPED,
            MICROSOFT,
            outputs=(1, 1, 1),
        ),
        2 * 4 * 3 * 3 * (16 + 16),
    ),
    # The same behind four keys: three queries with seven.
    (
        Case(
            "GroupQueryAttention",
            [
                *(zeros(1, 3, 64), zeros(1, 3, 32), zeros(1, 3, 32), zeros(1, 2, 4, 16), zeros(1, 2, 4, 16)),
                *(np.array([6], dtype=np.int32), np.array([7], dtype=np.int32)),
            ],
            GROUPED,
            MICROSOFT,
            outputs=(1, 1, 1),
            label="past",
        ),
        4 * 3 * 7 * (16 + 16),
    ),
    # Keys and values that are parted into heads already: their third axis is the length.
    (
        Case(
            "MultiHeadAttention",
            [zeros(2, 3, 24), zeros(2, 4, 5, 6), zeros(2, 4, 5, 6)],
            {"num_heads": 4},
            MICROSOFT,
            label="parted",
        ),
        2 * 4 * 3 * 5 * (6 + 6),
    ),
    # Four steps of two rows, both ways: four gates of three units read five inputs and three states.
    (
        Case(
            "LSTM",
            [zeros(4, 2, 5), zeros(2, 12, 5), zeros(2, 12, 3)],
            {"hidden_size": 3, "direction": "bidirectional"},
            label="both-ways",
        ),
        4 * 2 * 2 * 12 * (5 + 3),
    ),
]


@pytest.mark.parametrize(("case", "expected"), COUNTS, ids=[str(case) for case, _ in COUNTS])
def test_counts(case: Case, expected: int) -> None:
    node = Node(case)
    assert node.operator.macs is not None
    assert node.operator.macs(node.node, node) == expected
