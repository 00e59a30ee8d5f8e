"""Does a written file compute what it should? The last check before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CheckError
from onnxprune.graph import runtime
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.probe.forward import forward
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter

Array = NDArray[Any]

_FLIPS = 0.01
"""Share of an integer output's elements that may differ: an argmax over nearly equal values."""

TOLERANCE = {"float16": 1e-2, "bfloat16": 4e-2}
"""How far the written file may be from the plan, relative to the outputs' scale; 1e-4 in single precision."""


@dataclass(frozen=True)
class Equivalence:
    """How closely a file reproduces expected outputs.

    Attributes:
        max_abs: largest absolute difference in floating-point outputs.
        max_rel: the same relative to the output's scale, max |expected| over all rows; the worst output counts.
        rows: rows compared.
        output: where `max_rel` was seen.
        flips: share of elements that differ in the worst integer output.
    """

    max_abs: float
    max_rel: float
    rows: int
    output: str = ""
    flips: float = 0.0


def equivalence(
    file: str | os.PathLike[str] | bytes,
    expected: Iterable[tuple[runtime.Feeds, Mapping[str, Array]]],
    tolerance: float | None = None,
    *,
    providers: Sequence[str] = ("cpu",),
    threads: int = 1,
) -> Equivalence:
    """Run a file and compare it with what its outputs should be.

    Args:
        file: a file, or a serialised model.
        expected: feeds and the outputs they should give, by name.
        tolerance: the largest `max_rel` that passes; None measures only.

    Raises:
        CheckError: the difference is above the tolerance, a value is not finite where it should be, an output has
            another shape, or more than 1% of an integer output differs.
    """
    session = runtime.session(file, providers, threads=threads)
    apart: dict[str, float] = {}
    scale: dict[str, float] = {}
    flips: dict[str, list[int]] = {}
    rows = 0
    for feeds, outputs in expected:
        found = runtime.run(session, feeds, list(outputs))
        rows += max((np.shape(value)[0] for value in outputs.values() if np.ndim(value)), default=1)
        for name, should in outputs.items():
            is_ = found[name]
            if is_.shape != np.shape(should):
                raise CheckError(f"output {name} has shape {is_.shape} where {np.shape(should)} is expected")
            if is_.dtype.kind in "biu":
                counts = flips.setdefault(name, [0, 0])
                counts[0] += int((is_ != should).sum())
                counts[1] += is_.size
            else:
                apart[name] = max(apart.get(name, 0.0), max_distance(is_, should))
                scale[name] = max(scale.get(name, 0.0), _scale(should))
    relative = {name: apart[name] / (scale[name] or 1.0) for name in apart}
    worst = max(relative, key=lambda name: relative[name], default="")
    flipped = max((differ / max(size, 1) for differ, size in flips.values()), default=0.0)
    result = Equivalence(max(apart.values(), default=0.0), relative.get(worst, 0.0), rows, worst, flipped)
    if tolerance is not None and not (result.max_rel <= tolerance and flipped <= _FLIPS):
        raise CheckError(
            f"the file does not compute what it should: output {worst or next(iter(flips))} differs by "
            f"{result.max_rel:.2e} of its scale ({tolerance:.0e} is allowed), {flipped:.2%} of integer outputs differ"
        )
    return result


def max_distance(found: Array, should: Array) -> float:
    """Largest |found − should|; equal infinities and NaNs in the same places are equal, any other is infinitely far."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.asarray(found, np.float64) - np.asarray(should, np.float64))
    same = (found == should) | (np.isnan(found) & np.isnan(should))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0.0))


def _scale(should: Array) -> float:
    finite = np.abs(np.asarray(should, np.float64))
    return float(finite[np.isfinite(finite)].max(initial=0.0))


def check(
    dense: Model, structure: Structure, plan: Plan, file: Path, rows: Sequence[Mapping[str, np.ndarray]]
) -> Equivalence:
    """Law 1: the written file, in ONNX Runtime, gives what the original gives with the plan's gates and weights.

    Raises:
        CheckError: it does not.
    """
    interpreter = Interpreter(dense.graph)
    gated = Gates(structure, interpreter).gated(plan)
    expected = []
    for feeds in rows:
        found = forward(interpreter, feeds, state=gated)
        expected.append(
            (dict(feeds), {k: v.float().numpy() if v.is_floating_point() else v.numpy() for k, v in found.items()})
        )
    types = {v.dtype.name.lower() for v in dense.graph.initializers.values() if v.dtype is not None}
    tolerance = max((limit for name, limit in TOLERANCE.items() if name in types), default=1e-4)
    return equivalence(file, expected, tolerance)
