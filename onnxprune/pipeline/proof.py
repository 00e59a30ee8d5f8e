"""The last word on a written file, before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import CheckError
from onnxprune.graph import runtime
from onnxprune.graph.model import Model, Part
from onnxprune.graph.plan import Plan, Structure
from onnxprune.measure.calls import taken
from onnxprune.measure.continuations import disagreement, going_on
from onnxprune.measure.dense_file import require_finite, shapes_to_check
from onnxprune.measure.equivalence import Equivalence, alone, check
from onnxprune.measure.file_validity import check_file
from onnxprune.pipeline.debug_bundle import Case, Place, blamed
from onnxprune.pipeline.written import Written


def prove(
    dense: Model,
    structure: Structure,
    plan: Plan,
    made: Written,
    feeds: Sequence[runtime.Feeds],
    options: Mapping[str, Any],
    bundle: Place | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Equivalence, list[str]]:
    """Is the file valid, and does it compute what the plan says, at several sizes?

    Several files are compared as the graph that they are together, and each alone, on what the dense ones give it; one
    that goes on behind a cache two tokens further.

    Args:
        feeds: rows; more sizes are made of them.
        options: of the run, for the bundle.
        bundle: where to write what reproduces a failure; None for nowhere.
        progress: called with (batches done, batches).

    Returns:
        How close it is, and what the report should warn of.

    Raises:
        CheckError: it is not, or does not; what is at fault is this program, and the message says so.
    """
    rows = shapes_to_check(dense, feeds)
    with _blaming(Case(dense, structure, plan, made.whole, rows, options), bundle):
        said = _valid(dense, made)
        found = check(dense, structure, plan, made.whole, rows, progress)
        for part, file in zip(dense.parts, made.alone, strict=True):
            _alone(dense, structure, plan, part, file, rows[:_FEW], found)
        if dense.parts:
            _together(dense, made.whole, feeds[:_FEW])
    return found, [*said, *([found.note] if found.note else [])]


def prove_valid(
    dense: Model,
    structure: Structure,
    plan: Plan,
    made: Written,
    options: Mapping[str, Any],
    bundle: Place | None,
) -> list[str]:
    """`prove` for a file of which a worker has held the same bytes to the plan: does it open, here?

    Returns:
        What the report should warn of.

    Raises:
        CheckError: it does not.
    """
    with _blaming(Case(dense, structure, plan, made.whole, [], options), bundle):
        return _valid(dense, made)


def _valid(dense: Model, made: Written) -> list[str]:
    pairs = zip(made.files, dense.files, strict=True)
    return [line for file, source in pairs for line in check_file(file, source)]


@contextmanager
def _blaming(case: Case, bundle: Place | None) -> Iterator[None]:
    """A check that fails is this program's fault, and is told with what reproduces it, unless the model has no outputs
    to compare with."""
    try:
        yield
    except CheckError as error:
        require_finite(case.dense, case.rows)
        raise blamed(error, case, bundle) from error


_FEW = 2
"""Batches on which each of several files is compared alone, when all are right together."""


_APART = 1e-3
"""How far a decoder behind a cache may be from the one before it, relative to an output's scale."""


def _together(dense: Model, file: Path, rows: Sequence[runtime.Feeds]) -> None:
    """A decoder behind a cache goes on as the one before it would, as far as the dense ones do.

    Raises:
        CheckError: they would disagree, each right by a plan that is not the same for both.
    """
    assert dense.path is not None
    own = disagreement(dense, dense.path, rows)
    found = disagreement(dense, file, rows) if own < _APART else 0.0
    if found > max(_APART, 2 * own):
        raise CheckError(
            f"the decoder behind a cache goes on otherwise than the one before it: by {found:.1e} of an output's "
            f"scale, where the dense ones differ by {own:.0e}"
        )


def _alone(
    dense: Model,
    structure: Structure,
    plan: Plan,
    part: Part,
    file: Path,
    rows: Sequence[runtime.Feeds],
    found: Equivalence,
) -> None:
    """One file of several against the plan, on what the dense graphs before it give.

    Raises:
        CheckError: it computes something else.
    """
    given = list(_taken(dense, part, rows))
    alone(dense, structure, plan, part.wires, file, given, found.allowed or 1e-4)


def _taken(dense: Model, part: Part, rows: Sequence[runtime.Feeds]) -> Iterator[dict[str, np.ndarray]]:
    own = runtime.session(part.file)
    for given in taken(dense, part, rows):
        yield given
        if part.wires.follows:
            further = going_on(part.model, given, runtime.run(own, given))
            if further is not None:
                yield further
