"""Shape inference asks as much as a graph has kinds of nodes, not as it has nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.graph import model as models
from onnxprune.graph import prepare
from onnxprune.graph.prepare import shape_inference
from onnxprune.graph.values import dims


def _blocks(file: Path, count: int) -> Path:
    """x -> x + tanh(x) @ w, over and over; the last but one of another width, and with an axis that a node says."""
    h, random = onnx.helper, np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(count):
        weights.append(onnx.numpy_helper.from_array(random.standard_normal((4, 4)).astype(np.float32), f"w{i}"))
        nodes.append(h.make_node("Tanh", [f"x{i}"], [f"t{i}"]))
        nodes.append(h.make_node("MatMul", [f"t{i}", f"w{i}"], [f"m{i}"]))
        nodes.append(h.make_node("Add", [f"x{i}", f"m{i}"], [f"x{i + 1}"]))
    nodes.append(h.make_node("Concat", [f"x{count}", "x0"], ["wide"], axis=1))
    nodes.append(h.make_node("Concat", [f"x{count}", "x0"], ["long"], axis=0))
    nodes.append(h.make_node("Tanh", ["wide"], ["a"]))
    nodes.append(h.make_node("Tanh", ["long"], ["b"]))
    ends = [h.make_tensor_value_info(name, 1, None) for name in ("a", "b")]
    graph = h.make_graph(nodes, "g", [h.make_tensor_value_info("x0", 1, ["n", 4])], ends, weights)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), file)
    return file


def test_nodes_that_differ_in_their_names_alone_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = shape_inference._symbolic()
    asked = []
    infer = library.shape_inference.infer_shapes

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        return infer(*arguments, **options)

    monkeypatch.setattr(library.shape_inference, "infer_shapes", counted)
    counts = []
    for count in (3, 30):
        asked.clear()
        graph = models.load(_blocks(tmp_path / "m.onnx", count)).graph
        counts.append(len(asked))
        known = {v.name: dims(v) for n in graph for v in n.outputs}
        assert {known[f"{kind}{i}"] for kind in "tm" for i in range(count)} == {("n", 4)}
        assert known["wide"] == ("n", 8) and known["long"] == ("2*n", 4)
    assert counts[0] == counts[1]


def test_a_part_of_a_shape_is_that_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dynamo writes: sizes one by one, which older releases of the library take for the whole shape each."""
    library = shape_inference._symbolic()

    def whole(self: Any, node: Any) -> None:
        self.sympy_data_[node.output[0]] = self._get_sympy_shape(node, 0)

    monkeypatch.setattr(library.SymbolicShapeInference.__mro__[-2], "_infer_Shape", whole)
    h = onnx.helper
    nodes = [
        h.make_node("Shape", ["x"], ["n"], start=0, end=1),
        h.make_node("Shape", ["x"], ["s"], start=-2, end=-1),
        h.make_node("Concat", ["n", "s", "four", "two"], ["sizes"], axis=0),
        h.make_node("Reshape", ["x", "sizes"], ["y"], name="split"),
    ]
    x = h.make_tensor_value_info("x", 1, ["n", "s", 8])
    parts = [onnx.numpy_helper.from_array(np.array([size]), name) for name, size in (("four", 4), ("two", 2))]
    graph = h.make_graph(nodes, "g", [x], [h.make_tensor_value_info("y", 1, None)], parts)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    (split,) = (node for node in models.load(tmp_path / "m.onnx").graph if node.op_type == "Reshape")
    assert dims(split.outputs[0]) == ("n", "s", 4, 2)


def test_inference_ends_where_it_would_start_again_and_again(tmp_path: Path) -> None:
    """The library starts anew with the sizes that it took for equal, until all is known: of a list that never is."""
    h = onnx.helper
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("SequenceConstruct", ["a"], ["l"]),
        h.make_node("MatMul", ["l", "w"], ["b"]),
        h.make_node("Add", ["a", "b"], ["c"]),
    ]
    x = h.make_tensor_value_info("x", 1, ["n", 4])
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = h.make_graph(nodes, "g", [x], [h.make_tensor_value_info("c", 1, ["n", 4])], [weight])
    proto = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)
    found = {v.name for v in shape_inference.infer_proto(proto, assuming=True).graph.value_info}
    assert "a" in found


def test_a_graph_in_which_nothing_is_folded_is_described_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once by what holds for every size, once for the analysis."""
    rounds = []
    infer = prepare.infer

    def counted(model: ir.Model, *, assuming: bool = True) -> ir.Model:
        rounds.append(assuming)
        return infer(model, assuming=assuming)

    monkeypatch.setattr(prepare, "infer", counted)
    models.load(_blocks(tmp_path / "m.onnx", 2))
    assert rounds == [False, True]


def test_turns_that_are_as_many_as_rows_are_found_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over the rows (how torch exports EmbeddingBag): what a size was found equal to holds in the next round."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> main (float[n,8] x) => (float[n,16] y) { '
        "zero = Constant<value_int=0>() one = Constant<value_int=1>() yes = Cast<to=9>(one) s = Shape(x) "
        "rows = Gather(s, zero) z = Loop <body = each (int64 i, bool c) => (bool d, float[8] r) "
        "{ d = Identity(c) r = Gather(x, i) }> (rows, yes) y = Concat<axis=1>(z, x) }"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    library = shape_inference._inference()
    rounds, infer = [], library._infer_impl

    def counted(self: Any, *arguments: Any) -> Any:
        rounds.append(1)
        if len(rounds) > 100:
            raise RecursionError("it starts again and again")
        return infer(self, *arguments)

    monkeypatch.setattr(library, "_infer_impl", counted)
    graph = models.load(tmp_path / "m.onnx").graph
    assert len(rounds) < 20
    assert {v.name: dims(v) for n in graph for v in n.outputs}["y"] == ("n", 16)
