"""Outputs that are maps, or sequences of them (ZipMap's): onnx_ir has no such types, so they are put aside and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.graph.values import ASIDE, is_map


def put_aside(proto: Any) -> dict[str, bytes]:
    """Take the types of maps out of a ModelProto: name -> type."""
    found: dict[str, bytes] = {}
    for value in (*proto.graph.output, *proto.graph.value_info):
        kind = value.type
        held = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind
        if held.HasField("map_type"):
            found[value.name] = kind.SerializeToString()
            value.ClearField("type")
    return found


def note(model: ir.Model, types: dict[str, bytes]) -> None:
    """Let the outputs of a model know what was put aside."""
    for value in model.graph.outputs:
        if value.name in types:
            value.meta[ASIDE] = types[value.name]


def put_back(model: ir.Model, file: Path) -> None:
    """Give a written file the types that its outputs had."""
    import onnx

    types = {v.name: v.meta[ASIDE] for v in model.graph.outputs if is_map(v)}
    if not types:
        return
    proto = onnx.load(file, load_external_data=False)
    for value in proto.graph.output:
        if value.name in types:
            value.type.CopyFrom(onnx.TypeProto.FromString(types[value.name]))
    file.write_bytes(proto.SerializeToString())
