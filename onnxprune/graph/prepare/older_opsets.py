"""Files of operator sets from before what this program knows, brought up to one that it does."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import UnsupportedError, one_line

OLDEST = 7
"""Operator sets before this broadcast differently; onnx's own converter is not reliable there."""
TARGET = 13
"""What older files are brought to: the first in which axes are inputs throughout, which every runtime has by now."""


def converted(model: ir.Model, file: Path) -> ir.Model:
    """The same model in operator set `TARGET`, by onnx's converter.

    Raises:
        UnsupportedError: the converter does not know an operator, or what it makes is not valid.
    """
    import onnx

    version = model.opset_imports.get("", 0)
    try:
        # Not all that is converted at once may lie beside the file.
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
        proto = onnx.version_converter.convert_version(ir.to_proto(model), TARGET)
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the converter's errors share no class of their own
        raise UnsupportedError(
            f"{file}: opset {version} of the default domain, which onnx's converter does not bring to {TARGET} "
            f"({one_line(str(error), 120)}); export the model anew with opset {TARGET} or newer"
        ) from error
    found = ir.from_proto(proto)
    found.metadata_props.update(model.metadata_props)
    return found
