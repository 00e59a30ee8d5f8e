"""What the pages tell people to type works as it stands: their commands, in their order, on a small text model."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnxprune.cli.main import cli
from onnxprune.report import Report, html

PAGES = Path(__file__).parents[2] / "docs/pages"
WORDS = ["film", "good", "bad", "story", "the", "and", "well", "bright", "dull"]
ELSEWHERE = re.compile(r"…|://|optimum-cli|result\.json|phone\.json|\binstall\b|onnxprune onnx ")
"""Lines that want what is not here: a cluster, a phone's result, a model of one's own."""
OTHERS = re.compile(
    r"optimum-cli|\bpip\b|\bdask worker\b|ray start|workers\.py|\.py |mkdocs|--resources|tests/run|bash "
)
"""Lines with options of other programs."""


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


def says_the_same(report: Path) -> None:
    """A page holds what its JSON holds, to the digit: it is made anew from that."""
    assert html.render(Report.load(report)) == report.with_suffix(".html").read_text(encoding="utf-8")


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


def exported(page: str, task: str) -> list[str]:
    """What the page types next on the folder that optimum exports for a task."""
    lines = (PAGES / page).read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("optimum-cli") and f"--task {task} onnx" in line)
    program, *words = shlex.split(lines[at + 1])
    assert program == "onnxprune" and words[0] == "onnx"
    return words


@pytest.mark.slow
def test_an_exported_folder(desk: Path, letters_bert: Path) -> None:
    shutil.copytree(letters_bert, desk / "onnx")
    done = CliRunner().invoke(cli, exported("your-model.md", "text-classification"))
    assert done.exit_code == 0, done.output
    assert (desk / "onnx/model.pruned.onnx").is_file()
    says_the_same(desk / "onnx/model.pruned.report.json")


@pytest.mark.slow
def test_an_exported_folder_of_several_graphs(desk: Path, store: Path) -> None:
    shutil.copytree(folders.folder("bart", store), desk / "onnx")
    (desk / "pairs.jsonl").write_text("\n".join(map(json.dumps, folders.rows(24))), encoding="utf-8")
    words = exported("your-model.md", "text2text-generation-with-past")
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert {f.name for f in (desk / "small").iterdir()} >= {*folders.FILES, "config.json", "report.html"}
    says_the_same(desk / "small/report.json")


def test_pictures_in_a_folder_for_a_bare_graph(desk: Path) -> None:
    """What "Pictures" and "Where rows come from" promise: no preprocessor, a sub-folder a class."""
    from PIL import Image

    digits_cnn(desk / "bare/cnn.onnx")
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (desk / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 200, (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(desk / "pictures" / name / f"{i}.png")
    words = ["bare/cnn.onnx", "--flops", "0.7", "--calib", "pictures", "--no-latency"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    told = json.loads((desk / "bare/cnn.pruned.report.json").read_text(encoding="utf-8"))
    assert told["accuracy"]["metric"] == "accuracy" and told["flops"]["ratio"] <= 0.7
    says_the_same(desk / "bare/cnn.pruned.report.json")


def digits_cnn(path: Path) -> None:
    """Three convolutions and a classifier of two classes, over pictures of 8 x 8."""
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sizes = [3, 8, 8, 8]
    lines, weights = [], []
    for i, (wide, made) in enumerate(itertools.pairwise(sizes)):
        lines.append(
            f"c{i} = Conv <pads = [1, 1, 1, 1]> ({'image' if not i else f'r{i - 1}'}, w{i})\n r{i} = Relu (c{i})"
        )
        weights.append(onnx.numpy_helper.from_array(rng.normal(0, 0.4, (made, wide, 3, 3)).astype("f4"), f"w{i}"))
    weights.append(onnx.numpy_helper.from_array(rng.normal(0, 1, (8, 2)).astype("f4"), "head"))
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> digits (float[batch, 3, 8, 8] image) => (float[batch, 2] logits) {\n'
        + "\n".join(lines)
        + "\n p = GlobalAveragePool (r2)\n f = Flatten (p)\n logits = MatMul (f, head)\n}"
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(weights)
    onnx.save(model, path)


def test_options_that_pages_name_are_there() -> None:
    known = {option for command in cli.commands.values() for p in command.params for option in p.opts} | {"--help"}
    for page in (*PAGES.glob("*.md"), PAGES.parents[1] / "README.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            if not OTHERS.search(line):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line):
                    assert option in known, f"{page.name} names {option}, which no command has: {line}"


def test_rows_that_pages_show_are_json() -> None:
    for page in PAGES.glob("*.md"):
        for block in re.findall(r"^```json\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.splitlines():
                assert "..." in line or isinstance(json.loads(line), dict), f"{page.name}: {line}"


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
