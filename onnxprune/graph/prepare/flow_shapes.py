"""Shapes through control flow that was opened (`graph.flow`); `self` is the library's inference at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.graph.flow.nodes import CHOICE, ENTER, LEAVE, MOST_AXES
from onnxprune.graph.prepare.exact_shapes import fresh


def choice(self: Any, node: Any) -> None:
    """What both sides agree on; where their ranks differ, nothing is known."""
    half = len(node.output)
    for place in range(half):
        a, b = (self.known_vi_[node.input[i]].type for i in (1 + place, 1 + half + place))
        shapes = [_shape(self, node.input[i]) for i in (1 + place, 1 + half + place)]
        if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
            continue
        kind = a.tensor_type.elem_type or b.tensor_type.elem_type
        _write(self, node.output[place], kind, [x if x == y else fresh(self) for x, y in zip(*shapes, strict=True)])


def enter(self: Any, node: Any) -> None:
    """States as they start, but for the dimensions that turns may change; a slice for each turn."""
    told = _attributes(node)
    first = 2 if told["kind"] == b"Loop" else 0
    if first:
        _write(self, node.output[0], 7, [])
        _write(self, node.output[1], 9, [])
    count = told["states"]
    for i in range(count):
        _state(self, node.input[first + i], node.output[first + i], i, told)
    for whole, part, axis in zip(node.input[count:], node.output[count:], told.get("axes", ()), strict=False):
        shape = _shape(self, whole)
        if not first and shape is not None:
            del shape[axis]
            _write(self, part, _kind(self, whole), shape)


def leave(self: Any, node: Any) -> None:
    """What states are at the end, and of each turn one beside the other."""
    told = _attributes(node)
    scanning = told["kind"] == b"Scan"
    first, count = (0 if scanning else 1), told["states"]
    for i in range(count):
        _state(self, node.input[first + i], node.output[i], i, told)
    axes = list(told.get("axes", ()))
    along = None
    if scanning:
        whole = _shape(self, node.input[-1])
        along = whole[told["along"]] if whole is not None else None
    for i, axis in enumerate(axes):
        part, result = node.input[first + count + i], node.output[count + i]
        shape = _shape(self, part)
        if shape is not None and result:
            turns = along if along is not None else fresh(self)
            place = axis + len(shape) + 1 if axis < 0 else axis
            _write(self, result, _kind(self, part), [*shape[:place], turns, *shape[place:]])


RULES = {CHOICE: choice, ENTER: enter, LEAVE: leave}


def _state(self: Any, source: str, result: str, place: int, told: Mapping[str, Any]) -> None:
    shape = _shape(self, source)
    if shape is None or not result:
        return
    free = {code % MOST_AXES for code in told.get("open", ()) if code // MOST_AXES == place}
    _write(self, result, _kind(self, source), [fresh(self) if a in free else size for a, size in enumerate(shape)])


def _shape(self: Any, name: str) -> list[Any] | None:
    kind = self.known_vi_[name].type.tensor_type
    if not kind.HasField("shape") or not kind.elem_type:
        return None
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
    return [size if size != "" else fresh(self) for size in sizes]


def _kind(self: Any, name: str) -> int:
    return int(self.known_vi_[name].type.tensor_type.elem_type)


def _write(self: Any, name: str, kind: int, shape: list[Any]) -> None:
    import onnx

    if name:
        self.known_vi_[name].CopyFrom(onnx.helper.make_tensor_value_info(name, kind, shape))


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
