"""The notebook runs from top to bottom, where it lies, and shows what its text says."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune.score import CUSTOM, METHODS

ROOT = Path(__file__).parents[2]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    book = json.loads((ROOT / "examples/digits.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and not any(cell.get("outputs") for cell in book["cells"])
    scope: dict[str, Any] = {}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            for cell in book["cells"]:
                if cell["cell_type"] == "code":
                    exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
    finally:
        METHODS.pop("quiet", None)
        CUSTOM.discard("quiet")
    told = printed.getvalue()
    assert "of 450 rows are answered otherwise" in told and "class 3:" in told and "ffn.3" in told
    assert "<table>" in scope["result"]._repr_html_()
    assert scope["own"].report.flops.ratio <= 0.6
    assert {"model.pruned.onnx", "model.pruned.report.html"} <= {
        f.name for f in (tmp_path / "output/notebook").iterdir()
    }
