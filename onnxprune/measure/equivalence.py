"""Does a written file compute what it should? The last check before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CheckError
from onnxprune.graph import memory, model_files, runtime, segments
from onnxprune.graph.finite import require
from onnxprune.graph.model import Model, Wires, load
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.quantised_operators import is_quantised, noted
from onnxprune.graph.scores_behind import frontier
from onnxprune.measure.footprint import side_by_side
from onnxprune.measure.scoring_sessions import showing
from onnxprune.measure.unrounded import unrounded, unrounded_file
from onnxprune.measure.unsaturated import unsaturated
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.forward import NOTHING, forward, forward_together
from onnxprune.probe.gates import Gated, Gates
from onnxprune.probe.interpreter import Interpreter

Array = NDArray[Any]
Groups = Sequence[Sequence[Mapping[str, Array]]]
"""Feeds of batches that go through a graph together."""

_FLIPS = 0.01
"""Share of an integer output's elements that may differ: an argmax over nearly equal values."""

TOLERANCE = {"float16": 1e-2, "bfloat16": 4e-2, "rounded": 1e-2}
"""How far the written file may be from the plan, relative to the outputs' scale; 1e-4 in single precision.

Where activations are rounded to 8 bits, sums in another order fall on another step here and there.
"""

_SLACK = 2.0
"""How much farther than the dense file is from the interpreter a pruned one may be: its sums round in another order."""
_OWN_SLACK = 3.0
"""How much farther than from the interpreter on its own graph a file may be from the gated one: both round, too."""
_MOST = {"float16": 5e-2, "bfloat16": 1e-1, "quantized": 1e-1}
"""The most that may be allowed because the dense file shows it; 1e-3 in single precision. Above it nothing is shown."""
_MOST_FLIPS = 0.05
_ROUNDED_SLACK = 5.0
"""The same where activations are rounded, of a file that is as planned without that."""
_UNROUNDED = 1e-3
"""How far such a file may be off then: its sums differ from the plan's in their last digits alone."""
_SAID = 2e-2
"""How far a quantised dense file may be from what it says before that is told: more than rounding explains."""
_QUANTIZED = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits")
)
"""Operators around which numbers are steps, where the last digit decides which, and which sessions fuse."""
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")
_SHOWN = 1_500_000_000
"""Bytes of a file up to which it is opened with inner values as outputs, in memory."""
_UNFUSED = "basic"
"""The optimisation level at which ONNX Runtime computes quantised graphs as they are written."""


@dataclass(frozen=True)
class Equivalence:
    """How closely a file reproduces expected outputs.

    Attributes:
        max_abs: largest absolute difference in floating-point outputs.
        max_rel: the same relative to the output's scale, max |expected| over all rows; the worst output counts.
        rows: rows compared.
        output: where `max_rel` was seen.
        flips: share of elements that differ in the worst integer output.
        allowed: the largest `max_rel` that passes; None where it was measured only.
        dense: how far the dense file itself is from the interpreter on these rows, where that was looked at.
        note: what is to be known beside the figures.
    """

    max_abs: float
    max_rel: float
    rows: int
    output: str = ""
    flips: float = 0.0
    allowed: float | None = None
    dense: float | None = None
    note: str = ""

    def within(self, tolerance: float, flips: float = _FLIPS) -> bool:
        """Whether the file passes."""
        return self.max_rel <= tolerance and self.flips <= flips


