"""Sparse initializers are read as what they stand for, whichever way their indices are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.graph import model as models

SHAPE = (4, 3)


def saved(folder: Path, indices: np.ndarray, values: np.ndarray) -> Path:
    sparse = onnx.SparseTensorProto()
    sparse.values.CopyFrom(numpy_helper.from_array(values, "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(indices))
    sparse.dims.extend(SHAPE)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        sparse_initializer=[sparse],
    )
    path = folder / "sparse.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("pairs", [False, True])
def test_a_sparse_weight_is_its_dense_one(tmp_path: Path, pairs: bool) -> None:
    dense = np.zeros(SHAPE, np.float32)
    dense[[0, 2, 3], [1, 0, 2]] = [1.5, -2, 3]
    found = np.argwhere(dense).astype(np.int64)
    indices = found if pairs else np.asarray(np.ravel_multi_index(tuple(found.T), SHAPE), dtype=np.int64)
    model = models.load(saved(tmp_path, indices, dense[dense != 0]))
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), dense)


@pytest.mark.parametrize(
    "indices", [np.array([12]), np.array([-1]), np.array([[4, 0]]), np.array([1, 2]), np.array([[1, 2, 0]])]
)
def test_indices_that_fit_nothing_are_named(tmp_path: Path, indices: np.ndarray) -> None:
    with pytest.raises(ModelError, match="sparse initializer w: its indices do not fit"):
        models.load(saved(tmp_path, indices.astype(np.int64), np.ones(1, np.float32)))


def test_values_in_another_file_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([1]), np.ones(1, np.float32))
    proto = onnx.load(path)
    proto.graph.sparse_initializer[0].values.data_location = TensorProto.EXTERNAL
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedError, match="in a file of their own"):
        models.load(path)
