"""Laws 1 to 4 on folders of several graphs: one plan, all files, and they go on working with one another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from folders import (
    BEHIND,
    DECODER,
    ENCODER,
    FILES,
    HEADS,
    NEURONS,
    VOCABULARY,
    WIDTH,
    folder,
    generated,
    interface,
    rows,
)
from plans import Subject, distance, in_runtime, random_plan
from zoo import ZooModel

import onnxprune
from onnxprune.errors import CheckError
from onnxprune.graph import joined
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.twins import leading
from onnxprune.measure.continuations import disagreement
from onnxprune.measure.cost import Costs
from onnxprune.measure.equivalence import alone
from onnxprune.pipeline import remote
from onnxprune.pipeline.proof import prove
from onnxprune.pipeline.sweep import sweep
from onnxprune.pipeline.written import write
from onnxprune.search import workers

FAMILIES = ("bart", "t5")


@cache
def load(place: Path) -> tuple[Subject, Subject]:
    """(all graphs, those that lead)."""
    model = joined.load(place)
    structure = analyze(model)
    return Subject(model, structure), Subject(*leading(model, structure))


def feeds(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = {"next_input_ids": 1, "decoder_input_ids": 5}
    return {
        spec.name: np.ones((2, 7), np.int64)
        if spec.name == "attention_mask"
        else rng.standard_normal((2, 80, 3000), dtype=np.float32)
        if spec.name == "input_features"
        else rng.integers(3, VOCABULARY, (2, sizes.get(spec.name, 7)))
        for spec in model.inputs
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_of_a_cut_folder_is_the_gated_one(family: str, store: Path, tmp_path: Path) -> None:
    whole, led = load(folder(family, store))
    given = feeds(whole.model)
    for seed in range(2):
        plan = random_plan(led, np.random.default_rng(seed), tile=0, drop=0.5)
        plan = led.complete(plan, given).everywhere(whole.structure)
        assert len(plan.drop) == len(set(plan.drop)) and any("@" in name for name in plan.drop)
        place = tmp_path / str(seed)
        place.mkdir()
        made = write(whole.model, whole.rewritten(plan), place, "")
        assert distance(in_runtime(made.whole, given), whole.gated(plan, given)) < 1e-4
        inner = in_runtime(whole.model.path or Path(), given)
        for part, file in zip(whole.model.parts, made.alone, strict=True):
            taken = {own: (given | inner)[name] for own, name in part.wires.inputs.items()}
            found = alone(whole.model, whole.structure, plan, part.wires, file, [taken], 1e-4)
            assert found.rows == 2
        _, by_cache, at_once = generated(place, 4)
        assert np.abs(by_cache - at_once).max() < 1e-4 * np.abs(at_once).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_of_nothing_leaves_every_file_what_it_was(family: str, store: Path, tmp_path: Path) -> None:
    place = folder(family, store)
    whole, _ = load(place)
    write(whole.model, whole.rewritten(onnxprune.Plan(whole.model.digest)), tmp_path, "")
    for name in FILES:
        assert interface(tmp_path / name) == interface(place / name)
        dense, same = (models.read(p / name) for p in (place, tmp_path))
        assert (same.ir_version, same.opset_imports, same.producer_name) == (
            dense.ir_version, dense.opset_imports, dense.producer_name
        )  # fmt: skip
    before, after = generated(place, 4), generated(tmp_path, 4)
    assert np.array_equal(before[0], after[0]) and np.abs(before[1] - after[1]).max() < 1e-5


@pytest.mark.parametrize("family", ("bart", *(pytest.param(f, marks=pytest.mark.slow) for f in ("t5", "marian"))))
def test_dead_units_go_from_all_files_and_the_folder_writes_the_same(family: str, store: Path, tmp_path: Path) -> None:
    place, out = folder(family, store), tmp_path / "small"
    result = onnxprune.prune(
        place, out, flops=0.75, calibration=rows(), units=("heads", "neurons"), round_to=1, compensate=False,
        measure_latency=False, rows=24,
    )  # fmt: skip
    assert result.report.flops.pruned <= 0.75 * result.report.flops.dense
    assert {f.name for f in result.files} >= {*FILES, "plan.json", "report.json", "tokenizer.json", "config.json"}
    assert result.report.drift is not None and result.report.drift.max_abs < 1e-4
    assert result.report.size_bytes.pruned == sum((out / name).stat().st_size for name in FILES)
    assert result.report.size_bytes.dense == sum((place / name).stat().st_size for name in FILES)
    for name in FILES:
        assert interface(out / name) == interface(place / name)
    tokens, dense, _ = generated(place)
    again, pruned, at_once = generated(out)
    assert np.array_equal(tokens, again)
    assert np.abs(pruned - dense).max() < 1e-4 * np.abs(dense).max()
    assert np.abs(pruned - at_once).max() < 1e-4 * np.abs(dense).max()
    told = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert told["files"] == {name: models.digest_of(place / name) for name in FILES}


def test_refit_weights_and_dropped_blocks_are_those_of_both_decoders(store: Path, tmp_path: Path) -> None:
    place, out = folder("bart", store), tmp_path / "small"
    result = onnxprune.prune(place, out, flops=0.4, calibration=rows(), measure_latency=False, swaps=0)
    assert result.plan.weights and result.plan.intercepts
    assert result.report.flops.pruned <= 0.4 * result.report.flops.dense
    assert (
        result.plan.drop and result.report.layers
    )  # blocks of the graph that follows are no part of what was measured
    assert not any("not known" in line for line in result.report.warnings)
    _, by_cache, at_once = generated(out)
    _, dense, _ = generated(place)
    assert np.abs(by_cache - at_once).max() < 1e-4 * np.abs(at_once).max()
    assert np.abs(by_cache - dense).max() > 1e-3 * np.abs(dense).max()
    again = tmp_path / "again"
    onnxprune.apply(place, result.plan, again)
    for name in FILES:
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_decoders_that_would_disagree_are_not_written(store: Path, tmp_path: Path) -> None:
    whole, led = load(folder("bart", store))
    given = feeds(whole.model)
    dense = whole.model.path or Path()
    assert disagreement(whole.model, dense, [given]) < 1e-5
    plan = led.complete(random_plan(led, np.random.default_rng(3), tile=0, drop=0, refit=1), given)
    assert plan.intercepts
    every = plan.everywhere(whole.structure)
    for made, right in ((every, True), (replace(every, intercepts=plan.intercepts), False)):
        place = tmp_path / str(right)
        place.mkdir()
        written = write(whole.model, whole.rewritten(made), place, "")
        if right:
            prove(whole.model, whole.structure, made, written, [given], {}, None)
        else:
            with pytest.raises(CheckError, match="goes on otherwise"):
                prove(whole.model, whole.structure, made, written, [given], {}, None)


def test_costs_are_those_of_all_files(store: Path) -> None:
    whole, led = load(folder("bart", store))
    bindings = {"batch_size": 1, "encoder_sequence_length": 9, "decoder_sequence_length": 5}
    bindings["next_decoder_sequence_length"] = 1
    costs = Costs(whole.model, whole.structure, bindings)
    for seed in range(3):
        plan = random_plan(led, np.random.default_rng(seed), tile=0, refit=0, drop=0.5)
        plan = led.complete(plan, feeds(whole.model))
        every = plan.everywhere(whole.structure)
        cut = Costs(Model(whole.rewritten(every), None, "", parts=whole.model.parts), whole.structure, bindings)
        assert costs.macs(plan) == costs.macs(every) == cut.macs()
    often = Costs(joined.load(folder("bart", store), {"decoder_with_past_model": 10}), whole.structure, bindings)
    by_node, more = costs.by_node(), often.by_node()
    assert all(
        more[name] == macs * (10 if BEHIND.removesuffix(".onnx") in name else 1) for name, macs in by_node.items()
    )


def test_a_unit_is_one_in_both_decoders(store: Path) -> None:
    whole, led = load(folder("bart", store))
    kinds = {(g.kind, g.shape) for g in whole.structure.groups if g.kind in ("heads", "neurons")}
    assert kinds == {("heads", (HEADS,)), ("neurons", (NEURONS,))}
    for group in whole.structure.groups:
        places = {r.node.split("/")[0] for r in group.readers}
        assert places in ({"encoder_model"}, {"decoder_model", "decoder_with_past_model"})
    assert not any(r.node.startswith("decoder_with_past") for g in led.structure.groups for r in g.readers)
    assert set(whole.structure.twins) == {b.id for b in led.structure.branches if "decoder" in b.add}


@pytest.mark.slow
def test_speech_is_a_folder_like_any_other(store: Path, tmp_path: Path) -> None:
    place, out = folder("whisper", store), tmp_path / "small"
    rng = np.random.default_rng(0)
    given = [
        {"input_features": rng.standard_normal((1, 80, 3000), dtype=np.float32), "target": row["target"]}
        for row in rows(10)
    ]
    onnxprune.prune(
        place, out, flops=0.8, calibration=given, units=("heads", "neurons"), round_to=1, compensate=False,
        measure_latency=False,
    )  # fmt: skip
    tokens, dense, _ = generated(place)
    again, pruned, _ = generated(out)
    assert np.array_equal(tokens, again) and np.abs(pruned - dense).max() < 1e-4 * np.abs(dense).max()


def test_two_decoders_in_one_file_are_cut_apart_and_merged_again(store: Path, tmp_path: Path) -> None:
    place, out = tmp_path / "merged", tmp_path / "small"
    shutil.copytree(folder("bart", store, merged=True), place)
    for name in (DECODER, BEHIND):
        (place / name).unlink()
    onnxprune.prune(
        place, out, flops=0.75, calibration=rows(), units=("heads", "neurons"), round_to=1, compensate=False,
        measure_latency=False,
    )  # fmt: skip
    merged = "decoder_model_merged.onnx"
    assert sorted(f.name for f in out.glob("*.onnx")) == [merged, ENCODER]
    assert (out / merged).stat().st_size < (place / merged).stat().st_size
    assert interface(out / merged) == interface(place / merged)
    assert_the_same_both_ways(place / merged, out / merged)


def test_two_decoders_in_one_file_are_a_job_without_a_folder(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "any-name.onnx"
    shutil.copy(folder("bart", store, merged=True) / "decoder_model_merged.onnx", file)
    made = tmp_path / "small.onnx"
    rng = np.random.default_rng(0)
    given = [
        {
            "encoder_hidden_states": rng.standard_normal((1, 7, WIDTH)).astype(np.float32),
            "encoder_attention_mask": np.ones((1, 7), np.int64),
            "decoder_input_ids": rng.integers(3, VOCABULARY, (1, length)),
        }
        for length in (4, 5, 6, 7) * 3
    ]
    result = onnxprune.prune(
        file, made, flops=0.75, calibration=given, units=("heads", "neurons"), round_to=1, compensate=False,
        measure_latency=False,
    )  # fmt: skip
    assert made in result.files and made.stat().st_size < file.stat().st_size
    assert interface(made) == interface(file)
    assert_the_same_both_ways(file, made)
    again, _ = onnxprune.apply(file, Plan.load(made.with_name("small.plan.json")), tmp_path / "again.onnx")
    assert again[0].read_bytes() == made.read_bytes()


@pytest.mark.parametrize("merged", [False, True])
def test_zeros_and_fewer_bits_reach_every_graph(store: Path, tmp_path: Path, merged: bool) -> None:
    place, out = tmp_path / "dense", tmp_path / "small"
    shutil.copytree(folder("bart", store, merged=merged), place)
    decoders: tuple[str, ...] = (DECODER, BEHIND)
    if merged:
        for name in decoders:
            (place / name).unlink()
        decoders = ("decoder_model_merged.onnx",)
    result = onnxprune.prune(
        place, out, flops=0.9, calibration=rows(), units=("neurons",), round_to=1, sparsity="2:4", solver="magnitude",
        quantize="int8", measure_latency=False,
    )  # fmt: skip
    assert [step.name for step in result.report.steps] == ["pruned", "quantised", "both"]
    assert result.report.sparsity
    expected = {ENCODER, *decoders}
    expected |= {f"{name.removesuffix('.onnx')}_int8.onnx" for name in expected}
    assert {f.name for f in out.glob("*.onnx")} == expected
    for name in (ENCODER, *decoders):
        small = out / f"{name.removesuffix('.onnx')}_int8.onnx"
        assert "MatMulInteger" in {node.op_type for node in models.read(small).graph.all_nodes()}
        assert interface(small) == interface(place / name)
    assert len(joined.load(out).files) == len(decoders) + 1, "files in fewer bits are no graphs of their own"


def test_workers_make_the_same_plans(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hands:
        """Workers that are this process."""

        count, cores = 1, 0

        def share(self, value: Any) -> Any:
            return value

        def run(self, function: Callable[..., Any], tasks: Sequence[Any], *shared: Any) -> Iterator[tuple[int, Any]]:
            return ((i, function(task, *shared)) for i, task in enumerate(tasks))

    monkeypatch.setattr(remote, "_place", None)
    monkeypatch.setattr(workers, "opened", lambda *asked: nullcontext(Hands() if asked[0] else None))
    options = {"units": ("heads", "neurons"), "round_to": 1}
    for name, count in (("here", None), ("there", 2)):
        sweep(
            folder("bart", store), [0.7], tmp_path / name, calibration=rows(), measure=False, options=options,
            workers=count,
        )  # fmt: skip
    here, there = (Plan.load(next((tmp_path / name).glob("*/plan.json"))) for name in ("here", "there"))
    assert (here.keep, here.files) == (there.keep, there.files) and here.weights
    assert all(np.array_equal(there.weights[name], array) for name, array in here.weights.items())


def assert_the_same_both_ways(file: Path, pruned: Path) -> None:
    """Merged decoders give what they gave, without a cache and behind one."""
    rng = np.random.default_rng(0)
    cache = {"use_cache_branch": np.array([True])}
    for spec in models.load(file).inputs:
        sizes = [d if isinstance(d, int) else 2 if d == "batch_size" else 5 for d in spec.shape]
        if "mask" in spec.name:
            cache[spec.name] = np.ones(sizes, np.int64)
        elif spec.name == "input_ids":
            cache[spec.name] = rng.integers(3, VOCABULARY, sizes)
        elif spec.name != "use_cache_branch":
            cache[spec.name] = rng.standard_normal(sizes).astype(np.float32)
    for given in (cache, {**cache, "use_cache_branch": np.array([False])}):
        dense, small = in_runtime(file, given), in_runtime(pruned, given)
        assert distance(small, dense) < 1e-4


def test_two_towers_keep_what_they_have_in_common(zoo: Callable[..., ZooModel], tmp_path: Path) -> None:
    towers = {
        "text_model": zoo("clip-text", "torchscript", "eager"),
        "vision_model": zoo("clip-vision", "torchscript", "eager"),
    }
    place, out = tmp_path / "clip", tmp_path / "out"
    place.mkdir()
    out.mkdir()
    for name, tower in towers.items():
        shutil.copy(tower.path, place / f"{name}.onnx")
    whole, led = load(place)
    given = {k: v for tower in towers.values() for k, v in tower.feeds.items()}
    plan = led.complete(random_plan(led, np.random.default_rng(1), tile=0), given)
    assert {n.split("/")[0] for g in plan.keep for n in (whole.structure.group(g).name,)} == set(towers)
    made = write(whole.model, whole.rewritten(plan), out, "")
    expected = whole.gated(plan, given)
    for part, file in zip(whole.model.parts, made.alone, strict=True):
        found = in_runtime(file, towers[file.stem].feeds)
        assert distance(found, {own: expected[name] for own, name in part.wires.outputs.items()}) < 1e-4


def test_sessions_open_a_folder_as_one(store: Path) -> None:
    found = joined.opened(folder("bart", store))
    session = onnxruntime.InferenceSession(str(found.file), providers=["CPUExecutionProvider"])
    assert [v.name for v in session.get_inputs()] == [
        "input_ids",
        "attention_mask",
        "decoder_input_ids",
        "next_input_ids",
    ]
