"""Shape inference and folding: what turns an export into a graph whose structure can be read.

Exporters write shapes as arithmetic at run time. Here ONNX Runtime's symbolic inference names every dimension,
constants fold, and the targets of Reshape and Expand become constants wherever the dimensions are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune.graph import flow
from onnxprune.graph.prepare import channel_means, quantised, recurrences
from onnxprune.graph.prepare.constant_operands import write_targets
from onnxprune.graph.prepare.fold_limit import refuse_large, small
from onnxprune.graph.prepare.inference_mode import settle
from onnxprune.graph.prepare.optional_inputs import copied, set_aside
from onnxprune.graph.prepare.shape_inference import infer_proto
from onnxprune.graph.prepare.unfuse import unfuse
from onnxprune.graph.prepare.unknown_sizes import left_open, name_unknown
from onnxprune.graph.values import constant, dims

_ROUNDS = 5
"""Times that targets are written and folded: what becomes a number makes others numbers. Most graphs take two."""
_STATED = "onnxprune.stated"
"""Where a value's shape stands as the file has it."""
_SCALED = ("QuantizeLinear", "DequantizeLinear")
"""Operators on both sides of a quantised value, which share its scale and zero point."""
_SMALL = 2048
"""Bytes up to which an initializer may be a shape operand; larger ones are hidden from shape inference."""


def normalise(model: ir.Model) -> ir.Model:
    """Inline, fold and infer in place; names of inputs and outputs, opsets and metadata stay.

    What is written rests on what holds for every size that the graph runs at; only the shapes that are left on the
    values, for the analysis, take dimensions that meet for equal.
    """
    set_aside(model)
    for step in (
        passes.InlinePass(),
        passes.TopologicalSortPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ):
        step(model)
    drop_identities(model)
    unique_names(model)
    _drop_stated_names(model)
    name_unknown(model)
    flow.stack_lists(model)
    flow.open_up(model)
    unfuse(model)
    quantised.fold(model)
    recurrences.fold_weights(model)
    # What can be a number is one before any shape is guessed from it.
    _fold(model)
    settle(model)
    infer(model, assuming=False)
    for _ in range(_ROUNDS):
        count, before = model.graph.num_nodes(), _wiring(model)
        write_targets(model)
        _fold(model)
        model.graph.meta.pop("onnxprune.graph.dimensions", None)
        if _wiring(model) == before:
            break
        infer(model, assuming=False)
        if model.graph.num_nodes() == count:
            break
    recurrences.leave_out_zeros(model)
    channel_means.sum_up(model)
    passes.RemoveUnusedNodesPass()(model)
    infer(model)
    refuse_large(model)
    split_shared_vectors(model)
    unique_names(model)
    return stamp(model)


def _wiring(model: ir.Model) -> list[tuple[ir.Node | ir.Value | None, ...]]:
    """Which nodes there are, and what each reads: what shapes follow from."""
    return [(node, *node.inputs) for node in model.graph.all_nodes()]


