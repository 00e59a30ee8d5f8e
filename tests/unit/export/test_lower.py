"""Equivalents: every form computes what the operator computes, and providers take more of the graph."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from plans import in_runtime
from zoo import ZooModel

from onnxprune.export import usability
from onnxprune.export.fixed_shapes import fix
from onnxprune.export.lower import MASKED, finite_masks, lower, narrow_integers
from onnxprune.graph import model as models

Build = Callable[..., ZooModel]
SIMPLE = {"Add", "Sub", "Mul", "Div", "Sqrt", "Exp", "Abs", "Max", "Min", "Tanh", "Sigmoid", "ReduceMean", "Cast",
          "Slice", "Squeeze", "Unsqueeze", "Reshape", "MatMul", "Softmax", "Transpose", "Gather"}  # fmt: skip
BOOL, FLOAT, INT = onnx.TensorProto.BOOL, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

CASES: dict[str, tuple[str, dict[str, Any], list[tuple[Any, tuple[int, ...]]], dict[str, np.ndarray]]] = {
    "layer norm": ("LayerNormalization", {"axis": -1, "epsilon": 1e-6}, [(FLOAT, (2, 5, 8))],
                   {"scale": np.linspace(0.5, 2, 8, dtype=np.float32), "bias": np.arange(8, dtype=np.float32)}),
    "layer norm over two axes": ("LayerNormalization", {"axis": 1}, [(FLOAT, (2, 5, 8))],
                                 {"scale": np.ones((5, 8), np.float32)}),
    "erf": ("Erf", {}, [(FLOAT, (3, 50))], {}),
    "gelu": ("Gelu", {}, [(FLOAT, (3, 50))], {}),
    "tanh gelu": ("Gelu", {"approximate": "tanh"}, [(FLOAT, (3, 50))], {}),
    "where": ("Where", {}, [(BOOL, (2, 4)), (FLOAT, (2, 4)), (FLOAT, (4,))], {}),
    "not": ("Not", {}, [(BOOL, (2, 4))], {}),
    "and": ("And", {}, [(BOOL, (2, 4)), (BOOL, (4,))], {}),
    "equal": ("Equal", {}, [(INT, (3, 4))], {"other": np.array([1, 2, 0, 3], np.int64)}),
    "one position": ("Gather", {"axis": 1}, [(FLOAT, (2, 5, 3))], {"at": np.array(2, np.int64)}),
    "the last position": ("Gather", {"axis": 1}, [(FLOAT, (2, 5, 3))], {"at": np.array(-1, np.int64)}),
    "expand": ("Expand", {}, [(FLOAT, (2, 1, 3))], {"shape": np.array([2, 4, 3], np.int64)}),
    "flatten": ("Flatten", {"axis": 2}, [(FLOAT, (2, 3, 4))], {}),
    "absolute": ("Abs", {}, [(FLOAT, (3, 4))], {}),
    "minimum": ("Min", {}, [(FLOAT, (3, 4)), (FLOAT, (4,))], {}),
    "negate": ("Neg", {}, [(FLOAT, (3, 4))], {}),
    "reciprocal": ("Reciprocal", {}, [(FLOAT, (3, 4))], {}),
    "square": ("Pow", {}, [(FLOAT, (3, 4))], {"two": np.array(2, np.float32)}),
    "cube": ("Pow", {}, [(FLOAT, (3, 4))], {"three": np.array(3, np.float32)}),
    "sum": ("ReduceSum", {"keepdims": 0}, [(FLOAT, (3, 4, 5))], {"axes": np.array([1, -1], np.int64)}),
    "sum of all": ("ReduceSum", {"keepdims": 1}, [(FLOAT, (3, 4))], {}),
    "length": ("ReduceL2", {"keepdims": 1}, [(FLOAT, (3, 4))], {"axes": np.array([-1], np.int64)}),
    "clip": ("Clip", {}, [(FLOAT, (3, 4))], {"low": np.array(-0.5, np.float32), "high": np.array(0.25, np.float32)}),
    "root mean square": ("RMSNormalization", {"axis": -1}, [(FLOAT, (2, 5, 8))],
                         {"scale": np.linspace(0.5, 2, 8, dtype=np.float32)}),
}  # fmt: skip


def _single(name: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A graph with the one operator, and feeds for it."""
    op, attributes, inputs, constants = CASES[name]
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for i, (kind, shape) in enumerate(inputs):
        values = {BOOL: rng.random(shape) < 0.5, INT: rng.integers(0, 4, shape), FLOAT: rng.normal(0, 2, shape)}[kind]
        feeds[f"x{i}"] = np.asarray(values, onnx.helper.tensor_dtype_to_np_dtype(kind))
    if op == "Erf":
        feeds["x0"].ravel()[:5] = [0.0, 1e-6, -1e-6, 1e-4, 40.0]
    # An addition before it and after it: the replaced node is inside, as in real graphs.
    given = [onnx.helper.make_tensor_value_info(f"x{i}", kind, shape) for i, (kind, shape) in enumerate(inputs)]
    nodes = [onnx.helper.make_node("Identity", [v], [f"{v}_in"]) for v in feeds]
    held = [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()]
    nodes.append(onnx.helper.make_node(op, [*(f"{v}_in" for v in feeds), *constants], ["y"], "node", **attributes))
    opset = 23 if op == "RMSNormalization" else 20
    result = onnx.helper.make_empty_tensor_value_info("y")
    graph = onnx.helper.make_graph(nodes, "one", given, [result], held)
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", opset)])
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    file = folder / "one.onnx"
    onnx.save(model, file)
    return file, feeds


