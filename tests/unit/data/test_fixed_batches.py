"""Graphs that fix a batch of several rows take that many at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import written

import onnxprune
from onnxprune.data import read
from onnxprune.errors import DataError, LimitError
from onnxprune.graph import memory
from onnxprune.graph.model import InputSpec
from onnxprune.graph.runtime import run
from onnxprune.graph.segments import opened
from onnxprune.measure.latency import made_feeds

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
X = InputSpec("x", F32, (4, 3))
RNG = np.random.default_rng(0)


def test_rows_are_fed_as_many_at_once_and_the_last_batch_is_filled() -> None:
    rows = RNG.standard_normal((10, 3)).astype(np.float32)
    data = read([{"x": row, "label": i % 3} for i, row in enumerate(rows)], [X])
    assert [e.feeds["x"].shape for e in data.examples] == [(4, 3)] * 3
    np.testing.assert_array_equal(np.concatenate([e.feeds["x"] for e in data.examples])[:10], rows)
    np.testing.assert_array_equal(data.examples[2].feeds["x"][2:], rows[:2])
    assert [e.label.tolist() for e in data.examples] == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, -100, -100]]
    assert (data.max_batch, data.together) == (1, 4)
    assert any("4 at once" in said and "2 of them once more" in said for said in data.description)
    assert all(batch.feeds["x"].shape == (4, 3) for batch in data.batches())


@pytest.mark.parametrize("rows", [2**40, 2**17])
def test_a_batch_that_no_machine_holds_is_not_put_together(rows: int) -> None:
    given = {"x": RNG.standard_normal((8, 3)).astype(np.float32)}
    with pytest.raises(LimitError, match=f"takes {rows:,} rows at once; 65,536 are the most"):
        read(given, [InputSpec("x", F32, (rows, 3))])
    with memory.limited(10**5), pytest.raises(LimitError, match=r"takes at once, 65,536 rows, takes about 0\.8 MB"):
        read({"x": given["x"]}, [InputSpec("x", F32, (2**16, 3))])


@pytest.mark.parametrize("form", ["columns", "leading", "npz", "batches"])
def test_rows_in_every_form(form: str, tmp_path: Path) -> None:
    rows = RNG.standard_normal((8, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows)
    given = {
        "columns": {"x": rows},
        "leading": [{"x": row[None]} for row in rows],
        "npz": tmp_path / "rows.npz",
        "batches": [{"x": rows[:4]}, {"x": rows[4:]}],
    }[form]
    found = np.concatenate([e.feeds["x"] for e in read(given, [X]).examples])
    np.testing.assert_array_equal(found, rows)


def test_masks_are_made_for_each_row_and_pairs_are_refused() -> None:
    inputs = [InputSpec("input_ids", I64, (2, 5)), InputSpec("attention_mask", I64, (2, 5))]
    data = read([{"input_ids": [1, 2, 3, 4, 5]}, {"input_ids": [5, 4, 3, 2, 1]}], inputs)
    assert data.examples[0].feeds["attention_mask"].shape == (2, 5)
    with pytest.raises(DataError, match=r"one row of\s\[4, 3\], or all rows at once"):
        read([{"x": np.zeros((3, 3))}], [X])


NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[4,6] x) => (float[4,3] y) {
    a = MatMul(x, w1)
    b = Relu(a)
    shape = Constant<value_ints = [4, 16]>()
    c = Reshape(b, shape)
    y = MatMul(c, w2)
}
"""


def test_dead_units_of_a_graph_with_a_fixed_batch_go_first(tmp_path: Path) -> None:
    path = written(tmp_path, NET, {"w1": (6, 16), "w2": (16, 3)})
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[1::2] *= 0 if tensor.name == "w2" else 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    rows = [{"x": RNG.standard_normal(6).astype(np.float32), "label": i % 3} for i in range(96)]
    result = onnxprune.prune(path, flops=0.5, calibration=rows[:64], evaluation=rows[64:], measure_latency=False)
    assert result.plan.keep["neurons.0"] == tuple(range(0, 16, 2))
    assert result.report.accuracy is not None and result.report.accuracy.metric == "token_accuracy"
    result.save(tmp_path / "small.onnx")
    feeds = {"x": RNG.standard_normal((4, 6)).astype(np.float32)}
    before, after = (run(opened(f), feeds)["y"] for f in (path, tmp_path / "small.onnx"))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert made_feeds(path)[0]["x"].shape == (4, 6)
