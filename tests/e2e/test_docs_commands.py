"""What the pages tell people to type works as it stands: their commands, in their order, on a small text model."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import decoders
import folders
import numpy as np
import own_models
import pytest
from pages import PAGES, commands, exported, follow, says_the_same, typed

from onnxprune.cli.main import cli
from onnxprune.score import CUSTOM, METHODS

WORDS = ["film", "good", "bad", "story", "the", "and", "well", "bright", "dull"]
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


def test_the_first_run(desk: Path) -> None:
    follow("index.md")
    told = (PAGES / "index.md").read_text(encoding="utf-8")
    for name in re.findall(r"^\| `(\w[\w.]+\.\w+)`", told, re.M):
        assert (desk / name).is_file(), f"index.md says that there will be {name}"
    assert (desk / "curve.html").is_file() and (desk / "site/index.html").is_file()


@pytest.mark.slow
def test_an_exported_folder(desk: Path, letters_bert: Path) -> None:
    shutil.copytree(letters_bert, desk / "onnx")
    typed(exported("your-model.md", "text-classification"), "your-model.md")
    assert (desk / "onnx/model.pruned.onnx").is_file()
    says_the_same(desk / "onnx/model.pruned.report.json")


@pytest.mark.slow
def test_an_exported_folder_of_several_graphs(desk: Path, store: Path) -> None:
    shutil.copytree(folders.folder("bart", store), desk / "onnx")
    (desk / "pairs.jsonl").write_text("\n".join(map(json.dumps, folders.rows(24))), encoding="utf-8")
    typed(exported("your-model.md", "text2text-generation-with-past"), "your-model.md")
    assert {f.name for f in (desk / "small").iterdir()} >= {*folders.FILES, "config.json", "report.html"}
    says_the_same(desk / "small/report.json")


def test_pictures_for_a_bare_graph(place: Path) -> None:
    """A folder without a preprocessor, a sub-folder a class; and a table of masks' kind is not needed."""
    own_models.picture_classifier(place / "classifier.onnx")
    own_models.pictures(place / "pictures", ["left", "right"])
    (told,) = told_of(place, "Pictures")
    assert told["accuracy"]["metric"] == "accuracy" and told["accuracy"]["rows"]


def test_sounds_for_a_bare_graph(place: Path) -> None:
    own_models.sound_classifier(place / "sounds.onnx")
    own_models.sounds(place / "recordings", ["bark", "meow", "moo"])
    (told,) = told_of(place, "Sound")
    assert told["accuracy"]["metric"] == "accuracy" and told["accuracy"]["rows"]


def test_a_detector(place: Path) -> None:
    own_models.detector(place / "detector.onnx")
    own_models.pictures(place / "street", each=24, edge=80)
    (told,) = told_of(place, "Detectors, and anything else with tensors")
    assert told["drift"]["explained_variance"] > 0.5 and {unit["kind"] for unit in told["units"]} >= {"channels"}


def test_a_decoder_with_its_cache(place: Path, store: Path) -> None:
    shutil.copytree(decoders.decoder("llama", store).parent, place / "onnx")
    folders.tokenizer(place / "onnx")
    for name, seed in (("texts", 0), ("held-out", 1)):
        lines = [row["text"] for row in folders.rows(24, seed)]
        (place / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    typed(exported("your-model.md", "text-generation-with-past"), "your-model.md")
    told = json.loads((place / "onnx/model.pruned.report.json").read_text(encoding="utf-8"))
    assert told["accuracy"]["metric"] == "perplexity" and told["flops"]["ratio"] <= 0.7
    dense, small = (folders.interface(place / "onnx" / name) for name in ("model.onnx", "model.pruned.onnx"))
    assert dense == small
    says_the_same(place / "onnx/model.pruned.report.json")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where commands are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def told_of(place: Path, heading: str) -> list[Any]:
    """The reports of what "Your model" types under a heading; what is cut keeps what the command says."""
    made = []
    for program, model, *options in commands("your-model.md", heading):
        assert program == "onnxprune"
        typed([model, *options], heading)
        report = place / f"{Path(model).stem}.pruned.report.json"
        says_the_same(report)
        made.append(json.loads(report.read_text(encoding="utf-8")))
        assert made[-1]["flops"]["ratio"] <= float(options[options.index("--flops") + 1])
    return made


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
    """In their order, but for those with gaps to be filled in, and Olive's, which has a test of its own."""
    shutil.copytree(desk, desk / "my-classifier")
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / "python.md").read_text(encoding="utf-8"), re.M | re.S)
    own = next(b for b in blocks if "add_method" in b)
    assert len(own.split("def ")[1].split("\n\n")[0].splitlines()) <= 10
    scope: dict[str, Any] = {"__name__": "a notebook"}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="transformers|optimum|torch")
            for block in blocks:
                if "…" not in block and "olive" not in block:
                    exec(compile(block, "python.md", "exec"), scope)
    finally:
        METHODS.pop("quiet", None)
        CUSTOM.discard("quiet")
    assert scope["evidence"].accuracy.rows == 24 and scope["graph"].graph.num_nodes()
    made = {f.name for f in (desk / "small").iterdir()}
    assert made >= {f"model.pruned.{kind}" for kind in ("onnx", "plan.json", "report.json", "report.html")}
    assert made >= {"tokenizer.json", "model.onnx"}
