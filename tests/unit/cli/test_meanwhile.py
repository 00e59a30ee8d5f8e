"""What comes between: another run, a signal, a model that is exchanged."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest
from kills import mlp
from small_jobs import QUICK, ROWS, Run, contents

from onnxprune.graph import outputs
from onnxprune.graph.structure.analyze import analyze


def test_the_second_of_two_runs_ends_at_once(run: Run, folder: Path) -> None:
    with outputs.files(folder / "s.onnx", force=True):
        code, _, err = run("model.onnx", "-o", "s.onnx", *QUICK)
        assert code == 2 and "s.onnx" in err and "writes it already" in err
        assert run("model.onnx", "-o", "t.onnx", *QUICK)[0] == 0
    assert not (folder / "s.onnx").exists() and (folder / "t.onnx").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_says_what_it_left(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, number: int, code: int
) -> None:
    from onnxprune.report import html

    rendered, calls = html.render, []

    def interrupted(*arguments: Any) -> str:
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return rendered(*arguments)

    monkeypatch.setattr(html, "render", interrupted)
    # A shell starts what runs in the background with interrupts ignored, and then they stay so.
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    ended, out, err = run("sweep", "model.onnx", "-o", "sw", "--flops", "0.8,0.6", "--no-latency", *ROWS)
    assert ended == code and not out and len(err.strip().splitlines()) == 1
    assert "written before that: sw/model.flops-0.8.onnx and 5 files with it" in err
    assert "what was measured is kept in sw/model.scores.json" in err
    assert not [n for n in contents(folder) if "0.6" in n or ".onnxprune" in n]
    assert len([n for n in contents(folder) if "flops-0.8" in n]) == 5
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    calls[:] = [()]
    ended, _, err = run("model.onnx", "-o", "s.onnx", *QUICK)
    assert ended == code and "interrupted; nothing was written; what was measured is kept" in err
    assert not [n for n in contents(folder) if n.startswith("s.")]


def test_a_signal_that_is_ignored_stays_ignored(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        from onnxprune.report import html

        rendered = html.render

        def hung_up(*arguments: Any) -> str:
            os.kill(os.getpid(), signal.SIGHUP)
            return rendered(*arguments)

        monkeypatch.setattr(html, "render", hung_up)
        assert run("model.onnx", "-o", "s.onnx", *QUICK)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("verb", ["prune", "apply", "plan"])
@pytest.mark.parametrize("how", ["another", "gone", "copied anew"])
def test_a_model_that_is_exchanged_meanwhile_is_told(
    verb: str, how: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured would be of two models: nothing is written. A copy in its place is the same model."""
    plan = ["plan", "model.onnx", "-o", "p.json", "--flops", "0.6", "--method", "magnitude", "-q"]
    commands = {
        "plan": [*plan[:3], "new.json", *plan[4:]],
        "apply": ["apply", "model.onnx", "p.json", "-o", "o.onnx", "-q"],
        "prune": [
            "prune",
            "model.onnx",
            "-o",
            "o.onnx",
            "--flops",
            "0.6",
            "--no-latency",
            "--method",
            "magnitude",
            "-q",
        ],
    }
    assert run(*plan)[0] == 0
    before = set(contents(folder))
    original = Path("model.onnx").read_bytes()

    def exchanged(model: Any, **asked: Any) -> Any:
        Path("model.onnx").unlink()
        if how != "gone":
            Path("model.onnx").write_bytes(original if how == "copied anew" else mlp(24).SerializeToString())
        return analyze(model, **asked)

    monkeypatch.setattr("onnxprune.pipeline.verbs.analyze", exchanged)
    monkeypatch.setattr("onnxprune.pipeline.job.analyze", exchanged)
    code, _, error = run(*commands[verb])
    if how == "copied anew":
        assert code == 0, error
    else:
        assert code == 3 and set(contents(folder)) <= before, error
    if how != "copied anew":
        assert "was changed or taken away" in error


@pytest.mark.parametrize("how", ["cut off", "written over", "gone"])
def test_weights_that_are_exchanged_meanwhile_are_told(
    how: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(mlp(4096), "wide.onnx", save_as_external_data=True, location="wide.bin", size_threshold=0)

    def exchanged(model: Any, **asked: Any) -> Any:
        if how == "gone":
            Path("wide.bin").unlink()
        else:
            Path("wide.bin").write_bytes(b"\xff" * (1000 if how == "cut off" else Path("wide.bin").stat().st_size))
        return analyze(model, **asked)

    monkeypatch.setattr("onnxprune.pipeline.job.analyze", exchanged)
    code, _, error = run("wide.onnx", "-o", "o.onnx", *QUICK)
    assert code == 3 and error.startswith("onnxprune: wide.bin: was changed or taken away"), error
    assert not (folder / "o.onnx").exists()
