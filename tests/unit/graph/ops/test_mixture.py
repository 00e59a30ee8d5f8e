"""MoE: as ONNX Runtime computes it, cut by its neurons, counted; what other devices alone compute is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ops_tools import Case, Node, assert_agrees, assert_cut_is_gated, in_torch

from onnxprune.errors import UnsupportedError

TOKENS, STREAM, NEURONS, EXPERTS = 6, 5, 7, 4
FIRST, SECOND = 2, 4
_RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def mixture(activation: str, *, bias: bool = True, third: bool = False, label: str = "", **attributes: Any) -> Case:
    columns = 2 if activation == "swiglu" else 1
    inputs: list[np.ndarray | None] = [
        normal(2, 3, STREAM),
        normal(TOKENS, EXPERTS),
        normal(EXPERTS, NEURONS * columns, STREAM),
    ]
    inputs += [normal(EXPERTS, NEURONS * columns) if bias else None, normal(EXPERTS, STREAM, NEURONS)]
    inputs += [normal(EXPERTS, STREAM) if bias else None]
    inputs += [normal(EXPERTS, NEURONS, STREAM)] if third else []
    named = {"activation_type": activation, "k": 2, **attributes}
    named |= {"swiglu_fusion": 1} if columns == 2 and "swiglu_fusion" not in attributes else {}
    return Case("MoE", inputs, named, "com.microsoft", free=(2, 3, NEURONS), label=f"{activation}-{label}")


CASES = [
    *(mixture(kind) for kind in ("relu", "gelu", "silu", "identity", "swiglu")),
    mixture("silu", bias=False, normalize_routing_weights=1, label="normalised"),
    mixture("relu", k=1, label="one"),
    mixture("swiglu", activation_alpha=1.7, activation_beta=1.0, swiglu_limit=0.8, label="limited"),
]
REFUSED = {
    "fc3": mixture("silu", third=True),
    "a sparse mixer": mixture("relu", use_sparse_mixer=1),
    "side by side": mixture("swiglu", swiglu_fusion=2),
    "a limit behind": mixture("swiglu", swiglu_limit_after_activation=1),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_computes_what_the_runtime_does(case: Case) -> None:
    assert_agrees(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cut_is_gated(case: Case) -> None:
    assert_cut_is_gated(case)


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_computed_is_refused(why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        in_torch(REFUSED[why])


def test_weights_in_the_order_of_older_versions_are_refused() -> None:
    case = mixture("relu", bias=False)
    turned = [
        x.swapaxes(1, 2).copy() if x is not None and i in (FIRST, SECOND) else x for i, x in enumerate(case.inputs)
    ]
    with pytest.raises(UnsupportedError, match=r"\[experts, in, out\]"):
        in_torch(replace(case, inputs=turned))


def test_counts_the_experts_that_a_token_goes_through() -> None:
    for kind, columns in (("relu", 1), ("swiglu", 2)):
        node = Node(mixture(kind))
        assert node.operator.macs is not None
        assert node.operator.macs(node.node, node) == TOKENS * 2 * STREAM * NEURONS * (columns + 1)
