"""Law 4 where data decide a size: tokens that a router sends to an expert cost what they did in the dense model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from graphs import written
from plans import Subject

from onnxprune.graph.plan import Plan
from onnxprune.measure.cost import Costs
from onnxprune.pipeline.written import produce

ROUTED = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[batch, 8] x) => (float[batch, 4] y) {
    wide = MatMul (x, up)
    act = Relu (wide)
    back = MatMul (act, down)
    stream = Add (x, back)
    route = MatMul (stream, router)
    zero = Constant <value = float {0.0}> ()
    chosen = Greater (route, zero)
    which = NonZero (chosen)
    row = Constant <value_int = 0> ()
    taken = Gather <axis = 0> (which, row)
    seen = Gather <axis = 0> (stream, taken)
    inner = MatMul (seen, one)
    bent = Relu (inner)
    said = MatMul (bent, two)
    axes = Constant <value_ints = [-1]> ()
    places = Unsqueeze (taken, axes)
    added = ScatterND <reduction = "add"> (stream, places, said)
    y = MatMul (added, head)
}
"""
WEIGHTS = {"up": (8, 32), "down": (32, 8), "router": (8, 1), "one": (8, 64), "two": (64, 8), "head": (8, 4)}


def test_another_routing_costs_no_more(tmp_path: Path) -> None:
    """What is cut before a router sends other tokens to the expert; the budget is about widths."""
    subject = Subject.load(written(tmp_path, ROUTED, WEIGHTS))
    costs = Costs(subject.model, subject.structure, {"batch": 64})
    routed = {costs.dense_shape(v) for n in subject.model.graph for v in n.outputs if v.name == "seen"}
    assert 0 < next(iter(routed))[0] < 64
    for seed in range(6):
        kept = tuple(np.sort(np.random.default_rng(seed).permutation(32)[:8]).tolist())
        group = next(g.id for g in subject.structure.groups if g.size == 32)
        plan = Plan(subject.structure.digest, {group: kept})
        product = produce(subject.model, subject.structure, plan, costs.sizes, tmp_path, f"{seed}.onnx")
        assert product.spent["flops"] == costs.macs(plan)
