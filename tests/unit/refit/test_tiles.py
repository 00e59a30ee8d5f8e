"""Which inputs tiles read: sets, orders and ranges, chosen on Gram matrices and carried by the plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plans import Subject, distance
from unit.cli.test_main import Outcome, folder, listing, refused  # noqa: F401 -- fixtures
from zoo import ZooModel

import onnxprune
from onnxprune import data
from onnxprune.errors import CheckError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.measure.cost import Costs
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.probe.forward import Rows
from onnxprune.refit.solvers import Tiled, Tiles, on_support, range_errors
from onnxprune.refit.sparsify import parts_of, zeros_in
from onnxprune.refit.tiles import arrange, candidates, dearest_first, own_group, owned_ranges, stream_atom

Build = Callable[..., ZooModel]
Run = Callable[..., Outcome]
seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    return rng.normal(size=(inputs, outputs)), x.T @ x


@given(seeds, st.integers(4, 12))
@example(16331, 4)
@settings(max_examples=20)
def test_range_errors_are_those_of_exact_least_squares(seed: int, inputs: int) -> None:
    weight, gram = problem(seed, inputs, 3)
    ranges = candidates(inputs, inputs // 2)
    assert ranges[0][0] == 0 and ranges[-1][1] == inputs
    found = range_errors(weight, gram, ranges, damping=1e-9)
    whole = np.einsum("nm,nm->m", weight, gram @ weight)  # a matrix that is nearly singular leaves digits of this
    for (start, stop), errors in zip(ranges, found, strict=True):
        mask = np.zeros(weight.shape, dtype=bool)
        mask[start:stop] = True
        change = weight - on_support(weight, gram, mask, damping=1e-9)
        expected = np.einsum("nm,nm->m", change, gram @ change)
        assert (np.abs(errors - expected) <= 1e-4 * expected + 1e-7 * whole).all()


def test_two_tiles_get_exactly_what_they_need() -> None:
    """The outputs of each half read inputs of their own, scattered: both ranges hold exactly those, and what nobody
    reads lies outside."""
    rng = np.random.default_rng(0)
    wanted = [np.sort(rng.permutation(24)[:10]) for _ in range(2)]
    weight = np.zeros((24, 8))
    for i, rows in enumerate(wanted):
        weight[rows, 4 * i : 4 * i + 4] = rng.normal(size=(10, 4)) + 3
    order, ranges = owned_ranges(weight, np.eye(24), Tiles(10 / 24, 4))
    assert sorted(order) == list(range(24))
    for rows, (start, stop) in zip(wanted, ranges, strict=True):
        assert set(order[start:stop]) == set(rows)
    read = np.union1d(*wanted)
    assert set(order[: len(read)]) == set(read)


def test_more_tiles_are_ordered_by_what_they_want() -> None:
    """Four tiles with a neighbourhood each, shuffled: the order found brings every tile's inputs together again."""
    rng = np.random.default_rng(1)
    shuffled = rng.permutation(32)
    weight = np.zeros((32, 16))
    for i in range(4):
        weight[shuffled[8 * i : 8 * i + 8], 4 * i : 4 * i + 4] = rng.normal(size=(8, 4)) + 3
    order, ranges = owned_ranges(weight, np.eye(32), Tiles(10 / 32, 4))
    lost = sum(
        np.square(np.delete(weight[order][:, 4 * i : 4 * i + 4], np.arange(*span), axis=0)).sum()
        for i, span in enumerate(ranges)
    )
    assert lost < 0.02 * np.square(weight).sum()


def test_streams_begin_with_what_all_readers_need() -> None:
    weights = [np.diag([1.0, 5, 2, 9, 3, 8])[:, [1, 3, 5]], np.diag([1.0, 4, 2, 7, 3, 0])]
    order = dearest_first([(w, np.eye(6)) for w in weights])
    assert order[0] == 3 and order[-1] in (0, 2)


