"""`profile`, and the commands that go by its tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from zoo import ZooModel

from onnxprune.measure.tables import table as tables
from onnxprune.report import Report

Outcome = tuple[int, str, str]
SHAPE = "batch_size=1,sequence_length=7"


@pytest.fixture
def folder(zoo: Callable[..., ZooModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model.onnx").write_bytes(zoo("bert", "torchscript", "sdpa").path.read_bytes())
    rng = np.random.default_rng(0)
    rows = [
        {"input_ids": rng.integers(5, 100, 7).tolist(), "attention_mask": [1] * 7, "label": i % 2} for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def retold(file: Path) -> None:
    """The same table of a machine whose times are known: 20 ms for the model, 1 ms for a module, as much by width."""
    (held,) = tables.load(file)
    known = {"model": 20.0, "uncut": 20.0, "idle": 0.0}
    entries = tuple(replace(e, ms=known.get(e.kind, 1 + e.units / e.of)) for e in held.entries)
    tables.save([replace(held, machine="elsewhere", entries=entries)], file)


def test_a_table_from_one_command_drives_the_others(run: Callable[..., Outcome], folder: Path) -> None:
    table = folder / "table.json"
    code, out, err = run(
        "profile", folder / "model.onnx", "-o", table, "--shape", SHAPE, "--units", "heads,neurons,blocks"
    )
    assert code == 0, err
    assert "wrote" in out and "neurons" in out
    code, _, err = run("profile", folder / "model.onnx", "-o", table, "--shape", SHAPE)
    assert code == 2 and "--force" in err
    retold(table)
    common = ["--latency-table", table, "--shape", SHAPE, "--calib", folder / "rows.jsonl", "--no-compensate"]
    code, _, err = run("plan", folder / "model.onnx", "-o", folder / "plan.json", "--latency", "0.9", *common)
    assert code == 0, err
    told = json.loads((folder / "plan.json").read_text())["notes"]["latency"]
    assert told["target"] == 0.9 and told["predicted"] <= 0.9 and told["measured"] is None
    code, _, err = run(
        "sweep", folder / "model.onnx", "-o", folder / "out", "--latency", "0.95,18ms", "--no-latency", *common
    )
    assert code == 0, err
    reports = [Report.load(file) for file in sorted((folder / "out").glob("*.report.json"))]
    landings = sorted((r.landing.target, r.landing.predicted) for r in reports if r.landing is not None)
    assert [target for target, _ in landings] == pytest.approx([0.9, 0.95])
    assert all(predicted <= target + 1e-9 for target, predicted in landings)
    code, _, err = run("plan", folder / "model.onnx", "-o", folder / "p.json", "--latency", "0.1", *common[:-1])
    assert code == 5 and "--latency" in err


def test_what_profile_and_sweep_refuse(run: Callable[..., Outcome], folder: Path) -> None:
    code, _, err = run("profile", folder / "model.onnx", "--shape", SHAPE)
    assert code == 2 and "-o table.json" in err
    code, _, err = run("profile", folder / "model.onnx", "-o", folder / "t.json")
    assert code == 2 and "sequence_length" in err
    (folder / "kit").mkdir()
    (folder / "kit" / "mine.txt").write_text("mine")
    code, _, err = run("profile", folder / "model.onnx", "--micro", folder / "kit", "--shape", SHAPE)
    assert code == 2 and "exists" in err
    code, _, err = run("sweep", folder / "model.onnx", "--latency", "0.9", "--flops", "0.9")
    assert code == 2 and "one kind" in err
