"""What loading makes of shape arithmetic: numbers where sizes are known, a form that can be rewritten elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo import Attention, Exporter, ZooModel

from onnxprune.graph import model as models
from onnxprune.graph.dimensions import evaluate, monomial, quotient
from onnxprune.graph.ops.layout import written
from onnxprune.graph.values import dims

Build = Callable[..., ZooModel]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("batch_size", 3),
        ("floor(height/16)*batch_size", 3 * 14),
        ("2*height + 1", 449),
        ("Max(1, batch_size - 5)", 1),
        ("ceiling(height/100)", 3),
        ("Mod(height, 100)", 24),
        ("-batch_size + height", 221),
        ("height**2", 224 * 224),
        ("height//3", 74),
    ],
)
def test_dimensions_are_evaluated(text: str, value: int) -> None:
    assert evaluate(text, {"batch_size": 3, "height": 224}) == value


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_division_is_exact_before_it_is_rounded(height: int, step: int) -> None:
    assert evaluate("floor(height/step)", {"height": height, "step": step}) == height // step


def test_products_of_symbols_are_divided() -> None:
    assert monomial("4*batch_size") == (4, ("batch_size",))
    assert monomial("b*3*a*2") == (6, ("a", "b"))
    assert monomial(7) == (7, ())
    assert monomial("batch_size + 1") is monomial("floor(a/2)") is monomial("a b") is None
    assert quotient("12*batch_size*length", "3*length") == (4, ("batch_size",))
    assert quotient(32, 8) == (4, ())
    assert quotient("4*batch_size", 3) is quotient(4, "batch_size") is quotient("a + 1", 1) is None


def test_an_unbound_symbol_is_named() -> None:
    with pytest.raises(KeyError, match="width"):
        evaluate("width*2", {})
    assert evaluate("width", {}, len) == 5
    assert evaluate("a b c", {"a b c": 4}) == 4
    with pytest.raises(KeyError):
        evaluate("not an expression", {})


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "vit"])
def test_reshapes_and_expands_can_be_rewritten(
    zoo: Build, family: str, exporter: Exporter, attention: Attention
) -> None:
    """No head count or width is computed at run time any more, and every value has a shape."""
    graph = models.load(zoo(family, exporter, attention).path).graph
    for node in graph:
        for value in node.outputs:
            known = dims(value)
            if value.dtype is not None and value.dtype.is_floating_point():
                assert known is not None and None not in known, value.name
        if node.op_type in ("Reshape", "Expand") and node.outputs[0].dtype == ir.DataType.FLOAT:
            target = written(node.inputs[1])
            sizes = dims(node.outputs[0]) or ()
            if target is None:  # nothing in it could ever be rewritten
                assert all(isinstance(size, str) for size in sizes), node.name
                continue
            assert len(sizes) == len(target)
            for size, number in zip(sizes, target, strict=True):
                assert number is not None or not isinstance(size, int), f"{node.name} computes {size}"


def test_head_reshapes_have_the_form_that_fusions_know(zoo: Build) -> None:
    graph = models.load(zoo("bert", "torchscript", "eager").path).graph
    targets = {tuple(written(n.inputs[1]) or ()) for n in graph if n.op_type == "Reshape"}
    assert (0, 0, 4, 8) in targets and (0, 0, 32) in targets
