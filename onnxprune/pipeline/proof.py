"""The last word on a written file, before it gets its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.errors import CheckError
from onnxprune.graph import runtime
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.measure.dense_file import shapes_to_check
from onnxprune.measure.equivalence import Equivalence, check
from onnxprune.measure.file_validity import check_file
from onnxprune.pipeline.debug_bundle import Case, Place, blamed


def prove(
    dense: Model,
    structure: Structure,
    plan: Plan,
    file: Path,
    feeds: Sequence[runtime.Feeds],
    options: Mapping[str, Any],
    bundle: Place | None,
) -> tuple[Equivalence, list[str]]:
    """Is the file valid, and does it compute what the plan says, at several sizes?

    Args:
        feeds: rows; more sizes are made of them.
        options: of the run, for the bundle.
        bundle: where to write what reproduces a failure; None for nowhere.

    Returns:
        How close it is, and what the report should warn of.

    Raises:
        CheckError: it is not, or does not; what is at fault is this program, and the message says so.
    """
    assert dense.path is not None
    rows = shapes_to_check(dense, feeds)
    try:
        said = check_file(file, dense.path)
        found = check(dense, structure, plan, file, rows)
    except CheckError as error:
        raise blamed(error, Case(dense, structure, plan, file, rows, options), bundle) from error
    return found, [*said, *([found.note] if found.note else [])]