def subject(model: ZooModel) -> tuple[Subject, Rows]:
    found = Subject.load(model.path)
    rows = data.read([model.sample(1, seed=i) for i in range(24)], found.model.inputs, outputs=found.model.outputs)
    return found, Rows(found.interpreter, rows)


@pytest.mark.parametrize("variant", [("bert", "torchscript", "eager"), ("vit", "dynamo", "sdpa")])
@pytest.mark.parametrize("width", [16, 8])
def test_arranged_plans_obey_the_laws(zoo: Build, variant: tuple[str, ...], width: int, tmp_path: Path) -> None:
    """Cut is gated, cost is what ONNX Runtime counts, the file reads what the plan says, and a plan keeps all of it."""
    model = zoo(*variant)
    found, rows = subject(model)
    linears = [x for x in find_linears(found.model.graph, found.structure) if x.inside is not None]
    pattern = Tiles(0.5, width)
    plan = arrange(found.gates, rows, Plan(found.structure.digest), linears, pattern, f"tiles:0.5:{width}")
    assert set(plan.tiles) == set(plan.sparsity) and plan.tiles and plan.order
    neurons = {x.source for x in linears if own_group(found.structure, x) is not None}
    assert neurons and neurons <= set(plan.order)
    weights = {}
    for part in parts_of(found.gates, plan, linears):
        tiles = plan.tiles[part.linear.weight]
        matrix = part.take(found.gates.weight(plan, part.linear.weight))
        weights[part.linear.weight] = part.put(
            matrix * Tiled(tiles).project(matrix), found.gates.weight(plan, part.linear.weight)
        )
        half = pattern.length(len(part.linear.matrix.weight(found.gates.weight(plan, part.linear.weight))))
        assert all(t.stop - t.start == half for t in tiles) and len(tiles) <= max(1, len(part.columns) // width)
        read = np.zeros(len(part.rows), dtype=bool)
        for tile in tiles:
            read[tile.start : tile.stop] = True
        assert part.linear.source not in neurons or read.all(), "a neuron that nobody reads has left"
    plan = Plan(plan.digest, plan.keep, weights=weights, sparsity=plan.sparsity, order=plan.order, tiles=plan.tiles)
    feeds = model.feeds
    assert distance(found.written(plan, feeds), found.gated(plan, feeds)) < 1e-4
    (file,) = models.save(found.rewritten(plan), tmp_path / "tiled.onnx")
    bindings = {
        dim: size
        for spec in found.model.inputs
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    costs = Costs(found.model, found.structure, bindings)
    assert costs.macs(plan) == sum(profiled_macs(file, feeds).values()) < costs.macs(Plan(plan.digest, plan.keep))
    zeros = zeros_in(file, found.model, found.structure, plan)
    assert zeros is not None and 0.2 < zeros < 0.6
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert (again.order, again.tiles, again.keep) == (plan.order, plan.tiles, plan.keep)
    assert distance(found.written(again, feeds), found.written(plan, feeds)) == 0
    name = next(iter(plan.tiles))
    moved = {**plan.tiles, name: tuple(reversed(plan.tiles[name])) if len(plan.tiles[name]) > 1 else ()}
    with pytest.raises(CheckError, match="read other inputs than the plan says"):
        zeros_in(file, found.model, found.structure, Plan(plan.digest, plan.keep, sparsity=plan.sparsity, tiles=moved))


def test_a_stream_that_is_an_output_keeps_its_order(zoo: Build) -> None:
    """A classifier's stream is only normalised; where hidden states leave the graph, their order is seen outside."""
    for family, free in (("bert", True), ("t5-encoder", False)):
        found = Subject.load(zoo(family, "torchscript", "eager").path)
        linears = find_linears(found.model.graph, found.structure)
        first = next(x for x in linears if x.inside is not None and own_group(found.structure, x) is None)
        assert (stream_atom(found.structure, first.source) is not None) == free


def test_tiles_from_the_command_line(run: Run, folder: Path) -> None:  # noqa: F811
    """Alone and within a budget; plan and apply write the same file; the report says what the graph skips."""
    model, rows = folder / "model.onnx", folder / "rows.jsonl"
    common = ["--calib", rows, "--threads", 1]
    code, out, err = run(
        model, "-o", folder / "tiled.onnx", "--sparsity", "tiles:0.5:16", *common, "--no-latency", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["equivalence"]["max_rel"] < 1e-4 and report["sparsity"]["pattern"] == "tiles:0.5:16"
    skipped = report["sparsity"]["skipped"]
    assert skipped["pruned"] == report["flops"]["pruned"] < skipped["dense"] <= report["flops"]["dense"]
    plan = Plan.load(folder / "tiled.plan.json")
    held = {t.name for t in onnx.load(folder / "tiled.onnx").graph.initializer}
    assert plan.tiles and not held & set(plan.tiles)
    asked = ["--flops", 0.6, "--round-to", 1, "--sparsity", "tiles:0.7:16", *common]
    code, out, err = run(model, "-o", folder / "direct.onnx", *asked, "--eval", rows, "--no-latency", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert 0.5 < report["budget"]["achieved"] <= 0.6
    assert len([u for u in report["units"] if u["kept"] < u["total"]]) > 0
    for command in (
        ["plan", model, *asked, "-o", folder / "plan.json"],
        ["apply", model, folder / "plan.json", "-o", folder / "applied.onnx"],
    ):
        code, _, err = run(*command)
        assert code == 0, err
    assert (folder / "applied.onnx").read_bytes() == (folder / "direct.onnx").read_bytes()


def test_tiles_without_rows_and_what_cannot_be_tiled(run: Run, folder: Path) -> None:  # noqa: F811
    model, shape = folder / "model.onnx", ["--shape", "batch_size=1,sequence_length=8", "--no-latency"]
    code, _, err = run(model, "-o", folder / "tiled.onnx", "--sparsity", "tiles:0.5:16", *shape)
    assert code == 0, err
    assert Plan.load(folder / "tiled.plan.json").tiles
    asked = [model, "-o", folder / "x.onnx", *shape]
    refused(
        run, folder, 4, "tiles of outputs need a MatMul or Gemm with at least 384", *asked, "--sparsity", "tiles:0.5"
    )
    refused(
        run,
        folder,
        2,
        "leave it at auto",
        *asked,
        "--sparsity",
        "tiles:0.5:16",
        "--solver",
        "sparsegpt",
        "--calib",
        folder / "rows.jsonl",
    )


def test_tiles_are_mended(zoo: Build) -> None:
    model = zoo("bert", "torchscript", "eager")
    rows = [model.sample(1, seed=i) for i in range(64)]
    found = {}
    for mends in (True, False):
        result = onnxprune.prune(
            model.path, calibration=rows, evaluation=[model.sample(1, seed=100 + i) for i in range(32)],
            sparsity="tiles:0.5:16", compensate=mends, measure_latency=False,
        )  # fmt: skip
        assert result.report.drift is not None
        found[mends] = result.report.drift.divergence
    assert found[True] < found[False]


def test_orders_are_analysed_alike(zoo: Build) -> None:
    """A plan names values, not atoms: it holds for every analysis of the same model."""
    path = zoo("bert", "torchscript", "eager").path
    first, second = (analyze(models.load(path)) for _ in range(2))
    assert first.layouts == second.layouts


def test_tiles_within_a_latency(zoo: Build) -> None:
    """The file with tiles is what is measured; units make way until both together come near the target."""
    model = zoo("bert", "torchscript", "sdpa")
    result = onnxprune.prune(
        model.path, latency=0.9, calibration=[model.sample(1, 8, seed=i) for i in range(24)], sparsity="tiles:0.8:16",
        compensate=False, measure_latency=False, shape={"batch_size": 4, "sequence_length": 32},
    )  # fmt: skip
    assert result.plan.tiles and result.report.landing is not None
    assert result.report.landing.measured is not None and result.report.landing.corrected <= 2
    assert result.report.equivalence is not None and result.report.equivalence.max_rel < 1e-4
