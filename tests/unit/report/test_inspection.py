"""What `inspect` says of a graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import written

from onnxprune.graph import model as models
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import Costs
from onnxprune.report.inspection import survey

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3, 8, 8] x) => (float[n, 2, 8, 8] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)  r1 = Relu(c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)  r2 = Relu(c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)  r3 = Relu(c3)
    y = Conv(r3, w4)
}"""
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (2, 8, 1, 1)}


def test_a_product_between_two_units_is_counted_once(tmp_path: Path) -> None:
    dense = models.load(written(tmp_path, CHAIN, WEIGHTS))
    structure = analyze(dense)
    costs = Costs(dense, structure, {"n": 1})
    found = survey(dense, structure, costs)
    total = 64 * 9 * (3 * 8 + 8 * 8 + 8 * 8) + 64 * 8 * 2
    assert found["macs"] == total
    assert found["kinds"] == {"channels": 1.0}
    # The first channels are written by the first convolution and read by the second.
    first = next(g for g in found["groups"] if g["node"] == found["groups"][0]["node"])
    assert first["flops_share"] == pytest.approx(64 * 9 * (3 * 8 + 8 * 8) / total)
    assert sum(g["flops_share"] for g in found["groups"]) > 1
