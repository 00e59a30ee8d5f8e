"""Law 4: what is written costs no more than the budget, on any graph, and nearly all of it where units are fine.

Every kind of budget, both searches, widths that multiply; costs by ONNX Runtime's own profile, files by their bytes.
And law 2 under the damage table: dead units go first, whatever the graph, live ones stay while the budget lets them.

`ONNXPRUNE_LAW_GRAPHS=2000 pytest tests/laws/test_law_budget.py` tries that many graphs.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import random_graphs

import onnxprune
from onnxprune.errors import BudgetError
from onnxprune.measure.operator_profile import profiled_macs

GRAPHS = int(os.environ.get("ONNXPRUNE_LAW_GRAPHS", "28"))
KINDS = ("flops", "params", "size")
UNITS = ("heads", "neurons", "channels", "blocks")


def numbers(file: Path) -> int:
    tensors = onnx.load(file).graph.initializer
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT)


def spent(kind: str, file: Path, feeds: dict[str, np.ndarray]) -> float:
    if kind == "size":
        return file.stat().st_size
    return numbers(file) if kind == "params" else sum(profiled_macs(file, feeds).values())


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_a_budget_is_met_from_below(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    family = random_graphs.FAMILIES[seed % len(random_graphs.FAMILIES)]
    kind = KINDS[int(rng.integers(3))]
    search = ("table", "rank")[int(rng.integers(2))]
    uniform = bool(rng.integers(4) == 0) and search == "table"
    share = float(rng.uniform(0.25, 0.95))
    dense = random_graphs.saved(random_graphs.build(family, seed), tmp_path / "dense.onnx")
    rows = [{"x": row[None]} for row in random_graphs.sample(family, 24, seed)]
    output = tmp_path / "small.onnx"
    asked: dict[str, Any] = {kind: share}
    try:
        result = onnxprune.prune(
            dense, output, calibration=rows, units=UNITS, round_to=1, search=search, uniform=uniform,
            compensate=bool(rng.integers(2)), measure_latency=False, keep_unread=True, swaps=4,
            variants=0.0, **asked,
        )  # fmt: skip
    except BudgetError as error:
        assert error.closest is None or error.closest > share or "cannot be reached" in str(error)
        return
    before, after = spent(kind, dense, rows[0]), spent(kind, output, rows[0])
    assert after <= share * before * (1 + 1e-9), f"{family} {kind} {search}: {after / before:.4f} of {share:.4f}"
    widths = [u.total for u in result.report.units if u.kind != "blocks"]
    unit = max(1 / w for w in widths) / len(widths)  # about what the dearest unit is of the whole
    if not uniform and kind == "flops" and search == "table":
        assert after >= (share - max(0.03 * share, 2.5 * unit, _dearest(dense, result.plan))) * before, (
            f"{family}: {after / before:.4f} of {share:.4f}"
        )


def _dearest(file: Path, plan: onnxprune.Plan) -> float:
    """The share that one unit of the dearest group costs: a channel of a stream that every convolution reads."""
    _, structure, costs = onnxprune.inspect(file)
    less = [
        replace(plan, keep={g.id: tuple(range(g.size - 1))}, drop=()) for g in structure.groups if g.id in plan.keep
    ]
    return max((1 - costs.total("flops", one) / costs.total("flops") for one in less), default=0.0)


@pytest.mark.parametrize("seed", range(GRAPHS // 2))
def test_live_units_are_not_lost_to_dead_ones(seed: int, tmp_path: Path) -> None:
    family = random_graphs.FAMILIES[seed % len(random_graphs.FAMILIES)]
    dead = float(np.random.default_rng(seed).uniform(0.2, 0.6))
    dense = random_graphs.saved(random_graphs.build(family, seed, dead), tmp_path / "dense.onnx")
    twin = random_graphs.saved(random_graphs.build(family, seed, dead, twin=True), tmp_path / "twin.onnx")
    x = random_graphs.sample(family, 24, seed)
    macs = [sum(profiled_macs(file, {"x": x[:1]}).values()) for file in (dense, twin)]
    output = tmp_path / "small.onnx"
    share = min(macs[1] / macs[0] * 1.001 + 1e-6, 0.999)
    onnxprune.prune(
        dense, output, flops=share, calibration=[{"x": row[None]} for row in x], units=UNITS, round_to=1,
        compensate=False, measure_latency=False, keep_unread=True, swaps=0, variants=0.0,
    )  # fmt: skip
    wanted, found = (
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for file in (dense, output)
    )
    scale = np.abs(wanted).max()
    assert np.abs(wanted - found).max() < 2e-4 * scale
