"""The user's own file: what it is refused for, what is said of it, and at which sizes it is compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import perceptron
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune import data
from onnxprune.data import Dataset
from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.graph import model as models
from onnxprune.measure.dense_file import examine, shapes_to_check

TEXT = """
<ir_version: 8, opset_import: ["" : 17%s]>
g (float[%s, %s, 6] x) => (float[%s, s2, 3] y)
{ h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)  %s }
"""


def _dense(
    folder: Path, tail: str = "y = Identity(z)", a: float | None = None, batch: str = "n", length: str = "s",
    domain: str = "", **more: np.ndarray,
) -> models.Model:  # fmt: skip
    rng = np.random.default_rng(0)
    proto = parser.parse_model(TEXT % (domain, batch, length, batch, tail))
    weights = {"a": rng.normal(size=(6, 8)).astype(np.float32), "b": rng.normal(size=(8, 3)).astype(np.float32), **more}
    if a is not None:
        weights["a"][2, 3] = a
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.save(proto, folder / "model.onnx")
    return models.load(folder / "model.onnx")


def _rows(dense: models.Model, count: int = 5, length: int = 7) -> Dataset:
    rng = np.random.default_rng(1)
    rows = [{"x": rng.normal(size=(1, length, 6)).astype(np.float32)} for _ in range(count)]
    return data.read(rows, dense.inputs, outputs=dense.outputs)


def test_nothing_is_said_of_a_sound_file(tmp_path: Path) -> None:
    dense = _dense(tmp_path)
    assert examine(dense, _rows(dense)) == ()
    assert examine(dense) == ()


@pytest.mark.parametrize(("value", "named"), [(np.nan, "1 NaN"), (np.inf, "1 infinite"), (-np.inf, "1 infinite")])
def test_weights_that_are_not_finite_are_named_with_their_initializer(tmp_path: Path, value: float, named: str) -> None:
    dense = _dense(tmp_path, a=value)
    with pytest.raises(ModelError, match=rf"weight a \[6, 8\], read by .*\(MatMul\) holds {named} among 48.*\[2, 3\]"):
        examine(dense, _rows(dense))


def test_weights_beside_the_model_are_read_there(tmp_path: Path) -> None:
    _dense(tmp_path, a=np.nan)
    onnx.save(onnx.load(tmp_path / "model.onnx"), tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ModelError, match=r"weight a .* holds 1 NaN among 48 numbers, first at \[2, 3\]"):
        examine(models.load(tmp_path / "model.onnx"))


def test_inspect_says_what_a_cut_will_refuse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _dense(tmp_path, a=np.nan)
    assert onnxprune.inspect(tmp_path / "model.onnx")[1].groups
    assert "weight a [6, 8]" in caplog.text
    assert "holds 1 NaN" in caplog.text


def test_a_mask_may_be_made_of_infinity(tmp_path: Path) -> None:
    hidden = np.array([-np.inf, 0, 0], np.float32)
    dense = _dense(tmp_path, "m = Add(z, hidden)  y = Softmax(m)", hidden=hidden)
    assert examine(dense, _rows(dense)) == ()


@pytest.mark.parametrize(
    ("tail", "how"),
    [
        ("y = Sqrt(z)", r"\d+ NaN among \d+ numbers in output y on list:1.*it begins at node \S+ \(Sqrt\)"),
        ("q = Abs(z)  w = Neg(q)  o = Log(w)  y = Identity(o)", r"NaN alone in output y.*\(Log\)"),
    ],
)
def test_outputs_that_are_no_numbers_are_refused_with_their_row_and_node(tmp_path: Path, tail: str, how: str) -> None:
    dense = _dense(tmp_path, tail)
    with pytest.raises(ModelError, match=how):
        examine(dense, _rows(dense))


def test_without_rows_it_is_still_the_model_that_gives_no_numbers(tmp_path: Path) -> None:
    """Infinity in a bias may be a mask; what it comes to shows where the written file is held to the dense one."""
    model = perceptron.perceptron()
    bias = next(t for t in model.graph.initializer if t.name == "bias_0")
    bias.CopyFrom(numpy_helper.from_array(np.full(16, np.inf, np.float32), "bias_0"))
    file = perceptron.write(tmp_path / "m.onnx", model)
    with pytest.raises(ModelError, match=r"m\.onnx: the dense model gives NaN .* in output logits.*begins at node"):
        onnxprune.prune(file, tmp_path / "o.onnx", flops=0.6, method="magnitude", measure_latency=False)
    assert not (tmp_path / "o.onnx").exists()


def test_an_output_that_depends_on_the_batch_is_said(tmp_path: Path) -> None:
    dense = _dense(tmp_path, "m = ReduceMean <axes = [0], keepdims = 1> (z)  y = Sub(z, m)")
    (said,) = examine(dense, _rows(dense))
    assert "depend on the rows beside it: alone and among 5 they differ by 100.0%" in said


def test_what_onnxruntime_cannot_run_is_found_before_anything_else(tmp_path: Path) -> None:
    dense = _dense(tmp_path, "y = acme.Fold(z)", domain=', "acme" : 1')
    with pytest.raises((UnsupportedError, ModelError), match="Fold"):
        examine(dense)


def test_what_is_compared_has_more_than_one_batch_size_and_length(tmp_path: Path) -> None:
    dense = _dense(tmp_path)
    many = [b.feeds for b in _rows(dense).batches()]
    shapes = {f["x"].shape for f in shapes_to_check(dense, many)}
    assert shapes == {(5, 7, 6), (1, 7, 6), (5, 3, 6), (5, 10, 6)}
    one = [b.feeds for b in _rows(dense, 1).batches()]
    assert {f["x"].shape for f in shapes_to_check(dense, one)} == {(1, 7, 6), (3, 7, 6), (1, 3, 6), (1, 10, 6)}


def test_only_sizes_that_the_graph_takes_are_added(tmp_path: Path) -> None:
    fixed = _dense(tmp_path, batch="2", length="7")
    feeds = [{"x": np.zeros((2, 7, 6), np.float32)}]
    assert [f["x"].shape for f in shapes_to_check(fixed, feeds)] == [(2, 7, 6)]
    text = "e = Shape <start = 1, end = 2> (x)  t = Slice(long, zero, e, zero)  y = Add(z, t)"
    limited = _dense(tmp_path, text, zero=np.zeros(1, np.int64), long=np.zeros((7, 3), np.float32))
    shapes = {f["x"].shape for f in shapes_to_check(limited, [b.feeds for b in _rows(limited).batches()])}
    assert shapes == {(5, 7, 6), (1, 7, 6), (5, 3, 6)}  # a table of seven positions has no tenth


def test_no_two_positions_of_what_is_compared_are_equal(tmp_path: Path) -> None:
    """Among equal ones the last digit of a sum decides which is the largest, in each engine another."""
    dense = _dense(tmp_path)
    feeds = [b.feeds for b in _rows(dense, 1).batches()]
    (longer,) = [f["x"] for f in shapes_to_check(dense, feeds) if f["x"].shape == (1, 10, 6)]
    assert len(np.unique(longer[0], axis=0)) == 10
    whole = [{"x": np.ones((1, 7, 6), np.float32)}]
    assert all((f["x"] == 1).all() for f in shapes_to_check(dense, whole))
