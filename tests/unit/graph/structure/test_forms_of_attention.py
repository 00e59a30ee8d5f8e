"""Graphs cut down to what made an architecture hard: each is a law about a form, not about the model it was seen in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from graphs import agreed, written
from plans import Subject

from onnxprune.measure.cost import Costs

RNG = np.random.default_rng(3)
HEAD = '<ir_version: 9, opset_import: ["" : 17]>\n'


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def sizes(subject: Subject) -> dict[str, list[tuple[int, ...]]]:
    """Kind -> shapes of its groups."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for group in subject.structure.groups:
        found.setdefault(group.kind, []).append(group.shape)
    return found


def test_one_key_head_for_all_queries(tmp_path: Path) -> None:
    """Multi-query attention of one packed projection: keys and values are single indices among the query heads'."""
    text = (
        HEAD
        + """
    mqa (float[N, T, 8] x, float[8, 24] w, float[16, 8] o) => (float[N, T, 8] y) {
        packed = MatMul(x, w)
        shape = Constant<value_ints = [0, 0, 6, 4]>()
        parts = Reshape(packed, shape)
        zero = Constant<value_ints = [0]>()
        four = Constant<value_ints = [4]>()
        two = Constant<value_ints = [2]>()
        q = Slice(parts, zero, four, two)
        fifth = Constant<value_ints = [-2]>()
        last = Constant<value_int = -1>()
        k = Gather<axis = 2>(parts, fifth)
        single = Gather<axis = 2>(parts, last)
        v = Unsqueeze(single, two)
        qt = Transpose<perm = [0, 2, 1, 3]>(q)
        kt = Transpose<perm = [0, 2, 3, 1]>(k)
        vt = Transpose<perm = [0, 2, 1, 3]>(v)
        s = MatMul(qt, kt)
        p = Softmax(s)
        m = MatMul(p, vt)
        mt = Transpose<perm = [0, 2, 1, 3]>(m)
        flat = Constant<value_ints = [0, 0, -1]>()
        joined = Reshape(mt, flat)
        y = MatMul(joined, o)
    }"""
    )
    subject = Subject.load(written(tmp_path, text, {"w": (8, 24), "o": (16, 8)}))
    assert sizes(subject) == {"heads": [(4,)], "head_dims": [(4,)]}
    agreed(subject, {"x": floats(2, 3, 8)})


def test_a_sum_names_its_axes_and_is_no_product(tmp_path: Path) -> None:
    text = (
        HEAD
        + """
    pooled (float[N, 8] x, float[8, 16] w, float[16, 3] v) => (float[N, 1] y, float[N, 3] z) {
        h = MatMul(x, w)
        a = Relu(h)
        axes = Constant<value_ints = [1]>()
        y = ReduceSum(a, axes)
        z = MatMul(a, v)
    }"""
    )
    subject = Subject.load(written(tmp_path, text, {"w": (8, 16), "v": (16, 3)}))
    (group,) = subject.structure.groups
    assert [r.weight for r in group.readers] == [None, "v"]
    assert group.kind == "neurons"
    agreed(subject, {"x": floats(3, 8)})


def test_an_einsum_contracts_heads_and_dimensions_with_axes_of_their_own(tmp_path: Path) -> None:
    """XLNet's projections are of rank 3."""
    text = (
        HEAD
        + """
    projected (float[N, T, 8] x, float[8, 4, 6] w, float[8, 4, 6] o) => (float[N, T, 8] y) {
        h = Einsum<equation = "bth,hnd->btnd">(x, w)
        a = Relu(h)
        y = Einsum<equation = "btnd,hnd->bth">(a, o)
    }"""
    )
    subject = Subject.load(written(tmp_path, text, {"w": (8, 4, 6), "o": (8, 4, 6)}))
    assert {g.shape[-1]: g.readers[0].weight_axis for g in subject.structure.groups} == {4: 1, 6: 2}
    agreed(subject, {"x": floats(2, 3, 8)})


