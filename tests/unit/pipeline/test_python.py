"""The functions for Python: models in memory, one's own score, steps, results that show and save themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import perceptron
import pytest

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.score import CUSTOM, METHODS, Statistics, add_method
from onnxprune.search.progress import STAGES

QUICK: dict[str, Any] = {"measure_latency": False, "threads": 1}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return perceptron.write_rows(tmp_path / "rows.jsonl", 60)


@pytest.fixture
def names() -> Iterator[None]:
    yield
    for name in CUSTOM:
        METHODS.pop(name, None)
    CUSTOM.clear()


def test_models_in_memory_are_pruned_as_files_are_and_stay(tmp_path: Path, rows: Path) -> None:
    proto = perceptron.perceptron()
    before = proto.SerializeToString()
    file = perceptron.write(tmp_path / "model.onnx")
    graph = ir.from_proto(proto)
    saved = []
    sources: tuple[Any, ...] = (file, str(file), proto, graph)
    for i, source in enumerate(sources):
        result = onnxprune.prune(source, flops=0.7, calibration=rows, **QUICK)
        (path,) = result.save(tmp_path / f"{i}.onnx")
        saved.append([t.raw_data for t in onnx.load(path).graph.initializer])
    assert saved[0] == saved[1] == saved[2] == saved[3]
    assert proto.SerializeToString() == before and ir.to_proto(graph).graph.node[0].op_type == "MatMul"
    plan = onnxprune.make_plan(proto, None, onnxprune.Options(onnxprune.Budget("flops", 0.8)))
    onnxprune.apply(proto, plan, tmp_path / "applied.onnx")
    assert len(onnxprune.sweep(proto, [0.8, 0.6], calibration=rows, measure=False)) == 2


def test_unknown_keywords_say_what_is_near(tmp_path: Path) -> None:
    file = perceptron.write(tmp_path / "model.onnx")
    with pytest.raises(TypeError, match=r"unexpected option 'methd': did you mean 'method'\?"):
        onnxprune.prune(file, flops=0.6, methd="obs")
    with pytest.raises(TypeError, match=r"did you mean 'calibration'\?"):
        onnxprune.prune(file, flops=0.6, calibratoin="rows.jsonl")
    with pytest.raises(TypeError, match=r"did you mean 'flops'\?"):
        onnxprune.prune(file, flop=0.6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": 3}, "method=3 is of type int, where str belongs"),
        ({"shape": "batch=1"}, "shape='batch=1' is of type str, where"),
        ({"seed": "x"}, "seed='x' is of type str, where int belongs"),
        ({"rows": True}, "rows=True is of type bool, where int belongs"),
        ({"units": "heads"}, "units='heads' is of type str, where"),
        ({"compensate": "no"}, "compensate='no' is of type str, where bool belongs"),
        ({"progress": "x"}, "progress is called with"),
    ],
)
def test_values_of_another_kind_are_named(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    file = perceptron.write(tmp_path / "model.onnx")
    with pytest.raises(TypeError, match=re.escape(says)):
        onnxprune.prune(file, flops=0.6, **options)


def test_what_is_no_model_and_no_plan_is_said(tmp_path: Path) -> None:
    for source, named in ((3, "int"), (None, "NoneType"), (b"", "bytes; onnx.load_model_from_string")):
        with pytest.raises(TypeError, match=f"a model is a path, .* not of type {re.escape(named)}"):
            onnxprune.prune(source, flops=0.6)  # type: ignore[arg-type]
    file = perceptron.write(tmp_path / "model.onnx")
    with pytest.raises(TypeError, match=r"not of type dict: Plan\.load\(path\)"):
        onnxprune.apply(file, {}, tmp_path / "out.onnx")  # type: ignore[arg-type]


def test_what_is_loaded_and_found_shows_itself_in_a_line(tmp_path: Path) -> None:
    file = perceptron.write(tmp_path / "model.onnx")
    model = onnxprune.load(file)
    assert re.fullmatch(rf"<onnxprune\.Model {re.escape(str(file))}: \d+ nodes, opset \d+>", repr(model))
    assert re.fullmatch(
        r"<onnxprune\.Structure: 2 groups \(neurons\.0\[\d+\], .*\), \d branches>", repr(onnxprune.analyze(model))
    )
    numbers = onnxprune.Options.of(onnxprune.Budget("flops", 0.5), {"rows": np.int64(5), "units": ["neurons"]})
    assert numbers.rows == 5


def test_a_result_shows_itself_and_saves_its_set(tmp_path: Path, rows: Path) -> None:
    home = tmp_path / "model"
    home.mkdir()
    (home / "config.json").write_text("{}", encoding="utf-8")
    result = onnxprune.prune(perceptron.write(home / "model.onnx"), flops=0.7, calibration=rows, **QUICK)
    assert re.fullmatch(r"<onnxprune\.Result of model/model\.onnx: \d+% smaller, accuracy [^>]+>", repr(result))
    assert len(repr(result.plan)) < 100 and len(repr(result.report)) < 200
    shown = result._repr_html_()
    assert "smaller" in shown and "<table>" in shown and "<script" not in shown
    files = result.save(tmp_path / "out")
    stems = {"model.pruned.onnx", "model.pruned.plan.json", "model.pruned.report.json", "model.pruned.report.html"}
    assert stems | {"config.json"} <= {f.name for f in files}
    told = json.loads((tmp_path / "out" / "model.pruned.report.json").read_text(encoding="utf-8"))
    assert told["model"]["pruned_path"] == str(tmp_path / "out" / "model.pruned.onnx")
    with pytest.raises(UsageError, match="exists"):
        result.save(tmp_path / "out")


def test_a_score_of_ones_own(tmp_path: Path, rows: Path, names: None) -> None:
    seen = []

    def quiet(site: Any, statistics: Statistics) -> np.ndarray:
        seen.append(site.id)
        total = np.zeros(site.group.size)
        for matrix in site.matrices:
            weight = matrix.weight(statistics.weight(matrix.reader.weight))
            power = np.diag(statistics.gram[matrix.reader.node, matrix.reader.input].matrix)
            total += onnxprune.per_unit(matrix.units, power * np.abs(weight).sum(1), site.group.size)
        return total

    onnxprune.add_method("quiet", quiet, needs=["gram"])
    file = perceptron.write(tmp_path / "model.onnx")
    for method in ("quiet", "quiet+0.5*obs"):
        seen.clear()
        onnxprune.prune(file, tmp_path / "small.onnx", flops=0.7, calibration=rows, method=method, force=True, **QUICK)
        assert seen, "scores of a method that was added are not kept for another run"
    for name, needs, says in (
        ("quiet", (), "already"), ("auto", (), "cannot be"), ("a*b", (), "cannot be"), ("b", ("hessian",), "hessian"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            add_method(name, quiet, needs)


def test_step_by_step_is_the_job(tmp_path: Path, rows: Path) -> None:
    file = perceptron.write(tmp_path / "model.onnx")
    steps = onnxprune.Steps.open(file, flops=0.7, calibration=rows, threads=1)
    rankings = steps.score()
    assert set(rankings) == {g.id for g in steps.structure.groups} and repr(steps).startswith("<Steps of ")
    plan = steps.compensate(steps.search())
    pruned = steps.rewrite(plan)
    evidence = steps.validate(pruned)
    assert evidence is not None and evidence.accuracy.rows == 12
    whole = onnxprune.prune(file, flops=0.7, calibration=rows, **QUICK)
    assert whole.plan.keep == plan.keep
    weights = [
        {n: v.const_value.numpy().tobytes() for n, v in made.graph.initializers.items() if v.const_value is not None}
        for made in (pruned, whole.model)
    ]
    assert weights[0] == weights[1]
    smaller = steps.search(0.5)
    assert sum(map(len, smaller.keep.values())) < sum(map(len, plan.keep.values()))
    own = replace(smaller, keep={name: units[:4] for name, units in smaller.keep.items()})
    assert steps.rewrite(own).graph.initializers


def test_steps_take_models_in_memory_and_one_budget(rows: Path) -> None:
    steps = onnxprune.Steps.open(perceptron.perceptron(), calibration=rows, threads=1, method="magnitude")
    assert steps.search(0.7).keep and steps.validate(steps.rewrite(steps.search(0.7))) is not None
    refused: dict[str, dict[str, Any]] = {
        "give one budget, not flops and size": {"flops": 0.7, "size": 0.6},
        "onnxprune.prune takes latency": {"latency": 0.5},
    }
    for says, asked in refused.items():
        with pytest.raises(UsageError, match=says):
            onnxprune.Steps.open(perceptron.perceptron(), calibration=rows, **asked)
    with pytest.raises(TypeError, match="did you mean 'flops'"):
        onnxprune.Steps.open(perceptron.perceptron(), flop=0.7)


def test_two_models_are_compared_by_name_or_in_memory(tmp_path: Path, rows: Path) -> None:
    file = perceptron.write(tmp_path / "model.onnx")
    result = onnxprune.prune(file, tmp_path / "small.onnx", flops=0.7, calibration=rows, evaluation=rows, **QUICK)
    told: list[tuple[str, int, int]] = []
    found = onnxprune.validate(file, tmp_path / "small.onnx", rows, progress=lambda *one: told.append(one))
    assert found.accuracy == result.report.accuracy and told[-1] == ("validate", 60, 60)
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    for dense, small in ((onnx.load(file), onnx.load(tmp_path / "small.onnx")), (str(file), result.model)):
        assert onnxprune.validate(dense, small, iter(lines)).accuracy == found.accuracy
    with pytest.raises(TypeError, match="'colums': did you mean 'columns'"):
        onnxprune.validate(file, file, rows, colums={})
    with pytest.raises(TypeError, match="not of type int"):
        onnxprune.validate(file, 3, rows)  # type: ignore[arg-type]


def test_progress_is_called_with_known_stages(tmp_path: Path, rows: Path) -> None:
    told: list[tuple[str, int, int]] = []
    onnxprune.prune(
        perceptron.write(tmp_path / "model.onnx"), flops=0.7, calibration=rows,
        progress=lambda stage, done, of: told.append((stage, done, of)), **QUICK,
    )  # fmt: skip
    assert {stage for stage, _, _ in told} <= set(STAGES)
    assert {"load", "score", "search", "check", "validate"} <= {stage for stage, done, of in told if done == of == 0}
    assert any(stage == "check" and done == of > 0 for stage, done, of in told)