@pytest.mark.parametrize("name", CASES)
def test_an_equivalent_computes_the_same(name: str, tmp_path: Path) -> None:
    file, feeds = _single(name, tmp_path)
    op = CASES[name][0]
    model = models.load(file).clone().ir
    fix(model, {})
    done = lower(model, SIMPLE - {op})
    assert done[op] == 1
    assert op not in {node.op_type for node in model.graph}
    made = models.save(model, tmp_path / "lowered.onnx")[0]
    expected, found = in_runtime(file, feeds)["y"], in_runtime(made, feeds)["y"]
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype == bool:
        np.testing.assert_array_equal(found, expected)
    else:
        # Within 1e-4 of 0 the sign of an Erf is not resolved: what is lost there is 1e-5 at most.
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5 if op == "Erf" else 1e-6)


def test_rows_of_a_table_become_a_gather_nd(tmp_path: Path) -> None:
    table = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32), "table")
    node = onnx.helper.make_node("Gather", ["table", "ids"], ["y"], "rows")
    ids = onnx.helper.make_tensor_value_info("ids", INT, (2, 3))
    y = onnx.helper.make_tensor_value_info("y", FLOAT, (2, 3, 4))
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "t", [ids], [y], [table]), ir_version=8,
                                   opset_imports=[onnx.helper.make_opsetid("", 17)])  # fmt: skip
    file = tmp_path / "t.onnx"
    onnx.save(model, file)
    graph = models.load(file).clone().ir
    assert lower(graph, {"GatherND", "Unsqueeze"})["Gather"] == 1
    made = models.save(graph, tmp_path / "made.onnx")[0]
    feeds = {"ids": np.array([[0, 8, 3], [1, 1, 2]])}
    np.testing.assert_array_equal(in_runtime(made, feeds)["y"], in_runtime(file, feeds)["y"])


def test_an_infinite_branch_is_left_alone(tmp_path: Path) -> None:
    """0 · ∞ is no number: such a Where cannot be written as a product."""
    low = onnx.numpy_helper.from_array(np.array(-np.inf, np.float32), "low")
    node = onnx.helper.make_node("Where", ["c", "low", "x"], ["y"], "choice")
    values = [onnx.helper.make_tensor_value_info("c", BOOL, (4,)), onnx.helper.make_tensor_value_info("x", FLOAT, (4,))]
    y = onnx.helper.make_tensor_value_info("y", FLOAT, (4,))
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "w", values, [y], [low]), ir_version=8,
                                   opset_imports=[onnx.helper.make_opsetid("", 17)])  # fmt: skip
    onnx.save(model, tmp_path / "w.onnx")
    graph = models.load(tmp_path / "w.onnx").clone().ir
    assert not lower(graph, SIMPLE)
    assert not finite_masks(graph)  # no Softmax reads it: the number means something


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit"])
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("provider", ["NNAPI", "CoreML MLProgram"])
def test_partitions_go_down_and_outputs_stay(
    family: str, exporter: str, provider: str, zoo: Build, tmp_path: Path
) -> None:
    exported = zoo(family, exporter, "eager")
    feeds = {name: value[:1].copy() for name, value in exported.feeds.items()}
    if "attention_mask" in feeds:
        feeds["attention_mask"][:, -2:] = 0
    model = models.load(exported.path).clone()
    sizes = {
        d: feeds[s.name].shape[i] for s in model.inputs for i, d in enumerate(s.shape) if isinstance(d, str)
    }  # fmt: skip
    fix(model.ir, sizes)
    finite_masks(model.ir)
    fixed = models.save(model.ir, tmp_path / "fixed.onnx")[0]
    supported = usability.supported_operators(provider)
    lower(model.ir, supported)
    narrow_integers(model.ir)
    lowered = models.save(model.ir, tmp_path / "lowered.onnx")[0]
    expected, found = in_runtime(exported.path, feeds), in_runtime(lowered, feeds)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())
    (before,), (after,) = (usability.survey(f, s, [provider]) for f, s in ((fixed, "fixed"), (lowered, "equivalents")))
    assert after.partitions <= before.partitions
    assert after.supported / after.nodes >= before.supported / before.nodes
    if _leftover(model.ir, supported) == set():
        assert (after.partitions, after.supported) == (1, after.nodes)
    if exporter == "torchscript":
        assert before.partitions > 1
        if {"Gather", "GatherND"} & supported:  # a release of the runtime whose CoreML knows neither keeps a lookup
            assert (after.partitions, after.supported, after.verdict) == (1, after.nodes, "yes")


def _leftover(model: ir.Model, supported: Collection[str]) -> set[str]:
    return {node.op_type for node in model.graph} - set(supported)


def test_masks_become_finite_where_scores_are_added_up(zoo: Build, tmp_path: Path) -> None:
    exported = zoo("bert", "torchscript", "eager")
    feeds = {name: value.copy() for name, value in exported.feeds.items()}
    feeds["attention_mask"][:, -3:] = 0
    model = models.load(exported.path).clone().ir
    assert finite_masks(model) > 0
    lows = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None]
    assert min(low.min() for low in lows if low.dtype == np.float32 and low.size == 1) == MASKED
    made = models.save(model, tmp_path / "finite.onnx")[0]
    for name, value in in_runtime(exported.path, feeds).items():
        np.testing.assert_allclose(in_runtime(made, feeds)[name], value, rtol=1e-5, atol=1e-6)
