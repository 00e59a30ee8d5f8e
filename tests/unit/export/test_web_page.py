"""The page for browsers: what it calls the model, and when it claims a speed-up."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import perceptron
import pytest

from onnxprune.export import export

TEMPLATES = Path(__file__).resolve().parents[3] / "onnxprune" / "export" / "templates" / "web"


def compared(before: list[float], after: list[float]) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node")
    program = (
        f"import {{ compare }} from {json.dumps((TEMPLATES / 'timing.mjs').as_uri())};"
        f"console.log(JSON.stringify(compare({json.dumps(before)}, {json.dumps(after)})))"
    )
    done = subprocess.run(
        [node, "--input-type=module", "-e", program], capture_output=True, text=True, check=True
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def times(ms: float, seed: int, rows: int = 35) -> list[float]:
    return (ms * (1 + 0.1 * np.random.default_rng(seed).random(rows))).tolist()


def test_a_speed_up_has_its_interval() -> None:
    told = compared(times(10, 0), times(5, 1))
    assert told["clear"] and told["said"].endswith(" faster")
    assert told["low"] < told["ratio"] < told["high"] and f"[{told['low']:.2f}, {told['high']:.2f}]" in told["said"]
    slower = compared(times(5, 0), times(10, 1))
    assert slower["clear"] and slower["said"].startswith("slower: 0.5")


def test_what_is_within_chance_is_no_speed_up() -> None:
    told = compared(times(10, 0), times(10, 1))
    assert not told["clear"] and told["said"].startswith("no clear difference")


def test_a_busy_machine_gets_no_verdict() -> None:
    """Another process hits one of the two in most pairs: the fastest runs give it away."""
    rng = np.random.default_rng(2)
    disturbed = [ms * (11 if rng.random() < 0.8 else 1) for ms in times(6, 1)]
    told = compared(times(10, 0), disturbed)
    assert not told["clear"] and "the machine is busy" in told["said"] and told["ratio"] < 0.3


def test_the_interval_holds_the_median() -> None:
    """By order statistics: of 35 values the 12th and the 24th, 96% by the binomial."""
    ratios = [i / 35 for i in range(1, 36)]
    told = compared(ratios, [1.0] * 35)
    assert (told["low"], told["high"]) == (ratios[11], ratios[23])


@pytest.mark.parametrize(
    ("place", "config", "named"),
    [
        ("shop/sentiment/onnx/model.onnx", None, "sentiment"),
        ("shop/sentiment/model.onnx", '{"_name_or_path": "someone/tiny-bert"}', "tiny-bert"),
        ("shop/detector.onnx", None, "detector"),
        ("shop/onnx/model.onnx", "{}", "shop"),
    ],
)
def test_the_page_names_the_model(tmp_path: Path, place: str, config: str | None, named: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    perceptron.write(file)
    if config is not None:
        file.with_name("config.json").write_text(config, encoding="utf-8")
    export(file, "web", tmp_path / "site", dense=file)
    assert json.loads((tmp_path / "site" / "page.json").read_text(encoding="utf-8"))["name"] == named


def test_the_runtime_is_asked_for_where_it_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is not there is an error in the browser's console."""
    perceptron.write(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    export("model.onnx", "web", tmp_path / "bare")
    assert '["node_modules/' in (tmp_path / "bare" / "model.mjs").read_text(encoding="utf-8")
    runtime = tmp_path / "dist"
    runtime.mkdir()
    (runtime / "ort.wasm.min.mjs").write_text("", encoding="utf-8")
    export("model.onnx", "web", tmp_path / "whole", web_runtime=runtime)
    assert '["runtime/' in (tmp_path / "whole" / "model.mjs").read_text(encoding="utf-8")
