"""How far the stream moves, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import perceptron
from plans import Subject

from onnxprune import rewrite
from onnxprune.data import read
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.measure.layer_drift import layer_drift


def streams(file: Path, x: np.ndarray, names: list[str]) -> list[np.ndarray]:
    """What ONNX Runtime has for inner values of a file."""
    proto = onnx.load(file)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(names, {"x": x})
    return [np.asarray(value) for value in found]


def test_it_is_what_the_written_file_computes(tmp_path: Path) -> None:
    file = perceptron.write(tmp_path / "model.onnx", perceptron.perceptron(3))
    rows = read(perceptron.write_rows(tmp_path / "rows.jsonl", 12), models.load(file).inputs)
    x = np.concatenate([example.feeds["x"] for example in rows.examples])
    subject = Subject.load(file)
    first, *_, last = subject.structure.branches
    group = next(g.id for g in subject.structure.groups if g.branch == first.id)
    plan = subject.complete(Plan(subject.model.digest, {group: tuple(range(8))}, (last.id,)), {"x": x})
    models.write(rewrite.apply(subject.model, subject.structure, plan), tmp_path / "small.onnx")

    found = layer_drift(subject.interpreter, subject.structure, plan, rows)
    assert [one.block for one in found] == [b.id for b in subject.structure.branches]
    assert [one.dropped for one in found] == [False, False, True]
    names = ["stream_0", "stream_1"]
    for one, before, after in zip(
        found, streams(file, x, names), streams(tmp_path / "small.onnx", x, names), strict=False
    ):
        assert np.isclose(one.difference, np.linalg.norm(after - before) / np.linalg.norm(before), rtol=1e-5)
        assert one.difference > 0.01


def test_nothing_cut_is_nothing_moved_and_no_blocks_are_no_layers(tmp_path: Path) -> None:
    file = perceptron.write(tmp_path / "model.onnx")
    subject = Subject.load(file)
    rows = read(perceptron.write_rows(tmp_path / "rows.jsonl", 12), subject.model.inputs)
    found = layer_drift(subject.interpreter, subject.structure, Plan(subject.model.digest), rows)
    assert [one.difference for one in found] == [0.0, 0.0]
    flat = Subject.load(perceptron.write(tmp_path / "flat.onnx", perceptron.perceptron(0)))
    assert layer_drift(flat.interpreter, flat.structure, Plan(flat.model.digest), rows) == ()
