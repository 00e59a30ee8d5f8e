"""What no output reads can be left out: the answers stay, and what is saved is what ONNX Runtime no longer computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import zoo as exports
from graphs import written
from plans import Subject, distance, in_runtime, random_plan
from zoo import ZooModel
from zoo_families import OPSETS

import onnxprune
from onnxprune import rewrite
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.measure.operator_profile import profiled_macs
from onnxprune.probe.forward import forward
from onnxprune.probe.short_graph import brief
from onnxprune.report import Report

Build = Callable[..., ZooModel]
TOLERANCE = 1e-5

ONE_TOKEN = ("bert", "roberta", "distilbert", "vit", "deit", "modernbert", "mobilebert")
"""Classifiers that read one token: normed before or after their blocks, Q, K and V apart or in one product."""
ALL_TOKENS = ("t5-encoder", "gpt2", "llama", "swin", "clip-vision")
"""Hidden states, scores of every token, a mean over tokens, an output that shows them all."""


def macs(model: ir.Model, feeds: Mapping[str, np.ndarray], folder: Path) -> int:
    return sum(profiled_macs(models.save(model, folder / "graph.onnx")[0], feeds).values())


@pytest.mark.parametrize("exporter", list(OPSETS))
@pytest.mark.parametrize("family", ONE_TOKEN)
def test_answers_stay(zoo: Build, family: str, exporter: exports.Exporter, tmp_path: Path) -> None:
    model = zoo(family, exporter, "sdpa")
    subject, feeds = Subject.load(model.path), model.feeds
    for seed in range(2):
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed), drop=0.1), feeds)
        whole, few = subject.rewritten(plan), subject.rewritten(plan)
        assert rewrite.drop_unread(few)
        other = model.sample(batch=3, tokens={"input_ids": 11}.get(model.inputs[0]), seed=seed + 1)
        for rows in (feeds, model.sample(batch=1), other):
            assert distance(in_runtime(few, rows), in_runtime(whole, rows)) < TOLERANCE
        assert macs(few, feeds, tmp_path) < macs(whole, feeds, tmp_path)


def test_the_last_block_computes_one_token(zoo: Build, tmp_path: Path) -> None:
    """Queries, scores, weighted values, projection and FFN of one token; keys and values of all."""
    model = zoo("bert", "torchscript", "eager")
    subject, feeds = Subject.load(model.path), model.sample(batch=2, tokens=12)
    empty = subject.complete(random_plan(subject, np.random.default_rng(0), kinds=(), drop=0, refit=0, tile=0), feeds)
    whole, few = subject.rewritten(empty), subject.rewritten(empty)
    rewrite.drop_unread(few)
    config = exports.config_of("bert")
    rows, tokens, wide, inner = 2, 12, config.hidden_size, config.intermediate_size
    for_a_token = 2 * wide * wide + 2 * wide * inner + 2 * tokens * wide
    assert macs(whole, feeds, tmp_path) - macs(few, feeds, tmp_path) == rows * (tokens - 1) * for_a_token


@pytest.mark.parametrize("exporter", list(OPSETS))
@pytest.mark.parametrize("family", ALL_TOKENS)
def test_models_that_read_all_tokens_stay_as_they_are(zoo: Build, family: str, exporter: exports.Exporter) -> None:
    model = zoo(family, exporter, "eager" if family == "t5-encoder" else "sdpa")
    subject, feeds = Subject.load(model.path), model.feeds
    plan = subject.complete(random_plan(subject, np.random.default_rng(0), drop=0, tile=0), feeds)
    graph = subject.rewritten(plan)
    before = [node.name for node in graph.graph]
    assert not rewrite.drop_unread(graph)
    assert [node.name for node in graph.graph] == before


TWO_LAYERS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, tokens, 8] x) => ({outputs})
{{
  h = MatMul(x, w0)
  r = Relu(h)
  y = MatMul(r, w1)
  {reader}
}}"""
WEIGHTS = {"w0": (8, 16), "w1": (16, 8)}
READERS = {
    "first": ("float[batch, 8] z", "z = Gather<axis = 1>(y, zero)", 1),
    "last": ("float[batch, 8] z", "z = Gather<axis = 1>(y, minus)", 1),
    "slice": ("float[batch, 1, 8] z", "z = Slice(y, one_zero, one_one, one_one)", 1),
    "both ends": (
        "float[batch, 8] z, float[batch, 8] e",
        "z = Gather<axis = 1>(y, minus) e = Gather<axis = 1>(y, zero)",
        2,
    ),
    "an output too": ("float[batch, 8] z, float[batch, tokens, 8] y", "z = Gather<axis = 1>(y, zero)", None),
    "a mean too": (
        "float[batch, 8] z, float[batch, 8] m",
        "z = Gather<axis = 1>(y, zero) m = ReduceMean<axes = [1], keepdims = 0>(y)",
        None,
    ),
    "other axes": (
        "float[batch, 8] z, float[batch, tokens] e",
        "z = Gather<axis = 1>(y, zero) e = Gather<axis = 2>(y, zero)",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_readers(tmp_path: Path, reader: str) -> None:
    """Which positions are left, or None where every one is read."""
    outputs, text, left = READERS[reader]
    path = written(tmp_path, TWO_LAYERS.format(outputs=outputs, reader=text), WEIGHTS, check=False)
    graph = numbered(path)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5, 8), dtype=np.float32)}
    before, cost = in_runtime(graph, feeds), macs(graph, feeds, tmp_path)
    assert rewrite.drop_unread(graph) == (left is not None)
    after = in_runtime(graph, feeds)
    assert distance(after, before) < TOLERANCE
    assert macs(graph, feeds, tmp_path) == cost * (left or 5) // 5


