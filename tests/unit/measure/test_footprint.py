"""What a graph takes, and the refusal of what cannot fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import perceptron
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import LimitError
from onnxprune.graph import memory
from onnxprune.graph import model as models
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.plan import Budget
from onnxprune.measure import footprint
from onnxprune.pipeline import job, verbs
from onnxprune.pipeline.sweep import sweep
from onnxprune.search.options import Options


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    perceptron.write(tmp_path / "model.onnx")
    perceptron.write_rows(tmp_path / "rows.jsonl")
    return tmp_path


def test_the_most_that_values_take_at_one_time(folder: Path) -> None:
    found = footprint.footprint(models.load(folder / "model.onnx"), {"batch": 1000})
    # The stream, and two values of the hidden width: what is added, and the sum.
    assert found.activations == 1000 * 4 * (8 + 16 + 16)
    assert found.weights == 4 * (2 * (8 * 16 * 2 + 16) + 8 * 3 + 3)
    assert found.largest == 4 * 8 * 16


def test_of_weights_that_are_read_in_parts_a_part_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load(folder / "model.onnx")
    values, part = 4 * (8 + 16 + 16), 4 * 8 * 16
    monkeypatch.setattr(memory, "LIBRARIES", 0)
    with memory.limited(values + part):
        footprint.require(model, {"batch": 1}, "a row", weights=True)
    with memory.limited(values + part - 1), pytest.raises(LimitError, match=r"a row \(batch=1\) takes 0\.7 KB"):
        footprint.require(model, {"batch": 1}, "a row", weights=True)


def test_rows_that_cannot_fit_are_refused_with_the_figure(
    folder: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    args = ["--flops", "0.6", "--calib", folder / "rows.jsonl", "--no-latency", "--threads", 1]
    for least in ("500", "1KB", "200MB"):
        code, _, err = run(folder / "model.onnx", "-o", folder / "o.onnx", *args, "--max-memory", least)
        assert code == 4 and f"takes {memory.shown(memory.LIBRARIES)} of memory" in err and "rows.jsonl:1" in err
        assert "for the libraries" in err and "give --max-memory more" in err and "--max-length" not in err
    assert not list(folder.glob("o.*")) and not memory.stated()
    code, _, err = run(folder / "model.onnx", "-o", folder / "o.onnx", *args, "--max-memory", "1GB", "-q")
    assert code == 0, err
    assert json.loads((folder / "o.report.json").read_text())["recipe"]["options"]["max_memory"] == 10**9


@pytest.mark.parametrize("verb", ["prune", "sweep", "make_plan"])
def test_every_run_states_its_limit_and_leaves_none(folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    seen = []

    def refused(*_: object) -> None:
        seen.append(memory.limit())
        raise LimitError("enough")

    monkeypatch.setattr(verbs, "require_memory", refused)
    monkeypatch.setattr(job, "require_memory", refused)
    model, rows = folder / "model.onnx", folder / "rows.jsonl"
    asked: dict[str, Any] = {"max_memory": 10**9}
    with pytest.raises(LimitError, match="enough"):
        if verb == "prune":
            verbs.prune(model, flops=0.6, calibration=rows, **asked)
        elif verb == "sweep":
            sweep(model, [0.6], calibration=rows, options=asked)
        else:
            verbs.make_plan(model, rows, Options(Budget("flops", 0.6), **asked))
    assert seen == [10**9] and not memory.stated()


def test_inputs_of_a_fixed_size_that_no_machine_has(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    model = perceptron.perceptron()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40
    perceptron.write(folder / "model.onnx", model)
    code, _, err = run(folder / "model.onnx", "-o", folder / "o.onnx", "--flops", "0.6", "--no-latency")
    assert code in (3, 4) and "GB" in err


def test_a_constant_that_every_run_would_make_anew(folder: Path) -> None:
    model = perceptron.perceptron()
    model.graph.initializer.append(numpy_helper.from_array(np.array([1000, 1000, 1000]), "sizes"))
    nodes: list[onnx.NodeProto] = [
        helper.make_node("ConstantOfShape", ["sizes"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["moved"]),
        *model.graph.node,
    ]
    nodes[3].input[0] = "moved"
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    with pytest.raises(LimitError, match=r"constant of 4\.0 GB"):
        models.load(perceptron.write(folder / "model.onnx", model))


@pytest.mark.parametrize("name", ["9**9**9", "((" * 5000, "a\0b", "1/0", "x.y", "[1]", "-" * 5000 + "1", "f(1)"])
def test_names_of_dimensions_may_be_anything(name: str) -> None:
    with pytest.raises(KeyError):
        evaluate(name, {})