ALIBI = (
    HEAD
    + """
    alibi (float[B, T, 8] x, float[8, 8] a, float[8, 8] b, float[8, 8] c, float[8, 8] d, float[4, 1] slopes)
        => (float[B, T, 8] y) {{
        shape = Shape(x)
        first = Constant<value_int = 1>()
        zero = Constant<value_int = 0>()
        none = Constant<value_ints = [0]>()
        length = Gather(shape, first)
        places = Range(zero, length, first)
        real = Cast<to = 1>(places)
        bias = Mul(slopes, real)
        {table}
        heads = Constant<value_ints = [0, 0, 4, 2]>()
        flat = Constant<value_ints = [0, 0, 8]>()
        {layers}
    }}"""
)
LAYER = """
        q{i} = MatMul({x}, {w})
        qs{i} = Reshape(q{i}, heads)
        qt{i} = Transpose<perm = [0, 2, 1, 3]>(qs{i})
        kt{i} = Transpose<perm = [0, 2, 3, 1]>(qs{i})
        {scores}
        p{i} = Softmax(s{i})
        m{i} = MatMul(p{i}, qt{i})
        mt{i} = Transpose<perm = [0, 2, 1, 3]>(m{i})
        j{i} = Reshape(mt{i}, flat)
        o{i} = MatMul(j{i}, {o})
        {y} = Add({x}, o{i})
"""
BY_HEAD = """
        raw{i} = MatMul(qt{i}, kt{i})
        own{i} = Slice(table, none, window, none)
        s{i} = Add(raw{i}, own{i})"""
BY_ROW = """
        raw{i} = MatMul(qt{i}, kt{i})
        rows{i} = Reshape(raw{i}, joined)
        sum{i} = Add(rows{i}, table)
        s{i} = Reshape(sum{i}, parted)"""


def alibi(table: str, scores: str) -> str:
    names = (("x", "h", "a", "b"), ("h", "y", "c", "d"))
    layers = "".join(
        LAYER.format(i=i, x=x, y=y, w=w, o=o, scores=scores.format(i=i)) for i, (x, y, w, o) in enumerate(names)
    )
    return ALIBI.format(table=table, layers=layers)


SQUARES = dict.fromkeys("abcd", (8, 8)) | {"slopes": (4, 1)}


def test_each_layer_keeps_its_own_heads_of_a_table_that_it_slices_itself(tmp_path: Path) -> None:
    """MPT: every layer slices the one table of slopes times distances."""
    table = """
        middle = Constant<value_ints = [1]>()
        table = Unsqueeze(bias, middle)
        window = Constant<value_ints = [9]>()
    """
    subject = Subject.load(written(tmp_path, alibi(table, BY_HEAD), SQUARES))
    assert sizes(subject)["heads"] == [(4,), (4,)]
    agreed(subject, {"x": floats(2, 5, 8)})


def test_each_layer_keeps_its_own_heads_of_a_table_by_batch_and_head(tmp_path: Path) -> None:
    """BLOOM: the table's rows are batch times heads."""
    table = """
        batch = Gather(shape, none)
        counts = Constant<value_ints = [4, 1]>()
        target = Concat<axis = 0>(batch, counts)
        rows = Concat<axis = 0>(batch, counts)
        lengths = Unsqueeze(length, none)
        wide = Concat<axis = 0>(batch, four, lengths)
        expanded = Expand(bias, wide)
        joint = Constant<value_ints = [-1, 1]>()
        target3 = Concat<axis = 0>(joint, lengths)
        table = Reshape(expanded, target3)
        joined = Concat<axis = 0>(minus, lengths, lengths)
        parted = Concat<axis = 0>(batch, four, lengths, lengths)
    """.replace(
        "counts = ",
        "four = Constant<value_ints = [4]>()\n        minus = Constant<value_ints = [-1]>()\n        counts = ",
    )
    subject = Subject.load(written(tmp_path, alibi(table, BY_ROW), SQUARES))
    assert sizes(subject)["heads"] == [(4,), (4,)]
    agreed(subject, {"x": floats(2, 5, 8)})


