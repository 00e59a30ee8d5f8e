"""Putting compensated weights and intercepts into the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import flat_order
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.put_away import Arrays
from onnxprune.graph.quantised import Quantised
from onnxprune.graph.values import constant


def weights(model: ir.Model, plan: Plan) -> None:
    """Replace initializers by their refit, still in the original shape."""
    for name in plan.weights:
        value = model.graph.initializers[name]
        if isinstance(plan.weights, Arrays) and not isinstance(value.const_value, Quantised):
            _later(value, plan.weights)
        else:
            replace(value, plan.weights[name])


def _later(value: ir.Value, arrays: Arrays) -> None:
    """Give an initializer contents of its own shape and type, which are read when they are written."""
    assert value.const_value is not None and value.name is not None
    dtype, name = value.const_value.dtype, value.name

    def made() -> ir.Tensor[np.ndarray]:
        array = np.ascontiguousarray(arrays[name]).astype(dtype.numpy(), copy=False)
        return ir.Tensor(array, dtype=dtype, name=name)

    value.const_value = ir.LazyTensor(made, dtype, ir.Shape(value.const_value.shape.numpy()), name=name)


def replace(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer new contents, in its own element type; of a quantised one, the nearest that it can have."""
    assert value.const_value is not None
    dtype = value.const_value.dtype
    if isinstance(value.const_value, Quantised):
        value.const_value = value.const_value.rounded(array)
        return
    value.const_value = ir.Tensor(
        np.ascontiguousarray(array).astype(dtype.numpy(), copy=False), dtype=dtype, name=value.name
    )
    value.shape = ir.Shape(array.shape)


def quantised_intercepts(model: ir.Model, plan: Plan) -> set[str]:
    """Add intercepts to biases that are quantised, still in the original shape; the values that they were for.

    What they are rounded to depends on all of a bias, as it was when the plan was made.
    """
    producers = {v.name: v for n in model.graph for v in n.outputs}
    done = set()
    for name, vector in plan.intercepts.items():
        bias = bias_of(producers[name]) if name in producers else None
        if bias is not None and isinstance(bias.const_value, Quantised):
            replace(bias, bias.const_value.numpy().astype(np.float64) + vector)
            done.add(name)
    return done


def intercepts(model: ir.Model, structure: Structure, plan: Plan, done: set[str]) -> None:
    """Add each intercept to the bias that follows its value, or by an Add of its own.

    Args:
        done: those that are there already.
    """
    masks, orders = plan.masks(structure), plan.orders(structure)
    producers = {v.name: v for n in model.graph for v in n.outputs}
    for name, vector in plan.intercepts.items():
        value = producers.get(name)
        if value is None or name in done:  # its branch is gone
            continue
        kept = flat_order(structure.layouts[name][-1], masks, orders, structure.sizes)
        shift = np.asarray(vector)[kept]
        if not np.any(shift):
            continue
        bias = bias_of(value)
        if bias is not None and bias.const_value is not None:
            replace(bias, bias.const_value.numpy().astype(np.float64) + shift)
        else:
            _insert(model, value, shift)


def bias_of(value: ir.Value) -> ir.Value | None:
    """The vector that is already added to a value: Gemm's third input, or the next Add's."""
    node = value.producer()
    if (
        node is not None
        and node.op_type == "Gemm"
        and len(node.inputs) > 2
        and node.attributes.get_float("beta", 1.0) == 1.0
    ):
        found = node.inputs[2]
        if (
            found is not None
            and found.const_value is not None
            and len(found.uses()) == 1
            and len(found.const_value.shape) == 1
        ):
            return found
    uses = list(value.uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add" or value.is_graph_output():
        return None
    other = uses[0][0].inputs[1 - uses[0][1]]
    single = other is not None and other.const_value is not None and len(other.uses()) == 1
    return other if single and other is not None and other.shape is not None and len(other.shape) == 1 else None


def _insert(model: ir.Model, value: ir.Value, shift: np.ndarray) -> None:
    node = value.producer()
    assert node is not None and value.dtype is not None
    bias = constant(model, shift.astype(value.dtype.numpy()), f"{value.name}_intercept")
    add = ir.node("Add", [value, bias], name=f"{node.name}_intercept", version=model.opset_imports.get("", 1))
    result = add.outputs[0]
    result.name, result.shape, result.type = f"{value.name}_shifted", value.shape, value.type
    if value.is_graph_output():
        result.metadata_props.update(value.metadata_props)
        name = value.name
        index = model.graph.outputs.index(value)
        value.name = f"{name}_unshifted"
        result.name = name
        model.graph.outputs[index] = result
    for user, index in list(value.uses()):
        if user is not add:
            user.replace_input_with(index, result)
    node.append(add)
