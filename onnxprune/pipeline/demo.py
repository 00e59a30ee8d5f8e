"""The built-in example's files: a small vision transformer that was trained on handwritten digits, and rows for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.errors import InputError, UsageError
from onnxprune.graph import outputs
from onnxprune.graph.values import constant
from onnxprune.pipeline import output_files

MODEL, LEARN, JUDGE = "model.onnx", "digits.npz", "digits-dev.npz"


@dataclass(frozen=True)
class Demo:
    """Where they lie.

    Attributes:
        model: the dense model, in single precision.
        learn: 512 rows to learn from.
        judge: 450 others, with labels, for the report.
    """

    model: Path
    learn: Path
    judge: Path


def unpack(folder: Path) -> Demo:
    """Put the files into a folder; those that are there already stay.

    Raises:
        UsageError: there are others of these names, or, without them, of those that the pruned model takes.
        InputError: this installation lacks them.
    """
    made = {
        MODEL: _in_single_precision(_shipped(MODEL)),
        **{name: _shipped(name).read_bytes() for name in (LEARN, JUDGE)},
    }
    there = {name for name in made if (folder / name).exists()}
    for name in there:
        if (folder / name).read_bytes() != made[name]:
            raise UsageError(f"{folder / name} is not the demo's: name another folder with -o")
    if MODEL not in there:
        pruned = output_files.default_target(folder / MODEL)
        if others := sorted(folder.glob(f"{pruned.stem}.*")):
            raise UsageError(f"{others[0]} is not the demo's: name another folder with -o")
    if there != set(made):
        with outputs.files(folder / MODEL, [LEARN, JUDGE], inputs=outputs.Inputs(), force=True) as out:
            for name, held in made.items():
                (out.folder / name).write_bytes(held)
            out.commit()
    return Demo(*(folder / name for name in made))


def _shipped(name: str) -> Path:
    """A file of the example, as it lies in the package or, in a checkout, beside it."""
    package = Path(__file__).resolve().parents[1]
    for home in (package / "demo", package.parent / "examples" / "digits", package.parent / "calibration"):
        if (home / name).is_file():
            return home / name
    raise InputError(
        f"this installation of onnxprune lacks the demo's {name}: install it anew, or run `bash examples/digits.sh` in "
        "a clone of its repository"
    )


def _in_single_precision(file: Path) -> bytes:
    """The model's file with the weights that are stored in half precision, and cast, as they are computed with."""
    model = ir.load(file)
    for node in list(model.graph):
        held = node.inputs[0] if node.op_type == "Cast" else None
        if held is None or held.const_value is None:
            continue
        name = (held.name or "").removesuffix("_half")
        whole = constant(model, held.const_value.numpy().astype(np.float32), name)
        node.outputs[0].replace_all_uses_with(whole)
        model.graph.remove(node, safe=True)
        model.graph.initializers.pop(held.name or "")
    made: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return made