def test_scores_shifted_by_a_column_of_zeros(tmp_path: Path) -> None:
    """Transformer-XL's relative positions: zeros as many as there are heads, joined on, and reshaped away."""
    text = (
        HEAD
        + """
    shifted (float[2, 5, 8] x, float[8, 8] q, float[4, 2, 9] r, float[8, 8] o) => (float[2, 5, 8] y) {
        p = MatMul(x, q)
        heads = Constant<value_ints = [0, 0, 4, 2]>()
        qs = Reshape(p, heads)
        qt = Transpose<perm = [0, 2, 1, 3]>(qs)
        s = MatMul(qt, r)
        shape = Constant<value_ints = [2, 4, 5, 1]>()
        zeros = ConstantOfShape(shape)
        padded = Concat<axis = 3>(zeros, s)
        turned = Constant<value_ints = [2, 4, 10, 5]>()
        t = Reshape(padded, turned)
        a = Softmax(t)
        rows = ReduceMax<axes = [2]>(a)
        wide = Constant<value_ints = [2, 4, 5, 1]>()
        column = Reshape(rows, wide)
        mixed = Mul(qt, column)
        mt = Transpose<perm = [0, 2, 1, 3]>(mixed)
        flat = Constant<value_ints = [0, 0, 8]>()
        j = Reshape(mt, flat)
        y = MatMul(j, o)
    }"""
    )
    subject = Subject.load(written(tmp_path, text, {"q": (8, 8), "r": (4, 2, 9), "o": (8, 8)}))
    assert (4,) in [shape for shapes in sizes(subject).values() for shape in shapes]
    agreed(subject, {"x": floats(2, 5, 8)})


def test_a_product_flattened_to_rows_for_its_norm(tmp_path: Path) -> None:
    """LeViT: a linear layer's batch norm sees tokens as rows; the rows' number is a name times a number."""
    text = (
        HEAD
        + """
    rows (float[N, 5, 8] x, float[8, 16] w, float[16] s, float[16] b, float[16] m, float[16] v, float[16, 3] o)
        => (float[N, 5, 3] y) {
        h = MatMul(x, w)
        f = Flatten<axis = 2>(h)
        n = BatchNormalization(f, s, b, m, v)
        shape = Constant<value_ints = [-1, 5, 16]>()
        t = Reshape(n, shape)
        y = MatMul(t, o)
    }"""
    )
    weights = {"w": (8, 16), "s": (16,), "b": (16,), "m": (16,), "o": (16, 3)}
    path = written(tmp_path, text, weights | {"v": (16,)})
    import onnx

    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name == "v":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(16, np.float32), "v"))
    onnx.save(proto, path)
    subject = Subject.load(path)
    assert sizes(subject) == {"neurons": [(16,)]}
    agreed(subject, {"x": floats(2, 5, 8)})


def test_branches_side_by_side_on_one_norm(tmp_path: Path) -> None:
    """GPT-J, Falcon: x + (f(norm) + g(norm)); either can go, and the norm stays while the other reads it."""
    text = (
        HEAD
        + """
    parallel (float[N, 8] x, float[8] s, float[8] b, float[8, 16] u, float[16, 8] d, float[8, 12] e, float[12, 8] f)
        => (float[N, 8] y) {
        n = LayerNormalization(x, s, b)
        h = MatMul(n, u)
        a = Relu(h)
        left = MatMul(a, d)
        g = MatMul(n, e)
        t = Tanh(g)
        right = MatMul(t, f)
        both = Add(left, right)
        y = Add(both, x)
    }"""
    )
    shapes = {"s": (8,), "b": (8,), "u": (8, 16), "d": (16, 8), "e": (8, 12), "f": (12, 8)}
    subject = Subject.load(written(tmp_path, text, shapes))
    inner = {b.value: b.groups for b in subject.structure.branches if len(b.groups) == 1}
    assert sorted(inner) == ["left", "right"] and len(set(inner.values())) == 2
    agreed(subject, {"x": floats(3, 8)})


def test_a_sum_of_what_others_made_is_no_branch(tmp_path: Path) -> None:
    """A mask that every layer adds to its scores: the second's are made of it by the first, which others read."""
    text = (
        HEAD
        + """
    masked (float[N, 8] x, float[N, 8] mask, float[8, 8] a, float[8, 8] b, float[8, 8] c) => (float[N, 8] y) {
        s = MatMul(x, a)
        t = Add(s, mask)
        u = Softmax(t)
        z = MatMul(u, b)
        w = MatMul(z, c)
        v = Add(w, mask)
        y = Mul(v, z)
    }"""
    )
    subject = Subject.load(written(tmp_path, text, {"a": (8, 8), "b": (8, 8), "c": (8, 8)}))
    assert subject.structure.branches == ()


