"""Sessions that give scores: of a file whose outputs are answers alone, those behind them, too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxprune.graph import memory, runtime, segments
from onnxprune.graph.intake import maps
from onnxprune.graph.providers import CPU
from onnxprune.graph.scores_behind import scores_behind

ModelFile = str | os.PathLike[str] | bytes
_SCORES = frozenset(f"tensor({kind})" for kind in ("float", "float16", "double", "bfloat16"))


def opened(file: ModelFile, providers: Sequence[str] = (CPU,), *, threads: int = 1) -> runtime.Session:
    """As `segments.opened`; what an output was made from is given as "scores of OUTPUT" where none is a score."""
    session = segments.opened(file, providers, threads=threads)
    memory.ease()  # what the file was read into
    if any(output.type in _SCORES for output in session.get_outputs()):
        return session
    made = _with_scores(file)
    return session if made is None else runtime.session(made, providers, threads=threads)


def compared(session: runtime.Session) -> list[str]:
    """The outputs that are tensors of numbers."""
    return [o.name for o in session.get_outputs() if o.type.startswith("tensor(") and o.type != "tensor(string)"]


def showing(file: ModelFile, names: Sequence[str]) -> bytes | None:
    """A file that also gives some of its inner values, each as "scores of VALUE"; None where it has one of them not."""
    model, unread = _read(file)
    there = {v.name: v for node in model.graph for v in node.outputs if v.name in names}
    return _also(model, unread, {name: there[name] for name in names}) if len(there) == len(names) else None


def _with_scores(file: ModelFile) -> bytes | None:
    model, unread = _read(file)
    found = scores_behind(model.graph)
    return _also(model, unread, found) if found else None


def _read(file: ModelFile) -> tuple[ir.Model, Mapping[str, bytes]]:
    """A model with the types of its values, and the outputs whose types were put aside."""
    import onnx

    proto = onnx.load_model_from_string(file) if isinstance(file, bytes) else onnx.load(os.fspath(file))
    proto = onnx.shape_inference.infer_shapes(proto)
    unread = maps.put_aside(proto)
    return ir.from_proto(proto), unread


def _also(model: ir.Model, unread: Mapping[str, bytes], found: Mapping[str, ir.Value]) -> bytes:
    """The model with further outputs, and without those that are no tensors."""
    for output in [v for v in model.graph.outputs if v.name in unread]:
        model.graph.outputs.remove(output)
    for name, value in found.items():
        made = ir.node("Identity", [value], name=f"scores of {name}")
        made.outputs[0].name, made.outputs[0].type = f"scores of {name}", value.type
        made.outputs[0].shape = value.shape
        model.graph.append(made)
        model.graph.outputs.append(made.outputs[0])
    written: bytes = ir.to_proto(model).SerializeToString()
    return written
