"""Weights are held within a limit, and batches go through a graph side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import written
from plans import Subject

from onnxprune.errors import UnsupportedError
from onnxprune.graph import memory
from onnxprune.probe import forward
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.last_read import LastRead

WIDTH, LAYERS = 8, 5
ONE = WIDTH * WIDTH * 4


def _graph() -> ir.Graph:
    random = np.random.default_rng(0)
    body = "".join(f"m{i} = MatMul(x{i}, w{i})\n x{i + 1} = Tanh(m{i})\n" for i in range(LAYERS))
    model = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : 17]> g (float[n,{WIDTH}] x0) => (float[n,{WIDTH}] x{LAYERS}) {{ {body} }}'
    )
    for i in range(LAYERS):
        array = random.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        value = ir.Value(name=f"w{i}", const_value=ir.Tensor(array, name=f"w{i}"))
        for node in model.graph:
            for place, read in enumerate(node.inputs):
                if read is not None and read.name == f"w{i}":
                    node.replace_input_with(place, value)
        model.graph.register_initializer(value)
    for i, node in enumerate(model.graph):
        node.name, node.version = f"n{i}", 17
    return model.graph


def test_the_last_tensors_are_held_within_a_limit() -> None:
    held = LastRead(100)
    a, b, c = (torch.zeros(10) for _ in range(3))
    held.put("a", a), held.put("b", b)
    assert held.size == 80 and held.get("a") is a
    held.put("c", c)
    assert held.get("b") is None and held.get("a") is a and held.get("c") is c and held.size == 80
    assert held.put("large", torch.zeros(100)).numel() == 100
    assert held.get("large") is None and held.size <= 100


def test_each_weight_is_read_once_a_pass_where_they_are_not_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = [{"x0": np.random.default_rng(i).standard_normal((3, WIDTH)).astype(np.float32)} for i in range(4)]
    whole = Interpreter(_graph())
    assert not whole.streams
    expected = [forward.forward(whole, one) for one in feeds]
    monkeypatch.setattr(memory, "share", lambda: 2 * ONE)
    small, read, most = Interpreter(_graph()), Counter[str](), 0
    load = small._load

    def counted(name: str) -> Any:
        nonlocal most
        read[name] += 1
        most = max(most, small._held.size)
        return load(name)

    monkeypatch.setattr(small, "_load", counted)
    assert small.streams
    found = forward.forward_all(small, feeds)
    assert read == {f"w{i}": 1 for i in range(LAYERS)}
    assert most <= 2 * ONE
    for one, should in zip(found, expected, strict=True):
        assert torch.equal(one[f"x{LAYERS}"], should[f"x{LAYERS}"])


def test_labels_written_out_as_text_are_left_to_the_runtime(tmp_path: Path) -> None:
    text = """
    <ir_version: 9, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
    net (float[N, 4] x, float[4, 3] w) => (float[N, 3] y, string[N] label) {
        y = MatMul(x, w)
        best = ArgMax <axis = 1, keepdims = 0> (y)
        label = ai.onnx.ml.LabelEncoder <keys_int64s = [0, 1, 2], values_strings = ["a", "b", "c"]> (best)
    }
    """
    subject = Subject.load(written(tmp_path, text, {"w": (4, 3)}))
    assert list(subject.interpreter.run({"x": np.ones((2, 4), np.float32)})) == ["y"]


def test_an_input_that_is_text_is_named(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
    net (string[n] colour, float[n, 3] x) => (float[n, 4] y) {
        code = ai.onnx.ml.LabelEncoder <keys_strings = ["red", "blue"], values_floats = [0.0, 1.0]> (colour)
        axes = Constant <value_ints = [1]> ()
        column = Unsqueeze (code, axes)
        all = Concat <axis = 1> (x, column)
        y = MatMul (all, w)
    }"""
    subject = Subject.load(written(tmp_path, text, {"w": (4, 4)}))
    feeds = {"x": np.zeros((2, 3), np.float32), "colour": np.array(["red", "blue"], object)}
    with pytest.raises(UnsupportedError, match="input colour holds text"):
        subject.dense(feeds)


def test_what_a_node_reads_and_calls_is_found_once_for_all_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep graph is run from and to many values; each asks anew which nodes that takes."""
    interpreter = Interpreter(_graph())
    called: list[str] = []
    call = interpreter.engine.call

    def counted(node: ir.Node, opsets: Mapping[str, int]) -> Any:
        called.append(node.name or "")
        return call(node, opsets)

    monkeypatch.setattr(interpreter.engine, "call", counted)
    values = [v.name or "" for n in interpreter.graph for v in n.outputs]
    for name in values:
        interpreter.run({"x0": np.ones((2, WIDTH), np.float32)}, outputs=[name, values[-1]])
    assert sorted(called) == sorted(n.name or "" for n in interpreter.graph)
