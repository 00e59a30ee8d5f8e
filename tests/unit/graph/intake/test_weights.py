"""Weights of a file are held once, as they were written."""

from __future__ import annotations

import gc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import memory
from onnxprune.graph.intake import read
from onnxprune.graph.model import load, save
from onnxprune.graph.stored import Held
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.interpreter import Interpreter


def _file(place: Path, weight: onnx.TensorProto, width: int, kind: int = TensorProto.FLOAT) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    x, y = (helper.make_tensor_value_info(name, kind, ["n", width]) for name in "xy")
    graph = helper.make_graph(
        nodes, "net", [x], [y], [weight, numpy_helper.from_array(np.ones(3, np.float32), "small")]
    )
    path = place / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_a_weight_is_lent_to_who_computes_and_written_as_it_was(tmp_path: Path, kind: type) -> None:
    array: np.ndarray = np.random.default_rng(0).normal(size=(200, 200)).astype(kind)
    weight = ir.to_proto(ir.Tensor(array, name="w"))  # onnx 1.18 makes no tensor of ml_dtypes' arrays
    weight.doc_string = "told"
    path = _file(tmp_path, weight, 200, weight.data_type)
    model = load(path)
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, Held) and tensor.doc_string == "told" and tensor.name == "w"
    np.testing.assert_array_equal(tensor.numpy(), array)
    with pytest.raises(ValueError, match="read-only"):
        tensor.numpy()[0] = 0
    lent = Interpreter(model.graph).weight("w")
    np.testing.assert_array_equal(to_numpy(lent.float()), array.astype(np.float32))
    if kind is not ml_dtypes.bfloat16:  # numpy's arrays of these are no memory that torch takes
        assert lent.data_ptr() == tensor.numpy().ctypes.data
    (again,) = save(model.ir, tmp_path / "again.onnx")
    found = next(t for t in onnx.load(again).graph.initializer if t.name == "w")
    assert found.raw_data == weight.raw_data and found.data_type == weight.data_type


def test_small_tensors_texts_and_numbers_in_fields_stay_as_they_are(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32)
    model = read(_file(tmp_path, helper.make_tensor("w", TensorProto.FLOAT, (200, 200), array.ravel()), 200))
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    assert not any(isinstance(tensor, Held) for tensor in held.values())
    assert isinstance(held["w"], ir.TensorProtoTensor)
    np.testing.assert_array_equal(held["w"].numpy(), array)


@pytest.mark.skipif(not memory.resident(), reason="the system does not tell what a process has in memory")
def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    """A file of 64 MB, read and computed with: not the message, a copy of it, and one more for torch."""
    Interpreter(load(_file(tmp_path, numpy_helper.from_array(np.ones((200, 200), np.float32), "w"), 200)).graph)
    path = _file(tmp_path, numpy_helper.from_array(np.ones((4000, 4000), np.float32), "w"), 4000)
    gc.collect()
    memory.give_back()
    before = memory.resident()
    model = load(path)
    interpreter = Interpreter(model.graph)
    assert float(interpreter.weight("w")[0, 0]) == 1.0
    gc.collect()
    memory.give_back()
    assert memory.resident() - before < 1.5 * 64e6
