"""The last check of a written file: it passes what is the same, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import written
from onnx import helper, numpy_helper, parser

from onnxprune.errors import CheckError
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.equivalence import Equivalence, check, equivalence, max_distance

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 3] x) => (float[n, 3] y, float[n, 3] big, int64[n, 1] top)
<float hundred = {100}, float nothing = {0}>
{ y = Neg(x)  big = Mul(x, hundred)  top = ArgMax <axis = 1> (x) }
"""


@pytest.fixture(scope="module")
def model() -> bytes:
    return bytes(parser.parse_model(MODEL).SerializeToString())


X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def outputs(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"y": -x, "big": 100 * x, "top": x.argmax(1)[:, None]}


def test_the_same(model: bytes) -> None:
    found = equivalence(model, [({"x": X}, outputs(X)), ({"x": X[:1]}, outputs(X[:1]))], tolerance=1e-6)
    assert found.rows == 5
    assert found.max_rel <= 1e-6
    assert found.flips == 0


def test_differences_are_relative_to_each_outputs_scale_over_all_rows(model: bytes) -> None:
    expected = outputs(X)
    expected["big"] = expected["big"] + np.float32(0.5)
    small = {name: value[:1] * 0 if name != "top" else value[:1] for name, value in outputs(X).items()}
    found = equivalence(model, [({"x": X}, expected), ({"x": X[:1] * 0}, small | {"top": np.zeros((1, 1), np.int64)})])
    assert found.output == "big"
    assert found.max_abs == pytest.approx(0.5, rel=1e-4)
    assert found.max_rel == pytest.approx(0.5 / np.abs(expected["big"]).max(), rel=1e-4)
    with pytest.raises(CheckError, match=r"output big differs by .* of its scale \(1e-04 is allowed\)"):
        equivalence(model, [({"x": X}, expected)], tolerance=1e-4)


def test_a_wrong_shape_is_a_failure_at_any_tolerance(model: bytes) -> None:
    with pytest.raises(CheckError, match=r"output y has shape \(4, 3\)"):
        equivalence(model, [({"x": X}, {"y": -X[:, :2]})])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_far(model: bytes, value: float) -> None:
    broken = X.copy()
    broken[1, 1] = value
    with pytest.raises(CheckError):
        equivalence(model, [({"x": broken}, {"y": -X})], tolerance=1e9)
    with pytest.raises(CheckError):
        equivalence(model, [({"x": X}, {"y": -broken})], tolerance=1e9)


def test_infinities_may_be_expected_but_nan_never_and_never_infinities_alone(model: bytes) -> None:
    masked = X.copy()
    masked[1, 1] = np.inf
    assert equivalence(model, [({"x": masked}, {"y": -masked})], tolerance=1e-6).max_rel == 0
    for value, why in ((np.nan, "NaN alone in output y"), (np.inf, "no finite number in output y")):
        whole = np.full_like(X, value)
        with pytest.raises(CheckError, match=why):
            equivalence(model, [({"x": whole}, {"y": -whole})], tolerance=1e-6)


HALF = """
<ir_version: 8, opset_import: ["" : 17]>
g (float16[n, 8] x) => (float16[n, 8] y)
{ h = MatMul(x, a)  r = Relu(h)  s = MatMul(r, b)  t = Add(s, far)  m = ReduceMean <axes = [-1]> (t)  d = Sub(t, m)
  p = Pow(d, two)  v = ReduceMean <axes = [-1]> (p)  e = Add(v, small)  q = Sqrt(e)  n = Div(d, q)
  w = Mul(n, one)  y = Add(w, zero) }
"""
"""A normalisation far from zero, which ONNX Runtime computes as one operator and the interpreter step by step."""


def _half(folder: Path, large: int) -> tuple[Path, Model, Structure, Plan, list[dict[str, np.ndarray]]]:
    """A half-precision graph that loses digits where they are rounded, an empty plan, and its rows."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model(HALF)
    weights = {"a": rng.normal(size=(8, 8)), "b": rng.normal(size=(8, 8)), "far": large, "two": 2, "small": 1e-3}
    weights |= {"one": np.ones(8), "zero": np.zeros(8)}
    for name, value in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float16), name))
    path = folder / "half.onnx"
    onnx.save(proto, path)
    dense = models.load(path)
    structure = analyze(dense)
    rows = [{"x": rng.normal(size=(16, 8)).astype(np.float16)}]
    return path, dense, structure, Plan(structure.digest), rows


def test_half_precision_may_be_as_far_as_the_dense_file_is_itself(tmp_path: Path) -> None:
    path, dense, structure, plan, rows = _half(tmp_path, 64)
    found = check(dense, structure, plan, path, rows)
    assert found.max_rel > 1e-2  # what half precision is allowed by itself
    assert found.dense == pytest.approx(found.max_rel)
    assert found.allowed == pytest.approx(2 * found.max_rel)


def test_the_dense_file_excuses_nothing_beyond_a_limit_or_beyond_its_own_error(tmp_path: Path) -> None:
    path, dense, structure, plan, rows = _half(tmp_path, 256)
    with pytest.raises(CheckError, match="the dense file itself differs by"):
        check(dense, structure, plan, path, rows)
    path, dense, structure, plan, rows = _half(tmp_path, 64)
    other = onnx.load(path)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(8, dtype=np.float16), "a"))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(CheckError, match="the dense file itself differs by"):
        check(dense, structure, plan, tmp_path / "other.onnx", rows)


STEPS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 8] x) => (float[n, 4] y)
{ q = QuantizeLinear(x, one, zero)  d = DequantizeLinear(q, one, zero)  w = DequantizeLinear(a, one, none)
  m = MatMul(d, w)  r = QuantizeLinear(m, wide, zero)  y = DequantizeLinear(r, wide, zero) }
"""
"""Products of 8 bits, as large as they get: kernels without 32-bit sums saturate on them."""


