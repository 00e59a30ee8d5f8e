"""Graphs without the rounding of activations: nothing is left that the last digit of a sum decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import written

from onnxprune.graph import model as models
from onnxprune.measure.unrounded import unrounded, unrounded_file
from onnxprune.probe.interpreter import Interpreter

TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
net (float[n, 4, t] x) => (float[n, 6, 5] y)
    <float scale = {0.05}, uint8 zero = {100}, int64[6] pads = {0, 0, 0, 0, 0, 2}, uint8 filled = {110}> {
    codes = QuantizeLinear (x, scale, zero)
    wide = Pad (codes, pads%s)
    both = Concat <axis = 1> (wide, wide)
    turned = Transpose <perm = [0, 2, 1]> (both)
    numbers = DequantizeLinear (turned, scale, zero)
    z = MatMul (numbers, w)
    back = Transpose <perm = [0, 2, 1]> (z)
    least = Constant <value_ints = [0]> ()
    most = Constant <value_ints = [6]> ()
    along = Constant <value_ints = [2]> ()
    a = Slice (back, least, most, along)
    y = Transpose <perm = [0, 2, 1]> (a)
}
"""


@pytest.mark.parametrize("code", [None, 110])
def test_codes_that_are_moved_about_are_numbers_too(tmp_path: Path, code: int | None) -> None:
    """A padded, joined and turned activation was rounded still: one step apart here and there."""
    text = TEXT.replace("%s", "" if code is None else ", filled")
    path = written(tmp_path, text, {"w": (8, 5)}, check=False)
    dense = models.load(path)
    found = unrounded(dense.normal)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in found.graph}
    x = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32)
    edge = ((0 if code is None else code) - 100) * 0.05
    padded = np.pad(x, ((0, 0), (0, 0), (0, 2)), constant_values=edge)
    w = dense.graph.initializers["w"].const_value
    assert w is not None
    wanted = np.concatenate([padded, padded], 1).transpose(0, 2, 1) @ w.numpy()
    assert np.allclose(Interpreter(found.graph).run({"x": x})["y"].numpy(), wanted, atol=1e-5)
    with unrounded_file(path) as copy:
        assert np.allclose(Interpreter(models.load(copy).graph).run({"x": x})["y"].numpy(), wanted, atol=1e-5)
