"""Law 2 on every family of decoders, every exporter, with a cache and without: dead units go, and nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted_decoders
import pytest
from decoders import HEADS, VOCABULARY, feeds_of, generated
from plans import distance, in_runtime

import onnxprune
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import Costs, default_bindings

STEPS = 20
QUICK = [("phi", "torchscript", True), ("gemma", "torchscript", False)]


@pytest.mark.parametrize(("family", "exporter", "cache"), QUICK)
def test_dead_units_go(family: str, exporter: str, cache: bool, tmp_path: Path) -> None:
    holds(family, exporter, cache, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter", "cache"), [c for c in planted_decoders.EXPORTS if c not in QUICK])
def test_dead_units_go_everywhere(family: str, exporter: str, cache: bool, tmp_path: Path) -> None:
    holds(family, exporter, cache, tmp_path)


def holds(family: str, exporter: str, cache: bool, folder: Path) -> None:
    """Pruned to the live share, a decoder gives the same logits, and writes the same tokens through its cache."""
    path = planted_decoders.export(family, exporter, cache, folder)
    small, shape = folder / "small.onnx", {"sequence_length": 16, "past_sequence_length": 4}
    dense = models.load(path)
    structure = analyze(dense)
    halves = {
        g.id: tuple(r * g.shape[-1] + u for r in range(g.size // g.shape[-1]) for u in range(g.shape[-1] // 2))
        for g in structure.groups
        if g.kind in ("query_heads", "neurons") or (g.kind == "heads" and g.size == HEADS)
    }
    known = {v for spec in dense.inputs for v in spec.shape if isinstance(v, str)}
    shape = {name: size for name, size in shape.items() if name in known}
    shape |= {"total_sequence_length": sum(shape.values())} if "total_sequence_length" in known else {}
    costs = Costs(dense, structure, default_bindings(dense, shape))
    live = costs.macs(Plan(structure.digest, halves)) / costs.macs()
    units = ("query_heads" if any(g.kind == "query_heads" for g in structure.groups) else "heads", "neurons")
    result = onnxprune.prune(
        path, small, flops=live + 1e-3, shape=shape, units=units, round_to=1,
        compensate=False, measure_latency=False,
    )  # fmt: skip
    assert result.report.flops.ratio <= live + 1e-3 < 0.9
    prompt = np.random.default_rng(1).integers(3, VOCABULARY, (2, 6))
    if not cache:
        feeds = {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}
        feeds |= {"position_ids": np.tile(np.arange(6), (2, 1))} if "position_ids" in _inputs(dense) else {}
        assert distance(in_runtime(small, feeds), in_runtime(path, feeds)) < 1e-5
        return
    tokens, logits = generated(path, prompt, STEPS)
    again, close = generated(small, prompt, STEPS)
    assert np.array_equal(tokens, again)
    assert np.abs(logits - close).max() < 1e-5 * np.abs(logits).max()
    assert set(feeds_of(path, prompt)) >= set(_inputs(models.load(small)))


def _inputs(model: models.Model) -> set[str]:
    return {spec.name for spec in model.inputs}
