"""Initializers that are graph inputs keep being both, in what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune.graph import model as models

TEXT = """
<ir_version: %s, opset_import: ["" : 11]>
g (float[n, 6] x) => (float[n, 4] y)
{ h = MatMul(x, a)  i = Add(h, bias)  r = Relu(i)  s = MatMul(r, b)  t = Add(s, shift)  u = MatMul(t, c)
  y = Add(u, shift)  v = Mul(large, large)  w = ReduceSum <keepdims = 0> (v)  none = Identity(w) }
"""


def _file(folder: Path, version: int, optional: tuple[str, ...] | None = None) -> Path:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(TEXT % version)
    sizes = {"a": (6, 16), "bias": (16,), "b": (16, 4), "shift": (4,), "c": (4, 4), "large": (30, 30)}
    for name, shape in sizes.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
        if optional is None or name in optional:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    proto.graph.input.append(proto.graph.input[0])  # x stands last, as some exporters have it
    del proto.graph.input[0]
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return path


def _pruned(model: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    rng = np.random.default_rng(1)
    rows = [{"x": rng.normal(size=(1, 6)).astype(np.float32)} for _ in range(24)]
    out = model.with_name("small.onnx")
    result = onnxprune.prune(
        model, out, flops=0.6, calibration=rows, units=("neurons",), round_to=1, measure_latency=False, force=True
    )
    onnx.checker.check_model(str(out), full_check=True)
    return onnx.load(out), result.report.warnings


def _names(proto: onnx.ModelProto) -> list[str]:
    return [v.name for v in proto.graph.input]


def test_before_version_4_every_initializer_stays_an_input(tmp_path: Path) -> None:
    model = _file(tmp_path, 3)
    small, warnings = _pruned(model)
    assert small.ir_version == 3
    assert _names(small) == ["a", "bias", "b", "shift", "c", "large", "x"]
    assert {i.name for i in small.graph.initializer} == set(_names(small)) - {"x"}  # others became Constant nodes
    assert not [w for w in warnings if "override" in w]  # nobody could


def test_optional_inputs_stay_and_what_became_of_them_is_said(tmp_path: Path) -> None:
    small, warnings = _pruned(_file(tmp_path, 8))
    assert _names(small) == ["a", "bias", "b", "shift", "c", "large", "x"]
    (said,) = [w for w in warnings if "override" in w]
    assert "6 initializers of this graph are inputs too" in said
    assert "3 have new shapes" in said
    assert "1 have no reader left" in said
    large = next(i for i in small.graph.initializer if i.name == "large")
    assert list(large.dims) == [0, 30]  # it costs nothing


def test_an_override_reaches_every_reader(tmp_path: Path) -> None:
    """One vector serves two places, which are two while the graph is worked on."""
    model = _file(tmp_path, 8, ("shift",))
    dense = models.load(model)
    assert len(dense.graph.initializers["shift"].uses()) == 1
    models.save(dense.ir, model.with_name("small.onnx"))
    feeds = {"x": np.ones((2, 6), np.float32)}
    session = onnxruntime.InferenceSession(model.with_name("small.onnx"), providers=["CPUExecutionProvider"])
    c = next(numpy_helper.to_array(i) for i in onnx.load(model).graph.initializer if i.name == "c")
    shift = next(numpy_helper.to_array(i) for i in onnx.load(model).graph.initializer if i.name == "shift")
    plain, moved = (session.run(None, feeds | more)[0] for more in ({}, {"shift": shift + 1}))
    np.testing.assert_allclose(moved - plain, np.ones((2, 4)) @ c + 1, rtol=1e-4, atol=1e-5)


def test_saving_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    dense = models.load(_file(tmp_path, 3))
    names = list(dense.graph.initializers), [v.name for v in dense.graph.inputs], [n.name for n in dense.graph]
    for attempt in range(2):
        models.save(dense.ir, tmp_path / f"again{attempt}.onnx")
        after = sorted(dense.graph.initializers), [v.name for v in dense.graph.inputs], [n.name for n in dense.graph]
        assert after == (sorted(names[0]), *names[1:])
    assert (tmp_path / "again0.onnx").read_bytes() == (tmp_path / "again1.onnx").read_bytes()


@pytest.mark.parametrize("version", [4, 8])
def test_files_without_any_stay_without(tmp_path: Path, version: int) -> None:
    small, _ = _pruned(_file(tmp_path, version, ()))
    assert _names(small) == ["x"]