def test_quantised_graphs_are_compared_as_they_are_written(tmp_path: Path) -> None:
    """The fused kernels of some processors give other numbers, for the dense file as well: no fault of a cut."""
    proto = parser.parse_model(STEPS)
    a = np.full((8, 4), 127, np.int8)
    weights = {"one": np.float32(1), "zero": np.uint8(0), "none": np.int8(0), "wide": np.float32(2048), "a": a}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    path = tmp_path / "steps.onnx"
    onnx.save(proto, path)
    dense = models.load(path)
    structure = analyze(dense)
    rows = [{"x": np.full((2, 8), 250, np.float32)}]
    found = check(dense, structure, Plan(structure.digest), path, rows)
    assert found.max_rel == 0
    assert (found.dense is not None and found.dense > 0.1) == ("fused integer kernels" in found.note)
    proto.graph.initializer[4].CopyFrom(numpy_helper.from_array(a - 60, "a"))
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(CheckError):
        check(dense, structure, Plan(structure.digest), tmp_path / "other.onnx", rows)


def test_integers_may_flip_rarely(model: bytes) -> None:
    x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    top = x.argmax(1)[:, None]
    top[:2] = (top[:2] + 1) % 3
    assert equivalence(model, [({"x": x}, {"top": top})], tolerance=0).flips == pytest.approx(2 / 300)
    top[:4] = (x.argmax(1)[:4, None] + 1) % 3
    with pytest.raises(CheckError, match=r"1\.33% of integer outputs"):
        equivalence(model, [({"x": x}, {"top": top})], tolerance=0)


TIES = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[n, 8] x) => (float[n, 3] y, int64[n, 4] best) <int64[1] four = {4}> {
    wide = MatMul (x, up)
    act = Relu (wide)
    y = MatMul (act, head)
    all = MatMul (act, down)
    likely = Sigmoid (all)
    most, best = TopK <axis = 1> (likely, four)
}
"""


def test_answers_to_scores_that_are_alike_are_told_from_faults(tmp_path: Path) -> None:
    """Of sigmoids that are all one, the last digit of a sum chooses the greatest."""
    weights = {"up": (8, 16), "head": (16, 3), "down": (16, 20)}
    path = written(tmp_path, TIES, weights)
    proto = onnx.load(path)
    down = next(t for t in proto.graph.initializer if t.name == "down")
    down.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(down)) * np.float32(100), "down"))
    onnx.save(proto, path)
    dense = models.load(path)
    structure = analyze(dense)
    rows = [{"x": np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)}]
    # As if another processor's sums had other last digits: the best four stand in another order.
    other = onnx.load(path)
    other.graph.output[1].name = "first"
    turned = helper.make_node("Gather", ["first", "order"], ["best"], axis=1)
    next(n for n in other.graph.node if n.op_type == "TopK").output[1] = "first"
    other.graph.output[1].name = "best"
    other.graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 3, 2]), "order"))
    other.graph.node.append(turned)
    onnx.save(other, tmp_path / "other.onnx")
    plan = Plan(dense.digest)
    found = check(dense, structure, plan, tmp_path / "other.onnx", rows)
    assert found.flips > 0.5 and "scores that are as planned" in found.note
    down.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(down), "down"))
    kept = next(t for t in other.graph.initializer if t.name == "down")
    kept.CopyFrom(down)
    onnx.save(other, tmp_path / "wrong.onnx")
    with pytest.raises(CheckError, match="of integer outputs differ"):
        check(dense, structure, plan, tmp_path / "wrong.onnx", rows)


def test_nothing_was_compared(model: bytes) -> None:
    assert equivalence(model, []) == Equivalence(0.0, 0.0, 0)


def test_distance() -> None:
    inf, nan = np.inf, np.nan
    assert max_distance(np.array([1.0, inf, nan]), np.array([1.5, inf, nan])) == 0.5
    assert max_distance(np.array([inf]), np.array([-inf])) == inf
    assert max_distance(np.array([nan]), np.array([0.0])) == inf
    assert max_distance(np.zeros(0), np.zeros(0)) == 0
