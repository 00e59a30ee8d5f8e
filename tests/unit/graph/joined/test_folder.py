"""Tests of folders of several graphs: what is one job, what is refused, and in which words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folders import BEHIND, DECODER, ENCODER, folder
from graphs import written
from plans import in_runtime

from onnxprune.errors import ModelError, UnsupportedError, UsageError
from onnxprune.graph import joined, runtime
from onnxprune.graph import model as models
from onnxprune.graph.joined.folder import members

TOWER = """
<ir_version: 8, opset_import: ["" : 17]>
tower (float[batch, 8] {name}) => (float[batch, 4] {name}_embeds) {{
    wide = MatMul({name}, up)
    active = Relu(wide)
    down_ = MatMul(active, down)
    {name}_embeds = MatMul(down_, projection)
}}
"""


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    place = tmp_path / "towers"
    place.mkdir()
    for name in ("text", "image"):
        shapes = {"up": (8, 16), "down": (16, 8), "projection": (8, 4)}
        written(tmp_path, TOWER.format(name=name), shapes).rename(place / f"{name}_model.onnx")
    return place


def test_graphs_of_one_folder_are_one_and_come_apart_again(towers: Path) -> None:
    whole = joined.load(towers)
    assert [spec.name for spec in whole.outputs] == ["image_embeds", "text_embeds"]
    # Both were given the same weights: what is equal is one tensor.
    assert len(whole.graph.initializers) == 3
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    for part in whole.parts:
        alone = joined.split(whole.normal, part)
        (output,) = in_runtime(alone, {part.file.stem.removesuffix("_model"): x}).values()
        expected = in_runtime(part.file, {part.file.stem.removesuffix("_model"): x})
        assert np.allclose(output, next(iter(expected.values())))
        assert {v.name for v in alone.graph.initializers.values()} == {"up", "down", "projection"}


def test_a_graph_whose_output_is_its_input_keeps_both(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    place.mkdir()
    for name in ("one", "two"):
        text = f"""
            <ir_version: 8, opset_import: ["" : 17]>
            graph (float[batch, 8] {name}) => (float[batch, 8] {name}_out, float[batch, 8] {name}_same) {{
                {name}_out = MatMul({name}, w)
                {name}_same = Identity({name})
            }}
        """
        written(tmp_path, text, {"w": (8, 8)}).rename(place / f"{name}.onnx")
    whole = joined.load(place)
    x = np.ones((3, 8), np.float32)
    for part in whole.parts:
        found = in_runtime(joined.split(whole.normal, part), {part.file.stem: x})
        assert np.array_equal(found[f"{part.file.stem}_same"], x)


def test_one_graph_in_several_forms_is_no_job(towers: Path) -> None:
    shutil.copy(towers / "text_model.onnx", towers / "text_other.onnx")
    with pytest.raises(UnsupportedError, match="one graph in two forms"):
        joined.load(towers)
    (towers / "text_other.onnx").unlink()
    shutil.copy(towers / "text_model.onnx", towers / "text_model_quantized.onnx")
    found, (said,) = members(towers)
    assert [f.name for f in found] == ["image_model.onnx", "text_model.onnx"]
    assert "text_model_quantized.onnx" in said and "left out" in said


def test_of_a_merged_decoder_and_those_it_holds_one_form_is_cut_and_the_other_said(tmp_path: Path) -> None:
    for name in (ENCODER, DECODER, BEHIND, "decoder_model_merged.onnx"):
        (tmp_path / name).touch()
    found, (said,) = members(tmp_path)
    assert [f.name for f in found] == [DECODER, BEHIND, ENCODER]
    assert "decoder_model_merged.onnx: is not cut, and not written" in said
    (tmp_path / BEHIND).unlink()
    found, (said,) = members(tmp_path)
    assert [f.name for f in found] == ["decoder_model_merged.onnx", ENCODER]
    assert f"{DECODER}: is not cut, and not written" in said


def test_a_merged_decoder_of_another_form_is_refused_with_what_to_do(towers: Path) -> None:
    (towers / "text_model.onnx").rename(towers / "text_model_merged.onnx")
    with pytest.raises(UnsupportedError, match="--no-post-process"):
        joined.load(towers)


def test_a_decoder_of_another_model_is_refused(store: Path, tmp_path: Path) -> None:
    place = tmp_path / "mixed"
    shutil.copytree(folder("bart", store), place)
    proto = onnx.load(place / BEHIND)
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 2 and t.data_type == 1)
    weight.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(proto, place / BEHIND)
    with pytest.raises(UnsupportedError, match=r"1 of its matrices are not among that one's"):
        joined.load(place)


def test_graphs_of_two_opsets_are_not_one(towers: Path) -> None:
    model = ir.load(towers / "text_model.onnx")
    model.graph.opset_imports[""] = 18
    ir.save(model, towers / "text_model.onnx")
    with pytest.raises(UnsupportedError, match="export them with one opset"):
        joined.load(towers)


def test_what_is_done_to_one_graph_says_so_of_a_folder(towers: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"take\s+the folder as one"):
        models.find(towers)
    assert joined.find(towers) == towers
    with pytest.raises(UsageError, match="--calls"):
        joined.load(towers / "text_model.onnx", {"text_model": 2})
    with pytest.raises(UsageError, match=r"--calls other: the folder's graphs are image_model, text_model"):
        joined.load(towers, {"other": 2})


def test_nodes_without_names_are_no_two_of_one_name(towers: Path) -> None:
    for file in towers.glob("*.onnx"):
        model = onnx.load(file)
        for node in model.graph.node:
            node.name = ""
        onnx.save(model, file)
    x = np.ones((2, 8), np.float32)
    assert len(runtime.run(runtime.session(joined.opened(towers).file), {"text": x, "image": x})) == 2


def test_what_is_wrong_with_one_of_several_graphs_is_said_of_its_file(towers: Path) -> None:
    model = onnx.load(towers / "text_model.onnx")
    for node in model.graph.node:
        node.name = "same"
    onnx.save(model, towers / "text_model.onnx")
    loaded = joined.load(towers)
    for whole in (loaded.path, joined.opened(towers).file):
        assert whole is not None
        with pytest.raises(ModelError, match=f"^{towers}/text_model.onnx: .*two nodes with same node name"):
            runtime.session(whole)