def test_costs_where_a_size_depends_on_data(tmp_path: Path) -> None:
    """What inference cannot name is seen in a run: here, how many elements are not zero."""
    text = (
        HEAD
        + """
    picked (float[N, 8] x, float[8, 16] w) => (float[M, 16] y) {
        one = Constant<value_ints = [1]>()
        sums = ReduceSum<keepdims = 0>(x, one)
        places = NonZero(sums)
        squeezed = Squeeze(places)
        rows = Gather(x, squeezed)
        y = MatMul(rows, w)
    }"""
    )
    subject = Subject.load(written(tmp_path, text, {"w": (8, 16)}))
    assert Costs(subject.model, subject.structure, {"N": 7}).macs() == 7 * 8 * 16


def test_heads_that_are_normed_one_by_one_are_heads(tmp_path: Path) -> None:
    """Qwen3: an RMS norm of each query and key head, along their dimensions."""
    text = """<ir_version: 11, opset_import: ["" : 23]>
    normed (float[N, T, 8] x, float[8, 24] w, float[4] s0, float[4] s1, float[8, 8] o) => (float[N, T, 8] y) {
        packed = MatMul(x, w)
        q0, k0, v0 = Split<axis = 2, num_outputs = 3>(packed)
        shape = Constant<value_ints = [0, 0, 2, 4]>()
        q1 = Reshape(q0, shape)
        k1 = Reshape(k0, shape)
        v1 = Reshape(v0, shape)
        q2 = RMSNormalization(q1, s0)
        k2 = RMSNormalization(k1, s1)
        q = Transpose<perm = [0, 2, 1, 3]>(q2)
        k = Transpose<perm = [0, 2, 3, 1]>(k2)
        v = Transpose<perm = [0, 2, 1, 3]>(v1)
        s = MatMul(q, k)
        p = Softmax(s)
        a = MatMul(p, v)
        t = Transpose<perm = [0, 2, 1, 3]>(a)
        back = Constant<value_ints = [0, 0, 8]>()
        flat = Reshape(t, back)
        y = MatMul(flat, o)
    }"""
    shapes = {"w": (8, 24), "s0": (4,), "s1": (4,), "o": (8, 8)}
    subject = Subject.load(written(tmp_path, text, shapes))
    assert sizes(subject) == {"heads": [(2,)], "head_dims": [(2, 4)]}
    agreed(subject, {"x": floats(2, 5, 8)})


def test_a_cache_keeps_its_heads_and_attention_does_without_some(tmp_path: Path) -> None:
    """GPT-NeoX: queries, keys and values of a head side by side; keys are turned anew beside the ones handed on."""
    text = (
        HEAD
        + """
    cached (float[N, T, 8] x, float[N, 2, P, 4] past, float[8, 24] w, float[8, 8] o)
        => (float[N, T, 8] y, float[N, 2, T, 4] key, float[N, 2, S, 4] value) {
        packed = MatMul(x, w)
        shape = Constant<value_ints = [0, 0, 2, 12]>()
        parts = Reshape(packed, shape)
        q0, k0, v0 = Split<axis = 3>(parts)
        q = Transpose<perm = [0, 2, 1, 3]>(q0)
        key = Transpose<perm = [0, 2, 1, 3]>(k0)
        kt = Transpose<perm = [0, 2, 3, 1]>(k0)
        v = Transpose<perm = [0, 2, 1, 3]>(v0)
        value = Concat<axis = 2>(past, v)
        s = MatMul(q, kt)
        p = Softmax(s)
        g = Concat<axis = 3>(p, p)
        a = MatMul(g, value)
        t = Transpose<perm = [0, 2, 1, 3]>(a)
        back = Constant<value_ints = [0, 0, 8]>()
        flat = Reshape(t, back)
        f = MatMul(flat, o)
        y = Add(x, f)
    }"""
    )
    subject = Subject.load(written(tmp_path, text, {"w": (8, 24), "o": (8, 8)}))
    assert sizes(subject) == {"heads": [(2,)]}
    assert [b.kind for b in subject.structure.branches] == ["attention"]
    agreed(subject, {"x": floats(2, 5, 8), "past": floats(2, 2, 5, 4)})
