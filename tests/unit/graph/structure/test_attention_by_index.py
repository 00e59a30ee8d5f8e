"""Attention that writes, sorts, sums up or pads along one axis: its heads go all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import agreed, written
from plans import Subject

HEAD = '<ir_version: 9, opset_import: ["" : 19]> attention (float[n,5,8] x{more}) => (float[n,5,8] y) {{ '
TAIL = """
    flat = Constant<value_ints = [0,0,32]>()
    back = Transpose<perm = [0,2,1,3]>(o)
    joined = Reshape(back, flat)
    z = MatMul(joined, wo)
    y = Add(x, z)
}"""
CACHED = """
    places = Constant<value = int64[5,1] {0,1,2,3,4}>()
    rows = Shape<start = 0, end = 1>(x)
    room = Constant<value_ints = [9]>()
    heads = Constant<value_ints = [4,8]>()
    size = Concat<axis = 0>(room, rows, heads)
    empty = ConstantOfShape(size)
    kt = Transpose<perm = [2,0,1,3]>(k)
    kc = ScatterND(empty, places, kt)
    vt = Transpose<perm = [2,0,1,3]>(v)
    vc = ScatterND(empty, places, vt)
    keys = Transpose<perm = [1,2,3,0]>(kc)
    values = Transpose<perm = [1,2,0,3]>(vc)
    a = MatMul(q, keys)
    p = Softmax<axis = -1>(a)
    o = MatMul(p, values)"""
TURNED = "keys = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, keys) "
SUMMED = f"""
    {TURNED}
    b = Sigmoid(a)
    last = Constant<value = int64 {{3}}>()
    c = CumSum<exclusive = 1>(b, last)
    e = Neg(c)
    f = Exp(e)
    m = Mul(b, f)
    p = Trilu<upper = 0>(m)
    o = MatMul(p, v)"""
BEST = f"""
    {TURNED}
    two = Constant<value_ints = [2]>()
    top, at = TopK<axis = -1>(a, two)
    none = Sub(a, a)
    share = Softmax<axis = -1>(top)
    p = ScatterElements<axis = 3>(none, at, share)
    o = MatMul(p, v)"""
PADDED = """
    more = Constant<value_ints = [0,0,0,0,0,0,0,3]>()
    qp = Pad(q, more)
    kp = Pad(k, more)
    keys = Transpose<perm = [0,1,3,2]>(kp)
    a = MatMul(qp, keys)
    p = Softmax<axis = -1>(a)
    o = MatMul(p, v)"""
FORMS = {"cached": CACHED, "summed": SUMMED, "best": BEST, "padded": PADDED}


@pytest.mark.parametrize("form", FORMS)
def test_heads_go(form: str, tmp_path: Path) -> None:
    weights = {"wq": (8, 32), "wk": (8, 32), "wv": (8, 32), "wo": (32, 8)}
    parts = "".join(
        f"{n}0 = MatMul(x, w{n}) {n}s = Constant<value_ints = [0,0,4,8]>() {n}1 = Reshape({n}0, {n}s) "
        f"{n} = Transpose<perm = [0,2,1,3]>({n}1) "
        for n in "qkv"
    )
    text = HEAD.format(more="".join(f", float{list(shape)} {name}" for name, shape in weights.items()))
    subject = Subject.load(written(tmp_path, text + parts + FORMS[form] + TAIL, weights))
    assert [g.shape for g in subject.structure.groups if g.kind == "heads"] == [(4,)]
    agreed(subject, {"x": np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)})
