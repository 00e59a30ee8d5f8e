"""Model files that anyone could have made: what is read, and what is refused before anything is done with it.

Nothing outside the model's folder is read, every tensor has the bytes that its shape asks for, and nothing in the graph
grows without bound when it is unfolded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.documents import regular
from onnxprune.errors import ModelError, OnnxPruneError, one_line, said
from onnxprune.graph.intake import bounds, external_data, foreign, maps, tensors, weights


def read(file: Path) -> ir.Model:
    """The model in a file, as it is; external data stay where they are, and are found where they really lie.

    Raises:
        ModelError: it cannot be read, is not ONNX, damaged, or reaches for data outside its folder.
        LimitError: it would grow without bound.
    """
    regular(file, ModelError)
    try:
        proto = _parsed(file)
        places = tensors.check(proto, file)
        types = maps.put_aside(proto)
        proto, held = weights.take_out(proto)
        model: ir.Model = ir.from_proto(proto)
        weights.put_in(model, held)
        maps.note(model, types)
    except OnnxPruneError:
        raise
    except Exception as error:  # protobuf, onnx and the OS each raise their own; all mean the file cannot be read
        raise _refusal(file, one_line(said(error), 200)) from error
    if "ai.onnx" in model.opset_imports:  # the default domain by its other name
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    external_data.place(model, file, places)
    if not model.opset_imports or not model.graph.outputs or not model.graph.num_nodes():
        raise _refusal(file, "no operators, opset or outputs in it")
    bounds.check(model, file)
    return model


def data_apart(file: Path) -> bool:
    """Whether a model file has weights that lie in another; nothing else of it is looked at.

    Raises:
        ModelError: it is no file.
        Exception: of protobuf, where it cannot be parsed.
    """
    regular(file, ModelError)
    return any(tensor.data_location == tensor.EXTERNAL for tensor in _parsed(file).graph.initializer)


def _refusal(file: Path, why: str) -> ModelError:
    """Of a file that is none of ours: what it is, where that is known, else why it cannot be read."""
    kind = foreign.told(file)
    return ModelError(f"{file}: not an ONNX file{f' but {kind}' if kind else f', or a damaged one ({why})'}")


def _parsed(file: Path) -> Any:
    import onnx

    return onnx.load(file, load_external_data=False)
