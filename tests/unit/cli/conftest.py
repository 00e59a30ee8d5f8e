from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from kills import mlp, rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two blocks of an MLP, in one file and in parts, rows, and files of its user."""
    place = tmp_path / "job"
    place.mkdir()
    onnx.save(mlp(16), place / "model.onnx")
    proto = mlp(16)
    onnx.save(proto, place / "parted.onnx", save_as_external_data=True, location="parted.bin", size_threshold=0)
    rows(place / "rows.jsonl")
    (place / "thesis.txt").write_text("ten years of work")
    (place / "config.json").write_text('{"model": "first"}')
    monkeypatch.chdir(place)
    return place