def equivalence(
    file: str | os.PathLike[str] | bytes,
    expected: Iterable[tuple[runtime.Feeds, Mapping[str, Array]]],
    tolerance: float | None = None,
    *,
    providers: Sequence[str] = ("cpu",),
    threads: int = 1,
    optimization: str = "all",
) -> Equivalence:
    """Run a file and compare it with what its outputs should be.

    Args:
        file: a file, or a serialised model.
        expected: feeds and the outputs they should give, by name.
        tolerance: the largest `max_rel` that passes; None measures only.

    Raises:
        CheckError: the difference is above the tolerance, an output has another shape, more than 1% of an integer
            output differs, or there is nothing to compare with: NaN is expected, or no finite number.
    """
    session = segments.opened(file, providers, threads=threads, optimization=optimization)
    apart: dict[str, float] = {}
    scale: dict[str, float] = {}
    flips: dict[str, list[int]] = {}
    several: set[str] = set()
    rows = 0
    for outputs, found in _found(session, expected):
        rows += max((np.shape(value)[0] for value in outputs.values() if np.ndim(value)), default=1)
        for name, should in outputs.items():
            is_ = found[name]
            if is_.shape != np.shape(should) and is_.dtype.kind in "biu" and is_.ndim == np.ndim(should):
                several.add(name)  # how many answers there are is one of them
            elif is_.shape != np.shape(should):
                raise CheckError(f"output {name} has shape {is_.shape} where {np.shape(should)} is expected")
            elif is_.dtype.kind in "biu":
                counts = flips.setdefault(name, [0, 0])
                counts[0] += int((is_ != should).sum())
                counts[1] += is_.size
            else:
                apart[name] = max(apart.get(name, 0.0), max_distance(is_, should))
                scale[name] = max(scale.get(name, 0.0), _scale(should))
    relative = {name: apart[name] / (scale[name] or 1.0) for name in apart}
    worst = max(relative, key=lambda name: relative[name], default="")
    flipped = max((differ / max(size, 1) for differ, size in flips.values()), default=0.0) if not several else 1.0
    result = Equivalence(
        max(apart.values(), default=0.0),
        relative.get(worst, 0.0),
        rows,
        worst or next(iter((*several, *flips)), ""),
        flipped,
        tolerance,
    )
    if tolerance is not None and not result.within(tolerance):
        raise _differs(result, tolerance)
    return result


def _found(
    session: runtime.Session, expected: Iterable[tuple[runtime.Feeds, Mapping[str, Array]]]
) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
    """The outputs that feeds should give and those that they do; several at once where a model runs in segments.

    Raises:
        CheckError: what they should give is not finite.
    """
    group: list[tuple[runtime.Feeds, Mapping[str, Array]]] = []
    held = 0

    def run() -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
        found = runtime.run_all(session, [feeds for feeds, _ in group], list(group[0][1]))
        yield from zip([outputs for _, outputs in group], found, strict=True)
        group.clear()

    for feeds, outputs in expected:
        require(outputs, "what the file is compared with", error=CheckError)
        size = sum(np.asarray(value).nbytes for value in outputs.values())
        if group and (not segments.several(session) or held + size > memory.small_share()):
            yield from run()
            held = 0
        group.append((feeds, outputs))
        held += size
    if group:
        yield from run()


def _differs(found: Equivalence, tolerance: float, more: str = "") -> CheckError:
    return CheckError(
        f"the file does not compute what it should: output {found.output} differs by {found.max_rel:.2e} of its scale "
        f"({tolerance:.0e} is allowed{more}), {found.flips:.2%} of integer outputs differ"
    )


def max_distance(found: Array, should: Array) -> float:
    """Largest |found − should|; equal infinities are equal, and so are NaNs in the same places (`equivalence` refuses
    them before), any other is infinitely far.
    """
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.asarray(found, np.float64) - np.asarray(should, np.float64))
    same = (found == should) | (np.isnan(found) & np.isnan(should))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0.0))


def _scale(should: Array) -> float:
    finite = np.abs(np.asarray(should, np.float64))
    return float(finite[np.isfinite(finite)].max(initial=0.0))


