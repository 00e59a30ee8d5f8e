"""Fixed shapes: some providers take nothing else, and constants fold where dimensions are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune.data import Dataset
from onnxprune.data.model_info import Files
from onnxprune.errors import UsageError
from onnxprune.graph import prepare
from onnxprune.graph.model import InputSpec
from onnxprune.graph.values import dims

SEQUENCE = 128
"""Tokens of a row where nothing says how long rows are."""
_STEP = 16


def fix(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    """Give the symbolic dimensions their sizes, in place, and fold what follows from them.

    Raises:
        UsageError: a dimension of an input has no size, or a name is no dimension of the graph.
    """
    known = {d for value in model.graph.inputs for d in dims(value) or () if isinstance(d, str)}
    unknown = sorted(set(sizes) - known)
    if unknown:
        raise UsageError(f"--shape {unknown[0]}: the graph's dimensions are {', '.join(sorted(known)) or 'all fixed'}")
    for value in model.graph.inputs:
        found = dims(value) or ()
        missing = [d for d in found if not isinstance(d, int) and d not in sizes]
        if missing:
            raise UsageError(
                f"input {value.name} has a dimension {missing[0] or '(unnamed)'} without a size; this target takes "
                f"fixed shapes: name it with --shape {missing[0] or 'NAME'}=SIZE"
            )
        value.shape = ir.Shape([sizes[d] if isinstance(d, str) else d for d in found])
    for value in model.graph.outputs:
        found = value.meta.pop("onnxprune.shape", None)
        if value.shape is not None:
            value.shape = ir.Shape([sizes.get(d.value or "", d) if not isinstance(d, int) else d for d in value.shape])
    model.graph.meta.pop("onnxprune.graph.dimensions", None)
    prepare.normalise(model)
    _declare_outputs(model)
    passes.RemoveUnusedNodesPass()(model)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]
    return model


def _declare_outputs(model: ir.Model) -> None:
    """Outputs whose shape the file left open get what inference found for them, where that is all numbers."""
    for value in model.graph.outputs:
        found = dims(value)
        if found is not None and all(isinstance(d, int) for d in found):
            value.shape = ir.Shape(found)


def sizes_for(
    inputs: Sequence[InputSpec], asked: Mapping[str, int], rows: Dataset | None, folder: Path | None = None
) -> dict[str, int]:
    """A size for every symbolic dimension: as asked; 1 for the batch; else the longest row's, tokens in steps of 16.

    Without rows a sequence counts as 128 tokens, and an image is of the size that config.json in `folder` states. A
    dimension that nothing tells stays out.
    """
    stated = image_sizes(Files(folder))
    found = dict(asked)
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, str) or dim in found:
                continue
            if axis == 0:
                found[dim] = 1
            elif rows is not None and spec.name in rows.examples[0].feeds:
                longest = max(example.feeds[spec.name].shape[axis] for example in rows.examples)
                found[dim] = -(-longest // _STEP) * _STEP if spec.dtype.kind in "iu" else longest
            elif axis == 1 and spec.dtype.kind in "iu":
                found[dim] = SEQUENCE
            elif len(spec.shape) == 4 and dim in stated:
                found[dim] = stated[dim]
    return found


def image_sizes(files: Files) -> dict[str, int]:
    """What exporters call an image's dimensions, and what the model's configuration says of them."""
    size, channels = files.setting("image_size"), files.setting("num_channels")
    high, wide = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    known = {"height": high, "width": wide, "num_channels": channels}
    return {name: value for name, value in known.items() if isinstance(value, int)}
