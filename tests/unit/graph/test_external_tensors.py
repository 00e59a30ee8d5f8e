"""Tensors that lie in other files than their model's are found without reading the others."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.graph import external_tensors, model_files, runtime, segments
from onnxprune.graph.external_tensors import tensors_elsewhere


def _saved(path: Path, elsewhere: bool = False) -> Path:
    """Two products, whose weights are in the file or one of them is not."""
    arrays = {n: np.random.default_rng(i).normal(size=(500, 500)).astype(np.float32) for i, n in enumerate("vw")}
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, 1, ["n", 500]) for name in "xy")
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    weights.append(helper.make_tensor("floats", 1, [3], [1.0, 2.0, 3.0]))
    if elsewhere:
        onnx.external_data_helper.set_external_data(weights[1], "w.data")
        path.with_name("w.data").write_bytes(weights[1].raw_data)
        weights[1].ClearField("raw_data")
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_tensors_in_other_files_are_told_with_all_but_their_numbers(tmp_path: Path) -> None:
    path = _saved(tmp_path / "model.onnx", elsewhere=True)
    (found,) = tensors_elsewhere(path)
    (should,) = (t for t in onnx.load(path, load_external_data=False).graph.initializer if t.name == "w")
    assert found == should and list(found.dims) == [500, 500]
    assert model_files.locations(path) == {"w.data"}
    assert model_files.size(path) == path.stat().st_size + 1_000_000
    assert segments._most(path) == path.stat().st_size + 1_000_000


def test_numbers_in_the_file_are_not_read(tmp_path: Path) -> None:
    path = _saved(tmp_path / "model.onnx")
    tensors_elsewhere(path)  # what is imported is not counted
    tracemalloc.start()
    assert tensors_elsewhere(path) == []
    assert segments._most(path) == path.stat().st_size
    assert model_files.size(path) == path.stat().st_size
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200_000 < path.stat().st_size


@pytest.mark.parametrize("cut", [0, 1, 7, 40, 600_000, 1_500_000])
def test_a_file_that_is_cut_off_is_told_of_as_ever(tmp_path: Path, cut: int) -> None:
    whole = _saved(tmp_path / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[:cut])
    assert segments._most(path) == cut
    with pytest.raises(Exception, match=r"cut\.onnx"):
        runtime.session(path)


def test_what_is_no_model_has_none(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(b"\xff" * 100)
    assert segments._most(path) == 100


def test_a_file_of_very_many_fields_is_left_to_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile one of some megabytes has millions."""
    path = _saved(tmp_path / "model.onnx", elsewhere=True)
    parsed: list[Path] = []
    load = onnx.load

    def counted(file: Path, **how: Any) -> onnx.ModelProto:
        parsed.append(file)
        return load(file, **how)

    monkeypatch.setattr(onnx, "load", counted)
    (quick,) = tensors_elsewhere(path)
    assert not parsed
    monkeypatch.setattr(external_tensors, "_MOST", 10)
    assert tensors_elsewhere(path) == [quick]
    assert parsed == [path]
