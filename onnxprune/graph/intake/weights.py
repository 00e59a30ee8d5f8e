"""Weights of a model file, in arrays of their own: held once, whoever computes with them.

A parsed message keeps all its bytes as long as one tensor of it is known, and gives each reader a copy. So the weights
are taken out of it, and what is left of the message is parsed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.stored import SMALL, Held


def take_out(proto: Any) -> tuple[Any, dict[str, Held]]:
    """(the ModelProto without the bytes of large initializers, these by name); the message given is used up.

    Args:
        proto: checked (`tensors.check`).
    """
    found = {t.name: _held(t) for t in proto.graph.initializer if t.HasField("raw_data") and _large(t)}
    if not found:
        return proto, {}
    for tensor in proto.graph.initializer:
        if tensor.name in found:
            tensor.ClearField("raw_data")
    return type(proto).FromString(proto.SerializeToString()), found


def put_in(model: ir.Model, held: Mapping[str, Held]) -> None:
    """Let the initializers of a model be what was taken out of its message, in place."""
    for name, tensor in held.items():
        model.graph.initializers[name].const_value = tensor


def _large(tensor: Any) -> bool:
    kind = ir.DataType(tensor.data_type)
    return kind != ir.DataType.STRING and kind.bitwidth >= 8 and len(tensor.raw_data) > SMALL


def _held(tensor: Any) -> Held:
    kind = ir.DataType(tensor.data_type)
    array = np.frombuffer(tensor.raw_data, np.dtype(kind.numpy()).newbyteorder("<")).reshape(tuple(tensor.dims))
    told = {entry.key: entry.value for entry in getattr(tensor, "metadata_props", ())}
    return Held(array, kind, name=tensor.name, doc_string=tensor.doc_string or None, metadata_props=told)
