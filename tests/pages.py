"""What the pages tell people to type, and how it is typed: their shell blocks, line by line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from onnxprune.cli.main import cli
from onnxprune.report import Report, html

PAGES = Path(__file__).parents[1] / "docs/pages"
ELSEWHERE = re.compile(r"…|://|optimum-cli|result\.json|phone\.json|\binstall\b|onnxprune onnx ")
"""Lines that want what is not here: a cluster, a phone's result, a model of one's own."""


def says_the_same(report: Path) -> None:
    """A page holds what its JSON holds, to the digit: it is made anew from that."""
    assert html.render(Report.load(report)) == report.with_suffix(".html").read_text(encoding="utf-8")


def commands(page: str, heading: str = "", elsewhere: re.Pattern[str] = ELSEWHERE) -> list[list[str]]:
    """The lines of a page's shell blocks, or of those under one heading, that can be run here, in order."""
    text = (PAGES / page).read_text(encoding="utf-8")
    if heading:
        text = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    lines = (line.split("#")[0].strip() for block in blocks for line in block.splitlines())
    return [shlex.split(line) for line in lines if line and not elsewhere.search(line)]


def typed(words: list[str], page: str) -> None:
    """Carry out a command of onnxprune."""
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, f"{page}: {shlex.join(words)}\n{done.output}\n{done.exception}"


def follow(page: str) -> None:
    """Type all of a page."""
    for program, *words in commands(page):
        if program == "onnxprune":
            typed(words, page)
        else:
            assert program == "python"
            subprocess.run([sys.executable, *words, "--rounds", "2"], check=True, capture_output=True)


def exported(page: str, task: str) -> list[str]:
    """What the page types next on the folder that optimum exports for a task."""
    lines = (PAGES / page).read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("optimum-cli") and f"--task {task} onnx" in line)
    program, *words = shlex.split(lines[at + 1])
    assert program == "onnxprune" and words[0] == "onnx"
    return words
