"""What a dry run tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from onnxprune.report import text


def print_preview(found: Mapping[str, Any]) -> None:
    """On stdout.

    Args:
        found: `pipeline.preview.Preview` as plain data.
    """
    for line in lines(found):
        click.echo(line)


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Line by line."""
    yield f"A dry run: {found['model']} was read, nothing was scored, cut or written."
    budget, shape = found["budget"], text.dims(found["shape"])
    kind = budget["kind"]
    if budget["allowed"] is not None:
        unit = text.UNITS[kind]
        at = f" at {shape}" if kind == "flops" and shape else ""
        yield (
            f"budget: --{kind} allows {text.si(budget['allowed'], unit)} of {text.si(budget['dense'], unit)}{at}; the "
            f"units that may go leave at least {text.si(budget['least'], unit)}"
        )
    elif kind == "max_drop":
        yield f"budget: the smallest model within {budget['asked']} of the metric, found in a few tries"
    else:
        yield "budget: a latency, for which every width would be timed first"
    units = ", ".join(f"{count:,} {name}" for name, count in found["units"].items())
    yield f"may go: {units or 'no units'}; {found['branches']} branches as a whole"
    yield f"method: {found['method']}" + (f"; zeros {found['sparsity']} in what is left" if found["sparsity"] else "")
    rows = found["rows"]
    yield f"rows: {rows.get('learn', 0):,} to learn from, {rows.get('judge', 0):,} to judge by"
    yield f"output: {found['output']}, with its plan and reports"
    yield from (f"warning: {line}" for line in found["said"])
