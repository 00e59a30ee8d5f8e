"""Laws 1 and 2 on the convolutions that are not plain: transposed, grouped, of volumes; shared slopes; Einsum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from graphs import agreed, written
from plans import Subject, distance, in_runtime

import onnxprune
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.sites import find_sites
from onnxprune.measure.cost import Costs

HEAD = '<ir_version: 9, opset_import: ["" : 19]> main '
GRAPHS: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...], set[int]]] = {
    "transposed": (
        "(float[n,4,h,w] x) => (float[n,4,oh,ow] y) { a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) "
        "c = ConvTranspose<strides=[2,2]>(b, w2) d = Relu(c) y = Conv(d, w3) }",
        {"w1": (12, 4, 3, 3), "w2": (12, 8, 2, 2), "w3": (4, 8, 1, 1)},
        (2, 4, 5, 6),
        {12, 8},
    ),
    "volume": (
        "(float[n,2,d,h,w] x) => (float[n,3,od,oh,ow] y) { a = Conv(x, w1) b = Relu(a) "
        "y = Conv<strides=[2,1,1]>(b, w2) }",
        {"w1": (8, 2, 2, 2, 2), "w2": (3, 8, 2, 3, 2)},
        (2, 2, 5, 6, 5),
        {8},
    ),
    "grouped": (
        "(float[n,4,h,w] x) => (float[n,4,oh,ow] y) { a = Conv(x, w1) b = Relu(a) c = Conv<group=3>(b, w2) d = Relu(c) "
        "y = Conv(d, w3) }",
        {"w1": (12, 4, 1, 1), "w2": (15, 4, 3, 3), "w3": (4, 15, 1, 1)},
        (2, 4, 5, 6),
        {3, 4, 5},
    ),
    "slopes": (
        "(float[n,4,h,w] x) => (float[n,4,h,w] y) { a = Conv(x, w1) b = PRelu(a, s) c = Conv(b, w2) d = PRelu(c, s) "
        "y = Conv(d, w3) }",
        {"w1": (8, 4, 1, 1), "s": (8, 1, 1), "w2": (8, 8, 1, 1), "w3": (4, 8, 1, 1)},
        (2, 4, 5, 6),
        {8},
    ),
    "resized": (  # to sizes of which the first two are those of what is resized, as torch writes interpolate
        "(float[n,4,h,w] x) => (float[n,4,oh,ow] y) { a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) "
        "zero = Constant<value_ints=[0]>() two = Constant<value_ints=[2]>() four = Constant<value_ints=[4]>() "
        "s = Shape(b) lead = Slice(s, zero, two, zero) t = Shape(x) space = Slice(t, two, four, zero) "
        "wide = Mul(space, two) size = Concat<axis=0>(lead, wide) "
        'c = Resize<mode="linear">(b, , , size) y = Conv(c, w2) }',
        {"w1": (12, 4, 3, 3), "w2": (4, 12, 1, 1)},
        (2, 4, 5, 6),
        {12},
    ),
    "padded": (  # by channels of zeros, as PyTorch writes how many
        "(float[n,4,h,w] x) => (float[n,4,h,w] y) { a = Conv(x, w1) b = Relu(a) "
        "told = Constant<value_ints=[0,0,0,0,2,6]>() two = Constant<value_ints=[2]>() "
        "none = ConstantOfShape<value = int64[1] {0}>(two) all = Concat<axis=0>(told, none) "
        "pairs = Constant<value_ints=[-1,2]>() by = Reshape(all, pairs) back = Constant<value_ints=[-1]>() "
        "front = Constant<value_ints=[-9223372036854775807]>() zero = Constant<value_ints=[0]>() "
        "turned = Slice(by, back, front, zero, back) ends = Transpose<perm=[1,0]>(turned) pads = Reshape(ends, back) "
        "c = Pad(b, pads) d = Conv(x, w2) e = Add(c, d) f = Relu(e) y = Conv(f, w3) }",
        {"w1": (8, 4, 1, 1), "w2": (16, 4, 1, 1), "w3": (4, 16, 1, 1)},
        (2, 4, 5, 6),
        {2, 6, 8},
    ),
    "deformed": (
        "(float[n,4,h,w] x) => (float[n,4,h,w] y) { a = Conv(x, w1) b = Relu(a) o = Conv<pads=[1,1,1,1]>(x, w2) "
        "c = DeformConv<pads=[1,1,1,1]>(b, w3, o) d = Relu(c) y = Conv(d, w4) }",
        {"w1": (8, 4, 1, 1), "w2": (18, 4, 3, 3), "w3": (10, 8, 3, 3), "w4": (4, 10, 1, 1)},
        (2, 4, 5, 6),
        {8, 10},
    ),
    "einsum": (
        '(float[n,t,6] x) => (float[n,t,4] y) { a = Einsum<equation="ntd,dhk->nthk">(x, w1) b = Relu(a) '
        'y = Einsum<equation="nthk,hkm->ntm">(b, w2) }',
        {"w1": (6, 3, 5), "w2": (3, 5, 4)},
        (2, 7, 6),
        {3, 5},
    ),
}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_cut_is_gated(tmp_path: Path, name: str) -> None:
    text, weights, shape, sizes = GRAPHS[name]
    subject = Subject.load(written(tmp_path, HEAD + text, weights))
    assert {g.shape[-1] for g in subject.structure.groups} == sizes
    agreed(subject, {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)})


@pytest.mark.parametrize("method", ["obs", "magnitude", "fisher"])
@pytest.mark.parametrize("name", list(GRAPHS))
def test_dead_units_leave_unnoticed(tmp_path: Path, name: str, method: str) -> None:
    """The first units of every site are killed where they are read; they are what goes."""
    text, weights, shape, _ = GRAPHS[name]
    path = written(tmp_path, HEAD + text, weights)
    subject = Subject.load(path)
    sites = find_sites(subject.model.graph, subject.structure, ("channels", "neurons"))
    site = next((s for s in sites if not s.group.context and s.matrices), None)
    assert site is not None
    alive = tuple(range(2, site.group.size))
    plan = Plan(subject.structure.digest, {site.id: alive})
    kill(subject, path, plan)
    costs = Costs(subject.model, subject.structure, dict.fromkeys(("n", "t", "h", "w", "d"), 6))
    live = costs.macs(plan) / costs.macs()
    rng = np.random.default_rng(1)
    rows = [{"x": rng.standard_normal((1, *shape[1:])).astype(np.float32)} for _ in range(12)]
    sizes = dict.fromkeys({"n", "t", "h", "w", "d"} & names(subject), 6)
    result = onnxprune.prune(
        path, flops=live + 0.02, calibration=rows, method=method, round_to=1, compensate=False,
        units=(site.group.kind,), include=(site.id,), measure_latency=False, shape=sizes,
    )  # fmt: skip
    assert set(alive) <= set(result.plan.keep[site.id])
    feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
    assert distance(in_runtime(result.model, feeds), in_runtime(path, feeds)) < 1e-4


def names(subject: Subject) -> set[str]:
    return {str(d) for spec in subject.model.inputs for d in spec.shape}


def kill(subject: Subject, path: Path, plan: Plan) -> None:
    """Write the file with the readers' weights zeroed for what the plan leaves out."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(path)
    held = {t.name: t for t in proto.graph.initializer}
    (site,) = plan.keep
    gone = [u for u in range(subject.structure.group(site).size) if u not in plan.keep[site]]
    sites = find_sites(subject.model.graph, subject.structure, (subject.structure.group(site).kind,))
    for matrix in next(s for s in sites if s.id == site).matrices:
        tensor = held[matrix.reader.weight or ""]
        array = numpy_helper.to_array(tensor)
        flat = matrix.weight(array).copy()
        flat[np.isin(matrix.units, gone)] = 0
        tensor.CopyFrom(numpy_helper.from_array(matrix.restore(flat, array.shape).astype(np.float32), tensor.name))
    onnx.save(proto, path)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


