"""What the pages tell people to type works as it stands: their commands, in their order, on a small text model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onnxprune.cli.main import cli

PAGES = Path(__file__).parents[2] / "docs/pages"
WORDS = ["film", "good", "bad", "story", "the", "and", "well", "bright", "dull"]
ELSEWHERE = re.compile(r"…|://|optimum-cli|result\.json|phone\.json|\binstall\b|onnxprune onnx ")
"""Lines that want what is not here: a cluster, a phone's result, a model of one's own."""


@pytest.fixture
def desk(letters_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with model.onnx, its tokenizer, and rows, where commands are typed."""
    for file in letters_bert.iterdir():
        shutil.copy(file, tmp_path)
    for seed, (name, count) in enumerate({"rows": 32, "dev": 24, "texts": 24}.items()):
        rng = np.random.default_rng(seed)
        rows = [
            {"text": " ".join(rng.choice(WORDS, rng.integers(3, 9))), "label": int(rng.integers(3))}
            for _ in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def commands(page: str) -> list[list[str]]:
    """The lines of a page's shell blocks that can be run here, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.M | re.S)
    lines = (line.split("#")[0].strip() for block in blocks for line in block.splitlines())
    return [shlex.split(line) for line in lines if line and not ELSEWHERE.search(line)]


def follow(page: str) -> None:
    for program, *words in commands(page):
        if program == "onnxprune":
            done = CliRunner().invoke(cli, words)
            assert done.exit_code == 0, f"{page}: {shlex.join(words)}\n{done.output}\n{done.exception}"
        else:
            assert program == "python"
            subprocess.run([sys.executable, *words, "--rounds", "2"], check=True, capture_output=True)


def test_the_first_run(desk: Path) -> None:
    follow("index.md")
    told = (PAGES / "index.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| `(\w[\w.]+\.\w+)`", told, re.M):
        assert (desk / name).is_file(), f"index.md says that there will be {name}"
    assert (desk / "curve.html").is_file() and (desk / "site/index.html").is_file()


@pytest.mark.slow
def test_shipping(desk: Path) -> None:
    shutil.copy(desk / "model.onnx", desk / "model.pruned.onnx")
    follow("shipping.md")
    assert (desk / "for-there.onnx").is_file() and (desk / "phone/bench/run.sh").is_file()


def test_python_blocks(desk: Path) -> None:
    """The first, and the method of one's own in ten lines."""
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / "python.md").read_text(encoding="utf-8"), re.M | re.S)
    own = next(b for b in blocks if "add_method" in b)
    first = next(b for b in blocks if "result.save(" in b)
    assert len(own.split("def ")[1].split("\n\n")[0].splitlines()) <= 10
    for block in (first, own):
        exec(compile(block, "python.md", "exec"), {"__name__": "a notebook"})
    made = {f.name for f in (desk / "small").iterdir()}
    assert made >= {f"model.pruned.{kind}" for kind in ("onnx", "plan.json", "report.json", "report.html")}
    assert "tokenizer.json" in made
