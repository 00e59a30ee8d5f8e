"""What a report says of the units."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from zoo import ZooModel

from onnxprune.data import Dataset, Example
from onnxprune.graph import memory
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.pipeline.report_facts import above, units_of, warnings_of


def test_dimensions_of_heads_stand_in_the_row_of_their_heads(zoo: Callable[..., ZooModel]) -> None:
    """A layer has two groups of them, of queries with keys and of values, and one of heads."""
    dense = models.load(zoo("bert", "torchscript", "eager").path)
    structure = analyze(dense)
    planner: Any = SimpleNamespace(sites=[SimpleNamespace(group=group) for group in structure.groups])
    units = units_of(structure, Plan(dense.digest), planner)
    rows = {kind: sorted(u.layer for u in units if u.kind == kind) for kind in ("heads", "head_dims", "neurons")}
    assert rows["heads"] == [0, 1]
    assert rows["head_dims"] == [0, 0, 1, 1]


def test_rows_that_are_their_own_labels_have_no_teacher() -> None:
    judge = Dataset((Example({}), Example({})), "text")
    said = "the dense model is the teacher"
    assert any(said in line for line in warnings_of(None, judge, None, "agreement"))
    assert not any(said in line for line in warnings_of(None, judge, None, "perplexity"))


def test_that_more_memory_was_taken_than_was_stated_is_said() -> None:
    assert above(10**12) == ()
    with memory.limited(10**9):
        assert above(10**9) == ()
        assert above(2 * 10**9) == ("the process has held 2.0 GB, more than --max-memory allows (1.0 GB)",)
