"""Values that nobody gave are ones that the graph takes: ids of its tables, one length a row; NaN where it fills in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import written

import onnxprune
from onnxprune.data import read
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.runtime import Feeds, run
from onnxprune.graph.segments import opened
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.latency import made_feeds

RECOMMENDER = """
<ir_version: 8, opset_import: ["" : 17]>
recommender (int64[n] user, int64[n,3] items, int64[edges] source, float[nodes,4] x, int32[n] lens) => (float[n,o] y) {
    lead = Constant<value_ints = [0]>()
    u = Gather(users, user)
    first = Constant<value_ints = [1]>()
    cut = Slice(items, lead, first, first)
    flat = Squeeze(cut, first)
    i = Gather(things, flat)
    gone = Gather(x, source)
    m = ReduceMax<keepdims = 0, axes = [0]>(gone)
    l = Cast<to = 1>(lens)
    long = Unsqueeze(l, first)
    a = Concat<axis = 1>(u, i)
    b = Add(a, long)
    c = Relu(b)
    d = MatMul(c, w)
    y = Add(d, m)
}
"""
WEIGHTS = {"users": (5, 6), "things": (3, 6), "w": (12, 4)}


def test_ids_are_below_what_they_look_up(tmp_path: Path) -> None:
    """In tables of the file, through what passes them on, and in activations of a size known by name."""
    dense = models.load(written(tmp_path, RECOMMENDER, WEIGHTS))
    limits = {s.name: s.limit for s in dense.inputs}
    assert limits == {"user": 5, "items": 3, "source": "nodes", "x": None, "lens": None}
    feeds = synthesize(dense.inputs, dims={"n": 64, "edges": 40, "nodes": 7})
    assert feeds["user"].max() == 4 and feeds["items"].max() <= 2 and feeds["source"].max() == 6
    assert (feeds["lens"] == 1).all()
    assert dense.path is not None
    assert np.isfinite(run(opened(dense.path), feeds)["y"]).all()
    drawn = read("random", [s for s in dense.inputs if s.name in ("user", "items")], limit=32)
    assert {int(row.feeds["user"].max()) for row in drawn.examples} == {0, 1, 2, 3, 4}


def test_a_model_with_small_tables_is_pruned_without_rows(tmp_path: Path) -> None:
    text = RECOMMENDER.replace("int64[edges] source, float[nodes,4] x, int32[n] lens", "float[n,4] x")
    for line in ("gone = Gather(x, source)", "l = Cast<to = 1>(lens)", "long = Unsqueeze(l, first)"):
        text = text.replace(line, "")
    text = text.replace("ReduceMax<keepdims = 0, axes = [0]>(gone)", "Identity(x)").replace(
        "Add(a, long)", "MatMul(a, v)"
    )
    path = written(tmp_path, text, {**WEIGHTS, "v": (12, 16), "w": (16, 4)})
    small = onnxprune.prune(path, flops=0.6, measure_latency=False).model
    assert sum(v.const_value.size for v in small.graph.initializers.values() if v.const_value is not None) < 200


def test_nan_is_taken_where_the_graph_fills_it_in(tmp_path: Path) -> None:
    """As pipelines of scikit-learn do; anywhere else it is a fault of the row."""
    h = onnx.helper
    nodes = [
        h.make_node(
            "Imputer", ["x"], ["z"], domain="ai.onnx.ml", imputed_value_floats=[0.0] * 4, replaced_value_float=np.nan
        ),
        h.make_node("MatMul", ["z", "w"], ["a"]),
        h.make_node("Add", ["a", "x2"], ["y"]),
    ]
    ends = [h.make_tensor_value_info(name, 1, ["n", 4]) for name in ("x", "x2", "y")]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = h.make_graph(nodes, "g", ends[:2], ends[2:], [weight])
    imports = [h.make_opsetid("", 17), h.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(h.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    inputs = models.load(tmp_path / "m.onnx").inputs
    good = [{"x": [1.0, np.nan, 0.0, 2.0], "x2": [0.0] * 4}]
    assert np.isnan(read(good, inputs).examples[0].feeds["x"]).any()
    with pytest.raises(DataError, match="'x2' holds NaN"):
        read([{"x": [0.0] * 4, "x2": [np.nan] * 4}], inputs)


NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
network (float[nodes,8] x, int64[2,edges] edges) => (float[nodes,3] y) {
    first = Constant<value_int = 0>()
    second = Constant<value_int = 1>()
    one = Constant<value_ints = [1]>()
    source = Gather(edges, first)
    target = Gather(edges, second)
    h = MatMul(x, w0)
    sent = Gather(h, source)
    up = MatMul(sent, w1)
    live = Relu(up)
    message = MatMul(live, w2)
    nothing = Mul(h, none)
    places = Unsqueeze(target, one)
    heard = ScatterND<reduction = "add">(nothing, places, message)
    both = Add(h, heard)
    y = MatMul(both, w3)
}
"""


def test_rows_may_be_graphs_whose_edges_name_nodes(tmp_path: Path) -> None:
    """No input has an axis of rows: each row is run as it is, and dead units of the messages go first."""
    shapes = {"w0": (8, 8), "w1": (8, 16), "w2": (16, 8), "w3": (8, 3), "none": (1, 1)}
    path = written(tmp_path, NETWORK, shapes)
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[1::2] *= 0 if tensor.name == "w2" else 1  # what every other unit of the messages says
        array *= tensor.name != "none"
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    rng = np.random.default_rng(0)
    rows = [
        {"x": rng.normal(size=(n, 8)).tolist(), "edges": rng.integers(0, n, (2, n + 3)).tolist()} for n in range(4, 12)
    ]
    dense = models.load(path)
    data = read(rows, dense.inputs)
    assert data.max_batch == 1 and data.shared == {"x", "edges"}
    assert analyze(dense).batch is None
    with pytest.raises(UsageError, match="nodes"):
        onnxprune.prune(path, flops=0.61, measure_latency=False)
    result = onnxprune.prune(path, flops=0.61, calibration=rows, measure_latency=False)
    (kept,) = result.plan.keep.values()  # of the messages' units: those of the nodes all say something
    assert len(kept) == 8 and not any(unit % 2 for unit in kept)
    result.save(tmp_path / "small.onnx")
    feeds: Feeds = {"x": rng.normal(size=(9, 8)).astype(np.float32), "edges": rng.integers(0, 9, (2, 20))}
    before, after = (run(opened(f), feeds)["y"] for f in (path, tmp_path / "small.onnx"))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    (made,) = made_feeds(path, dims={"nodes": 5, "edges": 20})
    assert made["edges"].max() < 5, "and what is timed is one that runs"
