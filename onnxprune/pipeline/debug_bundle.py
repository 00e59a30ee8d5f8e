"""What a fault of this program is found by: both graphs without their weights, the plan, and where they first differ.

A check that fails is never the user's fault. What reproduces it holds no weights and no rows, so that it can be sent.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import CheckError
from onnxprune.graph import outputs, runtime
from onnxprune.graph.axes import atoms_of, flat_order
from onnxprune.graph.model import Model
from onnxprune.graph.outputs import Inputs
from onnxprune.graph.plan import Plan, Structure
from onnxprune.measure.equivalence import max_distance
from onnxprune.pipeline.report_facts import versions
from onnxprune.probe.forward import forward
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter

_NUMBERS, _FEW = 128, 16
"""How many integers, and how many numbers of any type, an initializer may hold and be kept: they are shapes, axes and
scales, part of the graph's structure."""
_LEFT_OUT = "weights-left-out"
_APART = 1e-3
"""How far a value may be from the plan's, relative to its scale, before its node counts as the first that differs."""


@dataclass(frozen=True)
class Case:
    """A check that failed.

    Attributes:
        file: what was written, in its staging place.
        rows: what it was compared on.
        options: of the run.
    """

    dense: Model
    structure: Structure
    plan: Plan
    file: Path
    rows: Sequence[runtime.Feeds]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a bundle goes, should there be one.

    Attributes:
        inputs: what may not be written.
        force: replace an older one.
    """

    path: Path
    inputs: Inputs
    force: bool

    @classmethod
    def of(cls, path: str | os.PathLike[str], inputs: Inputs, *, force: bool) -> Place:
        """A place that may be written.

        Raises:
            UsageError: it is an input or the output, or exists and `force` is off.
        """
        outputs.refuse(Path(path), inputs=inputs, force=force)
        return cls(Path(path), inputs, force)


def blamed(error: CheckError, case: Case, place: Place | None) -> CheckError:
    """The error with what to do about it; writes the bundle where one was asked for."""
    fault = f"{error}. Nothing was written. This is a fault of onnxprune, not of your model"
    if place is None:
        return CheckError(
            f"{fault}: run again with --debug-bundle to write what reproduces it (graphs without weights, the plan, "
            "the first node that differs), and report it"
        )
    try:
        node = write(place, str(error), case)
    except Exception as failed:  # the check's own failure is what must be told
        return CheckError(f"{fault}; the bundle {place.path} could not be written: {type(failed).__name__}: {failed}")
    where = f", which begins at node {node}" if node else ""
    return CheckError(f"{fault}: please report it with {place.path}{where} (it holds no weights and no rows)")


def write(place: Place, message: str, case: Case) -> str | None:
    """Write the bundle, a zip file; gives the first node that differs."""
    try:
        found: Mapping[str, Any] | str | None = first_difference(case)
    except Exception as failed:  # a graph that does not even run is still worth its structure
        found = f"not found: {type(failed).__name__}: {' '.join(str(failed).split())[:300]}"
    told = {
        "message": message,
        "first_difference": found,
        "rows": [{k: [str(np.asarray(v).dtype), *np.shape(v)] for k, v in feeds.items()} for feeds in case.rows],
        "options": case.options,
        "opset": case.dense.opset,
        "versions": versions(),
    }
    with outputs.files(place.path, inputs=place.inputs, force=place.force) as out:
        with zipfile.ZipFile(out.folder / out.first, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("check.json", json.dumps(told, indent=1, ensure_ascii=False, default=str))
            bundle.writestr("plan.json", json.dumps(case.plan.to_json(), indent=1, ensure_ascii=False))
            bundle.writestr("dense.onnx", without_weights(case.dense.ir))
            bundle.writestr("written.onnx", without_weights(ir.load(case.file)))
        out.commit()
    return str(found["node"]) if isinstance(found, Mapping) else None


def without_weights(model: ir.Model) -> bytes:
    """A graph as a file whose larger initializers have a type and a shape, and lie nowhere."""
    held = {n: v.const_value for n, v in model.graph.initializers.items() if v.const_value is not None}
    large = {n: t for n, t in held.items() if t.size > (_NUMBERS if t.dtype.is_integer() else _FEW)}
    try:
        for name, tensor in large.items():
            empty = ir.ExternalTensor(_LEFT_OUT, 0, 0, tensor.dtype, shape=tensor.shape, name=name)  # type: ignore[arg-type]
            model.graph.initializers[name].const_value = empty
        return bytes(ir.to_proto(model).SerializeToString())
    finally:
        for name, tensor in large.items():
            model.graph.initializers[name].const_value = tensor


def first_difference(case: Case) -> dict[str, Any] | None:
    """The first node of the dense graph whose value the written file does not have as the plan says.

    Compared are the values that both graphs name, what was cut from them left out. A value that differs on the way and
    is made up for before the outputs (a scale that moved) is none.
    """
    interpreter = Interpreter(case.dense.graph)
    state = Gates(case.structure, interpreter).gated(case.plan)
    nodes = list(case.dense.graph)
    for feeds in case.rows:
        written = _every_value(case.file, feeds)
        names = [v.name for n in nodes for v in n.outputs if v.name in written]
        planned = forward(interpreter, feeds, [n for n in names if n], state)
        apart = {name: _distance(written[name], _cut(case, name, tensor)) for name, tensor in planned.items()}
        reaching = _reaching(nodes, apart)
        for node in nodes:
            for value in node.outputs:
                if value.name in reaching and (found := apart.get(value.name or "")) is not None:
                    return {"node": node.name, "operator": node.op_type, "value": value.name, **found}
    return None


def _cut(case: Case, name: str, tensor: Any) -> np.ndarray:
    """A value of the gated graph as the written one should have it."""
    array: np.ndarray = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    masks, orders = case.plan.masks(case.structure), case.plan.orders(case.structure)
    for axis, layout in enumerate(case.structure.layouts.get(name, ())):
        if atoms_of(layout) & (masks.keys() | orders.keys()):
            array = array.take(flat_order(layout, masks, orders, case.structure.sizes), axis)
    return array


def _reaching(nodes: Sequence[ir.Node], apart: Mapping[str, Any]) -> set[str]:
    """The values from which a difference goes on to an output: nothing on the way is as planned."""
    found: set[str] = set()
    for node in reversed(nodes):
        for value in node.outputs:
            name = value.name or ""
            differs = name not in apart or apart[name] is not None
            ends = value.is_graph_output() and name in apart
            if differs and (ends or any(v.name in found for reader, _ in value.uses() for v in reader.outputs)):
                found.add(name)
    return found


def _every_value(file: Path, feeds: runtime.Feeds) -> dict[str, np.ndarray]:
    """What every node of a file gives, in ONNX Runtime, without optimisations."""
    import onnx

    proto = onnx.load(file, load_external_data=False)
    there = {v.name for v in proto.graph.output}
    made = [name for node in proto.graph.node for name in node.output if name and name not in there]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    beside = file.with_name(f"{file.name}.every-value")  # its weights may lie beside it
    try:
        onnx.save(proto, beside)
        opened = runtime.session(beside, optimization="none")
        return runtime.run(opened, feeds)
    finally:
        beside.unlink(missing_ok=True)


def _distance(found: np.ndarray, should: np.ndarray) -> dict[str, Any] | None:
    if np.shape(found) != np.shape(should):
        return {"shape": list(np.shape(found)), "planned_shape": list(np.shape(should))}
    if found.dtype.kind not in "f":
        wrong = float((found != should).mean()) if np.size(should) else 0.0
        return {"share_of_elements": wrong} if wrong > _APART else None
    finite = np.abs(should[np.isfinite(should)])
    scale = float(finite.max(initial=0.0)) or 1.0
    apart = max_distance(found, should)
    return {"max_abs": apart, "scale": scale} if not apart <= _APART * scale else None
