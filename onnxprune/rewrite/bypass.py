"""Leaving out whole residual branches: `y = x + f(x)` becomes `y = x`, or `x` plus what f leaves behind."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.axes import atoms_of, flat_mask
from onnxprune.errors import UsageError
from onnxprune.plan import Plan, Structure
from onnxprune.values import constant


def branches(model: ir.Model, structure: Structure, plan: Plan) -> None:
    """Take every dropped branch out; its nodes go with the clean-up."""
    nodes = {n.name: n for n in model.graph}
    masks = plan.masks(structure)
    for name in plan.drop:
        branch = structure.branch(name)
        if name not in plan.rests:
            raise UsageError(f"{name}: the plan does not say what the branch leaves behind; complete it first")
        add = nodes[branch.add]
        rest = np.asarray(plan.rests[name])
        layouts = structure.layouts[branch.value]
        for axis, layout in enumerate(layouts[len(layouts) - rest.ndim :]):
            if rest.shape[axis] > 1 and atoms_of(layout) & masks.keys():
                rest = rest.compress(flat_mask(layout, masks, structure.sizes), axis)
        skip, result = add.inputs[1 - branch.operand], add.outputs[0]
        assert skip is not None and result.dtype is not None
        if np.any(rest) or result.is_graph_output():
            # One number per channel at the end is a plain bias, which every runtime fuses.
            if all(size == 1 for size in rest.shape[:-1]):
                rest = rest.reshape(-1)
            left = constant(model, rest.astype(result.dtype.numpy()), f"{branch.value}_rest")
            add.replace_input_with(branch.operand, left)
        else:
            result.replace_all_uses_with(skip)
