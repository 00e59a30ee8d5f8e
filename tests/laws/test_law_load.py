"""Law: loading changes nothing that is computed, at whatever sizes the file runs.

The file in ONNX Runtime beside the loaded graph, written out, in ONNX Runtime. Dimensions that only carry the same
size by chance, and those that may be 1, are drawn apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zoo as exports
from graphs import written
from plans import distance, in_runtime
from zoo import ZooModel

from onnxprune.graph import model as models

Build = Callable[..., ZooModel]

VARIANTS: tuple[tuple[str, exports.Exporter, exports.Attention], ...] = (
    ("bert", "torchscript", "eager"),
    ("bert", "dynamo", "sdpa"),
    ("gpt2", "torchscript", "sdpa"),
    ("llama", "dynamo", "sdpa"),
    ("deberta-v2", "torchscript", "eager"),
    ("vit", "dynamo", "eager"),
    ("resnet", "torchscript", "eager"),
)


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_an_export_computes_what_it_did(zoo: Build, variant: tuple[str, exports.Exporter, exports.Attention]) -> None:
    model = zoo(*variant)
    loaded = models.load(model.path).ir
    text = "input_ids" in model.inputs
    for batch, tokens in ((1, 1), (3, 9), (1, 17), (2, 2)):
        feeds = model.sample(batch, tokens if text else None, seed=batch)
        assert distance(in_runtime(loaded, feeds), in_runtime(model.path, feeds)) < 1e-4


SQUEEZED = """<ir_version: 8, opset_import: ["" : 15]>
g (float[B, 2, L] x, float[4, 2, 3] w, float[4, 4] v) => (float y)
<int64 last = {-1}, int64 one = {1}> {
  c = Conv<strides = [8]>(x, w)
  s = Shape(c)
  n = Gather<axis = 0>(s, last)
  is_one = Equal(n, one)
  z = If(is_one) <
    then_branch = short () => (float a) { axes = Constant<value = int64[1] {-1}>() a = Squeeze(c, axes) },
    else_branch = long () => (float b) { b = Identity(c) }
  >
  y = MatMul(z, v)
}"""
"""torch's `squeeze(-1)` of a dimension that is 1 at some lengths."""

TWO_WAYS = """<ir_version: 8, opset_import: ["" : 15]>
g (float[B, 2, L] x, float[4, 2, 3] w) => (float[B, 4, n] y)
<int64 last = {-1}, int64 one = {1}> {
  c = Conv<strides = [8]>(x, w)
  s = Shape(c)
  n = Gather<axis = 0>(s, last)
  is_one = Equal(n, one)
  y = If(is_one) <
    then_branch = one_way () => (float[B, 4, n] a) { a = Neg(c) },
    else_branch = other_way () => (float[B, 4, n] b) { b = Abs(c) }
  >
}"""

MET = """<ir_version: 8, opset_import: ["" : 15]>
g (float[A, N, 6] x, float[C, M, 6] m) => (float[D, K] y) {
  z = Add(x, m)
  s = Shape(x)
  zero = Constant<value = int64 {0}>()
  one = Constant<value = int64 {1}>()
  first = Constant<value = int64[1] {0}>()
  a = Gather<axis = 0>(s, zero)
  b = Unsqueeze(a, first)
  rest = Constant<value = int64[1] {-1}>()
  target = Concat<axis = 0>(b, rest)
  y = Reshape(z, target)
}"""
"""A mask with a batch of its own, which may be 1, or the only one that is not."""

EXPANDED = """<ir_version: 8, opset_import: ["" : 15]>
g (float[A, 6] x, float[C, 6] m) => (float[D, 6] y) {
  z = Mul(x, m)
  s = Shape(m)
  e = Expand(z, s)
  t = Shape(x)
  same = Equal(s, t)
  factor = Cast<to = 1>(same)
  total = ReduceSum<keepdims = 0>(factor)
  y = Mul(e, total)
}"""

SLICED = """<ir_version: 8, opset_import: ["" : 15]>
g (float[A, 6] x, float[C, 6] m) => (float[D] y)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] all = {-1}> {
  s = Shape(m)
  end = Slice(s, zero, one)
  cut = Slice(x, zero, end, zero)
  t = Shape(cut)
  n = Slice(t, zero, one)
  ones = ConstantOfShape<value = float[1] {1}>(n)
  flat = Reshape(cut, all)
  total = ReduceSum(ones)
  y = Mul(flat, total)
}"""
"""A slice whose end may lie behind the dimension that it cuts."""


