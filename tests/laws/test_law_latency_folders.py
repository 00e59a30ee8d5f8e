"""A budget in milliseconds over several graphs: each in a session of its own, as often as it is called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from folders import FILES, folder

import onnxprune
from onnxprune.graph import joined
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.providers import CPU
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.measure.runnable_sizes import runnable
from onnxprune.measure.tables import device_kit, source
from onnxprune.measure.tables import table as tables
from onnxprune.measure.tables.costs import LatencyCosts
from onnxprune.measure.tables.micro_models import IDLE, UNCUT, WHOLE, Cutter, Micro
from onnxprune.measure.tables.table import Entry, LatencyTable
from onnxprune.pipeline import latency_table
from onnxprune.search import latency_budget


def of_several(store: Path, calls: dict[str, int]) -> LatencyCosts:
    """By a machine that needs a millisecond for each unit of every graph that has the module."""
    model = joined.load(folder("bart", store), calls)
    sizes = {"batch_size": 2, "encoder_sequence_length": 7, "decoder_sequence_length": 5}
    counted = Costs(model, analyze(model), runnable(model, sizes, 1))

    def obtain(cutter: Cutter, needed: Sequence[Micro]) -> LatencyTable:
        told = {IDLE: 0.0, WHOLE: 100.0, UNCUT: 100.0}
        entries = [Entry(m.signature, m.kind, m.units, m.of, told.get(m.kind, m.units), 0) for m in needed]
        return LatencyTable(CPU, 1, cutter.costs.bindings, "elsewhere", "a runtime", tuple(entries))

    return device_kit.costs_of(counted, ("heads", "neurons", "blocks"), CPU, obtain=obtain)


def test_modules_of_several_graphs_are_in_each_what_they_lose_there(store: Path, tmp_path: Path) -> None:
    costs = of_several(store, {"decoder_with_past_model": 3})
    assert [c.part.file.name for c in costs.cutters if c.part] == [
        "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"
    ]  # fmt: skip
    assert list(costs.cutters.values()) == [1, 1, 3]
    for site in costs.sites.values():
        few, lost, held = site.group.size // 2, 0, 0
        for cutter, times in costs.cutters.items():
            cutter.keep_unread = True
            if cutter.holds(site):
                held += 1
                counted = []
                for units in (few, site.group.size):
                    micro = cutter.module(site, units)
                    assert micro.model is not None
                    (file,) = models.save(micro.model, tmp_path / "micro.onnx")
                    counted.append(sum(profiled_macs(file, micro.feeds()).values()))
                lost += times * (counted[1] - counted[0])
        plan = Plan(costs.structure.digest, {site.id: tuple(range(few))})
        assert held in (1, 2) and lost == costs.macs() - costs.macs(plan) > 0


def test_every_call_of_several_graphs_takes_its_time(store: Path) -> None:
    once, often = (of_several(store, {"decoder_with_past_model": n}) for n in (1, 5))
    assert (once.total("latency"), often.total("latency")) == (300.0, 700.0)
    saved = set()
    for site in once.sites.values():
        plan = Plan(once.structure.digest, {site.id: tuple(range(site.group.size // 2))})
        gone = [300.0 - once.total("latency", plan), 700.0 - often.total("latency", plan)]
        saved.add(tuple(g / (site.group.size - site.group.size // 2) for g in gone))
    # The encoder's units, and what the decoder behind the cache has no more of; those that both decoders have.
    assert saved == {(1.0, 1.0), (2.0, 6.0)}


def test_a_budget_in_time_is_met_by_a_folder(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(latency_budget, "RUNS", 35)

    def measured(needed: Sequence[Micro], *rest: Any) -> tuple[Entry, ...]:
        told = {IDLE: 0.0, WHOLE: 100.0, UNCUT: 100.0}
        return tuple(Entry(m.signature, m.kind, m.units, m.of, told.get(m.kind, m.units), 0) for m in needed)

    monkeypatch.setattr(source, "measured", measured)
    shape = {"batch_size": 2, "encoder_sequence_length": 7, "decoder_sequence_length": 5}
    result = onnxprune.prune(
        folder("bart", store), tmp_path / "small", latency=0.8, method="magnitude",
        calls={"decoder_with_past_model": 2}, shape={**shape, "next_decoder_sequence_length": 1},
    )  # fmt: skip
    landing = result.report.landing
    assert landing is not None and landing.dense_ms == 400.0 and landing.measured is not None
    assert landing.target == pytest.approx(0.8) and (landing.predicted <= 0.8 or landing.corrected)
    (row,) = result.report.latency
    assert landing.measured == pytest.approx(1 / row.speedup)
    assert {f.name for f in result.files} >= set(FILES)


def test_micro_models_of_several_graphs_are_measured_elsewhere(store: Path, tmp_path: Path) -> None:
    shape = {"batch_size": 1, "encoder_sequence_length": 7, "decoder_sequence_length": 5}
    shape["next_decoder_sequence_length"] = 1
    kit = latency_table.export(folder("bart", store), tmp_path / "kit", [shape], ("neurons",))
    command = [sys.executable, str(kit / "measure.py"), "--rounds", "2", "--threads", "1"]
    done = subprocess.run(command, env={"PATH": ""}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (held,) = tables.load(kit / "table.json")
    assert [e.kind for e in held.entries].count(WHOLE) == 3 and all(e.ms > 0 for e in held.entries)
