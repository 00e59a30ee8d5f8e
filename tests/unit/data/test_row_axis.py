"""Rows that do not stand on the first axis: states of recurrences, outputs step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.data import output_axes, read, rows_first
from onnxprune.graph.model import InputSpec

F32 = np.dtype(np.float32)
X = InputSpec("x", F32, ("B", 16))
STATE = InputSpec("state", F32, (2, "B", 8))
RNG = np.random.default_rng(0)
ROWS, STATES = RNG.standard_normal((6, 16)).astype(np.float32), RNG.standard_normal((6, 2, 8)).astype(np.float32)


def npz(folder: Path, state: np.ndarray) -> Path:
    np.savez(folder / "rows.npz", x=ROWS, state=state)
    return folder / "rows.npz"


@pytest.mark.parametrize("form", ["rows of states", "rows with a 1", "states of all rows"])
def test_states_are_read_in_any_arrangement(tmp_path: Path, form: str) -> None:
    given = {"rows of states": STATES, "rows with a 1": STATES[:, :, None], "states of all rows": STATES.swapaxes(0, 1)}
    rows = read(npz(tmp_path, given[form]), [X, STATE])
    assert [e.feeds["state"].shape for e in rows.examples] == [(2, 1, 8)] * 6
    (batch,) = rows.batches()
    np.testing.assert_array_equal(batch.feeds["state"], STATES.swapaxes(0, 1))
    np.testing.assert_array_equal(batch.feeds["x"], ROWS)
    assert rows.mean_shape([STATE, X]) == {"B": 1}


def test_a_batch_of_feeds_is_taken_apart() -> None:
    rows = read([{"x": ROWS, "state": STATES.swapaxes(0, 1)}], [X, STATE])
    assert len(rows) == 6
    np.testing.assert_array_equal(rows.examples[3].feeds["state"][:, 0], STATES[3])


def test_random_rows_have_one_state_each() -> None:
    rows = read("random", [X, STATE], limit=3)
    assert {e.feeds["state"].shape for e in rows.examples} == {(2, 1, 8)}


@pytest.mark.parametrize(
    ("inputs", "shape", "expected"),
    [
        ([X, STATE], (2, "B", 8), {"y": 1}),
        ([X], ("B", 5), {}),
        ([X], ("steps", 5), {}),  # not told
        ([InputSpec("x", F32, (1, 3, "L"))], ("L", 1, 5), {"y": 1}),
        ([InputSpec("x", F32, (1, 3, "L"))], (1, "L", 5), {}),
    ],
)
def test_where_outputs_have_rows(inputs: list[InputSpec], shape: tuple[Any, ...], expected: dict[str, int]) -> None:
    assert output_axes(inputs, {"y": shape}) == expected


def test_rows_come_first() -> None:
    value = np.zeros((7, 3, 5))
    assert rows_first({"y": value}, 3, {"y": 1})["y"].shape == (3, 7, 5)
    assert rows_first({"y": value}, 3, {})["y"].shape == (3, 7, 5)  # the only axis of that length
    assert rows_first({"y": value}, 1, {})["y"].shape == (1, 7, 3, 5)
    assert rows_first({"y": value}, 7, {})["y"].shape == (7, 3, 5)
    assert rows_first({"y": np.zeros((9, 4, 4))}, 4, {})["y"].shape == (9, 4, 4)  # which one, nobody can tell


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_model_with_states_is_pruned(tmp_path: Path, batch: Any) -> None:
    """Steps first, rows second, in what comes out; states in and out."""
    weights = {"w1": (16, 24), "w2": (24, 8), "W": (1, 24, 8), "R": (1, 24, 8)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["b"]),
        helper.make_node("Transpose", ["b"], ["t"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["t", "W", "R", "", "", "state"], ["g", "stateN"], hidden_size=8),
        helper.make_node("Squeeze", ["g", "one"], ["y"]),
    ]
    held = [numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32) / 4, n) for n, s in weights.items()]
    graph = helper.make_graph(
        nodes,
        "states",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, "steps", 16]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, batch, 8]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["steps", batch, 8]),
            helper.make_tensor_value_info("stateN", TensorProto.FLOAT, [1, batch, 8]),
        ],
        [*held, numpy_helper.from_array(np.array([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    draw = np.random.default_rng(1).standard_normal
    rows = [
        {"x": draw((1, 5 + i % 2, 16)).astype(np.float32), "state": draw((1, 1, 8)).astype(np.float32)}
        for i in range(24)
    ]
    result = onnxprune.prune(tmp_path / "model.onnx", flops=0.7, calibration=rows, round_to=1, measure_latency=False)
    assert "neurons.0" in result.plan.keep
    assert result.report.accuracy is not None


@pytest.mark.parametrize("first", [9, "steps"])
def test_rows_may_stand_on_the_second_axis_of_what_they_are_counted_by(first: int | str) -> None:
    """What reads step by step takes [steps, batch, width]."""
    inputs = [InputSpec("x", F32, (first, "batch", 4))]
    given = RNG.standard_normal((6, 9, 4)).astype(np.float32)
    rows = read([{"x": row[:, None]} for row in given], inputs)
    assert [e.feeds["x"].shape for e in rows.examples] == [(9, 1, 4)] * 6
    (batch,) = rows.batches()
    np.testing.assert_array_equal(batch.feeds["x"], given.swapaxes(0, 1))
    assert output_axes(inputs, {"y": (first, "batch", 3)}) == {"y": 1}
    assert len(read([{"x": given.swapaxes(0, 1)}], inputs)) == 6


def test_a_length_is_no_batch() -> None:
    """What is as large as the input is the input, whatever its first axis is."""
    frames = RNG.standard_normal((3, 80, 5)).astype(np.float32)
    data = read([{"x": row} for row in frames], [InputSpec("x", F32, (80, "frames"))])
    assert [e.feeds["x"].shape for e in data.examples] == [(80, 5)] * 3
    assert data.max_batch == 1
