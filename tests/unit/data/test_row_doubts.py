"""Rows that cannot tell anything are said to be so; copies are left out before rows are split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graphs import written

import onnxprune
from onnxprune.data import Dataset, Example, overlap, row_doubts
from onnxprune.errors import UsageError
from onnxprune.graph.plan import Budget
from onnxprune.measure.validation import validate
from onnxprune.pipeline.report_facts import warnings_of
from onnxprune.pipeline.rows import read_rows
from onnxprune.search.options import Options

RNG = np.random.default_rng(0)
MLP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 6] x) => (float[batch, 3] logits)
{ h = MatMul(x, a)  r = Relu(h)  logits = MatMul(r, b) }
"""


def floats(values: np.ndarray) -> Dataset:
    return Dataset(tuple(Example({"x": row[None].astype(np.float32)}) for row in values), "tensors")


def ids(rows: list[list[int]]) -> Dataset:
    made = [np.array([row]) for row in rows]
    return Dataset(tuple(Example({"input_ids": row, "attention_mask": np.ones_like(row)}) for row in made), "text")


def test_rows_as_they_should_be() -> None:
    assert row_doubts(floats(RNG.normal(size=(30, 6))), "evaluation") == ()
    assert row_doubts(ids([[2, *RNG.integers(5, 90, 4), 3] for _ in range(30)]), "evaluation") == ()


def test_copies_zeros_and_unknown_words() -> None:
    some = RNG.normal(size=(6, 6))
    assert "30 x rows are the same" in row_doubts(floats(np.repeat(some[:1], 30, 0)), "x")[0]
    assert "48 x rows are 6 different ones" in row_doubts(floats(np.tile(some, (8, 1))), "x")[0]
    assert any("all 4 x rows hold nothing but zeros" in w for w in row_doubts(floats(np.zeros((4, 6))), "x"))
    assert "2 of 6 x rows hold nothing" in row_doubts(floats(some * (np.arange(6)[:, None] >= 2)), "x")[-1]
    assert "the same one (id 1)" in row_doubts(ids([[2, 1, 1, 1, 1, 5 + i, 3] for i in range(9)]), "x")[0]


def test_rows_that_learn_and_judge() -> None:
    values = RNG.normal(size=(40, 6))
    assert overlap(floats(values[:20]), floats(values[20:])) is None
    assert "5 of the 20" in (overlap(floats(values[:25]), floats(values[20:])) or "")
    assert "all evaluation rows" in (overlap(floats(values), floats(values[20:])) or "")
    assert any("calibration rows, too" in w for w in warnings_of(floats(values), floats(values)))


def test_distinct_keeps_the_first_of_each_and_pairs_whole() -> None:
    values = RNG.normal(size=(5, 6))
    held = floats(values[[0, 1, 0, 2, 1]])
    assert [e.feeds["x"][0, 0] for e in held.distinct().examples] == [np.float32(values[i, 0]) for i in (0, 1, 2)]
    assert held.distinct().copies == 2 and "2 of 5 left out" in held.distinct().description[-1]
    assert floats(values).distinct().copies == 0
    sides = [Example({"x": values[[i]]}, pair=p) for p, pair in enumerate(((0, 1), (0, 2), (0, 1))) for i in pair]
    assert [e.pair for e in Dataset(tuple(sides), "text").distinct().examples] == [0, 0, 1, 1]


def test_copies_never_stand_on_both_sides_of_a_split(tmp_path: Path) -> None:
    model = onnxprune.load(written(tmp_path, MLP, {"a": (6, 8), "b": (8, 3)}))
    rows = [{"x": [float(v) for v in row]} for row in RNG.normal(size=(30, 6)).round(2)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    learn, judge = read_rows(model, file, None, Options(Budget("flops", 0.5)))
    assert learn is not None and judge is not None
    assert len(learn) + len(judge) == 30 and overlap(learn, judge) is None
    assert any("90 calibration rows were copies of others" in w for w in warnings_of(learn, judge))


def test_the_whole_way_says_it(tmp_path: Path) -> None:
    path = written(tmp_path, MLP, {"a": (6, 8), "b": (8, 3)})
    same = [{"x": [[1.0] * 6]}] * 40
    with pytest.raises(UsageError, match="39 more are copies"):
        onnxprune.prune(path, flops=0.6, calibration=same, evaluation=same, units=("neurons",), round_to=1)
    found = validate(path, path, floats(np.ones((12, 6)))).warnings
    assert any("are the same" in w for w in found) and any("same for all rows" in w for w in found)
    found = validate(path, path, floats(RNG.normal(size=(12, 6)))).warnings
    assert len(found) == 1 and "12 evaluation rows cannot tell" in found[0]
