"""Global response normalisation: its mean over channels is a sum over what there was, so that channels can go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import agreed, written
from plans import Subject, distance, in_runtime

from onnxprune.graph import model as models

HEAD = '<ir_version: 8, opset_import: ["" : {opset}]> net '
BLOCK = """(float[n, 3, h, w] x) => (float[n, 3, h, w] y) {
    wide = Conv (x, up)
    act = Relu (wide)
    size = %s
    mean = %s
    tiny = Constant <value = float {0.000001}> ()
    below = Add (mean, tiny)
    share = Div (size, below)
    scaled = Mul (act, share)
    both = Add (scaled, act)
    back = Conv (both, down)
    y = Add (x, back)
}
"""
OLD = "ReduceL2 <axes = [2, 3]> (act)", "ReduceMean <axes = [1]> (size)"
NEW = "ReduceL2 (act, space)", "ReduceMean (size, channel)"
GIVEN = "space = Constant <value_ints = [2, 3]> () channel = Constant <value_ints = [1]> () wide = Conv"


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_channels_of_a_response_normalisation_go(tmp_path: Path, opset: int) -> None:
    text = BLOCK % (OLD if opset < 18 else NEW)
    text = text.replace("wide = Conv", GIVEN) if opset == 18 else text
    text = text.replace("tiny = Constant <value = float {0.000001}> ()", "") if opset < 13 else text
    weights: dict[str, tuple[int, ...]] = {"up": (16, 3, 1, 1), "down": (3, 16, 1, 1)}
    if opset < 13:
        weights["tiny"] = (1,)
    path = written(tmp_path, HEAD.format(opset=opset) + text, weights)
    subject = Subject.load(path)
    assert [g.shape for g in subject.structure.groups] == [(16,)]
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 3, 5, 6)).astype(np.float32)}
    assert distance(subject.dense(feeds), in_runtime(path, feeds)) < 1e-5
    agreed(subject, feeds)


@pytest.mark.parametrize(
    "mean",
    [
        "below = Sub (size, mean) tiny = Relu (below)",  # centred: what is gone would not be zero
        "below = Add (mean, act) tiny = Relu (below)",
    ],
)
def test_other_means_stay(tmp_path: Path, mean: str) -> None:
    text = (BLOCK % OLD).replace("tiny = Constant <value = float {0.000001}> ()", "")
    text = text.replace("below = Add (mean, tiny)", mean)
    path = written(tmp_path, HEAD.format(opset=17) + text, {"up": (16, 3, 1, 1), "down": (3, 16, 1, 1)})
    subject = Subject.load(path)
    assert not subject.structure.groups
    assert "ReduceMean" in {n.op_type for n in subject.model.graph}


def test_what_is_rounded_between_goes_no_less(tmp_path: Path) -> None:
    text = HEAD.format(opset=17) + BLOCK % OLD
    rounded = "codes = QuantizeLinear (size, grid) sized = DequantizeLinear (codes, grid) mean = ReduceMean"
    text = text.replace("mean = ReduceMean", rounded).replace("<axes = [1]> (size)", "<axes = [1]> (sized)")
    path = written(tmp_path, text, {"up": (16, 3, 1, 1), "down": (3, 16, 1, 1), "grid": (1,)}, check=False)
    proto = onnx.load(path)
    grid = next(t for t in proto.graph.initializer if t.name == "grid")
    grid.CopyFrom(onnx.numpy_helper.from_array(np.asarray(0.1, np.float32), "grid"))
    onnx.save(proto, path)
    assert [g.shape for g in Subject.load(path).structure.groups] == [(16,)]


def test_what_other_nodes_read_is_no_axes(tmp_path: Path) -> None:
    """Weights that are not numbers are told where they are looked for, and large ones are not gone through here."""
    text = HEAD.format(opset=17) + "(float[n, 4] x) => (float[n, 3] y) { y = MatMul (x, w) }"
    path = written(tmp_path, text, {"w": (4, 3)})
    proto = onnx.load(path)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((4, 3), np.nan, np.float32), "w"))
    onnx.save(proto, path)
    assert models.load(path).graph.num_nodes() == 1
