"""The report: lossless JSON, honest words, pages that load nothing and run nothing."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_reports import CPU, full, latency, plain
from rich.console import Console

from onnxprune.errors import DataError
from onnxprune.export.precision import Step
from onnxprune.graph.runtime import Coverage
from onnxprune.measure.equivalence import Equivalence
from onnxprune.measure.flips import Flip, Flips
from onnxprune.measure.layer_drift import LayerDrift
from onnxprune.measure.slices import Slice
from onnxprune.measure.validation import Accuracy, Drift, Evidence
from onnxprune.report import (
    SCHEMA_VERSION,
    Budget,
    Change,
    Flops,
    ModelInfo,
    Report,
    Sparsity,
    Units,
    advice,
    html,
    terminal,
    text,
)
from onnxprune.report.schema import ranges, unranges
from onnxprune.report.summary import summary

# ---- JSON


def test_json_is_what_the_interface_promises() -> None:
    data = json.loads(json.dumps(full().to_json(), allow_nan=False))
    assert data["schema_version"] == SCHEMA_VERSION == 2
    assert data["model"] | {"pruned_path": ""} == {
        "path": "models/bert/model.onnx", "sha256": "ab" * 32, "opset": 17, "pruned_path": "",
    }  # fmt: skip
    assert data["flops"]["ratio"] == 0.6
    assert data["flops"]["by_op"]["MatMul"] == {"dense": 900, "pruned": 500, "ratio": 500 / 900}
    assert data["units"][0] == {
        "id": "heads.0", "kind": "heads", "layer": 0, "total": 12, "kept": 11, "index": "0-10",
        "name": "", "branch": "",
    }  # fmt: skip
    assert data["units"][2]["index"] is None
    assert set(data["equivalence"]) >= {"max_abs", "max_rel", "rows"}
    assert set(data["accuracy"]) >= {"metric", "dense", "pruned", "drop", "rows", "confidence_interval"}
    assert set(data["drift"]) >= {"kl", "cosine", "agreement"}
    row = data["latency"][0]
    assert set(row) >= {"provider", "batch", "shape", "threads", "dense_ms", "pruned_ms", "speedup", "speedup_interval"}
    assert set(row["dense_ms"]) >= {"p50", "p90", "p99"}
    assert row["coverage"] == {"provider": CPU, "nodes_on_provider": 10, "nodes": 10, "partitions": 1}
    assert row["shape"]["input_ids"] == [1, 128]
    assert data["recipe"] == {"seed": 0, "method": "optin", "paths": ["a.jsonl"], "alpha": 0.5}


def test_commands_state_what_does_not_follow_and_is_not_empty() -> None:
    shape = {"batch_size": 1, "sequence_length": 17, "past_length": 0, "past_length + sequence_length": 17, "a + b": 3}
    step = next(s for s in advice.next_steps(full(latency=(), flops=Flops(10, 5, {}, shape))) if "bench" in s.command)
    assert shlex.split(step.command)[-2:] == ["--shape", "batch_size=1,sequence_length=17,a + b=3"]
    assert text.dims(shape) == "batch_size 1, sequence_length 17, past_length 0, a + b 3"


def test_json_round_trip_and_file(tmp_path: Path) -> None:
    report = full(
        recipe={"seed": 0, "nested": {"a": [1, None, "ü"]}},
        sparsity=Sparsity("2:4", 0.5, ("X",)),
        flips=Flips(1, 2, 1, 0, (Flip("rows:1", "good", "bad", 0.9, 0.6, "good", "text", ""),)),
        slices=(Slice("class", "good", 2, 1.0, 0.5, 0.5, None), Slice("length", "3", 2, 1.0, 1.0, 0.0, (-0.1, 0.2))),
        layers=(LayerDrift("ffn.0", "/add", 0.25, True),),
    )
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == report
    bare = Report(ModelInfo("m", "", 17), Budget("size", 1, 2, "bytes"), Flops(0, 0), Change(0, 0), Change(0, 0), ())
    assert Report.from_json(json.loads(json.dumps(bare.to_json()))) == bare


def test_what_is_broken_is_said_first_and_warnings_are_said_everywhere() -> None:
    report = full(broken=("all 6 blocks are gone",), warnings=("all 6 blocks are gone", "labels do not fit"))
    for shown in (plain(report), html.render(report)):
        assert shown.count("all 6 blocks are gone") == 1 and "labels do not fit" in shown
        assert shown.index("all 6 blocks are gone") < shown.index("60.0% kept" if shown.startswith("<") else "Cost")
    stream = io.StringIO()
    terminal.print_sweep([report, full()], Console(file=stream, width=110))
    assert "BROKEN: at 60.0% of the FLOPs all 6 blocks are gone" in stream.getvalue()
    assert "labels do not fit" in stream.getvalue()


def test_explained_variance_stands_beside_agreement() -> None:
    held = replace(full().drift or Drift(0, "", 0, 1, 1, 0), explained_variance=0.87654, variation=0.3)
    assert "explained variance 87.65%" in plain(full(drift=held))
    assert "87.65%" in html.render(full(drift=held)) and "30.0% of their size" in html.render(full(drift=held))
    evidence = Evidence(full().accuracy or Accuracy("f1", 1, 1, 0, 2, None), held, Coverage(CPU, 1, 1, 1))
    stream = io.StringIO()
    terminal.print_evidence(replace(evidence, warnings=("so few rows",)), Console(file=stream, width=110))
    assert "explained variance 87.65%" in stream.getvalue() and "so few rows" in stream.getvalue()
    assert "explained variance none" in plain(full(drift=replace(held, explained_variance=-3.0)))


def test_reports_of_the_first_schema_are_read() -> None:
    data = full().to_json() | {"schema_version": 1}
    for name in ("explained_variance", "variation"):
        del data["drift"][name]
    del data["accuracy"]["level"], data["broken"]
    assert Report.from_json(data).drift == full().drift


def test_numbers_that_json_lacks() -> None:
    data = full(equivalence=Equivalence(math.inf, math.nan, 1)).to_json()
    assert data["equivalence"]["max_abs"] is None
    found = Report.from_json(data).equivalence
    assert found is not None
    assert math.isnan(found.max_abs)


def test_newer_fields_are_left_out_and_older_reports_lack_some() -> None:
    data = full().to_json() | {"invented": 1}
    data["model"]["invented"] = 2
    del data["peak_memory_bytes"]
    assert Report.from_json(data) == replace(Report.from_json(full().to_json()), peak_memory_bytes=0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 3, "schema version 2"),
        (("model", "opset"), "17", r"report\.model\.opset"),
        (("units", 1), 5, r"report\.units\[1\]"),
        (("latency", 0, "speedup_interval"), [1.0], r"report\.latency\[0\]\.speedup_interval"),
        (("flops",), None, r"report\.flops"),
        (("warnings",), "text", r"report\.warnings"),
        (("params", "dense"), True, r"report\.params\.dense"),
    ],
)
def test_wrong_fields_are_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    data: Any = full().to_json()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError, match=message):
        Report.from_json(data)


def test_missing_fields_and_files(tmp_path: Path) -> None:
    data = full().to_json()
    del data["latency"][1]["speedup_interval"]
    with pytest.raises(DataError, match=r"latency\[1\]\.speedup_interval is missing"):
        Report.from_json(data)
    for content in ("{", "[]", "null"):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(DataError, match=r"r\.json"):
            Report.load(tmp_path / "r.json")
    with pytest.raises(DataError, match=r"none\.json"):
        Report.load(tmp_path / "none.json")


@given(st.sets(st.integers(0, 200)))
def test_ranges(index: set[int]) -> None:
    held = tuple(sorted(index))
    assert unranges(ranges(held)) == held
    assert ranges((0, 1, 2, 5, 7, 8)) == "0-2,5,7-8"


# ---- words


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1234567, "", "1.23 M"),
        (999_700, "", "1.00 M"),
        (90_966_181, "B", "91.0 MB"),
        (2_224_000_000, "FLOP", "2.22 GFLOP"),
        (0.5, "ms", "0.500 ms"),
        (-1500, "", "-1.50 k"),
    ],
)
def test_si(value: float, unit: str, expected: str) -> None:
    assert text.si(value, unit) == expected


def test_changes_say_better_and_worse_with_their_interval() -> None:
    held = full()
    assert held.accuracy is not None
    assert text.drop(held.accuracy) == "−0.23 points [−0.92, +0.46]"
    assert text.drop(held.further[0]) == "+1.50 [+1.00, +2.00]"
    assert "too few rows" in text.drop(replace(held.accuracy, confidence_interval=None))
    assert text.metric_value(held.accuracy, 0.8968) == "89.68%"
    assert text.metric_value(replace(held.accuracy, metric="spearman"), 0.86719) == "0.8672"


def test_a_speedup_is_never_worded_without_its_interval() -> None:
    row = latency(1.6, 1.55, 1.65)
    assert text.speedup(row) == "1.60× [1.55, 1.65]"
    assert text.verdict(row) == "faster"
    assert text.verdict(latency(1.3, 0.9, 1.7)) == "no clear difference"
    assert text.verdict(latency(0.8, 0.7, 0.9)) == "slower"


def test_budgets() -> None:
    assert text.budget(Budget("flops", 0.6, 0.5996)) == "FLOPs: 60.0% kept, 40.0% removed (target 60.0%)"
    assert text.budget(Budget("latency", 8, 7.912, "ms")) == "Latency: 7.91 ms (target 8.00 ms)"
    assert text.budget(Budget("size", 25e6, 24.5e6, "bytes")) == "File size: 24.5 MB (target 25.0 MB)"


def test_seconds() -> None:
    assert [text.seconds(s) for s in (0.44, 12.4, 59.6, 185)] == ["0.4 s", "12 s", "60 s", "3 min 05 s"]


def test_steps_are_told_in_every_form() -> None:
    report = full()
    accuracy, drift = report.accuracy, report.drift
    steps = (
        Step("pruned", "", 6_000_000, accuracy, drift, report.latency[0] if report.latency else None),
        Step("quantised", "int8-static", 2_500_000, accuracy, drift),
        Step("both", "int8-static", 1_500_000),
    )
    told = replace(report, steps=steps)
    assert Report.from_json(told.to_json()).steps == steps
    page = html.render(told)
    assert "Fewer bits" in page
    assert "quantised (int8-static)" in page
    assert "Fewer bits" not in html.render(replace(told, steps=()))
    stream = io.StringIO()
    terminal.print_report(told, Console(file=stream, width=120))
    assert "Step by step" in stream.getvalue()
    assert plain(told).isascii() and "1.60x [1.55, 1.65]" in plain(told).partition("Step by step")[2]


def test_the_file_in_fewer_bits_has_a_verdict_of_its_own() -> None:
    report = full()
    both = Step("both", "int8-static", 1_500_000, report.accuracy, None, latency(2.1, 2.0, 2.2))
    told = replace(report, steps=(Step("pruned", "", 6_000_000), both), size_bytes=Change(10_000_000, 6_000_000))
    said = "Pruned and in int8-static: 2.10× [2.00, 2.20] faster at 1 × 128, 85% smaller, accuracy 89.68% → 89.45%"
    assert text.in_fewer_bits(told).startswith(said) and text.in_fewer_bits(report) == ""
    assert said in html.render(told) and said in summary(told) and "Pruned and in int8-static: 2.10x" in plain(told)


# ---- the verdict


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "1.60× [1.55, 1.65] faster at 1 × 128, 21% smaller, accuracy 89.68% → 89.45%: within chance on 872 rows"),
        ({"latency": (latency(0.7, 0.6, 0.8),)}, "0.70× [0.60, 0.80] as fast at 1 × 128, 21% smaller, "),
        ({"latency": (latency(1.01, 0.97, 1.04),)}, "No clear speed-up at 1 × 128, 21% smaller, "),
        ({"latency": (), "accuracy": None}, "21% smaller, accuracy not measured"),
        (
            {"accuracy": Accuracy("accuracy", 0.9, 0.8, 0.1, 872, (0.05, 0.15), True, "")},
            "accuracy 90.00% → 80.00%: a loss beyond chance on 872 rows",
        ),
        (
            {"accuracy": Accuracy("agreement", 1.0, 0.987, 0.013, 100, (0.0, 0.05), True, "")},
            "agreement with the dense model 98.70% on 100 rows",
        ),
        (
            {"accuracy": Accuracy("spearman", 0.9, 0.89, 0.01, 100, (-0.01, 0.05), True, "")},
            "21% smaller, Spearman correlation 0.9000 → 0.8900: within chance on 100 rows",
        ),
    ],
)
def test_a_sentence_says_it_all(changes: dict[str, Any], said: str) -> None:
    report = full(**changes)
    assert said in text.sentence(report)
    assert text.sentence(report) in html.render(report)
    assert plain(report).index("smaller") < plain(report).index("Parameters")


def test_branches_have_names_and_room() -> None:
    branches = (
        Units("attention.0", "blocks", 0, 1, 1, (0,), "/m/layer.0/Add", "attention"),
        Units("ffn.0", "blocks", 0, 1, 0, (), "/m/layer.0/out/Add", "ffn"),
        Units("attention.1", "blocks", 1, 1, 1, (0,), "/m/layer.1/Add", "attention"),
        Units("ffn.1", "blocks", 1, 1, 1, (0,), "/m/layer.1/out/Add", "ffn"),
    )
    shown = plain(full(units=branches))
    assert re.search(r"0 layer\.0\s+attention kept  ffn dropped", shown)
    page = html.render(full(units=branches))
    assert "layer.1" in page and "ffn dropped" in page


def test_one_number_is_not_told_twice() -> None:
    assert "<dt>Divergence</dt>" not in html.render(full())
    apart = replace(full().drift or Drift(0.0, "", None, None, None, 0.0), divergence=0.5)
    assert "<dt>Divergence</dt>" in html.render(full(drift=apart))
