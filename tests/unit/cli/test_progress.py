"""What commands say while they work, how they help, and what they refuse before they begin."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import perceptron
import pytest

from onnxprune.cli import progress
from onnxprune.cli.help import OTHER, SECTIONS, Command
from onnxprune.cli.main import cli
from onnxprune.pipeline import job, preview
from onnxprune.search.planner import Planner
from onnxprune.search.progress import STAGES

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    perceptron.write(tmp_path / "model.onnx")
    perceptron.write_rows(tmp_path / "rows.jsonl", 60)
    return tmp_path


def test_every_stage_and_every_guess_is_a_line(run: Run, folder: Path) -> None:
    code, out, err = run(
        folder / "model.onnx", "--flops", 0.8, "--calib", folder / "rows.jsonl", "--no-latency", "--threads", 1
    )
    assert code == 0, err
    lines = err.splitlines()
    stages = [STAGES[s] + " …" for s in ("load", "read", "analyze", "score", "table", "search", "rewrite", "check")]
    assert [line for line in lines if line in stages] == stages
    assert any(line.startswith("  rows: 60 of tensors from ") for line in lines)
    assert any(re.match(r"  costs are counted at batch=1; --shape says otherwise", line) for line in lines)
    assert any(line.startswith("  metric: accuracy (") for line in lines)
    assert "Reading rows" not in out
    verdict = next(line for line in out.splitlines() if "smaller" in line)
    assert re.match(r"\d+% smaller, accuracy [\d.]+% -> [\d.]+%: .* on \d+ rows\.", verdict)
    assert "keptkept" not in out


def test_what_takes_long_has_a_bar_with_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    monkeypatch.setattr(progress, "LONG", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with progress.Bar(off=False) as bar:
        bar("search", 0, 0)
        bar("search", 3, 9)
        bar.say("a guess")
        bar.say("a guess")
        time.sleep(0.3)
    shown = stream.getvalue()
    assert "Searching for the best plan …" in shown and "3/9" in shown and "left:" in shown
    assert shown.count("a guess") == 1


def test_a_dry_run_reads_and_tells_and_measures_nothing(run: Run, folder: Path) -> None:
    args = ["--calib", folder / "rows.jsonl", "--dry-run"]
    code, out, err = run(folder / "model.onnx", "--flops", 0.6, *args)
    assert code == 0, err
    assert "nothing was scored, cut or written" in out and "--flops allows" in out
    assert not any(STAGES[s] in err for s in ("score", "table", "check", "latency"))
    code, out, _ = run(folder / "model.onnx", "--latency", 0.5, *args)
    assert code == 0 and "every width would be timed" in out
    code, out, _ = run(folder / "model.onnx", "--max-drop", "1pt", *args)
    assert code == 0 and "within 1pt" in out
    code, _, err = run(folder / "model.onnx", "--flops", 0.0001, *args)
    assert code == 5, err
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "rows.jsonl"}


def test_a_dry_run_runs_a_few_rows_and_counts_them_all(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are rotated before anything is known of them: over all rows that takes as long as scoring."""
    looked: list[int] = []

    class Watched(Planner):
        def __init__(self, *args: Any, **more: Any) -> None:
            looked.append(len(args[3]))
            super().__init__(*args, **more)

    monkeypatch.setattr(job, "Planner", Watched)
    told = json.loads(
        run(folder / "model.onnx", "--flops", 0.6, "--calib", folder / "rows.jsonl", "--dry-run", "--json")[1]
    )
    assert looked == [preview.GLANCE]
    assert told["rows"]["learn"] > preview.GLANCE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspct", "model.onnx"], "did you mean `onnxprune inspect`"),
        (["model.onnx", "--flop", "0.6"], "--flops"),
        (["model.onnx", "--flops", "0.6", "--method", "obz"], "obz"),
        (["model.onnx", "--flops", "0.6", "--metric", "acuracy"], "acuracy"),
        (["model.onnx", "--flops", "0.6", "--ep", "cpuu"], "cpuu"),
        (["model.onnx", "--max-drop", "1"], "--max-drop 1"),
        (["model.onnx", "--flops", "0.6", "--quantize", "int7"], "int7"),
        (["bench", "model.onnx", "model.onnx", "--runs", "3"], "--runs"),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(run: Run, folder: Path, arguments: list[str], says: str) -> None:
    (folder / "model.onnx").write_bytes(b"not read")
    code, out, err = run(*(folder / a if a == "model.onnx" else a for a in arguments))
    assert code == 2, err
    assert says in err and out == "" and STAGES["load"] not in err


def test_options_stand_under_headings() -> None:
    prune = cli.commands["prune"]
    assert isinstance(prune, Command)
    named = {name for names in SECTIONS.values() for name in names}
    for command in cli.commands.values():
        assert isinstance(command, Command)
        if len(command.params) > 12:
            assert {p.name for p in command.params if isinstance(p, click.Option) and p.expose_value} <= named
    shown = prune.get_help(click.Context(prune, info_name="prune"))
    assert [title for title in SECTIONS if f"{title}:" in shown] == list(SECTIONS)
    assert f"\n{OTHER}:" not in shown and "Examples:" in shown


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["prune", "m.onnx", "--method", "se"], {"seven", "seven-dyn"}),
        (["m.onnx", "--units", "heads,ne"], {"heads,neurons"}),
        (["export", "m.onnx", "--target", "w"], {"web"}),
        (["ins"], {"inspect"}),
    ],
)
def test_the_shell_completes_values(words: list[str], offered: set[str]) -> None:
    from click.shell_completion import BashComplete

    complete = BashComplete(cli, {}, "onnxprune", "_ONNXPRUNE_COMPLETE")
    assert offered <= {item.value for item in complete.get_completions(words[:-1], words[-1])}


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom onnxprune.cli.main import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'rich', 'sympy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_a_shape_of_another_graph_is_refused_before_rows_are_read(run: Run, folder: Path) -> None:
    code, _, err = run(
        folder / "model.onnx", "--flops", 0.8, "--calib", folder / "rows.jsonl", "--shape", "batc=2", "--no-latency"
    )
    assert code == 2 and "the graph's dimensions are batch; did you mean batch?" in err
    assert STAGES["read"] not in err
