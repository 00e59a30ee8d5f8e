"""The width of the stream as units: norms are taken over the channels that stay, gated exactly as they are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import written
from plans import Subject, choose, distance

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.search.options import Options

RNG = np.random.default_rng(11)
TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
blocks (int64[N, T] ids, float[20, 8] table, float[8] s0, float[8] b0, float[8] s1, float[8, 16] u, float[16] c,
        float[16, 8] d, float[8] s2, float[8] b2, float[8, 3] o) => (float[N, T, 3] y) {
    e = Gather(table, ids)
    x = LayerNormalization(e, s0, b0)
    n = RMSNormalization(x, s1)
    h = MatMul(n, u)
    k = Add(h, c)
    a = Gelu(k)
    f = MatMul(a, d)
    r = Add(x, f)
    z = LayerNormalization(r, s2, b2)
    y = MatMul(z, o)
}
"""
SHAPES = {
    "table": (20, 8), "s0": (8,), "b0": (8,), "s1": (8,), "u": (8, 16), "c": (16,), "d": (16, 8), "s2": (8,),
    "b2": (8,), "o": (8, 3),
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, TEXT, SHAPES)


def rows(count: int) -> list[dict[str, np.ndarray]]:
    return [{"ids": RNG.integers(0, 20, (1, 6))} for _ in range(count)]


def test_the_stream_is_units_only_where_it_is_asked_for(path: Path) -> None:
    model = models.load(path)
    assert [g.kind for g in analyze(model).groups] == ["neurons"]
    found = {g.kind: g for g in analyze(model, hidden=True).groups}
    assert sorted(found) == ["hidden", "neurons"]
    assert [r.weight for r in found["hidden"].readers] == [None, None, "u", None, "o"]


@pytest.mark.parametrize("kept", [1, 4, 5, 6, 8])
def test_cut_is_gated(path: Path, kept: int) -> None:
    """Also where an odd number of channels goes, and neurons with them."""
    model = models.load(path)
    subject = Subject(model, analyze(model, hidden=True))
    feeds = {"ids": RNG.integers(0, 20, (2, 6))}
    units = {"hidden.0": choose((8,), kept, RNG), "neurons.0": choose((16,), 9, RNG)}
    plan = Plan(model.digest, units)
    assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-5
    if kept < 8:
        assert distance(subject.gated(plan, feeds), subject.dense(feeds)) > 1e-3


def test_a_norm_cannot_do_without_one_channel(path: Path) -> None:
    model = models.load(path)
    subject = Subject(model, analyze(model, hidden=True))
    with pytest.raises(UsageError, match="two or more"):
        subject.gated(Plan(model.digest, {"hidden.0": tuple(range(7))}), rows(1)[0])


def test_least_squares_makes_up_for_part_of_what_a_narrower_stream_loses(path: Path, tmp_path: Path) -> None:
    found = {}
    for compensate in (False, True):
        result = onnxprune.prune(
            path, flops=0.76, calibration=rows(64), units=("hidden",), compensate=compensate, measure_latency=False,
        )  # fmt: skip
        assert list(result.plan.keep) == ["hidden.0"]
        assert 1 < len(result.plan.keep["hidden.0"]) <= 6
        (file, *_) = result.save(tmp_path / f"{compensate}.onnx")
        subject, cut = Subject.load(path), Subject.load(file)
        found[compensate] = np.mean([distance(cut.dense(feeds), subject.dense(feeds)) for feeds in rows(16)])
    assert found[True] < found[False]


def test_the_width_of_the_stream_is_pruned_alone() -> None:
    with pytest.raises(UsageError, match="alone"):
        Options(Budget("flops", 0.5), units=("hidden", "neurons"))