NUMBERS = {
    "zero": np.int64(0), "minus": np.int64(-1), "one_zero": np.array([0]), "one_one": np.array([1]),
    "one_four": np.array([4]), "one_six": np.array([6]),
}  # fmt: skip


@pytest.mark.parametrize(("start", "left"), [("one_four", 2), ("one_one", None)])
def test_a_part_of_a_fixed_axis(tmp_path: Path, start: str, left: int | None) -> None:
    """Two positions of six are computed alone; where five are read, picking them would cost more than it saves."""
    count = left or 5
    reader = f"z = Slice(y, {start}, one_six, one_one)"
    text = TWO_LAYERS.replace("tokens", "6").format(outputs=f"float[batch, {count}, 8] z", reader=reader)
    graph = numbered(written(tmp_path, text, WEIGHTS, check=False))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6, 8), dtype=np.float32)}
    before, cost = in_runtime(graph, feeds), macs(graph, feeds, tmp_path)
    assert rewrite.drop_unread(graph) == (left is not None)
    assert distance(in_runtime(graph, feeds), before) < TOLERANCE
    assert macs(graph, feeds, tmp_path) == cost * (left or 6) // 6


def numbered(path: Path) -> ir.Model:
    """The graph with its index operands, loaded as the tool loads it."""
    import onnx

    proto = onnx.load(path)
    used = {name for node in proto.graph.node for name in node.input}
    for name, number in NUMBERS.items():
        if name in used:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(number), name))
    onnx.save(proto, path)
    return models.load(path).clone().ir


def test_a_run_says_what_it_saved(zoo: Build, tmp_path: Path) -> None:
    """The budget counts the plan; the report says beside it what the file leaves out, to the last multiplication."""
    model = zoo("bert", "torchscript", "sdpa")
    feeds = model.sample(1, 8)
    rows = [model.sample(1, 8, seed=s) for s in range(8)]
    reports: dict[bool, Report] = {}
    for keep in (True, False):
        output = tmp_path / f"{keep}.onnx"
        reports[keep] = onnxprune.prune(
            model.path, output, flops=0.7, calibration=rows, measure_latency=False, compensate=False, keep_unread=keep
        ).report
        assert reports[keep].flops.computed.pruned == 2 * sum(profiled_macs(output, feeds).values())
    assert reports[True].flops.unread == 0 < reports[False].flops.unread
    assert reports[True].flops.pruned == reports[False].flops.pruned <= 0.7 * reports[True].flops.dense
    answers = [in_runtime(tmp_path / f"{keep}.onnx", feeds) for keep in (True, False)]
    assert distance(*answers) < TOLERANCE


@pytest.mark.parametrize("family", [*ONE_TOKEN, "segformer"])
def test_plans_are_judged_as_on_the_whole_graph(zoo: Build, family: str) -> None:
    """Any plan's outputs, by the graph without what nobody reads, from states made for the whole one."""
    model = zoo(family, "torchscript", "sdpa")
    subject, feeds = Subject.load(model.path), model.feeds
    short, wide = brief(subject.model, subject.structure, subject.interpreter)
    assert (short is not subject.interpreter) == (family in ONE_TOKEN)
    assert {v.name for n in short.graph for v in n.outputs} <= set(wide.layouts)
    weight = next(iter(find_linears(subject.model.graph, subject.structure))).weight
    assert short.weight(weight) is subject.interpreter.weight(weight), "weights are held twice"
    for seed in range(4):
        plan = subject.complete(random_plan(subject, np.random.default_rng(seed)), feeds)
        state = subject.gates.gated(plan)
        found = {name: tensor.numpy() for name, tensor in forward(short, feeds, state=state).items()}
        assert distance(found, subject.gated(plan, feeds)) < TOLERANCE


@pytest.mark.parametrize("reader", ["Gather<axis = 1>(y, zero)", "Slice(y, one_zero, one_one, one_one)"])
def test_a_node_that_states_act_on_stays(tmp_path: Path, reader: str) -> None:
    """An intercept is added where a product is read: a Slice that leaves, because no more than it takes is computed."""
    text = TWO_LAYERS.format(outputs="float z", reader=f"s = {reader} z = Relu(s)")
    path = written(tmp_path, text, WEIGHTS, check=False)
    ir.save(numbered(path), path)
    subject = Subject.load(path)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 5, 8), dtype=np.float32)}
    short, _ = brief(subject.model, subject.structure, subject.interpreter)
    plan = Plan(subject.structure.digest, intercepts={"y": np.full(8, 9, dtype=np.float32)})
    found = forward(short, feeds, state=subject.gates.gated(plan))
    assert distance({"z": found["z"].numpy()}, subject.gated(plan, feeds)) < TOLERANCE
    assert distance(subject.gated(plan, feeds), subject.dense(feeds)) > 0.1
