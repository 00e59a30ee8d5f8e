"""Residual branches that leave first, and what takes their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import perceptron
import pytest
from plans import Subject, choose, distance
from unit.cli.test_main import Outcome, folder, refused  # noqa: F401 -- fixtures
from zoo import ZooModel

import onnxprune
from onnxprune import data
from onnxprune.errors import UsageError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.sites import find_sites
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.pipeline.rows import shape_of
from onnxprune.probe.branch_norms import flows
from onnxprune.probe.forward import Evaluator, Rows
from onnxprune.refit.linear_stand_ins import cheaper, mapped
from onnxprune.search.options import Options
from onnxprune.search.planner import Planner

Build = Callable[..., ZooModel]
Run = Callable[..., Outcome]


def with_maps(subject: Subject, seed: int, feeds: dict[str, np.ndarray]) -> Plan:
    """Half of the branches dropped, each with a random map of the stream; some units cut elsewhere."""
    rng = np.random.default_rng(seed)
    drop = tuple(b.id for b in subject.structure.branches if rng.random() < 0.5) or (subject.structure.branches[0].id,)
    groups = [g for g in subject.structure.groups if not g.context]
    keep = {g.id: choose(g.shape, int(rng.integers(1, g.shape[-1] + 1)), rng) for g in groups}
    plan = subject.complete(Plan(subject.structure.digest, keep, drop), feeds)
    maps = {}
    for name in drop:
        size = subject.interpreter.run(feeds, outputs=[value := subject.structure.branch(name).value])[value].shape[-1]
        maps[name] = rng.normal(0, 0.3, (1 + size, size)).astype(np.float32)
    return replace(plan, maps=maps)


@pytest.mark.parametrize("family", ["bert", "vit", "gpt2", "llama"])
def test_mapped_is_written_as_gated_and_costs_what_is_said(zoo: Build, family: str, tmp_path: Path) -> None:
    """Laws 1 and 4 with linear maps in the place of branches."""
    model = zoo(family, "torchscript", "sdpa")
    subject, feeds = Subject.load(model.path), model.feeds
    sizes = {
        dim: size
        for spec in subject.model.inputs
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    costs = Costs(subject.model, subject.structure, sizes)
    for seed in range(3):
        plan = with_maps(subject, seed, feeds)
        assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4
        without = replace(plan, maps={})
        assert distance(subject.gated(without, feeds), subject.gated(plan, feeds)) > 1e-3, "the maps do something"
        (file,) = models.save(subject.rewritten(plan), tmp_path / f"{seed}.onnx")
        assert costs.macs(plan) == sum(profiled_macs(file, feeds).values())
        width = plan.maps[plan.drop[0]].shape[1]
        assert costs.params(plan) - costs.params(without) == len(plan.drop) * width**2
        plan.save(tmp_path / "plan.json")
        again = Plan.load(tmp_path / "plan.json")
        assert distance(subject.written(again, feeds), subject.written(plan, feeds)) == 0


def relative(model: ZooModel) -> tuple[dict[str, float], list[dict[str, np.ndarray]]]:
    rows = [model.sample(1, seed=i) for i in range(32)]
    loaded = Subject.load(model.path)
    read = data.read(rows, loaded.model.inputs, outputs=loaded.model.outputs)
    found = flows(Rows(loaded.interpreter, read), find_sites(loaded.model.graph, loaded.structure), loaded.structure)
    return {b.id: float(found[b.id].relative[0]) for b in loaded.structure.branches}, rows


@pytest.mark.parametrize("budget", [{}, {"flops": 0.6}, {"flops": 0.6, "search": "rank"}])
@pytest.mark.parametrize("units", [("heads", "neurons", "blocks"), ("heads", "neurons")])
def test_branches_below_the_threshold_leave(
    zoo: Build, tmp_path: Path, budget: dict[str, Any], units: tuple[str, ...]
) -> None:
    model = zoo("bert", "torchscript", "eager")
    norms, rows = relative(model)
    threshold = float(np.median(list(norms.values())))
    expected = {name for name, norm in norms.items() if norm < threshold}
    result = onnxprune.prune(
        model.path, tmp_path / "cut.onnx", calibration=rows, snip_threshold=threshold, measure_latency=False,
        units=units, round_to=1, **budget,
    )  # fmt: skip
    assert expected and expected <= set(result.plan.drop)
    if not budget:
        assert set(result.plan.drop) == expected
    else:
        assert result.report.flops.ratio <= 0.6
    feeds = model.sample(1)
    macs = (sum(profiled_macs(f, feeds).values()) for f in (tmp_path / "cut.onnx", model.path))
    assert next(macs) < next(macs)


def test_a_map_that_helps_stays_and_one_that_does_not_goes(zoo: Build) -> None:
    """A branch that is nearly linear in the stream is replaced by its map; held-out rows decide."""
    model = zoo("vit", "torchscript", "eager")
    subject = Subject.load(model.path)
    read = data.read([model.sample(1, seed=i) for i in range(96)], subject.model.inputs, outputs=subject.model.outputs)
    parts = read.split({"fit": 0.7, "select": 0.3}, 0)
    costs = Costs(subject.model, subject.structure, shape_of(subject.model, {}, read))
    fit = Rows(subject.interpreter, parts["fit"])
    evaluator = Evaluator(Rows(subject.interpreter, parts["select"], given=fit.divergence))
    branches = [b.id for b in subject.structure.branches if b.kind == "ffn"]
    plan = subject.complete(Plan(subject.structure.digest, drop=tuple(branches)), model.sample(1))
    before = evaluator(subject.gates.gated(plan))
    made = mapped(subject.gates, fit, evaluator, plan, cheaper(costs, "flops", branches))
    assert made.maps, "none of the maps helped"
    assert evaluator(subject.gates.gated(made)) < before
    mean = replace(made, maps={})
    assert evaluator(subject.gates.gated(made)) < evaluator(subject.gates.gated(mean)) < before

    class Dear(Costs):
        def map_cost(self, kind: str, branch: str) -> float:
            return 2 * self.branch_cost(kind, branch)

    dear = Dear(subject.model, subject.structure, costs.bindings)
    assert not cheaper(dear, "flops", branches), "a map may not cost more"


def test_the_threshold_from_the_command_line(run: Run, folder: Path) -> None:  # noqa: F811
    model, rows = folder / "model.onnx", folder / "rows.jsonl"
    args = ["--snip-threshold", 100, "--calib", rows, "--eval", rows, "--threads", 1]
    code, out, err = run(model, "-o", folder / "direct.onnx", *args, "--no-latency", "--json")
    assert code == 0, err
    report = json.loads(out)
    gone = {u["id"] for u in report["units"] if u["kind"] == "blocks" and u["kept"] == 0}
    assert len(gone) == 4, "two layers of two branches write less than a hundred times the stream"
    code, _, err = run("plan", model, *args[:4], "--threads", 1, "-o", folder / "plan.json")
    assert code == 0, err
    assert set(json.loads((folder / "plan.json").read_text())["drop"]) == gone
    code, _, err = run("apply", model, folder / "plan.json", "-o", folder / "applied.onnx")
    assert code == 0, err
    assert (folder / "applied.onnx").read_bytes() == (folder / "direct.onnx").read_bytes()
    assert not any(n.op_type == "Softmax" for n in onnx.load(folder / "direct.onnx").graph.node)
    refused(run, folder, 2, "above 0", model, "--snip-threshold", 0, "--calib", rows, "-o", folder / "x.onnx")
    shape = ["--shape", "batch_size=1,sequence_length=8"]
    refused(run, folder, 2, "calibration", model, "--snip-threshold", 1, *shape, "-o", folder / "x.onnx")


def test_the_spectral_norm_is_another_one(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    _, rows = relative(model)
    loaded = Subject.load(model.path)
    read = data.read(rows, loaded.model.inputs, outputs=loaded.model.outputs)
    asked = Options(Budget("flops", 1.0), snip_threshold=1.0, snip_spectral=True)
    planner = Planner(loaded.model, loaded.structure, asked, read, shape_of(loaded.model, {}, read))
    written = [s for s in planner.sites if s.matrices]
    spectral = flows(planner.fit, written, loaded.structure, spectral=True)
    plain = flows(planner.fit, written, loaded.structure)
    from onnxprune.search.units_then_zeros import begun

    found = {
        b.id: (float(spectral[b.id].relative[0]), float(plain[b.id].relative[0])) for b in loaded.structure.branches
    }
    between = float(np.mean([value for pair in found.values() for value in pair]))
    assert set(begun(planner, between).drop) == {name for name, (norm, _) in found.items() if norm < between}
    with pytest.raises(UsageError):
        begun(Planner(loaded.model, loaded.structure, Options(Budget("flops", 0.5), method="magnitude"), None,
                      shape_of(loaded.model, {}, read)), 1.0)  # fmt: skip


@pytest.mark.parametrize("spectral", [False, True])
def test_a_stream_that_is_an_input(run: Run, tmp_path: Path, spectral: bool) -> None:
    """The first block of a perceptron adds to what the rows give, which no operator makes."""
    model, rows = perceptron.write(tmp_path / "m.onnx"), perceptron.write_rows(tmp_path / "rows.jsonl")
    asked = ["--flops", 0.6, "--calib", rows, "--no-latency", "--snip-threshold", 0.3, "--quiet"]
    code, _, err = run(model, *asked, *["--snip-spectral"] * spectral)
    assert code == 0, err
