"""Tensors in a plan that are not of the model it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from perceptron import write

from onnxprune.errors import InputError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph import plan_fit
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze


def zeros(*shape: int, kind: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, kind)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({}, None, ""),
        ({"weights": {"up_0": zeros(8, 16)}, "intercepts": {"back_0": zeros(8)}}, None, ""),
        ({"rests": {"ffn.0": zeros(8)}, "maps": {"ffn.0": zeros(9, 8)}}, None, ""),
        ({"rests": {"ffn.0": zeros(1, 8)}}, None, ""),
        ({"weights": {"up_9": zeros(8, 16)}}, InputError, "weight of up_9 belongs to nothing"),
        ({"weights": {"x": zeros(8, 16)}}, InputError, "weight of x belongs to nothing"),
        ({"weights": {"up_0": zeros(8, 15)}}, InputError, r"float32 \[8, 15\] where the model has \[8, 16\]"),
        ({"weights": {"up_0": zeros(8, 16, kind=np.int8)}}, InputError, "is int8"),
        ({"intercepts": {"bcck_0": zeros(8)}}, InputError, "intercept of bcck_0 belongs to nothing"),
        ({"intercepts": {"back_0": zeros(9)}}, InputError, r"has \[8\]"),
        ({"intercepts": {"back_0": zeros(1, 8)}}, InputError, r"has \[8\]"),
        ({"rests": {"ffn.9": zeros(8)}}, UsageError, "ffn.9"),
        ({"rests": {"ffn.0": zeros(7)}}, InputError, "rest of ffn.0"),
        ({"rests": {"ffn.0": zeros(1, 1, 8)}}, InputError, "rest of ffn.0"),
        ({"maps": {"ffn.0": zeros(8, 8)}}, InputError, "map of ffn.0"),
        ({"sparsity": {"gone": "2:4"}}, InputError, "sparsity of gone is of no weight"),
        ({"tiles": {"gone": ()}}, InputError, "tiles of gone is of no weight"),
    ],
)
def test_what_belongs_to_nothing_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception] | None, said: str
) -> None:
    dense = models.load(write(tmp_path / "model.onnx"))
    structure = analyze(dense)
    named: dict[str, Any] = {
        kind: {structure.branches[0].id if name == "ffn.0" else name: held for name, held in told.items()}
        for kind, told in changes.items()
    }
    plan = replace(Plan(dense.digest), **named)
    if error is None:
        plan_fit.require(plan, dense.graph, structure)
        return
    with pytest.raises(error, match=said.replace("ffn.0", structure.branches[0].id)):
        plan_fit.require(plan, dense.graph, structure)