def _fold(model: ir.Model) -> None:
    """Fold constants into initializers, and take out what that leaves unread."""
    from onnxscript.optimizer import fold_constants

    fold_constants(model, should_fold=lambda node: small(node, model.opset_imports.get(node.domain, 1)))
    flow.choose_known(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    drop_identities(model)
    passes.RemoveUnusedNodesPass()(model)


def drop_identities(model: ir.Model) -> None:
    """Take out Identity nodes; where one gives a graph its output, what it reads takes over the name, if it can."""
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if result.is_graph_output():
            producer = source.producer()
            if producer is None or producer.graph is not node.graph or source.is_graph_output() or node.graph is None:
                continue
            outputs = node.graph.outputs
            outputs[outputs.index(result)] = source
            result.name, source.name, source.shape, source.type = None, result.name, result.shape, result.type
        result.replace_all_uses_with(source)
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def stamp(model: ir.Model) -> ir.Model:
    """Give every node the version of its operator set, which run-time meaning depends on."""
    for node in model.graph.all_nodes():
        node.version = model.opset_imports.get(node.domain, 1)
    return model


def _drop_stated_names(model: ir.Model) -> None:
    """Set aside the names that the file gives to dimensions of inner values: who wrote them may have guessed.

    Where nothing else is known of a dimension, they are what the analysis goes by.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None and not (value.is_graph_output() and node.graph is model.graph):
                value.meta.setdefault(_STATED, value.shape)
                value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])


def infer(model: ir.Model, *, assuming: bool = True) -> ir.Model:
    """Refresh every value's type and shape with ONNX Runtime's symbolic inference.

    Weights are hidden from it (it needs their shapes alone), so that its time does not grow with them. Where it fails,
    onnx's own inference stands in, and less can be cut.

    Args:
        assuming: dimensions that meet are taken for equal; else every name stands for one size.
    """
    hidden = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.nbytes > _SMALL
        and value.const_value.dtype.is_floating_point()
    }
    try:
        for name, tensor in hidden.items():
            value = model.graph.initializers[name]
            value.const_value = ir.ExternalTensor("hidden", 0, 0, tensor.dtype, shape=tensor.shape, name=name)  # type: ignore[arg-type]
        proto = ir.to_proto(model)
    finally:
        for name, tensor in hidden.items():
            model.graph.initializers[name].const_value = tensor
    _as_inputs(proto, hidden)
    runs = flow.Flow(model.graph)
    conditional = frozenset(next((v.name for v in n.outputs if v.name), "") or "" for n in (*runs.home, *runs.sides))
    inferred = infer_proto(proto, assuming=assuming, conditional=conditional)
    known = {v.name: v.type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    fixed = {v.name for v in model.graph.outputs}
    declared = {str(d) for v in model.graph.inputs for d in dims(v) or ()}
    for node in model.graph:
        for value in node.outputs:
            found = known.get(value.name)
            if found is None or not found.HasField("tensor_type"):
                if assuming and None in (dims(value) or ()):
                    value.shape = _filled(value.shape, value.meta.get(_STATED))
                continue
            shape = _merged(dims(value), _shape(found.tensor_type), declared)
            if assuming:
                shape = _filled(shape, value.meta.get(_STATED))
            if value.name in fixed:
                value.meta["onnxprune.shape"] = shape
            else:
                value.shape = shape
            if found.tensor_type.elem_type:
                value.dtype = ir.DataType(found.tensor_type.elem_type)
    # What a loop may change is not what it starts with; each round finds more of it, or none.
    return infer(model, assuming=assuming) if flow.widened(model) else model


def written(model: ir.Model) -> ir.Model:
    """The graph as a file has it, integers and control flow in their places: a clone, or the graph itself."""
    return flow.closed(quantised.written(model))


def _as_inputs(proto: Any, names: Mapping[str, Any]) -> None:
    """Turn initializers that stand without data into graph inputs of the same type."""
    import onnx

    kept = [t for t in proto.graph.initializer if t.name not in names]
    moved = [
        onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in proto.graph.initializer
        if t.name in names
    ]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.extend(moved)


def _shape(tensor_type: Any) -> ir.Shape | None:
    if not tensor_type.HasField("shape"):
        return None
    return ir.Shape([d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in tensor_type.shape.dim])


def _merged(before: tuple[int | str | None, ...] | None, found: ir.Shape | None, declared: set[str]) -> ir.Shape | None:
    """The better of two descriptions, dimension by dimension: a number, a name the inputs declare, then what is newest.

    Inference invents names (unk__7) that a later run uses for something else, so an old one never survives.
    """
    if found is None or before is None or len(before) != len(found):
        return found
    merged = []
    for old, new in zip(before, found, strict=True):
        name = new if isinstance(new, int) else new.value
        better = not isinstance(name, int) and name not in declared and (isinstance(old, int) or old in declared)
        merged.append(old if better else name)
    return ir.Shape(merged)


def _filled(shape: ir.Shape | None, stated: ir.Shape | None) -> ir.Shape | None:
    """A shape with what the file states of it where nothing else is known."""
    if stated is None or shape is None or len(shape) != len(stated):
        return shape if shape is not None else stated
    return ir.Shape(
        [s if not isinstance(d, int) and d.value is None else d for d, s in zip(shape, stated, strict=True)]
    )


COPY = "onnxprune.copy"
"""Marks, in the meta data of a value, an initializer that the file has under another name."""


def split_shared_vectors(model: ir.Model) -> None:
    """Give every use of an initializer that is a vector its own copy, whatever its rank ([C, 1, 1]: PReLU's slopes).

    Exporters store equal vectors once, so that equal biases of different layers look tied; only matrices really tie.
    """
    for value in list(model.graph.initializers.values()):
        if value.const_value is None or sum(size != 1 for size in value.const_value.shape.numpy()) > 1:
            continue
        uses = list(value.uses())
        if value.const_value.size == 1 and all(node.op_type in _SCALED and index for node, index in uses):
            continue
        # An output of the graph is a reader, too, and the value keeps its name there.
        for i, (node, index) in enumerate(uses if value.is_graph_output() else uses[1:], start=1):
            copy = constant(model, value.const_value, f"{value.name}_{i}", graph=node.graph)
            copy.meta[COPY] = True
            copied(model, value.name or "", copy.name or "")
            node.replace_input_with(index, copy)


@contextmanager
def forgotten(model: ir.Model) -> Iterator[None]:
    """The graph without the shapes of its inner values, for as long as the block lasts."""
    known = [(v, v.shape) for node in model.graph for v in node.outputs if not v.is_graph_output()]
    try:
        for value, _ in known:
            value.shape = None
        with left_open(model):
            yield
    finally:
        for value, shape in known:
            value.shape = shape


def unique_names(model: ir.Model) -> None:
    """Name what has no name, and rename nodes that share one; values of the graph's interface keep theirs.

    An output that nothing reads and that has no name is absent (a recurrence's states of every step), and stays so.
    """
    model.graph.meta.pop("onnxprune.names", None)
    absent = [v for n in model.graph.all_nodes() for v in n.outputs if not (v.name or v.uses() or v.is_graph_output())]
    passes.NameFixPass()(model)
    for value in absent:
        value.name = ""
    seen: set[str] = set()
    counts: dict[str, int] = {}
    for node in model.graph.all_nodes():
        name = unique = node.name or node.op_type
        while unique in seen:  # the count goes on where it was: thousands of nodes may have one name
            counts[name] = counts.get(name, 0) + 1
            unique = f"{name}_{counts[name]}"
        seen.add(unique)
        if node.name != unique:
            node.name = unique
