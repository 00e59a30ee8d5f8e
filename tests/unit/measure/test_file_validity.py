"""A written file that others refuse never gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import written

import onnxprune
from onnxprune.errors import CheckError
from onnxprune.graph import model as models
from onnxprune.graph import runtime
from onnxprune.measure.file_validity import check_file

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 6] x) => (float[n, 3] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path, TEXT, {"a": (6, 16), "b": (16, 3)})


def _spoiled(model: Path, how: str) -> Path:
    proto = onnx.load(model)
    if how == "twice":  # ONNX Runtime does not mind, the checker does
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["n", 5]))
    else:
        proto.graph.initializer[1].dims[0] = 8
        proto.graph.initializer[1].raw_data = proto.graph.initializer[1].raw_data[: 8 * 3 * 4]
    path = model.with_name(f"{how}.onnx")
    onnx.save(proto, path)
    return path


def test_a_valid_file_passes_every_level(model: Path) -> None:
    assert check_file(model, model) == ()
    assert runtime.optimization_levels()[0] == "none"
    assert runtime.optimization_levels()[-1] == "all"


@pytest.mark.parametrize("how", ["twice", "narrow"])
def test_an_invalid_file_is_refused(model: Path, how: str) -> None:
    with pytest.raises(CheckError, match=r"the file is invalid: onnx\.checker refuses it"):
        check_file(_spoiled(model, how), model)


def test_what_the_dense_file_is_refused_for_is_said(model: Path) -> None:
    spoiled = _spoiled(model, "twice")
    said = check_file(spoiled, spoiled)
    assert said[0].startswith("onnx.checker refuses the written file as it refuses the dense one")


def test_a_level_that_only_the_dense_file_opens_at_is_a_failure(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runtime.session

    def session(file: Any, *args: Any, optimization: str = "all", **more: Any) -> Any:
        if optimization == "extended" and Path(file).name == "other.onnx":
            raise CheckError("a fusion trips")
        return real(file, *args, optimization=optimization, **more)

    monkeypatch.setattr(runtime, "session", session)
    other = model.with_name("other.onnx")
    other.write_bytes(model.read_bytes())
    with pytest.raises(CheckError, match=r"ONNX Runtime at optimisation level extended refuses it.*a fusion trips"):
        check_file(other, model)


def test_nothing_is_written_where_the_file_is_invalid(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = models.save

    def save(graph: Any, path: Any) -> list[Path]:
        files = real(graph, path)
        proto = onnx.load(files[0])
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["n", 1]))
        onnx.save(proto, files[0])
        return files

    monkeypatch.setattr(models, "save", save)
    rows = [{"x": np.random.default_rng(i).normal(size=(1, 6)).astype(np.float32)} for i in range(24)]
    out = model.with_name("small.onnx")
    with pytest.raises(CheckError, match=r"onnx\.checker"):
        onnxprune.prune(model, out, flops=0.6, calibration=rows, units=("neurons",), measure_latency=False)
    assert not out.exists()
