"""Loading, normalising and writing files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from plans import distance, in_runtime
from zoo import ZooModel

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.graph import model as models
from onnxprune.pipeline.report_facts import left_behind

Build = Callable[..., ZooModel]


def test_a_model_says_what_goes_in_and_out(zoo: Build) -> None:
    model = models.load(zoo("bert", "torchscript", "sdpa").path)
    assert [(i.name, i.dtype, i.shape) for i in model.inputs] == [
        ("input_ids", np.dtype(np.int64), ("batch_size", "sequence_length")),
        ("attention_mask", np.dtype(np.int64), ("batch_size", "sequence_length")),
    ]
    assert [(o.name, o.dtype, o.shape[1]) for o in model.outputs] == [("logits", np.dtype(np.float32), 2)]
    assert model.opset == 17
    assert model.path is not None and model.folder == model.path.parent


def test_a_digest_is_of_the_file_and_its_data(zoo: Build, tmp_path: Path) -> None:
    source = zoo("bert", "torchscript", "sdpa").path
    proto = onnx.load(source)
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    first = models.load(tmp_path / "model.onnx").digest
    assert models.load(tmp_path / "model.onnx").digest == first
    assert models.load(source).digest != first
    data = bytearray((tmp_path / "data.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "data.bin").write_bytes(bytes(data))
    assert models.load(tmp_path / "model.onnx").digest != first


def test_a_folder_is_its_graph(zoo: Build, tmp_path: Path) -> None:
    shutil.copy(zoo("bert", "torchscript", "sdpa").path, tmp_path / "encoder.onnx")
    assert models.find(tmp_path).name == "encoder.onnx"
    shutil.copy(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx")
    with pytest.raises(UnsupportedError, match=r"decoder\.onnx[^,]*\n[^,]*encoder\.onnx"):
        models.find(tmp_path)
    shutil.copy(tmp_path / "encoder.onnx", tmp_path / "model.onnx")
    assert models.find(tmp_path).name == "model.onnx"


def test_weights_too_large_for_one_file_go_beside_it(
    zoo: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo("bert", "torchscript", "sdpa")
    loaded = models.load(model.path)
    monkeypatch.setattr(models, "_EMBED_LIMIT", 1000)
    files = models.save(loaded.ir, tmp_path / "big.onnx")
    assert [f.name for f in files] == ["big.onnx", "big.onnx.data"]
    assert all(f.exists() for f in files)
    assert distance(in_runtime(files[0], model.feeds), in_runtime(model.path, model.feeds)) < 1e-5
    assert models.load(files[0]).digest


def test_a_file_written_stands_alone(zoo: Build, tmp_path: Path) -> None:
    """Weights that came from outside are inside, and the source may go."""
    model = zoo("bert", "dynamo", "sdpa")
    copy = tmp_path / "source"
    shutil.copytree(model.path.parent, copy)
    loaded = models.load(copy / "model.onnx")
    (file,) = models.save(loaded.ir, tmp_path / "alone.onnx")
    shutil.rmtree(copy)
    assert not any(t.data_location for t in onnx.load(file, load_external_data=False).graph.initializer)
    assert distance(in_runtime(file, model.feeds), in_runtime(model.path, model.feeds)) < 1e-5


def test_a_clone_can_be_mutated(zoo: Build) -> None:
    loaded = models.load(zoo("bert", "torchscript", "sdpa").path)
    before = ir.to_proto(loaded.ir).SerializeToString()
    clone = loaded.clone()
    node = next(iter(clone.graph))
    node.op_type = "Changed"
    clone.graph.initializers.clear()
    assert ir.to_proto(loaded.ir).SerializeToString() == before


def test_normalised_names_are_unique_and_vectors_have_one_reader(zoo: Build) -> None:
    for family in ("bert", "llama", "deberta-v2"):
        graph = models.load(zoo(family, "torchscript", "eager").path).graph
        names = [n.name for n in graph]
        assert all(names) and len(set(names)) == len(names)
        for value in graph.initializers.values():
            assert value.const_value is not None
            if len(value.const_value.shape) <= 1:
                assert len(value.uses()) <= 1, value.name


def test_a_graph_without_nodes_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"empty\.onnx: not an ONNX file"):
        models.load(tmp_path / "empty.onnx")


def test_a_folder_of_several_graphs_says_which_and_how_to_choose(tmp_path: Path) -> None:
    for name in ("text_model.onnx", "vision_model.onnx"):
        (tmp_path / name).write_bytes(b"x" * 2_000_000)
    with pytest.raises(UnsupportedError) as raised:
        models.find(tmp_path)
    said = str(raised.value)
    assert "vision_model.onnx (2.0 MB)" in said
    assert f"as in {tmp_path / 'text_model.onnx'}" in said
    (tmp_path / "model.onnx").touch()
    assert models.find(tmp_path) == tmp_path / "model.onnx"


def test_graphs_of_one_decoder_are_known_by_their_names(tmp_path: Path) -> None:
    names = ("encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged")
    for name in (*names, "decoder_model_quantized", "decoder_with_past_model_quantized"):
        (tmp_path / f"{name}.onnx").touch()
    found = {f.stem for f in models.relatives(tmp_path / "decoder_model.onnx")}
    assert found == {"decoder_with_past_model", "decoder_model_merged"}
    assert [f.stem for f in models.relatives(tmp_path / "decoder_model_quantized.onnx")] == [
        "decoder_with_past_model_quantized"
    ]
    assert models.relatives(tmp_path / "encoder_model.onnx") == []
    graph = ir.Graph([], [], nodes=[])
    (warned,) = left_behind(models.Model(ir.Model(graph, ir_version=8), tmp_path / "decoder_model.onnx", ""))
    assert "decoder_with_past_model.onnx" in warned and "prune the folder" in warned
