"""A failed check is this program's fault, says so, and leaves behind what finds it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import written
from onnx import numpy_helper

from onnxprune.graph import model as models

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[n, 6] x) => (float[n, 3] y)
{ h = MatMul(x, a)  r = Relu(h)  s = MatMul(r, b)  t = Relu(s)  u = MatMul(t, c)  y = Add(u, d) }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(24, 6)).round(3).tolist()
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"x": row}) for row in rows))
    return written(tmp_path, TEXT, {"a": (6, 32), "b": (32, 32), "c": (32, 3), "d": (3,)})


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is saved has another weight at the second product."""
    real = models.save

    def save(graph: Any, path: Any) -> list[Path]:
        files = real(graph, path)
        proto = onnx.load(files[0])
        weight = next(i for i in proto.graph.initializer if i.name == "b")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), "b"))
        onnx.save(proto, files[0])
        return files

    monkeypatch.setattr(models, "save", save)


ASKED = ("--flops", "0.6", "--units", "neurons", "--no-latency")


def test_a_failed_check_says_whose_fault_it_is(model: Path, spoiled: None, run: Callable[..., Any]) -> None:
    code, _, err = run(model, *ASKED, "--calib", model.with_name("rows.jsonl"))
    assert code == 6, err
    assert "a fault of onnxprune, not of your model: run again with --debug-bundle" in err
    assert not model.with_name("model.pruned.onnx").exists()


@pytest.mark.parametrize("place", [None, "found/why.zip"])
def test_the_bundle_names_the_node_and_holds_no_weights(
    model: Path, spoiled: None, run: Callable[..., Any], place: str | None
) -> None:
    asked = ["--debug-bundle", *([model.parent / place] if place else [])]
    code, _, err = run(model, *ASKED, "--calib", model.with_name("rows.jsonl"), *asked)
    file = model.parent / (place or "model.pruned.debug.zip")
    assert code == 6
    assert f"report it with {file}" in err
    assert "begins at node" in err
    with zipfile.ZipFile(file) as bundle:
        told = json.loads(bundle.read("check.json"))
        assert (told["first_difference"]["operator"], told["first_difference"]["value"]) == ("MatMul", "s")
        assert told["first_difference"]["max_abs"] > 0.01
        assert "is allowed" in told["message"]
        assert json.loads(bundle.read("plan.json"))["keep"]
        for name in ("dense.onnx", "written.onnx"):
            graph = onnx.load_from_string(bundle.read(name)).graph
            assert [n.op_type for n in graph.node] == [
                "MatMul",
                "Relu",
                "MatMul",
                "Relu",
                "MatMul",
                "Add",
            ] or name == "written.onnx"
            large = [i for i in graph.initializer if i.name in "ab"]
            assert len(large) == 2 and not any(i.raw_data for i in large)
    assert sorted(p.name for p in model.parent.iterdir() if p.is_file() and "small" in p.name) == []


def test_a_sound_run_writes_no_bundle(model: Path, run: Callable[..., Any]) -> None:
    code, _, _ = run(model, *ASKED, "--calib", model.with_name("rows.jsonl"), "--debug-bundle")
    assert code == 0
    assert not model.with_name("model.pruned.debug.zip").exists()
    own = model.with_name("other.report.json")
    code, _, err = run(model, *ASKED, "--force", "-o", model.with_name("other.onnx"), f"--debug-bundle={own}")
    assert code == 2 and "would overwrite" in err, err
    code, _, err = run(model, *ASKED, "--force", "-o", model.with_name("other.onnx"), f"--debug-bundle={model}")
    assert code == 2
    assert "model.onnx" in err


def test_a_sweep_leaves_one_beside_its_models(model: Path, spoiled: None, run: Callable[..., Any]) -> None:
    rows, folder = model.with_name("rows.jsonl"), model.with_name("curve")
    asked = ("--flops", "0.8,0.6", *ASKED[2:], "--calib", rows, "-o", folder, "--debug-bundle")
    code, _, err = run("sweep", model, *asked)
    assert code == 6
    assert f"report it with {folder / 'model.debug.zip'}" in err
    with zipfile.ZipFile(folder / "model.debug.zip") as bundle:
        assert json.loads(bundle.read("check.json"))["first_difference"]["value"] == "s"
