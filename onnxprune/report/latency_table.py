"""Latency tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.measure.tables.micro_models import IDLE, WHOLE
from onnxprune.measure.tables.table import LatencyTable
from onnxprune.report import text
from onnxprune.report.terminal import console_for

_SHOWN = 6
"""Widths of a kind that are shown; the file has them all."""


def print_tables(tables: Sequence[LatencyTable]) -> None:
    """Per table: the whole model, then each kind of module at some widths."""
    from rich.table import Table

    console = console_for()
    for held in tables:
        at = text.dims(held.shape)
        threads = f"{held.threads} thread{'s' * (held.threads != 1)}"
        console.print(
            f"{text.provider(held.provider)}{', ' + at if at else ''}, {threads}: {held.machine}", style="bold"
        )
        made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("module", "units", "ms", "±"):
            made.add_column(column, justify="left" if column == "module" else "right")
        for entry in sorted(held.entries, key=lambda e: (e.kind != WHOLE, e.kind, e.of, e.units)):
            alike = [e.units for e in held.entries if (e.kind, e.of) == (entry.kind, entry.of)]
            rank = sorted(alike).index(entry.units)
            if entry.kind != IDLE and (rank % max(1, -(-len(alike) // _SHOWN)) == 0 or entry.units == max(alike)):
                units = "" if entry.kind == WHOLE else f"{entry.units} of {entry.of}"
                made.add_row(entry.kind, units, text.digits(entry.ms), text.digits(entry.error))
        console.print(made)
