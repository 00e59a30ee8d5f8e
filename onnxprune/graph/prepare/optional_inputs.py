"""Initializers that are graph inputs, too: taken out of the inputs to work on the graph, and put back into the file.

Before IR version 4 every initializer had to be an input, and stayed constant; since then the two together mean a
default that a caller may override. The interface a user had is the interface of what is written: no such input
vanishes. What was cut has its new shape there, and what nothing reads any more stands with size 0 (or as it was, where
it is small), so that it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

_NOTED = "onnxprune.optional_inputs"
_SMALL = 1024
"""Bytes up to which the default of an input that nothing reads stays."""
CONSTANT_BEFORE = 4
"""The IR version from which an initializer need not be an input, and one that is can be overridden."""


@dataclass(frozen=True)
class _Noted:
    """What the user's file had.

    Attributes:
        order: every input, optional or not.
        defaults: optional input -> (element type, shape, the tensor where it is small).
        copies: initializer -> the optional input that it is a copy of, made for a reader of its own.
    """

    order: tuple[str, ...]
    defaults: Mapping[str, tuple[ir.DataType, tuple[int, ...], Any]]
    copies: dict[str, str] = field(default_factory=dict)


def set_aside(model: ir.Model) -> None:
    """Take initializers out of the graph's inputs, in place, and remember them."""
    graph = model.graph
    both = [v for v in graph.inputs if v.name in graph.initializers and v.const_value is not None]
    if not both and model.ir_version >= CONSTANT_BEFORE:
        return
    defaults = {}
    for value in both:
        tensor = value.const_value
        assert tensor is not None
        kept = tensor if tensor.nbytes <= _SMALL else None
        defaults[value.name or ""] = (tensor.dtype, tuple(tensor.shape.numpy()), kept)
    graph.meta[_NOTED] = _Noted(tuple(v.name or "" for v in graph.inputs), defaults)
    named = {id(v) for v in both}
    alone = [v for v in graph.inputs if id(v) not in named]
    graph.inputs.clear()
    graph.inputs.extend(alone)


def copied(model: ir.Model, original: str, copy: str) -> None:
    """Remember that an initializer is a copy of another, should that be an optional input."""
    noted: _Noted | None = model.graph.meta.get(_NOTED)
    if noted is not None and original in noted.defaults:
        noted.copies[copy] = original


@contextmanager
def restored(model: ir.Model) -> Iterator[None]:
    """The graph with the optional inputs of the user's file, for as long as the block lasts."""
    noted: _Noted | None = model.graph.meta.get(_NOTED)
    if noted is None:
        yield
        return
    graph = model.graph
    before = list(graph.inputs)
    undo: list[Callable[[], None]] = []
    try:
        _join_copies(graph, noted, undo)
        for name, default in noted.defaults.items():
            if name not in graph.initializers:
                _offer(graph, name, *default)
                undo.append(partial(graph.initializers.__delitem__, name))
        by_name = {v.name: v for v in before} | {name: graph.initializers[name] for name in noted.defaults}
        if model.ir_version < CONSTANT_BEFORE:
            _as_constants(graph, noted, undo)
        graph.inputs.clear()
        graph.inputs.extend(by_name[name] for name in noted.order if name in by_name)
        graph.inputs.extend(v for v in before if v.name not in noted.order)
        yield
    finally:
        graph.inputs.clear()
        graph.inputs.extend(before)
        for step in reversed(undo):
            step()


def _join_copies(graph: ir.Graph, noted: _Noted, undo: list[Callable[[], None]]) -> None:
    """Let copies that are still the same be read where the input is: who overrides it means all its readers."""
    for name, original in noted.copies.items():
        copy, value = graph.initializers.get(name), graph.initializers.get(original)
        if copy is None or value is None or not _same(copy, value):
            continue
        uses = list(copy.uses())
        for node, index in uses:
            node.replace_input_with(index, value)
        del graph.initializers[name]

        def apart(name: str = name, copy: ir.Value = copy, uses: list[Any] = uses) -> None:
            graph.initializers[name] = copy
            for node, index in uses:
                node.replace_input_with(index, copy)

        undo.append(apart)


def _same(one: ir.Value, other: ir.Value) -> bool:
    first, second = one.const_value, other.const_value
    return first is second or (
        first is not None and second is not None and first.shape == second.shape and first.dtype == second.dtype
        and bool(np.array_equal(first.numpy(), second.numpy()))
    )  # fmt: skip


def _offer(graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], small: Any) -> None:
    """An input that nothing reads any more."""
    tensor = small or ir.Tensor(np.zeros((0, *shape[1:]), dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)


def _as_constants(graph: ir.Graph, noted: _Noted, undo: list[Callable[[], None]]) -> None:
    """Before IR version 4 an initializer must be an input: those that the user's file did not have become nodes."""
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        if name in noted.defaults or value.const_value is None:
            continue
        node = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"{name}_constant")
        made = node.outputs[0]
        del graph.initializers[name]
        value.name, made.name, made.shape, made.type = None, name, value.shape, value.type
        value.replace_all_uses_with(made, replace_graph_outputs=True)
        graph.insert_before(first, node)

        def back(name: str = name, value: ir.Value = value, node: ir.Node = node) -> None:
            made = node.outputs[0]
            made.replace_all_uses_with(value, replace_graph_outputs=True)
            graph.remove(node)
            made.name, value.name = None, name
            graph.initializers[name] = value

        undo.append(back)


def changes(model: ir.Model) -> str | None:
    """What a caller who overrides initializers must know of a rewritten graph; None where nobody can."""
    noted: _Noted | None = model.graph.meta.get(_NOTED)
    if noted is None or model.ir_version < CONSTANT_BEFORE or not noted.defaults:
        return None
    there = model.graph.initializers
    unread = [name for name in noted.defaults if name not in there]
    cut = [n for n, (_, shape, _) in noted.defaults.items() if n in there and _shape(there[n]) != shape]
    parted = {o for c, o in noted.copies.items() if c in there and o in there and not _same(there[c], there[o])}
    counts = (
        (len(cut), "have new shapes"),
        (len(unread), "have no reader left (their values are folded into others, or what read them is gone)"),
        (len(parted), "have readers with values of their own now"),
    )
    told = [f"{count} {what}" for count, what in counts if count]
    if not told:
        return None
    return (
        f"{len(noted.defaults)} initializers of this graph are inputs too, so that a caller may override them; "
        f"of these {', '.join(told)}: an override must follow"
    )


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()
