"""Operators in the forms they had in older operator sets compute what ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from ops_tools import Case, assert_agrees

_RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def attributes() -> Iterator[Case]:
    """What has become an operand since."""
    x = normal(2, 3, 4)
    for opset in (11, 12):
        yield Case("Squeeze", [normal(1, 3, 1, 4)], {"axes": [0, -2]}, opset=opset)
        yield Case("Squeeze", [normal(1, 3, 1, 4)], opset=opset, label="all")
        yield Case("Unsqueeze", [x], {"axes": [0, -1]}, opset=opset)
        yield Case("Split", [normal(2, 7)], {"axis": 1, "split": [3, 4]}, opset=opset, outputs=(1, 1))
        yield Case("Split", [normal(2, 8)], {"axis": 1}, opset=opset, outputs=(1, 1), label="even")
        for kind in ("Sum", "Mean", "Max", "L2", "LogSumExp", "SumSquare", "Prod"):
            yield Case(f"Reduce{kind}", [x], {"axes": [0, -1], "keepdims": 0}, opset=opset)
            yield Case(f"Reduce{kind}", [x], {"axes": [1]}, opset=opset, label="kept")
        yield Case("ReduceSum", [x], opset=opset, label="all")
    for opset in (13, 17):
        yield Case("ReduceMean", [x], {"axes": [1]}, opset=opset, label=str(opset))
        yield Case("ReduceSum", [x, integers(0, -1)], opset=opset, label=str(opset))
    yield Case("Clip", [x], {"min": -0.5, "max": 0.75}, opset=10, label="attributes")
    yield Case("Pad", [x], {"pads": [0, 1, 2, 1, 0, 0], "value": 3.0}, opset=10, label="attributes")
    yield Case("Slice", [x], {"starts": [1, -3], "ends": [9, -1], "axes": [1, 2]}, opset=9, label="attributes")
    yield Case("TopK", [normal(3, 7)], {"k": 3, "axis": 1}, opset=9, outputs=(1, 1), label="attributes")


def meanings() -> Iterator[Case]:
    """The same operands, meant differently."""
    x = normal(2, 3, 4)
    for opset in (11, 12):
        for op_type in ("Softmax", "LogSoftmax", "Hardmax"):
            for axis in (None, 0, 1, 2, -1):
                yield Case(op_type, [x], {"axis": axis}, opset=opset, label=f"{opset}-{axis}")
    for op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in (None, 0, 1):
            yield Case(op_type, [x], {"axis": axis}, opset=13, label=f"13-{axis}")


def operands() -> Iterator[Case]:
    x = normal(2, 3, 4)
    low, high = np.array(-0.5, np.float32), np.array(0.75, np.float32)
    for opset in (11, 12):
        yield Case("Clip", [x, low, high], opset=opset)
        yield Case("Clip", [x, low], opset=opset, label="low")
        yield Case("Clip", [x, None, high], opset=opset, label="high")
        for mode in ("constant", "reflect", "edge"):
            yield Case("Pad", [x, integers(0, 1, 2, 0, 0, 1)], {"mode": mode}, opset=opset, label=mode)
        yield Case("Pad", [x, integers(0, 1, 0, 1, 0, -1), np.array(2, np.float32)], opset=opset, label="value")
        yield Case("TopK", [normal(3, 7), integers(2)], {"largest": 0}, opset=opset, outputs=(1, 1))
        yield Case("CumSum", [x, np.array(1, np.int32)], {"exclusive": 1, "reverse": 1}, opset=opset)
        yield Case("Gemm", [normal(3, 4), normal(4, 5)], opset=opset)
        yield Case("OneHot", [integers(1, 0, 3), integers(4), np.array([0, 1], np.float32)], opset=opset)
    yield Case("Dropout", [x], {"ratio": 0.3}, opset=11, outputs=(1, 1))
    yield Case("Dropout", [x, high], opset=12, outputs=(1, 1))
    yield Case("ArgMax", [x], {"axis": 1, "keepdims": 0}, opset=11)
    yield Case("ArgMin", [np.ones((2, 5), np.float32)], {"axis": 1, "select_last_index": 1}, opset=12)
    yield Case("GatherND", [x, np.array([[[0], [1]], [[2], [1]]])], {"batch_dims": 1}, opset=12)


def images() -> Iterator[Case]:
    x = normal(2, 4, 6, 5)
    nothing = np.zeros(0, np.float32)
    scales = np.array([1, 1, 2, 1.6], np.float32)
    for mode in ("nearest", "linear", "cubic"):
        for place in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
            resize = {"mode": mode, "coordinate_transformation_mode": place}
            yield Case("Resize", [x, nothing, scales], resize, opset=11, label=f"{mode}-{place}")
            yield Case(
                "Resize", [x, nothing, nothing, integers(2, 4, 4, 7)], resize, opset=11, label=f"{mode}-{place}-sizes"
            )
    window = {"kernel_shape": [3, 2], "strides": [2, 2]}
    yield Case("MaxPool", [x], {**window, "ceil_mode": 1, "dilations": [1, 2]}, opset=11)
    yield Case("MaxPool", [x], {**window, "pads": [1, 0, 1, 1]}, opset=12, outputs=(1, 1), label="indices")
    for count in (0, 1):
        yield Case(
            "AveragePool", [x], {**window, "count_include_pad": count, "pads": [1, 0, 1, 1]}, opset=11, label=f"{count}"
        )
        yield Case(
            "AveragePool", [x], {**window, "count_include_pad": count, "ceil_mode": 1}, opset=11, label=f"ceil-{count}"
        )
    yield Case("AveragePool", [x], {**window, "auto_pad": "SAME_UPPER"}, opset=11, label="same")
    for count in (0, 1):
        wide = {"kernel_shape": [4000, 4000], "strides": [4000, 4000], "ceil_mode": 1, "count_include_pad": count}
        yield Case("AveragePool", [x], wide, opset=11, label=f"larger than all-{count}")
    yield Case("DepthToSpace", [x], {"blocksize": 2, "mode": "CRD"}, opset=11)
    w = normal(4, 3, 3, 3)
    for extra in (
        {"output_padding": [1, 0]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"output_shape": [12, 9]},
        {"pads": [1, 0, 0, 1]},
    ):
        yield Case("ConvTranspose", [x, w, normal(3)], {"strides": [2, 2], **extra}, opset=11, label=next(iter(extra)))
    for pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield Case("Conv", [x, normal(3, 4, 3, 2)], {"auto_pad": pad, "strides": [2, 1]}, opset=11, label=pad)
    yield Case("BatchNormalization", [x, *(np.abs(normal(4)) for _ in range(4))], opset=9)


CASES = [case for family in (attributes, meanings, operands, images) for case in family()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-opset{case.opset}")
def test_agrees_with_the_runtime(case: Case) -> None:
    assert_agrees(case)