LOOPED = """<ir_version: 8, opset_import: ["" : 15]>
g (float[B, 4] x, float[4, 4] u, float[4, 4] v) => (float[B, 4] y) {
  s = Shape(x)
  zero = Constant<value = int64 {0}>()
  times = Gather<axis = 0>(s, zero)
  yes = Constant<value = bool {1}>()
  h = MatMul(x, u)
  y = Loop(times, yes, h) <body = turn (int64 i, bool go, float[B, 4] a) => (bool on, float[B, 4] b) {
    on = Identity(go)
    m = MatMul(a, v)
    b = Tanh(m)
  }>
}"""
"""A body that runs as often as there are rows, with a matrix from outside."""

SCANNED = """<ir_version: 8, opset_import: ["" : 15]>
g (float[T, 4] x, float[4, 4] u, float[4, 4] v) => (float[4] last, float[T, 4] y) {
  h = MatMul(x, u)
  zero = Constant<value = int64[1] {0}>()
  first = Constant<value = int64 {0}>()
  start = Gather<axis = 0>(v, first)
  last, y = Scan<num_scan_inputs = 1, body = step (float[4] a, float[4] r) => (float[4] b, float[4] out) {
    sum = Add(a, r)
    b = Tanh(sum)
    out = Identity(b)
  }>(start, h)
}"""

CHOSEN = """<ir_version: 8, opset_import: ["" : 15]>
g (float[B, 4] x, float[4, 4] u, float[4, 4] v) => (float[B, 4] y) {
  s = Shape(x)
  zero = Constant<value = int64 {0}>()
  two = Constant<value = int64 {2}>()
  n = Gather<axis = 0>(s, zero)
  few = Less(n, two)
  h = MatMul(x, u)
  y = If(few) <
    then_branch = a () => (float[B, 4] p) { q = MatMul(h, v)  p = Tanh(q) },
    else_branch = b () => (float[B, 4] r) { q2 = MatMul(h, v)  r = Neg(q2) }
  >
}"""
"""One matrix for both ways, as merged decoders have it."""

WEIGHTS = {"w": (4, 2, 3), "u": (4, 4), "v": (4, 4)}
ANY = (1, 3)
CASES: dict[str, tuple[str, list[dict[str, tuple[int, ...]]]]] = {
    "squeezed": (SQUEEZED, [{"x": (2, 2, n)} for n in (5, 8, 30)]),
    "two ways": (TWO_WAYS, [{"x": (2, 2, n)} for n in (5, 8, 40, 64)]),
    "met": (MET, [{"x": (a, n, 6), "m": (c, m, 6)} for a in ANY for c in ANY for n in ANY for m in ANY]),
    "expanded": (EXPANDED, [{"x": (a, 6), "m": (c, 6)} for a in ANY for c in ANY]),
    "looped": (LOOPED, [{"x": (n, 4)} for n in (1, 2, 3)]),
    "scanned": (SCANNED, [{"x": (n, 4)} for n in (1, 2, 3)]),
    "chosen": (CHOSEN, [{"x": (n, 4)} for n in (1, 2, 3)]),
    "sliced": (SLICED, [{"x": (a, 6), "m": (c, 6)} for a in (1, 3) for c in (1, 2, 4)]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_sizes_decide_at_run_time_they_still_decide(name: str, tmp_path: Path) -> None:
    text, shapes = CASES[name]
    source = written(tmp_path, text, {k: v for k, v in WEIGHTS.items() if f"] {k}" in text}, check=False)
    loaded = models.load(source).ir
    rng = np.random.default_rng(0)
    ran = 0
    for sizes in shapes:
        feeds = {value: rng.normal(size=shape).astype(np.float32) for value, shape in sizes.items()}
        try:
            wanted = in_runtime(source, feeds)
        except Exception:
            continue
        assert distance(in_runtime(loaded, feeds), wanted) < 1e-5, sizes
        ran += 1
    assert ran >= 3