def check(
    dense: Model,
    structure: Structure,
    plan: Plan,
    file: Path,
    rows: Sequence[Mapping[str, np.ndarray]],
    progress: Callable[[int, int], None] | None = None,
) -> Equivalence:
    """Law 1: the written file, in ONNX Runtime, gives what the original gives with the plan's gates and weights.

    Where the file is farther away than its precision explains, the dense file shows on the same rows how far ONNX
    Runtime and the interpreter are from each other without any cut; twice that is allowed, up to a limit. If it is not
    enough, the written graph shows it: refit weights may be larger than the dense ones, and round more. Quantised
    graphs are compared as they are written, without fusions, and with unsigned codes: ONNX Runtime's integer kernels
    may be anywhere (their 8-bit products saturate on processors that lack the instructions for them), for the dense
    file no less.

    Args:
        progress: called with (batches done, batches) of the comparison that every file goes through.

    Raises:
        CheckError: it does not.
    """
    interpreter = Interpreter(dense.graph)
    gated = Gates(structure, interpreter).gated(plan)
    count, groups = len(rows), side_by_side(dense, rows)
    found = equivalence(file, _counted(_expected(interpreter, groups, gated), count, progress))
    kinds = _kinds(dense)
    usual = max((TOLERANCE[k] for k in kinds if k in TOLERANCE), default=1e-4)
    if found.within(usual):
        return replace(found, allowed=usual)
    if dense.path is None:
        raise _differs(found, usual)
    fused, own = found, equivalence(dense.path, _expected(interpreter, groups))
    told = own
    if "quantized" in kinds:
        copies = [unsaturated(f) or f for f in (file, dense.path)]
        found = equivalence(copies[0], _expected(interpreter, groups, gated), optimization=_UNFUSED)
        own = equivalence(copies[1], _expected(interpreter, groups), optimization=_UNFUSED)
    most = max((_MOST[k] for k in kinds if k in _MOST), default=1e-3)
    tolerance, flips = max(usual, min(_SLACK * own.max_rel, most)), max(_FLIPS, min(_SLACK * own.flips, _MOST_FLIPS))
    chaotic = "rounded" in kinds and not found.within(usual)
    if chaotic:
        _check_unrounded(dense, structure, plan, file, groups)
        # The file is as planned: one digit more or less in a sum, and an activation is rounded to its other neighbour.
        tolerance = max(_MOST["quantized"], _ROUNDED_SLACK * own.max_rel)
        flips = max(_FLIPS, _ROUNDED_SLACK * own.flips)
    if not found.within(tolerance, flips) and not kinds:
        rounding = equivalence(file, _expected(Interpreter(load(file).graph), groups)).max_rel
        tolerance = max(tolerance, min(_OWN_SLACK * rounding, most))
    tied = ""
    if not found.within(tolerance, flips):
        if found.max_rel > tolerance or kinds or not _tied(dense, structure, plan, file, groups, tolerance):
            raise _differs(found, tolerance, f"; the dense file itself differs by {own.max_rel:.0e}")
        fused, tied = replace(fused, flips=0.0), _TIES.format(found.flips)
    if not fused.within(max(tolerance, _SLACK * told.max_rel), max(_FLIPS, _SLACK * told.flips)):
        raise _differs(fused, tolerance, f"; the dense file itself differs by {told.max_rel:.0e}")
    note = "" if told.within(_SAID if "quantized" in kinds else most) else _FUSED.format(told.max_rel)
    if chaotic and own.max_rel > _SAID:
        note = _LAST_DIGITS.format(own.max_rel)
    note = note or tied
    return replace(found, allowed=tolerance, dense=told.max_rel, note=note)


def _check_unrounded(dense: Model, structure: Structure, plan: Plan, file: Path, groups: Groups) -> None:
    """Law 1 without the rounding of activations, which deep graphs make so much of that nothing is told with it.

    Raises:
        CheckError: the file computes something else.
    """
    interpreter = Interpreter(unrounded(dense.normal).graph)
    gated = Gates(structure, interpreter).gated(plan)
    with unrounded_file(file) as copy:
        equivalence(copy, _expected(interpreter, groups, gated), _UNROUNDED, optimization=_UNFUSED)


