"""What `bench` shows: the latency table, placement on simulated devices, time by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxprune.graph.runtime import Coverage
from onnxprune.measure.bench import Benchmark, OperatorRow, Placement
from onnxprune.report import terminal, text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_TAIL = 0.005
"""Operators below this share of both models' time are summed up in one line."""


def print_benchmark(found: Benchmark, console: Console | None = None) -> None:
    """All that was measured, to stdout unless another console is given."""
    out = console or terminal.console_for()
    if found.latency:
        terminal.print_latency(found.latency, out)
    if found.placement:
        out.print(_placement(found.placement))
    for shape in dict.fromkeys(text.largest(row.shape) for row in found.operators):
        out.print(_operators([row for row in found.operators if text.largest(row.shape) == shape], shape))


def _placement(rows: Sequence[Placement]) -> Table:
    made = _table("Placement on a simulated device, whose times mean nothing; outputs against the CPU's, relative")
    for column in ("provider", "shape", "dense", "partitions", "off by", "pruned", "partitions", "off by"):
        made.add_column(column, justify="left" if column == "provider" else "right")
    for row in rows:
        cells = (*_placed(row.dense_coverage, row.dense_difference), *_placed(row.coverage, row.difference))
        made.add_row(text.provider(row.provider), text.largest(row.shape), *cells)
    return made


def _placed(held: Coverage, difference: float) -> tuple[str, str, str]:
    return f"{held.nodes_on_provider}/{held.nodes}", str(held.partitions), f"{difference:.1e}"


def _operators(rows: Sequence[OperatorRow], shape: str) -> Table:
    made = _table(f"Time by operator on the CPU at {shape}, profiling included: ms of one pass")
    for column in ("operator", "calls", "dense", "calls", "pruned", "kept"):
        made.add_column(column, justify="left" if column == "operator" else "right")
    before, after = _sum([r.dense for r in rows]), _sum([r.pruned for r in rows])
    shown = [r for r in rows if r.dense[1] > _TAIL * before[1] or r.pruned[1] > _TAIL * after[1]]
    rest = [r for r in rows if r not in shown]
    lines = [(r.op, r.dense, r.pruned) for r in shown]
    if rest:
        lines.append((f"{len(rest)} others", _sum([r.dense for r in rest]), _sum([r.pruned for r in rest])))
    for op, dense, pruned in lines:
        made.add_row(op, *_cells(dense, pruned))
    made.add_section()
    made.add_row("all", *_cells(before, after), style="bold")
    return made


def _sum(sides: Sequence[tuple[int, float]]) -> tuple[int, float]:
    return sum(count for count, _ in sides), sum(ms for _, ms in sides)


def _cells(dense: tuple[int, float], pruned: tuple[int, float]) -> tuple[str, ...]:
    kept = text.percent(pruned[1] / dense[1]) if dense[1] else ""
    return str(dense[0]), f"{dense[1]:.3f}", str(pruned[0]), f"{pruned[1]:.3f}", kept


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
