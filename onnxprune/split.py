"""Who decides what: calibration rows, split into those that teach, those that choose and those that judge.

Rows that chose a plan make it look better than it is. So weights are regressed on some rows, levels and the strength of
refits are chosen by others, and what has the last word on the mended plan is a third part.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.config import Options
from onnxprune.data import Dataset, variants
from onnxprune.divergence import softened
from onnxprune.errors import UsageError
from onnxprune.interpret import Interpreter
from onnxprune.probe import Evaluator, Rows

FEWEST = 8


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of the calibration rows, with one measure of divergence for all.

    Attributes:
        fit: rows regressed on, parts of their texts among them.
        held: rows that choose how strong refits are.
        table: over some of these, in few batches: chooses the levels (before any refit is).
        select: over rows that did none of this: judges the mended plan.
    """

    fit: Rows
    held: Rows
    table: Evaluator
    select: Evaluator

    @classmethod
    def of(cls, interpreter: Interpreter, calibration: Dataset, options: Options) -> Split:
        """Split by the options' seed.

        Raises:
            UsageError: fewer rows than it takes.
        """
        if len(calibration) < FEWEST:
            raise UsageError(
                f"{len(calibration)} calibration rows are too few to learn from and to decide by; "
                f"give at least {FEWEST} (some hundreds are usual)"
            )
        parts = calibration.split({"fit": 0.65, "search": 0.2, "select": 0.15}, options.seed)
        fit, search, select = parts["fit"], parts["search"], parts["select"]
        learnt = fit + variants(fit, round(options.variants * len(fit)), options.seed)
        measure = softened(Rows(interpreter, select).divergence, options.temperature)
        return cls(
            Rows(interpreter, learnt, given=measure),
            Rows(interpreter, search, given=measure),
            Evaluator(Rows(interpreter, search.by_length(8, 12), given=measure)),
            Evaluator(Rows(interpreter, select.by_length(12, 16), given=measure)),
        )
