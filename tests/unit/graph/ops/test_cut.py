"""Law: cut by its `axes` and `resize`, an operator gives what the gated original gives, without what is cut."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from ops_tools import Case, assert_cut_is_gated

_RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def elementwise() -> Iterator[Case]:
    yield Case("Add", [normal(3, 5), normal(5)], free=(3, 5))
    yield Case("Mul", [normal(2, 3, 5), normal(3, 1)], free=(2, 3, 5))
    yield Case("Where", [normal(3, 5) > 0, normal(5), normal(3, 1)], free=(3, 5))
    yield Case("Gelu", [normal(3, 5)], free=(3, 5))
    yield Case("Clip", [normal(3, 5), np.array(-0.5, np.float32), np.array(0.5, np.float32)], free=(3, 5))
    yield Case("PRelu", [normal(2, 3, 5), normal(3, 1)], free=(2, 3, 5))
    yield Case("CastLike", [normal(3, 5), integers(1, 2, 3)], free=(3, 3, 5))
    yield Case("Cast", [normal(3, 5)], {"to": 7}, free=(3, 5))
    yield Case("Sum", [normal(3, 5), normal(5), normal(1, 5)], free=(3, 5))
    yield Case("Dropout", [normal(3, 5)], outputs=(1, 1), free=(3, 5))


def linear() -> Iterator[Case]:
    yield Case("MatMul", [normal(2, 3, 5), normal(5, 7)], free=(2, 3, 5, 7))
    yield Case("MatMul", [normal(2, 3, 5), normal(2, 5, 7)], free=(2, 3, 5, 7), label="batched")
    yield Case("MatMul", [normal(5), normal(5, 7)], free=(5, 7), label="vector")
    yield Case("MatMul", [normal(2, 1, 3, 5), normal(4, 5, 7)], free=(2, 3, 4, 5, 7), label="broadcast")
    yield Case(
        "Gemm", [normal(3, 5), normal(7, 5), normal(7)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, free=(3, 5, 7)
    )
    yield Case("Gemm", [normal(5, 3), normal(5, 7), normal(3, 1)], {"transA": 1}, free=(3, 5, 7), label="transA")
    yield Case("Einsum", [normal(2, 3, 5), normal(2, 5, 7)], {"equation": "bij,bjk->bki"}, free=(2, 3, 5, 7))
    yield Case(
        "Einsum",
        [normal(2, 3, 5, 7), normal(7, 4)],
        {"equation": "...d,df->...f"},
        free=(2, 3, 4, 5, 7),
        label="ellipsis",
    )
    yield Case(
        "FusedMatMul",
        [normal(2, 5, 3), normal(2, 7, 5)],
        {"transA": 1, "transB": 1, "alpha": 0.5},
        "com.microsoft",
        free=(2, 3, 5, 7),
    )
    yield Case(
        "FusedMatMul",
        [normal(3, 2, 5), normal(5, 2, 7)],
        {"transBatchA": 1, "transBatchB": 1},
        "com.microsoft",
        free=(2, 3, 5, 7),
        label="batch",
    )
    yield Case(
        "FusedMatMul",
        [normal(5, 2, 3), normal(2, 5, 7)],
        {"transBatchA": 1, "transA": 1},
        "com.microsoft",
        free=(2, 3, 5, 7),
        label="both",
    )
    yield Case(
        "FusedGemm", [normal(3, 5), normal(5, 7), normal(7)], {"activation": "Relu"}, "com.microsoft", free=(3, 5, 7)
    )


def layout() -> Iterator[Case]:
    one = frozenset({1})
    yield Case("Reshape", [normal(2, 3, 20), integers(2, 3, 4, 5)], fixed=one, free=(2, 3, 4, 5))
    yield Case("Reshape", [normal(2, 3, 4, 5), integers(0, 0, -1)], fixed=one, free=(2, 3, 4, 5), label="join")
    yield Case("Flatten", [normal(2, 3, 5)], free=(2, 3, 5))
    yield Case("Transpose", [normal(2, 3, 5)], {"perm": [2, 0, 1]}, free=(2, 3, 5))
    yield Case("Squeeze", [normal(3, 1, 5), integers(1)], fixed=one, free=(3, 5))
    yield Case("Unsqueeze", [normal(3, 5), integers(0, -1)], fixed=one, free=(3, 5))
    yield Case("Concat", [normal(3, 5), normal(3, 7), normal(3, 0)], {"axis": -1}, free=(3, 5, 7))
    yield Case("Concat", [normal(3, 5), normal(3, 1)], {"axis": -1}, free=(3, 5), label="single")
    yield Case(
        "Split", [normal(3, 12), integers(3, 4, 5)], {"axis": 1}, outputs=(1, 1, 1), fixed=one, free=(3, 3, 4, 5)
    )
    yield Case(
        "Split", [normal(3, 12)], {"axis": 1, "num_outputs": 3}, outputs=(1, 1, 1), free=(3, 4, 4, 4), label="even"
    )
    yield Case(
        "Split",
        [normal(3, 12)],
        {"axis": 1, "split": [5, 7]},
        opset=11,
        outputs=(1, 1),
        free=(3, 5, 7),
        label="attribute",
    )
    yield Case(
        "Split", [normal(3, 5), integers(4, 1)], {"axis": 1}, outputs=(1, 1), fixed=one, free=(3, 4), label="one"
    )
    ends = frozenset({1, 2, 3, 4})
    yield Case("Slice", [normal(3, 12), integers(4), integers(10), integers(1)], fixed=ends, free=(2, 3, 4, 6))
    yield Case(
        "Slice", [normal(3, 12), integers(-5), integers(2**62), integers(-1)], fixed=ends, free=(3, 5, 7), label="tail"
    )
    yield Case(
        "Slice",
        [normal(3, 12), integers(-1), integers(-(2**62)), integers(1), integers(-1)],
        fixed=ends,
        free=(3,),
        label="reversed",
    )
    yield Case(
        "Slice",
        [normal(3, 12), integers(0), integers(12), integers(1), integers(2)],
        fixed=ends,
        free=(3, 6),
        label="step",
    )
    yield Case(
        "Slice",
        [normal(3, 12), integers(2), integers(-1), integers(1), integers(4)],
        fixed=ends,
        free=(3, 3),
        label="step from within",
    )
    yield Case(
        "Slice",
        [normal(3, 12), integers(0), integers(12), integers(1), integers(5)],
        fixed=ends,
        free=(3,),
        label="uneven step",
    )
    yield Case("Slice", [normal(3, 12), integers(5), integers(6), integers(1)], fixed=ends, free=(3, 5, 6), label="one")
    yield Case(
        "Slice", [normal(4, 12)], {"axes": [1], "starts": [4], "ends": [12]}, opset=9, free=(4, 4, 8), label="attribute"
    )
    yield Case("Expand", [normal(3, 1, 5), integers(2, 1, 4, 1)], fixed=one, free=(2, 3, 4, 5))
    yield Case("Pad", [normal(3, 5), integers(0, 2, 0, 3)], fixed=one, free=(2, 3, 3, 5))
    yield Case("Pad", [normal(3, 5), integers(0, 2, 0, 3)], {"mode": "edge"}, fixed=one, free=(3,), label="edge")
    yield Case("Pad", [normal(3, 5), integers(0, -1, 0, 3)], fixed=one, free=(3,), label="cropped")
    yield Case("Pad", [normal(3, 5)], {"pads": [0, 2, 0, 0]}, opset=9, free=(2, 3, 5), label="attribute")
    listed = [normal(3, 5), integers(0, 4), None, integers(-1)]
    yield Case("Pad", listed, fixed=frozenset({1, 3}), free=(3, 4, 5), label="listed")
    yield Case("Tile", [normal(3, 5), integers(1, 2)], fixed=one, free=(2, 3, 5))
    yield Case("Tile", [normal(3, 1, 5), integers(1, 4, 1)], fixed=one, free=(3, 4, 5), label="of one")
    yield Case("DepthToSpace", [normal(2, 12, 3, 3)], {"blocksize": 2}, free=(2, 3))
    yield Case("DepthToSpace", [normal(2, 12, 3, 3)], {"blocksize": 2, "mode": "CRD"}, free=(2, 3), label="CRD")
    yield Case("SpaceToDepth", [normal(2, 3, 4, 4)], {"blocksize": 2}, free=(2, 3))
    yield Case("ReverseSequence", [normal(4, 3, 5), integers(1, 4, 2)], {"time_axis": 0, "batch_axis": 1}, free=(3, 5))
    yield Case("Gather", [normal(6, 5), np.array([[0, 5, 2], [1, 1, 3]])], free=(2, 3, 5))
    yield Case("GatherND", [normal(6, 4, 5), np.array([[0, 3], [5, 1], [2, 2]])], free=(3, 5))
    yield Case(
        "GatherND", [normal(3, 6, 5), np.array([[[1]], [[2]], [[0]]])], {"batch_dims": 1}, free=(3, 5), label="b"
    )
    yield Case("GatherND", [normal(6, 5), np.array([[2]])], fixed=one, free=(2, 3, 5), label="one")
    yield Case("Gather", [normal(6, 5), np.array(-3)], fixed=one, free=(2, 3, 5), label="one")
    yield Case("Gather", [normal(2, 6), integers(4)], {"axis": 1}, fixed=one, free=(2, 4), label="one kept")
    halves = {"axis": 1}
    yield Case("Gather", [normal(2, 8), integers(5, 6, 7, 0, 1, 2)], halves, fixed=one, free=(2, 2, 3, 3), label="runs")
    yield Case("Gather", [normal(2, 4), integers(0, 1, 2, 3)], halves, fixed=one, free=(2, 4), label="all of a table")
    columns = integers(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11)
    yield Case("Gather", [normal(2, 12), columns], halves, fixed=one, free=(2, 3, 4), label="columns")
    yield Case("Gather", [normal(2, 6), integers(3, -3, 0)], halves, fixed=one, free=(2, 3), label="twice")
    yield Case("Gather", [normal(2, 6), integers(4, 1, 3, 0)], halves, fixed=one, free=(2, 4), label="in no order")
    cache, places = normal(3, 6, 5), np.array([[1], [2]])
    yield Case("ScatterND", [cache, places, normal(2, 6, 5)], free=(5, 6))
    yield Case(
        "ScatterND", [cache, np.array([[0, 3], [2, 1]]), normal(2, 5)], {"reduction": "add"}, free=(5,), label="added"
    )
    at = np.tile(np.array([[0], [4]]), (3, 1, 5))
    yield Case("ScatterElements", [cache, at, normal(3, 2, 5)], {"axis": 1}, free=(3, 5))
    yield Case("ScatterElements", [cache, at[:2], normal(2, 2, 5)], {"axis": 1}, free=(5,), label="in part")
    yield Case("TopK", [cache, integers(2)], {"axis": 1}, outputs=(1, 1), fixed=one, free=(3, 5))
    yield Case("ArgMax", [cache], {"axis": -1, "keepdims": 0}, free=(3, 6))
    yield Case("ArgMin", [cache], {"axis": 0}, free=(5, 6))
    yield Case("CumSum", [cache, np.array(-2)], {"exclusive": 1}, fixed=one, free=(3, 5))
    yield Case("Compress", [cache, np.array([True, False, True])], {"axis": 0}, free=(5, 6))
    yield Case("Trilu", [cache, np.array(1)], {"upper": 0}, fixed=one, free=(3,))
    spread = [np.array([[1, 0, 3]] * 2), np.array(4), np.array([0.5, 2.0], np.float32)]
    yield Case("OneHot", spread, {"axis": 1}, fixed=frozenset({1, 2}), free=(2, 3))
    yield Case("ReduceSum", [normal(3, 5, 7), integers(1)], {"keepdims": 0}, fixed=one, free=(3, 5, 7))
    yield Case("ReduceMean", [normal(3, 5, 7), integers(-1)], fixed=one, free=(3, 5))


def convolution() -> Iterator[Case]:
    image = normal(2, 6, 5, 5)
    yield Case("Conv", [image, normal(4, 6, 3, 3), normal(4)], {"pads": [1, 1, 1, 1]}, free=(2, 4, 6))
    yield Case("Conv", [image, normal(6, 1, 3, 3), normal(6)], {"group": 6}, free=(2, 6), label="depthwise")
    yield Case("Conv", [normal(2, 6, 7, 5), normal(4, 6, 1, 3)], free=(2, 4, 6, 7), label="one axis of space")
    yield Case("Conv", [normal(2, 6, 7), normal(4, 6, 1), normal(4)], free=(2, 4, 6, 7), label="pointwise")
    yield Case(
        "Conv",
        [normal(2, 6, 7), normal(4, 6, 1)],
        {"strides": [2], "pads": [0, 5]},
        free=(2, 4, 6),
        label="every other",
    )
    yield Case("Conv", [normal(2, 6, 7), normal(4, 6, 1)], {"pads": [1, 1]}, free=(2, 4, 6), label="padded")
    yield Case("Conv", [image, normal(18, 1, 3, 3)], {"group": 6}, free=(2, 3, 6), label="multiplied")
    yield Case("Conv", [normal(2, 12, 7), normal(20, 3, 3)], {"group": 4}, free=(2, 3, 4, 5), label="grouped")
    yield Case("Conv", [normal(2, 4, 5, 6, 4), normal(6, 4, 3, 3, 2), normal(6)], free=(2, 4, 6), label="volume")
    yield Case("ConvTranspose", [image, normal(6, 4, 3, 3), normal(4)], {"strides": [2, 2]}, free=(2, 4, 6))
    placed = [image, normal(4, 6, 3, 3), normal(2, 18, 5, 5), normal(4), normal(2, 9, 5, 5)]
    yield Case("DeformConv", placed, {"pads": [1, 1, 1, 1]}, opset=19, free=(2, 4, 6))
    placed = [image, normal(4, 6, 3, 2), normal(2, 24, 3, 4)]
    yield Case("DeformConv", placed, {"offset_group": 2}, opset=19, free=(2, 3, 4), label="fields")
    parts = [normal(2, 12, 5), normal(12, 5, 3), normal(20)]
    yield Case("ConvTranspose", parts, {"group": 4}, free=(2, 3, 4, 5), label="grouped")
    yield Case(
        "FusedConv",
        [image, normal(4, 6, 3, 3), normal(4), normal(2, 4, 3, 3)],
        {"activation": "Relu"},
        "com.microsoft",
        free=(2, 4, 6),
    )
    for op_type in ("MaxPool", "AveragePool", "LpPool"):
        yield Case(op_type, [image], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, free=(2, 6))
    for op_type in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        yield Case(op_type, [image], free=(2, 6))
    scales = np.array([1, 1, 2, 1.5], dtype=np.float32)
    yield Case("Resize", [image, None, scales], {"mode": "linear"}, fixed=frozenset({2}), free=(2, 6))
    yield Case(
        "Resize",
        [image, None, None, integers(2, 6, 8, 3)],
        {"mode": "cubic"},
        fixed=frozenset({3}),
        free=(2, 6),
        label="sizes",
    )
    yield Case("GridSample", [image, normal(2, 3, 4, 2)], free=(2, 6))


def normalisation() -> Iterator[Case]:
    x, image = normal(2, 3, 8), normal(2, 6, 5, 4)
    yield Case("Softmax", [x], free=(2, 3))
    yield Case("LayerNormalization", [x, normal(8), normal(8)], free=(2, 3))
    yield Case("RMSNormalization", [x, normal(8)], opset=23, free=(2, 3))
    yield Case("SimplifiedLayerNormalization", [x, normal(8)], free=(2, 3))
    yield Case("BatchNormalization", [image, normal(6), normal(6), normal(6), np.abs(normal(6))], free=(2, 4, 5, 6))
    yield Case("InstanceNormalization", [image, normal(6), normal(6)], free=(2, 6))
    yield Case("GroupNormalization", [image, normal(6), normal(6)], {"num_groups": 3}, free=(2, 3))
    yield Case(
        "GroupNormalization", [image, normal(3), normal(3)], {"num_groups": 3}, opset=18, free=(2, 3), label="by-group"
    )
    yield Case("LpNormalization", [x], {"axis": 1, "p": 2}, free=(2, 8))
    yield Case("LRN", [image], {"size": 3}, free=(2, 4, 5))
    yield Case("MeanVarianceNormalization", [image], free=(6,))
    yield Case(
        "SkipLayerNormalization",
        [x, normal(2, 3, 8), normal(8), normal(8), normal(8)],
        {},
        "com.microsoft",
        outputs=(1, 0, 0, 1),
        free=(2, 3),
    )
    yield Case(
        "SkipLayerNormalization", [x, normal(3, 8), normal(8)], {}, "com.microsoft", free=(2, 3), label="broadcast"
    )
    yield Case(
        "SkipSimplifiedLayerNormalization",
        [x, normal(2, 3, 8), normal(8), normal(8)],
        {},
        "com.microsoft",
        outputs=(1, 0, 0, 1),
        free=(2, 3),
    )
    tokens = _RNG.integers(0, 5, (2, 3)).astype(np.int32)
    tables = [normal(5, 8), normal(4, 8), normal(2, 8), normal(8), normal(8)]
    yield Case(
        "EmbedLayerNormalization",
        [tokens, tokens % 2, *tables, tokens % 2],
        {},
        "com.microsoft",
        outputs=(1, 1),
        free=(),
    )
    for op_type in ("BiasGelu", "FastGelu"):
        yield Case(op_type, [x, normal(8)], {}, "com.microsoft", free=(2, 3, 8))
    yield Case("QuickGelu", [x], {"alpha": 1.5}, "com.microsoft", free=(2, 3, 8))


def quantised() -> Iterator[Case]:
    x, scale = normal(3, 5), np.abs(normal(5)) + 0.1
    zero = np.array([1, 2, 3, 4, 5], dtype=np.uint8)
    yield Case("QuantizeLinear", [x, scale, zero], {"axis": 1}, free=(3, 5))
    yield Case("QuantizeLinear", [x, scale[:1], zero[:1]], free=(3, 5), label="tensor")
    yield Case(
        "DequantizeLinear", [_RNG.integers(0, 255, (3, 5)).astype(np.uint8), scale, zero], {"axis": 1}, free=(3, 5)
    )
    blocks = np.abs(normal(3, 3)) + 0.1
    yield Case(
        "DequantizeLinear",
        [_RNG.integers(-9, 9, (3, 6)).astype(np.int8), blocks],
        {"axis": 1, "block_size": 2},
        free=(3,),
        label="blocks",
    )


CASES = [case for family in (elementwise, linear, layout, convolution, normalisation, quantised) for case in family()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cut_is_gated(case: Case) -> None:
    assert_cut_is_gated(case)
