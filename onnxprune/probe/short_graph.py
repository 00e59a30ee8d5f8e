"""The graph by which plans are judged: what no output reads is left out of it.

Least squares wants the values of every token. A divergence of the outputs does not: a classifier's last block runs for
the one token that its head reads (`rewrite.drop_unread`). States are made for the whole graph (gates.py) and hold here
as they are, because they speak of nodes by name.
"""

from __future__ import annotations

from dataclasses import replace

from onnxprune import rewrite
from onnxprune.graph import ops
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Structure
from onnxprune.probe.interpreter import Interpreter


def brief(model: Model, structure: Structure, whole: Interpreter) -> tuple[Interpreter, Structure]:
    """An interpreter that gives the same outputs for less, and the structure with the values that only it has.

    Where nothing can be left out, or a node would go that a state may act on, they are those given.

    Args:
        whole: of the model's own graph; weights are shared with it.
    """
    short = model.clone()
    if not rewrite.drop_unread(short.normal):
        return whole, structure
    names = {node.name for node in short.graph}
    if not _acted_on(model, structure) <= names:
        return whole, structure
    own = {node.name for node in model.graph}
    layouts = {
        value.name or "": structure.layouts[source.name or ""]
        for node in short.graph
        if node.name not in own and (source := node.inputs[0]) is not None
        for value in node.outputs
    }
    return Interpreter(short.graph, whole.device, whole), replace(structure, layouts={**structure.layouts, **layouts})


def _acted_on(model: Model, structure: Structure) -> set[str | None]:
    """The nodes at whose inputs states change something: for units, branches, and the intercepts of products."""
    found: set[str | None] = {reader.node for group in structure.groups for reader in group.readers}
    found |= {branch.add for branch in structure.branches}
    for node in model.graph:
        operator = ops.lookup(node)
        if operator is not None and operator.macs is not None:
            found |= {reader.name for value in node.outputs for reader, _ in value.uses()}
    return found
