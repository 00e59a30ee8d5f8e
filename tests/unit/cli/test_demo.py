"""The built-in example: what it unpacks, and that it goes through `prune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxprune.errors import InputError, UsageError
from onnxprune.pipeline import demo

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[3]


def test_the_model_is_small_and_does_its_task(tmp_path: Path) -> None:
    assert (ROOT / "examples" / "digits" / "model.onnx").stat().st_size < 1_000_000
    files = demo.unpack(tmp_path / "demo")
    held = onnx.load(files.model)
    assert {t.data_type for t in held.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert "Cast" not in {n.op_type for n in held.graph.node}
    rows = np.load(files.judge)
    session = ort.InferenceSession(str(files.model), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixel_values": rows["pixel_values"]})[0].argmax(1)
    assert (found == rows["label"]).mean() > 0.95


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    first = demo.unpack(tmp_path)
    before = first.model.stat().st_mtime_ns
    first.learn.unlink()
    assert demo.unpack(tmp_path) == first
    assert first.learn.exists() and first.model.read_bytes()
    first.model.write_bytes(b"another model")
    with pytest.raises(UsageError, match="is not the demo's"):
        demo.unpack(tmp_path)
    assert first.model.read_bytes() == b"another model" and before


def test_a_package_without_them_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "onnxprune" / "pipeline" / "demo.py"))
    with pytest.raises(InputError, match=r"lacks the demo's model\.onnx"):
        demo.unpack(tmp_path / "demo")


def test_the_wheel_carries_them() -> None:
    import tomllib

    carried = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    for source, target in carried["wheel"]["force-include"].items():
        assert (ROOT / source).is_file()
        assert Path(target).parent == Path("onnxprune/demo")
    assert {Path(t).name for t in carried["wheel"]["force-include"].values()} == {demo.MODEL, demo.LEARN, demo.JUDGE}


def test_it_prunes_and_takes_options_of_prune(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    quick = ("--no-latency", "--no-compensate", "--search", "rank", "--method", "magnitude", "--rows", "64", "-q")
    for _ in range(2):  # its own output may go
        code, out, err = run("demo", "-o", folder, "--flops", "0.7", *quick)
        assert code == 0, err
    assert (
        f"$ onnxprune {folder}/model.onnx --calib {folder}/digits.npz --eval {folder}/digits-dev.npz --flops 0.7" in err
    )
    assert out == ""
    assert (folder / "model.pruned.report.html").exists()


def test_options_that_prune_lacks_are_told_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    for wrong in (["--nope"], ["--seed", "x"], ["one", "two"]):
        code, _, err = run("demo", "-o", tmp_path / "demo", *wrong)
        assert code == 2 and "Error" in err
    assert not any(tmp_path.iterdir())


def test_what_is_not_its_own_stays(run: Run, tmp_path: Path) -> None:
    """A model of the user's that is named in the hope that it is pruned, and files called like the demo's result."""
    for name in ("mine.onnx", "model.pruned.onnx", "model.pruned.plan.json", "model.pruned.fp16.onnx"):
        (tmp_path / name).write_bytes(b"mine")
        code, _, err = run("demo", "-o", tmp_path, *([tmp_path / name] if name == "mine.onnx" else []))
        assert code == 2 and name in err, err
        assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"mine"
        (tmp_path / name).unlink()


def test_what_is_not_stated_is_found_where_the_demo_is_timed_and_shipped(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Its graph leaves the picture's sizes open, and no configuration says them: the weights and a try do."""
    files = demo.unpack(tmp_path)
    code, out, err = run("bench", files.model, files.model, "--runs", "35")
    assert code == 0, err
    assert "1 x 1 x 8 x 8" in out and "timed at num_channels=1,height=8,width=8, which nobody stated" in caplog.text
    assert "cannot run with" not in caplog.text  # the sizes are said once
    code, _, err = run("export", files.model, "--target", "server", "-o", tmp_path / "server")
    assert code == 0, err
    assert (tmp_path / "server/samples.json").is_file()
