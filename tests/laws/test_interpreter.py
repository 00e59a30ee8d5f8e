"""Law: the interpreter computes what the ONNX standard says, on all node tests of the ONNX backend suite.

Every case of `onnx.backend.test.case.node` whose operators are registered runs, function bodies (`_expanded`) included.
A case that cannot run is counted under its reason; one that is known to differ is listed with the reason, and fails the
test as soon as it agrees.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import UnsupportedError
from onnxprune.graph import ops
from onnxprune.graph.prepare import stamp
from onnxprune.probe.interpreter import Interpreter

_ROUNDED = (
    "the standard takes the output size before rounding; ONNX Runtime, which the interpreter follows, takes it after"
)
_RANDOM = "random numbers, of which the interpreter takes the expectation"
DIFFERENT: dict[str, str] = {
    "test_resize_downsample_scales_linear_align_corners": _ROUNDED,
    "test_resize_downsample_scales_cubic_align_corners": _ROUNDED,
    "test_training_dropout": _RANDOM,
    "test_training_dropout_mask": _RANDOM,
    "test_training_dropout_default": _RANDOM,
    "test_training_dropout_default_mask": _RANDOM,
}
"""Cases that are known to differ, and why."""

ULPS = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""Relative tolerance of two steps of the narrow types: a function body rounds after each of its operators."""

KINDS = {0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16}
"""Element types (`TensorProto.DataType`) that torch has; 0 is "not said"."""

UNSIGNED = re.compile(r"not implemented for 'UInt(16|32|64)'")
"""What torch says where it has a type, but not this arithmetic on it."""

REGISTERED = frozenset(ops.registered())
OPERATORS = sorted(op_type for domain, op_type in REGISTERED if domain == "")
OTHERS = "function bodies of other operators"


@cache
def cases() -> dict[str, list[Any]]:
    """The suite by operator type; a function body belongs to the operator that it defines."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: list[Any] = collect_testcases(None)
    kinds = {case.name: case.model.graph.node[0].op_type for case in found if "_expanded" not in case.name}
    groups: dict[str, list[Any]] = defaultdict(list)
    for case in found:
        kind = kinds.get(case.name.split("_expanded")[0], OTHERS)
        groups[kind if kind in OPERATORS else OTHERS].append(case)
    return groups


def obstacle(case: Any) -> str | None:
    """Why a case is not for this interpreter; None where it is."""
    graph = case.model.graph
    unknown = sorted({n.op_type for n in graph.node if (n.domain.removeprefix("ai.onnx"), n.op_type) not in REGISTERED})
    if unknown:
        return f"holds {unknown[0]}, which is not registered"
    if any(not v.type.HasField("tensor_type") for v in (*graph.input, *graph.output)):
        return "holds a sequence or an optional"
    types = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    types |= {a.i for n in graph.node for a in n.attribute if a.name in ("to", "output_dtype", "dtype")}
    missing = sorted(onnx.TensorProto.DataType.Name(code).lower() for code in types - KINDS)
    return f"element type {missing[0]} is not in torch" if missing else None


def array(data: Any) -> np.ndarray:
    """The suite's data as an array; some of it comes as protobuf, some as numpy scalars."""
    return onnx.numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else np.asarray(data)


def tensor(data: np.ndarray) -> Any:
    import torch

    if data.dtype.name == "bfloat16":
        return torch.from_numpy(data.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(data))


def difference(case: Any) -> str | None:
    """The first disagreement of the interpreter with the expected outputs, or None."""
    model = stamp(ir.from_proto(case.model))
    machine = Interpreter(model.graph)
    for inputs, outputs in case.data_sets:
        named = zip((v for v in case.model.graph.input), map(array, inputs), strict=True)
        try:
            found = machine.run({v.name: tensor(a) for v, a in named})
        except UnsupportedError as error:
            return str(error)
        for value, expected in zip(case.model.graph.output, map(array, outputs), strict=True):
            got, kind = found[value.name], expected.dtype.name
            if str(got.dtype) != f"torch.{kind}":
                return f"{value.name}: {got.dtype} instead of {kind}"
            wide = "float32" if kind == "bfloat16" else kind
            rtol, atol = max(case.rtol, ULPS.get(kind, 0)), max(case.atol, ULPS.get(kind, 1e-6) / 4)
            try:
                np.testing.assert_allclose(
                    (got.float() if wide != kind else got).numpy(), expected.astype(wide), rtol, atol, strict=True
                )
            except AssertionError as error:
                return " ".join(str(error).split())
    return None


@pytest.mark.parametrize("op_type", [*OPERATORS, OTHERS])
def test_agrees_with_the_standard(op_type: str) -> None:
    group = [case for case in cases().get(op_type, []) if obstacle(case) is None]
    if not group:
        pytest.skip("the suite holds no case that can run")
    found = {case.name: difference(case) for case in group}
    found = {name: why for name, why in found.items() if why is None or not UNSIGNED.search(why)}
    wrong = {name: why for name, why in found.items() if why is not None and name not in DIFFERENT}
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    healed = [name for name, why in found.items() if why is None and name in DIFFERENT]
    assert not healed, f"listed as different, but they agree: {', '.join(healed)}"


def test_coverage() -> None:
    """Most of the suite runs; what does not is counted by reason."""
    reasons = Counter(obstacle(case) for group in cases().values() for case in group)
    total = reasons.total()
    ran = reasons.pop(None)
    assert ran > 0.7 * total, f"{ran} of {total} cases run; the others: {reasons.most_common()}"
    assert set(DIFFERENT) <= {case.name for group in cases().values() for case in group}
