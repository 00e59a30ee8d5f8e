"""What each step costs: pruning alone, fewer bits alone, both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.export.precision.apply import quantize
from onnxprune.export.precision.integer import Feeds
from onnxprune.graph import model_files
from onnxprune.measure.latency import LatencyRow
from onnxprune.measure.validation import Accuracy, Drift, Teacher, compare


@dataclass(frozen=True)
class Step:
    """One step against the dense original.

    Attributes:
        name: `pruned`, `quantised` (the dense model in fewer bits) or `both`.
        scheme: of `precision.SCHEMES`; empty for `pruned`.
        bytes: the file's size.
        accuracy, drift: on the rows for the report; None without any.
        latency: against the dense model; None where it was not measured.
    """

    name: str
    scheme: str
    bytes: int
    accuracy: Accuracy | None = None
    drift: Drift | None = None
    latency: LatencyRow | None = None


def measure_steps(
    teacher: Teacher | None,
    dense: Path,
    pruned: Path,
    scheme: str,
    rows: Sequence[Feeds],
    scratch: Path,
    *,
    metric: Any = None,
    seed: int = 0,
    time: Callable[[Path], LatencyRow] | None = None,
) -> list[Step]:
    """Three files on the same rows, against the dense original.

    Args:
        teacher: the dense original's outputs; None without rows to judge on.
        dense, pruned: files in single precision.
        scheme: of `precision.SCHEMES`.
        rows: calibration rows for ranges.
        scratch: a folder for the quantised files: `dense.onnx` and `pruned.onnx`.
        time: measures a file against the dense one.
    """
    files = {
        "pruned": pruned,
        "quantised": quantize(dense, scratch / "dense.onnx", scheme, rows),
        "both": quantize(pruned, scratch / "pruned.onnx", scheme, rows),
    }
    steps = []
    for name, file in files.items():
        found = None if teacher is None else compare(teacher, file, metric=metric, seed=seed)
        steps.append(
            Step(
                name,
                "" if name == "pruned" else scheme,
                model_files.size(file),
                found.accuracy if found else None,
                found.drift if found else None,
                time(file) if time else None,
            )
        )
    return steps
