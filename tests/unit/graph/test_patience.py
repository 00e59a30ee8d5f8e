"""Loops that go on are stopped; those that end, and graphs without any, are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from perceptron import perceptron, write, write_rows

from onnxprune.errors import LimitError, UsageError
from onnxprune.graph import memory, patience, runtime


def looping(*, condition: bool = False, inside: bool = False) -> onnx.ModelProto:
    """The perceptron before a loop that takes `turns` turns, which is an input, or goes on while they are counted.

    Args:
        inside: in the branch of an If.
    """
    model, value = perceptron(), helper.make_tensor_value_info
    ends = [value("i", TensorProto.INT64, []), value("k", TensorProto.BOOL, []), value("s", TensorProto.FLOAT, None)]
    last = (
        helper.make_node("GreaterOrEqual", ["i", "none"], ["q"])
        if condition
        else helper.make_node("Identity", ["k"], ["q"])
    )
    body = helper.make_graph(
        [last, helper.make_node("Mul", ["s", "one"], ["r"])], "body", ends,
        [value("q", TensorProto.BOOL, []), value("r", TensorProto.FLOAT, None)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["" if condition else "turns", "go", "z"], ["logits"], name="round", body=body)
    if inside:
        loop.output[0] = "l"
        branch = helper.make_graph([loop], "branch", [], [value("l", TensorProto.FLOAT, None)])
        same = helper.make_node("Identity", ["z"], ["o"])
        other = helper.make_graph([same], "other", [], [value("o", TensorProto.FLOAT, None)])
        loop = helper.make_node("If", ["go_in"], ["logits"], then_branch=branch, else_branch=other)
        model.graph.input.append(value("go_in", TensorProto.BOOL, []))
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(loop)
    held = {"go": np.array(True), "one": np.ones(1, np.float32), "none": np.array(0)}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in held.items())
    if not condition:
        model.graph.input.append(value("turns", TensorProto.INT64, []))
    return model


def feeds(**more: Any) -> dict[str, Any]:
    return {"x": np.ones((1, 8), np.float32), **{k: np.array(v) for k, v in more.items()}}


@pytest.mark.parametrize(
    ("options", "more"),
    [({}, {"turns": 2**60}), ({"condition": True}, {}), ({"inside": True}, {"turns": 2**60, "go_in": True})],
)
def test_a_loop_without_end_is_stopped(
    options: dict[str, bool], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "0.2")
    opened = runtime.session(looping(**options).SerializeToString())
    with pytest.raises(LimitError, match=r"not ended after 0\.2 s of processor time"):
        runtime.run(opened, feeds(**more))


def test_a_loop_that_grows_is_stopped_before_memory_ends() -> None:
    """Twice as large each turn: a thousand of them would take more than any machine has."""
    model = looping()
    body = model.graph.node[-1].attribute[0].g
    body.node[-1].CopyFrom(helper.make_node("Concat", ["s", "s"], ["r"], axis=0))
    opened = runtime.session(model.SerializeToString())
    with memory.limited(400_000_000), pytest.raises(LimitError, match=r"loop of the graph takes more than 0\.1 GB"):
        runtime.run(opened, feeds(turns=26))


def test_a_loop_that_ends_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = runtime.session(looping().SerializeToString())
    plain = runtime.session(perceptron().SerializeToString())
    assert patience.loops(opened) and not patience.loops(plain)
    found = runtime.run(opened, feeds(turns=100))
    np.testing.assert_array_equal(found["logits"], runtime.run(plain, feeds())["logits"])
    monkeypatch.setenv(patience.VARIABLE, "soon")
    with pytest.raises(UsageError, match="ONNXPRUNE_LOOP_SECONDS=soon"):
        runtime.run(opened, feeds(turns=100))


@pytest.mark.parametrize("verb", ["prune", "inspect", "validate", "bench", "export", "profile", "plan"])
def test_every_command_ends(verb: str, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, "0.2")
    model, rows = write(tmp_path / "m.onnx", looping(condition=True)), write_rows(tmp_path / "rows.jsonl", 6)
    commands: dict[str, list[Any]] = {
        "inspect": [model],
        "prune": [model, "-o", tmp_path / "o.onnx", "--flops", "0.6", "--no-latency"],
        "plan": [model, "-o", tmp_path / "o.json", "--flops", "0.6", "--calib", rows],
        "validate": [model, model, "--eval", rows],
        "bench": [model, model, "--runs", "40"],
        "export": [model, "--target", "server", "-o", tmp_path / "o"],
        "profile": [model, "-o", tmp_path / "o.json"],
    }
    code, _, error = run(verb, *commands[verb])
    assert code == (0 if verb == "inspect" else 4), error
    assert verb == "inspect" or "has not ended after" in error
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("o")]
