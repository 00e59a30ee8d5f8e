"""The last check of a written file: it passes what is the same, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnxprune.errors import CheckError
from onnxprune.measure.equivalence import Equivalence, equivalence, max_distance

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
    assert equivalence(model, [({"x": broken}, {"y": -broken})], tolerance=1e-6).max_rel == 0


def test_integers_may_flip_rarely(model: bytes) -> None:
    x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    top = x.argmax(1)[:, None]
    top[:2] = (top[:2] + 1) % 3
    assert equivalence(model, [({"x": x}, {"top": top})], tolerance=0).flips == pytest.approx(2 / 300)
    top[:4] = (x.argmax(1)[:4, None] + 1) % 3
    with pytest.raises(CheckError, match=r"1\.33% of integer outputs"):
        equivalence(model, [({"x": x}, {"top": top})], tolerance=0)


def test_nothing_was_compared(model: bytes) -> None:
    assert equivalence(model, []) == Equivalence(0.0, 0.0, 0)


def test_distance() -> None:
    inf, nan = np.inf, np.nan
    assert max_distance(np.array([1.0, inf, nan]), np.array([1.5, inf, nan])) == 0.5
    assert max_distance(np.array([inf]), np.array([-inf])) == inf
    assert max_distance(np.array([nan]), np.array([0.0])) == inf
    assert max_distance(np.zeros(0), np.zeros(0)) == 0
