"""What rows reach: units on a side of a choice that no row takes cannot be judged by them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from onnxprune.data import Dataset
from onnxprune.errors import NothingToPruneError
from onnxprune.graph.flow import condition
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.engine import to_numpy
from onnxprune.probe.forward import forward
from onnxprune.probe.interpreter import Interpreter

logger = logging.getLogger(__name__)


def reached(interpreter: Interpreter, rows: Dataset, sites: Sequence[Site], *, none: bool = False) -> list[Site]:
    """The sites that some row runs; the others stay whole, which is said.

    Args:
        none: whether it may be that no row runs any of them.

    Raises:
        NothingToPruneError: it may not.
    """
    sides = {n.name: side for n, side in interpreter.flow.sides.items()}
    asked = sorted({condition(choice).name or "" for side in sides.values() for choice, _ in side})
    if not asked:
        return list(sites)
    seen: dict[str, set[bool]] = {name: set() for name in asked}
    for batch in rows.batches(max_rows=64):
        for name, value in forward(interpreter, batch.feeds, asked).items():
            if value is not None:
                seen[name].update(bool(x) for x in to_numpy(value).reshape(-1))
    left_out: dict[tuple[str, bool], int] = {}
    found = []
    for site in sites:
        missed = [
            (choice.name or "", side)
            for reader in site.group.readers
            for choice, side in sides.get(reader.node, ())
            if side not in seen[condition(choice).name or ""]
        ]
        if missed:
            left_out[missed[0]] = left_out.get(missed[0], 0) + 1
        else:
            found.append(site)
    told = [f"the {'then' if side else 'else'} side of If {name}" for name, side in left_out]
    if left_out and not (found or none):
        raise NothingToPruneError(
            f"nothing to prune by these rows: none of them takes {', or '.join(told)}, and every group of units is "
            "read there: give rows that take it, too, or none (--method magnitude)"
        )
    for side, count in zip(told, left_out.values(), strict=True):
        logger.warning(
            "no row takes %s: what is done there alone stays as it is (%d groups of units); give rows that do, too",
            side, count,
        )  # fmt: skip
    return found


def judged(
    interpreter: Interpreter, outputs: Sequence[str], sites: Sequence[Site], *, none: bool = False
) -> list[Site]:
    """The sites that lead to what is measured; those that only a label or a cache is made of stay whole, which is said.

    Args:
        outputs: names of what is measured.
        none: whether it may be that there are none of them.

    Raises:
        NothingToPruneError: it may not.
    """
    leads = interpreter.schedule.leads
    found = [s for s in sites if any(leads(reader.node, outputs) for reader in s.group.readers)]
    left = len(sites) - len(found)
    if left and not (found or none):
        raise NothingToPruneError(
            f"nothing to prune by these rows: what the {left} free groups of units lead to is not measured, only "
            f"{', '.join(outputs)}: give out the scores that labels are made of, too"
        )
    if left:
        logger.warning(
            "%d groups of units stay as they are: only a label or a cache follows from them, and %s is measured; give "
            "out the scores behind a label, too", left, ", ".join(outputs),
        )  # fmt: skip
    return found
