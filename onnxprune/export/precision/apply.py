"""One call for every scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.errors import UnsupportedError, UsageError, near, reading
from onnxprune.export.precision import integer, storage
from onnxprune.export.precision.integer import Feeds
from onnxprune.graph import model as models
from onnxprune.graph import model_files, outputs, prepare
from onnxprune.graph.finite import check_weights


@dataclass(frozen=True)
class Scheme:
    """A way to spend fewer bits.

    Attributes:
        summary: what it does, for the user.
        store: (model, by row?) how weights or embedding tables are stored first; None leaves them as they are.
        convert: writes (source file, target file, calibration rows).
        rows: whether calibration rows are needed.
        tolerance: how far outputs may reasonably move, relative to their scale: above it a warning is due.
    """

    summary: str
    store: Callable[[ir.Model, bool], int] | None
    convert: Callable[[Path, Path, Sequence[Feeds]], None] | None
    rows: bool = False
    tolerance: float = 0.05


def _halves(model: ir.Model, by_row: bool) -> int:
    return storage.store_half(model, by_row=by_row)


def _bytes(model: ir.Model, by_row: bool) -> int:
    return storage.store_bytes(model, by_row=by_row)


def _tables(model: ir.Model, by_row: bool) -> int:
    return storage.store_bytes(model, tables_only=True)


def _plain(model: ir.Model, by_row: bool) -> int:
    return _tables(model, by_row) + storage.untranspose(model)


def _half(source: Path, target: Path, rows: Sequence[Feeds]) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with integer.quiet():
        half = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    beside: dict[str, Any] = {"save_as_external_data": True, "location": f"{target.name}.data", "size_threshold": 128}
    onnx.save(half, target, **(beside if models.apart(model_files.size(source) // 2) else {}))


SCHEMES: dict[str, Scheme] = {
    "fp16": Scheme("weights in half precision, computed in single", _halves, None, tolerance=5e-3),
    "fp16-compute": Scheme("all in half precision", None, _half, tolerance=2e-2),
    "int8-weights": Scheme("weights in 8 bits, computed in single", _bytes, None),
    "int8-dynamic": Scheme(
        "weights and activations in 8 bits, ranges at run time", _plain, lambda s, t, _: integer.dynamic(s, t),
        tolerance=0.25,
    ),
    "int8-static": Scheme(
        "QDQ in 8 bits, ranges from calibration rows", _tables, integer.static, rows=True, tolerance=0.25
    ),
    "a16w8": Scheme(
        "QDQ of the whole graph, 16-bit activations, 8-bit weights", None,
        lambda s, t, rows: integer.npu(s, t, rows, activation_bits=16), rows=True,
    ),
    "a8w8": Scheme(
        "QDQ of the whole graph, 8-bit activations and weights", None,
        lambda s, t, rows: integer.npu(s, t, rows, activation_bits=8), rows=True, tolerance=0.25,
    ),
}  # fmt: skip


def scheme_of(name: str, int8: str = "int8-dynamic") -> str:
    """The scheme behind a name; `int8` alone is whatever the target runs best.

    Raises:
        UsageError: there is none of that name.
    """
    found = int8 if name == "int8" else name
    if found not in SCHEMES:
        raise UsageError(f"--quantize {name}: choose from int8, {', '.join(SCHEMES)}{near(name, SCHEMES)}")
    return found


def quantize(source: Path, target: Path, scheme: str, rows: Sequence[Feeds] = (), *, by_row: bool = True) -> Path:
    """Write `source` in fewer bits.

    Args:
        source: a `.onnx` file in single precision.
        target: the file to write.
        scheme: a key of SCHEMES, or `int8`.
        rows: feeds that activations' ranges are taken from.
        by_row: embedding tables of fewer bits are read row by row; off: as a whole, once, when the file is loaded.

    Raises:
        UsageError: an unknown scheme, or rows are missing.
    """
    name = scheme_of(scheme)
    chosen = SCHEMES[name]
    if chosen.rows and not rows:
        other = "fp16" if name.startswith("a") else "int8-dynamic"
        raise UsageError(f"--quantize {name} takes its ranges from rows: give --calib, or choose {other}")
    check_weights(models.read(source).graph)  # what is not finite has no range
    refused = reading(f"--quantize {name}: {source.name} cannot be written so", UnsupportedError)
    with outputs.scratch() as scratch, refused:
        stored = source
        if chosen.store is not None:
            model = models.read(source)
            prepare.stamp(model)
            storage.widen(model)
            chosen.store(model, by_row)
            stored = scratch / "stored.onnx"
            models.save(model, stored if chosen.convert is not None else target)
        if chosen.convert is not None:
            chosen.convert(stored, target, rows)
    return target
