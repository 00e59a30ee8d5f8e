"""A plan's two files as anyone could have written them: the types that must stand in plan.json, and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.documents import regular
from onnxprune.errors import InputError, one_line, reading

KINDS = ("weight", "intercept", "rest", "map")
"""What a tensor of a plan is, in front of the slash in its name."""


@dataclass(frozen=True)
class Written:
    """plan.json as it is written: see `plan.Plan`; `tensors` counts those beside it."""

    digest: str
    keep: Mapping[str, tuple[int, ...]]
    drop: tuple[str, ...]
    tensors: int
    sparsity: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    order: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tiles: Mapping[str, tuple[tuple[int, int, int, int], ...]] = field(default_factory=dict)


def read_tensors(path: Path | None) -> dict[str, dict[str, np.ndarray]]:
    """Kind -> name -> tensor; nothing of no file.

    Raises:
        InputError: there is no such file, it is damaged, or holds what no plan does.
    """
    from safetensors.numpy import load_file

    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    if path is None:
        return found
    regular(path)
    with reading(f"{path}: the tensors of a plan cannot be read"):
        tensors: dict[str, np.ndarray] = load_file(path)
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        if kind not in KINDS or not key:
            raise InputError(f"{path}: {one_line(name, 60)!r} is no tensor of a plan")
        number = tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16"
        if not number or not np.isfinite(tensor).all():
            raise InputError(f"{path}: {one_line(name, 60)} holds what is no finite number: make the plan anew")
        found[kind][key] = tensor
    return found