BEHIND = """
<ir_version: 9, opset_import: ["" : 19]>
behind (float[n,4,6,6] x) => (float[n,3] y) {
    off = Conv<pads = [1,1,1,1]>(x, w0)
    last = Constant<value_int = 3>()
    sums = CumSum(off, last)
    a = Conv<pads = [1,1,1,1]>(sums, w1)
    b = Relu(a)
    c = Conv(b, w2)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    y = MatMul(f, w3)
}
"""


@pytest.mark.parametrize("method", ["taylor", "fisher", "platon", "optin"])
def test_rows_go_one_by_one_where_nothing_says_which_axis_is_theirs(tmp_path: Path, method: str) -> None:
    """Behind sums along an axis, which are not cut through."""
    shapes = {"w0": (18, 4, 3, 3), "w1": (8, 18, 3, 3), "w2": (12, 8, 1, 1), "w3": (12, 3)}
    path = written(tmp_path, BEHIND, shapes)
    rng = np.random.default_rng(0)
    rows = [{"x": rng.standard_normal((4, 6, 6)).astype(np.float32)} for _ in range(16)]
    result = onnxprune.prune(
        path, flops=0.9, calibration=rows, method=method, units=("channels", "neurons"), search="rank",
        measure_latency=False,
    )  # fmt: skip
    assert result.plan.keep
