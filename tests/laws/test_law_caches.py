"""Laws 1 and 2 on decoders with caches: what is cut is what is gated, whatever the cache holds, token for token."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from decoders import DEAD_HEADS, DEAD_IN_GROUPS, GROUPS, HEADS, VOCABULARY, decoder, feeds_of, generated
from graphs import agreed, written
from plans import Subject, distance, in_runtime, random_plan

import onnxprune
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan

load = cache(Subject.load)

FAMILIES = ("llama", "gpt2", "qwen3", "genai")


@pytest.mark.parametrize("family", ("llama", "gpt2", "genai"))
def test_cut_is_gated_with_and_without_a_past(family: str, store: Path) -> None:
    path = decoder(family, store)
    subject = load(path)
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, VOCABULARY, (2, 5))
    outputs = subject.dense(feeds_of(path, prompt))
    past = {k.replace("present", "past_key_values"): v for k, v in outputs.items() if k.startswith("present")}
    assert all(v.shape[2] == 5 for v in past.values())
    cases = [
        feeds_of(path, prompt),
        feeds_of(path, rng.integers(3, VOCABULARY, (2, 1 if family == "genai" else 3)), past),
    ]
    for seed in range(2):
        plan = random_plan(subject, np.random.default_rng(seed))
        plan = subject.complete(plan, cases[0])
        for feeds in cases:
            assert distance(subject.written(plan, feeds), subject.gated(plan, feeds)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_dead_query_heads_go_and_the_decoder_writes_the_same_tokens(family: str, store: Path, tmp_path: Path) -> None:
    path = decoder(family, store)
    subject = load(path)
    groups = [g for g in subject.structure.groups if g.kind == "heads"]
    if family == "genai":  # the operator wants equally many in every group
        assert [g.shape for g in groups] == [(GROUPS, HEADS // GROUPS)] * 2
        dead = [tuple(HEADS // GROUPS * g + u for g, u in enumerate(units)) for units in DEAD_IN_GROUPS]
    else:
        assert [g.shape for g in groups] == [(HEADS,)] * 2
        dead = list(DEAD_HEADS)
    keep = {g.id: tuple(u for u in range(HEADS) if u not in d) for g, d in zip(groups, dead, strict=True)}
    cut = models.save(subject.rewritten(Plan(subject.structure.digest, keep)), tmp_path / "cut.onnx")[0]
    assert cut.stat().st_size < path.stat().st_size
    prompt = np.random.default_rng(1).integers(3, VOCABULARY, (2, 7))
    tokens, logits = generated(path, prompt, 8)
    again, close = generated(cut, prompt, 8)
    assert np.array_equal(tokens, again)
    assert np.abs(logits - close).max() < 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_an_attention_branch_goes_and_its_cache_is_still_written(family: str, store: Path) -> None:
    path = decoder(family, store)
    subject = load(path)
    attentions = [b for b in subject.structure.branches if b.kind == "attention"]
    assert len(attentions) == 2
    feeds = feeds_of(path, np.random.default_rng(2).integers(3, VOCABULARY, (2, 4)))
    plan = subject.complete(Plan(subject.structure.digest, drop=(attentions[1].id,)), feeds)
    found, wanted = subject.written(plan, feeds), subject.gated(plan, feeds)
    assert distance(found, wanted) < 1e-4
    key = "present.1.key"
    assert distance({key: found[key]}, {key: subject.dense(feeds)[key]}) < 1e-5
    rewritten = subject.rewritten(plan)
    assert sum(n.op_type == "MatMul" for n in rewritten.graph) < sum(n.op_type == "MatMul" for n in subject.model.graph)


@pytest.mark.parametrize(("kept", "read"), [((0, 3), None), ((1, 2, 3), [0, 1, 1]), ((2,), [1])])
def test_the_heads_of_a_repeated_cache_are_read_from_the_cache(
    kept: tuple[int, ...], read: list[int] | None, store: Path
) -> None:
    subject = load(decoder("llama", store))
    (group, *_) = (g for g in subject.structure.groups if g.kind == "heads")
    rewritten = subject.rewritten(Plan(subject.structure.digest, {group.id: kept}))
    found = [names for n in rewritten.graph if (names := _read_of_an_output(n)) is not None]
    assert found == ([] if read is None else [read, read])
    assert sum(n.op_type == "Expand" for n in rewritten.graph) < sum(n.op_type == "Expand" for n in subject.model.graph)


def test_a_budget_finds_dead_query_heads_in_every_group(store: Path) -> None:
    """The operator wants equally many of each group; which they are may differ."""
    path = decoder("genai", store)
    shape = {"sequence_length": 8, "past_sequence_length": 4, "total_sequence_length": 12}
    result = onnxprune.prune(
        path, flops=0.95, shape=shape, units=("heads",), round_to=1, compensate=False, measure_latency=False
    )
    kept = {u for units in result.plan.keep.values() for u in units}
    assert len(result.plan.keep) == 1
    (name,) = result.plan.keep
    dead = DEAD_IN_GROUPS[int(name.removeprefix("heads."))]
    assert kept == {2 * group + 1 - unit for group, unit in enumerate(dead)}
    feeds = feeds_of(path, np.random.default_rng(3).integers(3, VOCABULARY, (1, 5)))
    assert distance(in_runtime(result.model, feeds), in_runtime(path, feeds)) < 1e-5


def _read_of_an_output(node: ir.Node) -> list[int] | None:
    """The indices that a Gather reads of a graph's output."""
    if node.op_type != "Gather":
        return None
    data, indices = node.inputs
    if data is None or not data.is_graph_output() or indices is None or indices.const_value is None:
        return None
    return [int(i) for i in indices.const_value.numpy()]


