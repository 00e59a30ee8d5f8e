"""Costs: linear in units, additive over branches, at the shape that is stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import written
from plans import Subject, choose, random_plan
from zoo import ZooModel

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.graph.model import save
from onnxprune.graph.plan import Plan, Tile
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.measure.batch_sizes import LEVEL_ROWS, LEVEL_TOKENS, MAP_ROWS, tokens_to_measure
from onnxprune.measure.cost import Costs, default_bindings
from onnxprune.measure.shapes import DenseShapes
from onnxprune.pipeline.verbs import prune

Build = Callable[..., ZooModel]
SHAPE = {"batch_size": 1, "sequence_length": 16}


def costs_of(model: ZooModel) -> tuple[Subject, Costs]:
    subject = Subject.load(model.path)
    return subject, Costs(subject.model, subject.structure, SHAPE)


@pytest.mark.parametrize("kind", ["flops", "params", "size"])
def test_a_unit_costs_the_same_wherever_it_goes(zoo: Build, kind: str) -> None:
    subject, costs = costs_of(zoo("llama", "torchscript", "sdpa"))
    dense = costs.total(kind, Plan(subject.structure.digest))
    rng = np.random.default_rng(0)
    for group in subject.structure.groups:
        if group.context:
            continue
        unit = costs.unit_costs(kind, group)
        for count in range(1, group.size + 1):
            plan = Plan(subject.structure.digest, {group.id: choose(group.shape, count, rng)})
            assert costs.total(kind, plan) == pytest.approx(dense - unit * (group.size - count), abs=0.5)


@pytest.mark.parametrize("kind", ["flops", "params"])
def test_branches_add_up(zoo: Build, kind: str) -> None:
    subject, costs = costs_of(zoo("bert", "torchscript", "sdpa"))
    each = [costs.branch_cost(kind, b.id) for b in subject.structure.branches]
    every = Plan(subject.structure.digest, drop=tuple(b.id for b in subject.structure.branches))
    assert all(cost > 0 for cost in each)
    assert costs.total(kind) - costs.total(kind, every) == pytest.approx(sum(each), rel=1e-3)  # constants may be shared


def test_operators_and_nodes_add_up(zoo: Build) -> None:
    subject, costs = costs_of(zoo("segformer", "torchscript", "eager"))
    plan = Plan(
        subject.structure.digest, {g.id: choose(g.shape, 1, np.random.default_rng(0)) for g in subject.structure.groups}
    )
    for chosen in (None, plan):
        assert sum(costs.by_op(chosen).values()) == sum(costs.by_node(chosen).values()) == costs.macs(chosen)
    assert costs.macs(plan) < costs.macs()


def test_bert_by_hand(zoo: Build) -> None:
    """Two layers, 32 wide, 48 inside, 16 tokens; a pooler and a classifier of 2."""
    _, costs = costs_of(zoo("bert", "torchscript", "eager"))
    layer = 4 * 16 * 32 * 32 + 2 * 16 * 16 * 32 + 2 * 16 * 32 * 48
    assert costs.macs() == 2 * layer + 32 * 32 + 32 * 2


def test_bytes_are_those_of_the_weights_in_the_file(zoo: Build, tmp_path: Path) -> None:
    model = zoo("mobilenet-v2", "torchscript", "eager")
    subject, costs = costs_of(model)
    # A tile brings the ends of its range, some bytes of the graph rather than weights.
    plan = subject.complete(random_plan(subject, np.random.default_rng(0), refit=0, tile=0), model.feeds)
    for chosen in (Plan(subject.structure.digest), plan):
        (file,) = save(subject.rewritten(chosen), tmp_path / "m.onnx")
        held = [t for t in onnx.load(file).graph.initializer if not t.name.endswith("_rest")]
        assert costs.bytes(chosen) == sum(onnx.numpy_helper.to_array(t).nbytes for t in held)
    assert costs.bytes(plan) < costs.bytes()


def test_a_size_that_is_not_stated_is_asked_for(zoo: Build) -> None:
    subject = Subject.load(zoo("bert", "torchscript", "sdpa").path)
    assert default_bindings(subject.model, {"sequence_length": 9}) == {"batch_size": 1, "sequence_length": 9}
    with pytest.raises(UsageError, match=r"sequence_length\) has no size"):
        Costs(subject.model, subject.structure, default_bindings(subject.model, {})).macs()


def test_large_models_are_measured_on_fewer_tokens(zoo: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject.load(zoo("bert", "torchscript", "eager").path)
    at = {"batch_size": 2, "sequence_length": 8}
    costs = Costs(subject.model, subject.structure, default_bindings(subject.model, at))
    assert tokens_to_measure(costs) == LEVEL_TOKENS[1]
    monkeypatch.setattr("onnxprune.measure.batch_sizes.LEVEL_MACS", 1000 * costs.macs() / 16)
    assert tokens_to_measure(costs) == 1000
    monkeypatch.setattr("onnxprune.measure.batch_sizes.LEVEL_MACS", 1.0)
    assert tokens_to_measure(costs) == LEVEL_TOKENS[0]


@pytest.mark.parametrize(("result", "fewest"), [("[N, 8]", LEVEL_ROWS), ("[N, 8, 1, 1]", MAP_ROWS)])
def test_rows_of_pictures_are_counted_as_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, fewest: int
) -> None:
    """A floor of hundreds of tokens is none of as many pictures; more sites have less each."""
    flat = "y = Flatten(p)" if result == "[N, 8]" else "y = Identity(p)"
    text = f"""
    <ir_version: 9, opset_import: ["" : 17]>
    net (float[N, 3, 32, 32] x, float[8, 3, 3, 3] w) => (float{result} y) {{
        c = Conv(x, w)
        p = GlobalAveragePool(c)
        {flat}
    }}
    """
    subject = Subject.load(written(tmp_path, text, {"w": (8, 3, 3, 3)}))
    costs = Costs(subject.model, subject.structure, {"N": 1})
    assert tokens_to_measure(costs) == LEVEL_TOKENS[1]
    assert tokens_to_measure(costs, sites=10**6) < LEVEL_TOKENS[1]
    monkeypatch.setattr("onnxprune.measure.batch_sizes.LEVEL_MACS", 1.0)
    assert tokens_to_measure(costs) == fewest


def test_a_tile_costs_its_share_of_the_product(zoo: Build) -> None:
    subject, costs = costs_of(zoo("bert", "torchscript", "eager"))
    linear = next(x for x in find_linears(subject.model.graph, subject.structure) if x.matrix.reader.input == 0)
    inputs, outputs = subject.interpreter.weight(linear.weight).shape
    node = linear.matrix.reader.node
    half = Tile(0, outputs, 0, inputs // 2)
    plan = Plan(subject.structure.digest, tiles={linear.weight: (half,)})
    assert half.area == inputs * outputs // 2
    assert costs.by_node(plan)[node] == costs.by_node()[node] // 2
    assert costs.macs(plan) == costs.macs() - costs.by_node()[node] // 2
    assert costs.params(plan) == costs.params() - inputs * outputs // 2


def test_a_scalar_has_a_shape(tmp_path: Path) -> None:
    """A rate, or another single number: its shape is known, and is empty."""
    text = """
    <ir_version: 9, opset_import: ["" : 17]>
    net (float[N, 4] x, float rate, float[4, 8] w) => (float[N, 8] y) {
        h = MatMul(x, w)
        y = Mul(h, rate)
    }
    """
    subject = Subject.load(written(tmp_path, text, {"w": (4, 8)}))
    costs = Costs(subject.model, subject.structure, {"N": 1})
    assert [costs.dense_shape(v) for v in subject.model.graph.inputs if v.name == "rate"] == [()]
    assert tokens_to_measure(costs) == LEVEL_TOKENS[1]


def test_what_is_kept_is_a_share_of_the_file(tmp_path: Path) -> None:
    """A vector that many uses share is one in the file, be it a copy for each when the graph is worked on."""
    weights: dict[str, tuple[int, ...]] = {"g": (16,)}
    body, last = "", "x"
    for i in range(8):
        weights |= {f"u{i}": (16, 8), f"v{i}": (8, 16)}
        body += f"n{i} = Mul({last}, g) a{i} = MatMul(n{i}, u{i}) r{i} = Relu(a{i}) m{i} = MatMul(r{i}, v{i})\n"
        last, before = ("y" if i == 7 else f"y{i}"), last
        body += f"{last} = Add({before}, m{i})\n"
    inputs = "".join(f", float[{','.join(map(str, shape))}] {name}" for name, shape in weights.items())
    head = '<ir_version: 9, opset_import: ["" : 17]>'
    file = written(tmp_path, f"{head} net (float[N, 16] x{inputs}) => (float[N, 16] y) {{ {body} }}", weights)
    small = tmp_path / "small.onnx"
    result = prune(file, small, params=0.9, method="magnitude", measure_latency=False, round_to=1)
    dense, kept = (sum(int(np.prod(t.dims)) for t in onnx.load(f).graph.initializer) for f in (file, small))
    assert kept <= 0.9 * dense
    assert (result.report.params.dense, result.report.params.pruned) == (dense, kept)


def test_a_graph_that_does_not_run_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that depend on data are seen in a run; exports may fix a batch of two in numbers that no input shows."""
    text = """<ir_version: 9, opset_import: ["" : 17]>
found (float[batch, 4] x, float[4, 8] up, float[8, 4] down) => (float[k, 4] y) {
    second = Constant<value_ints = [1]>()
    row = Gather(x, second)
    positive = Greater(row, x)
    where = NonZero(positive)
    one = Constant<value_ints = [1]>()
    places, rest = Split<axis = 0>(where)
    flat = Squeeze(places, zero)
    picked = Gather(x, flat)
    h = MatMul(picked, up)
    a = Relu(h)
    y = MatMul(a, down)
}"""
    text = text.replace("flat = Squeeze", "zero = Constant<value_ints = [0]>()\n    flat = Squeeze")
    subject = Subject.load(written(tmp_path, text, {"up": (4, 8), "down": (8, 4)}))
    runs: list[int] = []
    real = DenseShapes._runs

    def counted(self: DenseShapes, *asked: Any) -> Any:
        runs.append(1)
        return real(self, *asked)

    monkeypatch.setattr(DenseShapes, "_runs", counted)
    costs = Costs(subject.model, subject.structure, {"batch": 1})
    for _ in range(3):
        with pytest.raises(OnnxPruneError):
            costs.macs()
    assert len(runs) == 1
    assert Costs(subject.model, subject.structure, {"batch": 5}).macs() >= 0
