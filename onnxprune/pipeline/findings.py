"""What is found out about a written file, wherever it is: a worker's findings hold for the same bytes here."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from onnxprune.data import Dataset
from onnxprune.errors import BudgetError
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Budget, Plan, Structure
from onnxprune.graph.runtime import Feeds
from onnxprune.measure.continuations import continued
from onnxprune.measure.equivalence import Equivalence
from onnxprune.measure.layer_drift import LayerDrift, layer_drift
from onnxprune.measure.validation import Evidence
from onnxprune.search.planner import Planner

CHECK_ROWS = 64


@dataclass(frozen=True)
class Findings:
    """How a file compares.

    Attributes:
        equivalence: with its plan.
        evidence: with the dense model, on the rows that judge; None without any.
        layers: layer by layer, on some of them.
        warnings: what the report should warn of.
        where: the file was opened (`here`).
    """

    equivalence: Equivalence
    evidence: Evidence | None
    layers: tuple[LayerDrift, ...]
    warnings: tuple[str, ...]
    where: tuple[str, ...]


def here() -> tuple[str, ...]:
    """What decides whether a file opens: the machine, and the versions of what opens it."""
    import onnxruntime

    return platform.node(), platform.machine(), onnxruntime.__version__, version("onnx")


def rows_to_check(dense: Model, rows: Dataset | None, bindings: Mapping[str, int]) -> list[Feeds]:
    """Batches on which a file is held to its plan: of the rows or, without any, of values made for `bindings`."""
    feeds: list[Feeds] = (
        [synthesize(dense.inputs, dims=bindings)]
        if rows is None
        else [b.feeds for b in rows.take(CHECK_ROWS, 0).batches(max_rows=16)]
    )
    return feeds + continued(dense, feeds)


def refuse_ruin(found: Findings, judge: Dataset, budget: Budget) -> None:
    """No file where nothing of the dense model's answers is left, on rows that can say so.

    Raises:
        BudgetError: nothing is.
    """
    evidence = found.evidence
    if evidence is None or not evidence.nothing_left or judge.kind == "random":  # answers to noise mean little
        return
    raise BudgetError(
        f"{budget}: nothing is left of the dense model's outputs, on {len(judge)} rows that decided nothing "
        f"({'; '.join(evidence.broken)}). Nothing was written: keep more, or try another --method (auto, with --calib) "
        "or other --units; --keep-broken writes it all the same"
    )


def drift_by_layer(
    planner: Planner, structure: Structure, plan: Plan, rows: Dataset, seed: int
) -> tuple[LayerDrift, ...]:
    """`layer_drift` of what a plan makes of the graphs that no other leads."""
    return layer_drift(planner.interpreter, planner.led, plan.led(structure), rows, seed)