_IN = '<ir_version: 9, opset_import: ["" : 17]> layer (float[b, s, 32] x, {}) => (float[b, s, 32] y, {}) {{'
_OUT = """
    joined = Transpose<perm=[0,2,1,3]>(o)
    width = Constant<value_ints=[0,0,32]>()
    flat = Reshape(joined, width)
    z = MatMul(flat, wo)
    y = Add(x, z)
}"""


def _heads_of(name: str, source: str, width: int) -> str:
    return f"""
    {name}0 = MatMul({source}, w{name})
    {name}_shape = Constant<value_ints=[0,0,{HEADS},{width}]>()
    {name}1 = Reshape({name}0, {name}_shape)
    {name} = Transpose<perm=[0,2,1,3]>({name}1)"""


COMPRESSED = (
    _IN.format("float[b, p, 10] past_c, float[b, p, 4] past_r", "float[b, t, 10] present_c, float[b, t, 4] present_r")
    + _heads_of("q", "x", 12)
    + """
    a = MatMul(x, wa)
    parts = Constant<value_ints=[10,4]>()
    c, r = Split<axis=-1>(a, parts)
    present_c = Concat<axis=1>(past_c, c)
    present_r = Concat<axis=1>(past_r, r)"""
    + _heads_of("kv", "present_c", 16)
    + """
    halves = Constant<value_ints=[8,8]>()
    kn, v = Split<axis=-1>(kv, halves)
    one = Constant<value_ints=[1]>()
    r1 = Unsqueeze(present_r, one)
    times = Constant<value_ints=[1,4,1,1]>()
    rotary = Expand(r1, times)
    k = Concat<axis=-1>(kn, rotary)
    turned = Transpose<perm=[0,1,3,2]>(k)
    scores = MatMul(q, turned)
    p = Softmax<axis=-1>(scores)
    o = MatMul(p, v)"""
    + _OUT
)
"""DeepSeek's attention: one narrow cache without heads, of which a weight makes keys and values for all."""

LINEAR = (
    _IN.format("float[b, 4, 8, 8] past_s", "float[b, 4, 8, 8] present_s")
    + "".join(_heads_of(name, "x", 8) for name in "qkv")
    + """
    turned = Transpose<perm=[0,1,3,2]>(k)
    before = MatMul(q, past_s)
    scores = MatMul(q, turned)
    now = MatMul(scores, v)
    o = Add(before, now)
    more = MatMul(turned, v)
    present_s = Add(past_s, more)"""
    + _OUT
)
"""Linear attention: the cache is a state, to which the products of keys and values are added."""

LAYERS = {
    "compressed": (COMPRESSED, {"wq": (32, 48), "wa": (32, 14), "wkv": (10, 64), "wo": (32, 32)}),
    "linear": (LINEAR, {f"w{name}": (32, 32) for name in "qkvo"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_heads_go_where_the_cache_has_none_or_is_a_state(name: str, tmp_path: Path) -> None:
    subject = Subject.load(written(tmp_path, *LAYERS[name]))
    assert [g.shape for g in subject.structure.groups if g.kind == "heads"] == [(HEADS,)]
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 32), "past_c": (2, 5, 10), "past_r": (2, 5, 4), "past_s": (2, HEADS, 8, 8)}
    names = {spec.name for spec in subject.model.inputs}
    agreed(subject, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items() if n in names})