def _tied(dense: Model, structure: Structure, plan: Plan, file: Path, groups: Groups, tolerance: float) -> bool:
    """Whether integer outputs are answers (a NonMaxSuppression, a TopK) to scores that are as planned: among scores
    that are alike, the last digit chooses.
    """
    answers = [v for v in dense.graph.outputs if v.dtype is not None and not v.dtype.is_floating_point()]
    names = list(dict.fromkeys(v.name or "" for answer in answers for v in frontier(answer)))
    made = showing(file, names) if names and model_files.size(file) < _SHOWN else None
    if made is None:
        return False
    interpreter = Interpreter(dense.graph)
    gated = Gates(structure, interpreter).gated(plan)

    def expected() -> Iterator[tuple[runtime.Feeds, Mapping[str, Array]]]:
        for feeds in (feeds for group in groups for feeds in group):
            found = forward(interpreter, feeds, names, gated)
            yield dict(feeds), {f"scores of {name}": to_numpy(found[name], single=True) for name in names}

    try:
        return equivalence(made, expected(), tolerance).within(tolerance)
    except CheckError:
        return False


def alone(
    dense: Model,
    structure: Structure,
    plan: Plan,
    wires: Wires,
    file: Path,
    rows: Sequence[Mapping[str, np.ndarray]],
    tolerance: float,
) -> Equivalence:
    """Law 1 for the file of one graph of several, whatever the others give it.

    Args:
        dense: all of them.
        wires: what the graph's interface is called among them.
        rows: by the file's own names.

    Raises:
        CheckError: it computes something else.
    """
    interpreter = Interpreter(dense.graph)
    gated = Gates(structure, interpreter).gated(plan)

    def expected() -> Iterator[tuple[runtime.Feeds, Mapping[str, Array]]]:
        for feeds in rows:
            bound = {wires.inputs[name]: value for name, value in feeds.items()}
            found = forward(interpreter, bound, list(wires.outputs.values()), gated)
            yield feeds, {own: to_numpy(found[name], single=True) for own, name in wires.outputs.items()}

    try:
        return equivalence(file, expected(), tolerance)
    except CheckError as error:
        raise CheckError(f"{file.name} alone: {error}") from error


_TIES = (
    "{:.1%} of an integer output are other answers to scores that are as planned: where many are alike (sigmoids that "
    "are 1), the last digit chooses"
)
_LAST_DIGITS = (
    "the last digits of sums decide where activations are rounded to 8 bits, and move the dense file's own outputs by "
    "{:.1%} of their scale; the written file was checked without that rounding, too, and agrees there"
)
_FUSED = (
    "the fused integer kernels of ONNX Runtime move the dense file's own outputs by {:.1%} of their scale on this "
    "processor (8-bit products saturate where it lacks VNNI; reduce_range when quantising avoids it); the written file "
    "was checked without fusions"
)


def _expected(
    interpreter: Interpreter, groups: Groups, state: Gated = NOTHING
) -> Iterator[tuple[runtime.Feeds, Mapping[str, Array]]]:
    """Every batch with what the interpreter gives for it, in single precision where it is narrower."""
    for group in groups:
        for feeds, found in zip(group, forward_together(interpreter, group, state=state), strict=True):
            yield dict(feeds), {k: to_numpy(v, single=True) for k, v in found.items()}


def _counted(batches: Iterator[Any], of: int, progress: Callable[[int, int], None] | None) -> Iterator[Any]:
    for done, batch in enumerate(batches, 1):
        yield batch
        if progress is not None:
            progress(done, of)


def _kinds(dense: Model) -> set[str]:
    """What makes a graph's numbers coarse: names of `TOLERANCE` and `_MOST`."""
    types = {v.dtype.name.lower() for v in dense.graph.initializers.values() if v.dtype is not None} & set(TOLERANCE)
    coarse = any(n.op_type in _QUANTIZED or n.op_type.startswith("QLinear") for n in dense.graph.all_nodes())
    coarse |= is_quantised(dense.graph)
    rounded = any(n.op_type in _ROUNDING or ((note := noted(n)) is not None and note.dynamic) for n in dense.graph)
    return types | ({"quantized"} if coarse else set()) | ({"rounded"} if rounded else set())
