"""Who decides what: calibration rows, split into those that teach, those that choose and those that judge.

Rows that chose a plan make it look better than it is. So weights are regressed on some rows, levels and the strength of
refits are chosen by others, and what has the last word on the mended plan is a third part.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.data import Dataset, variants
from onnxprune.errors import UsageError
from onnxprune.probe.divergence import softened
from onnxprune.probe.filling import filling
from onnxprune.probe.forward import Evaluator, Rows
from onnxprune.probe.interpreter import Interpreter
from onnxprune.search.doubtful_rows import drawn
from onnxprune.search.options import Options

FEWEST = 8
TABLE_ROWS = 4
"""Rows that a damage table takes at least, however long they are."""
TEACHING = 16384
"""Tokens from which on given rows teach enough: rows made of their texts are added up to here."""


@dataclass(frozen=True, eq=False)
class Split:
    """The parts of the calibration rows, with one measure of divergence for all.

    Attributes:
        fit: rows regressed on, and behind them those made of their texts.
        given: those of `fit` that are not made.
        held: rows that choose how strong refits are.
        table: over these, or some of them where the model is large: chooses the levels (before any refit is). Of a
            classifier of texts over half of them, and as many made of them that it is unsure of.
        select: over rows that did none of this: judges the mended plan.
    """

    fit: Rows
    given: Dataset
    held: Rows
    table: Evaluator
    select: Evaluator

    @classmethod
    def of(
        cls,
        interpreter: Interpreter,
        calibration: Dataset,
        options: Options,
        max_tokens: int,
        measured: int,
        side_by_side: int | None = None,
        short: Interpreter | None = None,
    ) -> Split:
        """Split by the options' seed.

        Args:
            max_tokens: in one batch.
            measured: tokens that a level of the damage table is measured on.
            side_by_side: tokens of gated copies of a batch that run as one.
            short: what rows that judge are run by, if by another than those that teach (brief.py).

        Raises:
            UsageError: fewer rows than it takes.
        """
        if len(calibration) < FEWEST:
            copies = f" ({calibration.copies} more are copies of them)" if calibration.copies else ""
            raise UsageError(
                f"{len(calibration)} calibration rows{copies} are too few to learn from and to decide by; "
                f"give at least {FEWEST} (some hundreds are usual)"
            )
        parts = calibration.split({"fit": 0.65, "search": 0.2, "select": 0.15}, options.seed)
        fit, search, select = parts["fit"], parts["search"], parts["select"]
        lacking = max(TEACHING - _tokens(fit), 0) // max(_tokens(fit) // len(fit), 1)
        learnt = fit + variants(fit, min(round(options.variants * len(fit)), lacking), options.seed)
        measure = softened(Rows(interpreter, select).divergence, options.temperature)
        fill = filling(interpreter, calibration, measure)

        def judging(dataset: Dataset) -> Evaluator:
            ran = short or interpreter
            return Evaluator(Rows(ran, dataset, max_tokens, measure, side_by_side=side_by_side, fill=fill))

        teaching = Rows(interpreter, learnt, max_tokens, measure)
        choosing = Rows(interpreter, search, max_tokens, measure, fill=fill)
        some = _within(search, measured, options.seed)
        more = drawn(choosing, some, len(some) // 2 if options.variants else 0, options.seed)
        if len(more):
            some = some.split({"in": 0.5, "out": 0.5}, options.seed)["in"]
        return cls(teaching, fit, choosing, judging(some + more), judging(select))


def _within(dataset: Dataset, tokens: int, seed: int) -> Dataset:
    """Rows drawn at random that have about `tokens` tokens together, but at least some: all, if they have no more."""
    share = max(tokens / max(_tokens(dataset), 1), TABLE_ROWS / max(len(dataset), 1))
    return dataset if share >= 1 else dataset.split({"in": share, "out": 1 - share}, seed)["in"]


def _tokens(dataset: Dataset) -> int:
    return sum(example.tokens for example in dataset.examples)
