"""What an app is told of a model's inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.export.preprocessing import preprocessing
from onnxprune.graph.model import InputSpec


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ({"0": "cat", "1": "dog"}, ["cat", "dog"]),
        ({"1": "dog", "0": "cat"}, ["cat", "dog"]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ["0", "1"]),
        ({"x": "cat", "1": "dog"}, None),  # a number without a name would shift all others
        ({"0": "cat", "2": "dog"}, None),
        ({"999999999": "cat"}, None),
        ({"-1": "cat"}, None),
        ({}, None),
        ("cat", None),
    ],
)
def test_classes_have_their_numbers_names_or_none(names: Any, labels: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    ends = [InputSpec(name, np.dtype(np.float32), ("batch", 3)) for name in ("x", "logits")]
    assert preprocessing(ends[:1], ends[1:], tmp_path)["output"]["labels"] == labels
