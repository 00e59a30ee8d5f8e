"""Where control flow begins and ends in an opened graph (`graph.flow`); the interpreter itself runs it."""

from __future__ import annotations

from typing import Any

from onnxprune.graph.flow.nodes import CHOICE, DOMAIN, ENTER, LEAVE, kind, lead, slices, stacks, state_pairs, states
from onnxprune.graph.ops.base import Constraints, register

_ALONG = "what a loop goes along"


def _choice_axes(node: Any, c: Constraints) -> None:
    """Both sides give what is read behind them."""
    half = len(node.outputs)
    for place, result in enumerate(node.outputs):
        if result.name:
            for value in (node.inputs[1 + place], node.inputs[1 + half + place]):
                _alike(c, value, result)


def _enter_axes(node: Any, c: Constraints) -> None:
    first = lead(node)
    for given, begun in zip(node.inputs[first : first + states(node)], node.outputs[first:], strict=False):
        _alike(c, given, begun)
    for whole, part, axis in slices(node):
        _along(c, whole, part, axis)


def _leave_axes(node: Any, c: Constraints) -> None:
    """A state is the same thing in every turn, before and behind the loop."""
    for _, begun, ended, result in state_pairs(node):
        _alike(c, ended, begun)
        if result.name:
            _alike(c, result, begun)
    for part, whole, axis in stacks(node):
        if whole.name:
            _along(c, whole, part, axis)


def _alike(c: Constraints, a: Any, b: Any) -> None:
    sizes = c.sizes(a), c.sizes(b)
    if len(sizes[0]) != len(sizes[1]):
        for value in (a, b):
            c.pin(value, None, "its number of dimensions depends on data")
        return
    for axis, (x, y) in enumerate(zip(*sizes, strict=True)):
        if x == y:
            c.same(c.dims(a)[axis], c.dims(b)[axis])
        else:
            for value in (a, b):
                c.pin(value, [axis], "its size depends on what control flow does")


def _along(c: Constraints, whole: Any, part: Any, axis: int) -> None:
    rest = list(range(len(c.sizes(whole))))
    c.pin(whole, [axis], _ALONG)
    del rest[axis]
    for place, own in enumerate(rest):
        if c.sizes(whole)[own] == c.sizes(part)[place]:
            c.same(c.dims(whole)[own], c.dims(part)[place])
        else:
            c.pin(whole, [own], "its size depends on what control flow does")
            c.pin(part, [place], "its size depends on what control flow does")


def _no_run(torch: Any, node: Any, *xs: Any) -> Any:
    raise AssertionError(f"{node.name}: {kind(node)} is run by the interpreter")


register({CHOICE: _no_run}, axes=_choice_axes, domain=DOMAIN)
register({ENTER: _no_run}, axes=_enter_axes, domain=DOMAIN)
register({LEAVE: _no_run}, axes=_leave_axes, domain=DOMAIN)
