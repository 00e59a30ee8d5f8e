"""What to do next, from what the report holds: each step a sentence, with a command where there is one.

Commands are written to be pasted: with the run's own files, the options that read them, and a name of their own for
what they write. Where a run had no rows that lie in a file, a command says `ROWS` in their place.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from onnxprune.data import READING
from onnxprune.graph.dimensions import independent
from onnxprune.report import text
from onnxprune.report.schema import Report

_WIDE = 0.02
"""An interval wider than this (two points) says little about a loss of one."""
_LARGE = 0.02
"""A drop that is surely larger than this (two points) asks for another budget."""


@dataclass(frozen=True)
class Step:
    """One suggestion; `command` is empty where none fits."""

    text: str
    command: str = ""


def next_steps(report: Report) -> tuple[Step, ...]:
    """Suggestions, the most important first."""
    return (*_broken(report), *_accuracy(report), *_latency(report), *_sparsity(report))


def recommended(reports: Sequence[Report]) -> tuple[str, str]:
    """(which budget to take, why): the smallest whose loss is within chance; without any, the one that loses least."""
    held = sorted(((r, r.accuracy) for r in reports if r.accuracy is not None), key=lambda pair: pair[0].flops.ratio)
    known = [(r, a) for r, a in held if a.confidence_interval is not None and not r.broken]
    if not known:
        return "No budget can be recommended", "There are no evaluation rows, or too few for an interval"
    harmless = [(r, a) for r, a in known if a.confidence_interval is not None and a.confidence_interval[0] <= 0]
    if harmless:
        report, accuracy = harmless[0]
        why = (
            f"It is the smallest whose loss is within chance: {text.judged(accuracy)}. More rows would narrow the "
            f"interval, {text.drop(accuracy)}"
        )
    else:
        report, accuracy = min(known, key=lambda pair: pair[1].drop)
        why = f"Every budget loses more than chance explains; this one loses least: {text.drop(accuracy)}"
    named = dict(zip(map(id, reports), text.series(reports), strict=True))[id(report)]
    by = f" by {named}" if named else ""
    return f"Take {text.percent(report.flops.ratio)} of the FLOPs{by}: {text.sentence(report)}", why


def _files(report: Report) -> tuple[str, str]:
    dense = report.model.path
    pruned = report.model.pruned_path or str(PurePath(dense).with_suffix(".pruned.onnx"))
    return shlex.quote(dense), shlex.quote(pruned)


def _rows(report: Report, *, learn: bool = True) -> str:
    """The options that name the rows of a run and how they are read, as they are typed."""
    sources = report.recipe.get("sources", {})
    parts = ["--calib", sources.get("calibration") or "ROWS"] if learn else []
    judge = sources.get("evaluation")
    if judge or not learn:
        parts += ["--eval", judge or "ROWS"]
    for option in READING:
        value = sources.get(option)
        if value and (learn or option != "max_length"):
            parts += [f"--{option.replace('_', '-')}", *_written(value)]
    return shlex.join(parts)


def _written(value: Any) -> list[str]:
    """A value as it is typed; a flag has none."""
    if isinstance(value, Mapping):
        return [",".join(f"{k}={v}" for k, v in value.items())]
    if isinstance(value, list | tuple):
        return [",".join(map(str, value))]
    return [] if value is True else [str(value)]


def _beside(report: Report, what: str) -> str:
    """A name for what another command writes, which is not the run's."""
    pruned = PurePath(report.model.pruned_path or report.model.path)
    stem = pruned.name.removesuffix(".onnx")
    return shlex.quote(str(pruned.with_name(f"{stem}.{what}.onnx")))


def _shape(report: Report) -> str:
    """Sizes of the graph's dimensions, as they are typed; empty caches are so by themselves."""
    held = {name: size for name, size in independent(report.flops.shape).items() if size}
    return " --shape " + shlex.quote(",".join(f"{name}={size}" for name, size in held.items())) if held else ""


def _broken(report: Report) -> Iterator[Step]:
    if report.broken:
        kept = report.flops.ratio
        more = ",".join(f"{1 - (1 - kept) * share:.2f}" for share in (0.25, 0.5, 0.75))
        dense, _ = _files(report)
        yield Step(
            "Too much is gone. Look at the whole curve for a budget that leaves the model what it was.",
            f"onnxprune sweep {dense} --flops {more} {_rows(report)}",
        )


def _accuracy(report: Report) -> Iterator[Step]:
    dense, pruned = _files(report)
    held = report.accuracy
    if held is None:
        yield Step(
            "Accuracy was not measured. Evaluate on rows that pruning has not seen.",
            f"onnxprune validate {dense} {pruned} {_rows(report, learn=False)}",
        )
        return
    if held.metric in text.TEACHER:
        yield Step("No labels were used: the dense model was the reference. Labels that fit would tell the true loss.")
    if held.confidence_interval is None or not held.higher_is_better:
        return
    low, high = held.confidence_interval
    if high - low > _WIDE:
        yield Step(
            f"{held.rows} rows leave the drop uncertain by {(high - low) * 100:.1f} points: more of them narrow it."
        )
    if low > _LARGE:
        yield Step(
            "The loss is beyond chance. Keep more, calibrate on more rows, or let a bound on the drop find the size.",
            f"onnxprune {dense} --max-drop 1pt {_rows(report)} -o {_beside(report, 'within-1pt')}",
        )
    elif low <= 0 and high <= _WIDE:
        yield Step(
            "No loss beyond chance was measured. A smaller budget may cost as little: look at the whole curve.",
            f"onnxprune sweep {dense} --flops {_lower_budgets(report)} {_rows(report)}",
        )


def _lower_budgets(report: Report) -> str:
    kept = report.flops.ratio
    return ",".join(f"{kept * share:.2f}" for share in (1, 0.85, 0.7, 0.55))


def _latency(report: Report) -> Iterator[Step]:
    dense, pruned = _files(report)
    if not report.latency:
        yield Step(
            "Latency was not measured, and fewer FLOPs alone promise none. Time both models where they will run.",
            f"onnxprune bench {dense} {pruned}{_shape(report)}",
        )
    for row in report.latency:
        where = f"{text.provider(row.provider)} at {text.shape(row)}"
        if not row.coverage.complete:
            yield Step(f"{where}: {text.coverage(row)} run on the provider; the rest runs on the CPU and costs copies.")
        if text.verdict(row) != "faster":
            yield Step(
                f"{where}: no speed-up ({text.speedup(row)}). Widths that suit it, or larger shapes, may help.",
                f"onnxprune {dense} --latency 0.7 --ep {text.provider(row.provider)} --round-to auto "
                f"{_rows(report)} -o {_beside(report, 'faster')}",
            )


def _sparsity(report: Report) -> Iterator[Step]:
    held = report.sparsity
    if held is None or held.skipped is not None:
        return
    slow = sorted({row.provider for row in report.latency} - set(held.accelerated))
    if slow or not held.accelerated:
        names = ", ".join(map(text.provider, slow)) or "any provider"
        yield Step(f"The {held.pattern} zeros bring no speed on {names}; they make a smaller archive at best.")
    if held.accelerated:
        yield Step(
            f"The {held.pattern} pattern is made for {', '.join(map(text.provider, held.accelerated))}: time it there."
        )
