"""Fewer bits: the arithmetic of storing weights, and every scheme on a real export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perceptron import perceptron
from plans import in_runtime

from onnxprune.errors import ModelError, UsageError
from onnxprune.export.precision import SCHEMES, quantize
from onnxprune.export.precision.integer import noisy
from onnxprune.export.precision.storage import rounded
from onnxprune.graph import model_files

Feeds = dict[str, np.ndarray]


@pytest.fixture
def rows() -> list[Feeds]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(12):
        ids = rng.integers(5, 60, (1, 9))
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return made


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7), st.integers(0, 1), st.floats(1e-6, 1e6)
)  # fmt: skip
def test_rounding_moves_no_weight_by_more_than_half_a_step(
    seed: int, high: int, wide: int, axis: int, scale: float
) -> None:
    numbers = (np.random.default_rng(seed).normal(0, scale, (high, wide))).astype(np.float32)
    numbers[0] = 0  # a dead row has no scale of its own
    whole, steps = rounded(numbers, axis)
    assert whole.dtype == np.int8
    assert steps.shape == tuple(size if i == axis else 1 for i, size in enumerate(numbers.shape))
    assert np.all(np.abs(whole * steps - numbers) <= 0.5001 * steps + 1e-30)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"a16w8", "a8w8"}))
def test_every_scheme_is_smaller_and_keeps_the_interface(
    scheme: str, letters_bert: Path, rows: list[Feeds], tmp_path: Path
) -> None:
    source = letters_bert / "model.onnx"
    file = quantize(source, tmp_path / "small.onnx", scheme, rows)
    share = file.stat().st_size / source.stat().st_size
    assert share < (0.75 if scheme.startswith("fp16") else 0.62)
    before, after = onnx.load(source), onnx.load(file)
    assert [(i.name, i.type) for i in before.graph.input] == [(i.name, i.type) for i in after.graph.input]
    assert [(o.name, o.type) for o in before.graph.output] == [(o.name, o.type) for o in after.graph.output]
    expected = np.concatenate([in_runtime(source, feeds)["logits"] for feeds in rows])
    found = np.concatenate([in_runtime(file, feeds)["logits"] for feeds in rows])
    limit = {"fp16": 2e-3, "fp16-compute": 1e-2, "int8-weights": 0.05}.get(scheme, 0.15)
    assert np.abs(found - expected).max() <= limit * np.abs(expected).max()
    assert np.abs(found - expected).max() > 0


def test_what_is_stored_in_half_precision_is_brought_to_8_bits(
    letters_bert: Path, rows: list[Feeds], tmp_path: Path
) -> None:
    half = quantize(letters_bert / "model.onnx", tmp_path / "half.onnx", "fp16")
    file = quantize(half, tmp_path / "small.onnx", "int8-dynamic")
    assert file.stat().st_size < 0.9 * half.stat().st_size
    assert "MatMulInteger" in {node.op_type for node in onnx.load(file).graph.node}
    expected, found = (in_runtime(f, rows[0])["logits"] for f in (half, file))
    assert np.abs(found - expected).max() <= 0.15 * np.abs(expected).max()


def test_tables_are_read_row_by_row_or_as_a_whole(letters_bert: Path, rows: list[Feeds], tmp_path: Path) -> None:
    source = letters_bert / "model.onnx"
    by_row = quantize(source, tmp_path / "rows.onnx", "int8-weights")
    whole = quantize(source, tmp_path / "whole.onnx", "int8-weights", by_row=False)
    for file, kind in ((by_row, onnx.TensorProto.INT8), (whole, onnx.TensorProto.FLOAT)):
        model = onnx.load(file)
        types = {i.name: i.data_type for i in model.graph.initializer}
        gathers = [n for n in model.graph.node if n.op_type == "Gather" and "word_embeddings" in n.name]
        assert {types.get(n.input[0], onnx.TensorProto.FLOAT) for n in gathers if "scales" not in n.name} == {kind}
    first, second = (in_runtime(file, rows[0])["logits"] for file in (by_row, whole))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_products_that_8_bits_hold_badly_are_found(tmp_path: Path) -> None:
    """One input is even, the other has a spike in every row."""
    rng = np.random.default_rng(0)
    weights = [onnx.numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32), f"w{i}") for i in (0, 1)]
    spike = onnx.numpy_helper.from_array(np.array([200] + [1] * 7, np.float32), "spike")
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["even"], "relu"),
        onnx.helper.make_node("Mul", ["even", "spike"], ["spiky"], "spike"),
        onnx.helper.make_node("MatMul", ["even", "w0"], ["a"], "plain"),
        onnx.helper.make_node("MatMul", ["spiky", "w1"], ["b"], "spoiled"),
    ]
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 8]) for n in ("x", "a", "b")]
    graph = onnx.helper.make_graph(nodes, "two", values[:1], values[1:], [*weights, spike])
    opset = [onnx.helper.make_opsetid("", 17)]
    file = tmp_path / "two.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), file)
    rows = []
    for _ in range(4):
        x = rng.uniform(0.1, 1, (2048, 8)).astype(np.float32)
        x[1:, 0] /= 1000  # the spike is rare: it stretches the range and carries little energy
        rows.append({"x": x})
    assert noisy(file, rows) == ["spoiled"]


def test_what_cannot_be_is_refused(letters_bert: Path, tmp_path: Path) -> None:
    source = letters_bert / "model.onnx"
    with pytest.raises(UsageError, match="choose from"):
        quantize(source, tmp_path / "a.onnx", "int3")
    with pytest.raises(UsageError, match="--calib"):
        quantize(source, tmp_path / "a.onnx", "int8-static")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-weights"])
def test_weights_that_are_no_numbers_are_named(scheme: str, tmp_path: Path) -> None:
    proto = perceptron()
    values = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    values[0, 1] = np.nan
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, proto.graph.initializer[0].name))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="holds 1 NaN"):
        quantize(tmp_path / "m.onnx", tmp_path / "o.onnx", scheme)
    assert not (tmp_path / "o.onnx").exists()


def test_an_overflowing_tensor_stays_in_single_precision(tmp_path: Path) -> None:
    large = onnx.numpy_helper.from_array(np.full((64, 64), 1e5, np.float32), "large")
    node = onnx.helper.make_node("MatMul", ["x", "large"], ["y"], "product")
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 64]) for n in ("x", "y")]
    graph = onnx.helper.make_graph([node], "one", values[:1], values[1:], [large])
    file = tmp_path / "one.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]), file)
    made = quantize(file, tmp_path / "half.onnx", "fp16")
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(in_runtime(made, {"x": x})["y"], in_runtime(file, {"x": x})["y"])
    assert model_files.size(made) >= model_files.size(file)
