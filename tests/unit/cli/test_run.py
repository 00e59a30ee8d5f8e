"""Recipes: a command's options in a file, and a report as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import perceptron
import pytest
import yaml
from unit.cli.test_main import QUICK, Build, Outcome, good_rows, write_rows

Run = Callable[..., Outcome]


@pytest.fixture
def folder(zoo: Build, tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(zoo("bert", "torchscript", "sdpa").path.read_bytes())
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.jsonl", good_rows())
    return tmp_path


BASE = {
    "model": "model.onnx",
    "output": "small.onnx",
    "flops": 0.7,
    "calib": "data/rows.jsonl",
    "no-latency": True,
    "no_compensate": True,
    "threads": 1,
    "round-to": 1,
}


def recipe(folder: Path, **changes: object) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (BASE | changes).items() if v != "absent"}))
    return file


def weights(file: Path) -> dict[str, bytes]:
    return {t.name: t.SerializeToString() for t in onnx.load(file).graph.initializer}


def test_a_recipe_does_what_its_options_do(run: Run, folder: Path) -> None:
    code, said, error = run("run", recipe(folder, units=["heads", "neurons"], shape={"sequence_length": 6}))
    assert code == 0, error
    assert str(folder / "small.onnx") in said
    typed = folder / "typed.onnx"
    code, _, error = run(
        folder / "model.onnx", "-o", typed, "--flops", 0.7, "--calib", folder / "data" / "rows.jsonl", *QUICK,
        "--round-to", 1, "--units", "heads,neurons", "--shape", "sequence_length=6",
    )  # fmt: skip
    assert code == 0, error
    assert weights(folder / "small.onnx") == weights(typed)


def test_options_after_the_recipe_win(run: Run, folder: Path) -> None:
    other = folder / "other.onnx"
    code, said, error = run("run", recipe(folder), "--flops", 0.5, "-o", other, "--json")
    assert code == 0, error
    told = json.loads(said)
    assert told["budget"]["target"] == 0.5 and other.exists() and not (folder / "small.onnx").exists()


def test_other_commands(run: Run, folder: Path) -> None:
    file = folder / "inspect.yaml"
    file.write_text("command: inspect\nmodel: model.onnx\nshape: {sequence_length: 16}\n")
    code, said, error = run("run", file, "--json")
    assert code == 0, error
    _, typed, _ = run("inspect", folder / "model.onnx", "--shape", "sequence_length=16", "--json")
    assert json.loads(said) == json.loads(typed)


def test_a_report_repeats_its_run(run: Run, folder: Path) -> None:
    assert run("run", recipe(folder, units=["neurons"], seed=3))[0] == 0
    report = folder / "small.report.json"
    code, _, error = run("run", report)
    assert code == 2 and "exists already" in error
    again = folder / "again.onnx"
    code, _, error = run("run", report, "-o", again)
    assert code == 0, error
    assert weights(again) == weights(folder / "small.onnx")
    first, second = (json.loads((folder / f"{n}.report.json").read_text()) for n in ("small", "again"))
    assert first["recipe"]["options"] == second["recipe"]["options"]
    assert first["recipe"]["sources"] == second["recipe"]["sources"]
    held = json.loads(report.read_text())
    for part in ("options", "sources", "data"):
        report.write_text(json.dumps(held | {"recipe": held["recipe"] | {part: 0.5}}))
        code, _, error = run("run", report, "-o", folder / "third.onnx")
        assert code == 3 and f"recipe.{part}" in error
    held["recipe"]["sources"]["calibration"] = None
    report.write_text(json.dumps(held))
    code, _, error = run("run", report, "-o", folder / "third.onnx")
    assert code == 2 and "calibration rows" in error


def test_rows_are_in_reports_unless_they_shall_not_be(run: Run, tmp_path: Path) -> None:
    perceptron.write(tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text('{"id2label": {"0": "left", "1": "right", "2": "middle"}}')
    rows = perceptron.write_rows(tmp_path / "rows.jsonl", 60)
    args = ("--flops", 0.5, "--calib", rows, "--eval", rows, "--no-compensate", "--no-latency", "--threads", 1)
    told = {}
    for flips in (2, 0):
        out = tmp_path / f"{flips}.onnx"
        code, _, error = run(tmp_path / "model.onnx", "-o", out, "--flips", flips, *args)
        assert code == 0, error
        told[flips] = json.loads(out.with_suffix(".report.json").read_text())
        page = out.with_suffix(".report.html").read_text()
        assert ("--flips 0 leaves them out" in page) == bool(flips)
    assert told[2]["flips"]["count"] == told[0]["flips"]["count"] > 2
    assert len(told[2]["flips"]["shown"]) == 2 and told[0]["flips"]["shown"] == []
    first = told[2]["flips"]["shown"][0]
    assert {first["dense"], first["pruned"], first["label"]} <= {"left", "right", "middle"}
    assert [one["block"] for one in told[0]["layers"]] == ["ffn.0", "ffn.1"]
    assert [one["name"] for one in told[0]["slices"]] == ["left", "right", "middle"]
    code, _, error = run("run", tmp_path / "0.report.json", "-o", tmp_path / "again.onnx")
    assert code == 0, error
    assert json.loads((tmp_path / "again.report.json").read_text())["flips"] == told[0]["flips"]


def test_a_report_means_the_same_from_anywhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths as they were typed in one folder are found from another, and with files that moved along."""
    work = tmp_path / "work"
    work.mkdir()
    perceptron.write(work / "model.onnx")
    perceptron.write_rows(work / "rows.jsonl", 60)
    monkeypatch.chdir(work)
    args = ["--calib", "rows.jsonl", "--eval", "rows.jsonl", "--max-drop", "60%", "--no-latency", "--threads", 1]
    code, _, error = run("model.onnx", "-o", "out/small.onnx", *args)
    assert code == 0, error
    told = json.loads(Path("out/small.report.json").read_text(encoding="utf-8"))
    assert told["model"]["path"] == str(work / "model.onnx")
    assert told["recipe"]["sources"]["max_drop"] == "60%"
    monkeypatch.chdir("/")
    code, _, error = run("run", work / "out" / "small.report.json", "-o", tmp_path / "again.onnx")
    assert code == 0, error
    again = json.loads((tmp_path / "again.report.json").read_text(encoding="utf-8"))
    assert again["budget"]["kind"] == "max_drop" and again["budget"] == told["budget"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("model.onnx", "rows.jsonl", "out/small.report.json"):
        (work / name).rename(moved / Path(name).name)
    code, _, error = run("run", moved / "small.report.json", "-o", tmp_path / "third.onnx", "--dry-run")
    assert code == 0, error
    told["recipe"]["sources"]["calibration"] = [["rows.jsonl"]]
    (moved / "small.report.json").write_text(json.dumps(told), encoding="utf-8")
    code, _, error = run("run", moved / "small.report.json", "-o", tmp_path / "fourth.onnx", "--dry-run")
    assert code == 3 and "small.report.json: recipe.sources: calib: a list is not what belongs there (text)" in error


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"flosp": 0.5}, 2, r"recipe\.yaml: flosp is not an option of prune; did you mean flops\?"),
        ({"no-latency": 3}, 2, r"recipe\.yaml: no-latency is true or false, not 3"),
        ({"seed": "often"}, 2, r"recipe\.yaml: seed: .*often"),
        ({"units": [["heads"]]}, 2, r"recipe\.yaml: units holds something"),
        ({"command": "prunes"}, 2, r"recipe\.yaml: command: prunes is no command"),
        ({"command": "run"}, 2, r"recipe\.yaml: command: run is no command"),
        ({"model": "absent"}, 2, r"recipe\.yaml: model is missing"),
        ({"calib": "nowhere.jsonl"}, 3, r"nowhere\.jsonl"),
        ({"flops": 1.5}, 2, r"--flops 1\.5"),
    ],
)
def test_errors_name_the_key(run: Run, folder: Path, changes: dict[str, object], code: int, message: str) -> None:
    import re

    found, said, error = run("run", recipe(folder, **changes))
    assert found == code and not said
    assert re.search(message, error), error
    assert not (folder / "small.onnx").exists()


def test_files_that_are_no_recipe(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    assert run("run", file)[0] == 3
    for text in ("a: [", "- 1", "3: 4"):
        file.write_text(text)
        code, _, error = run("run", file)
        assert code == 3 and "recipe.yaml" in error
    report = tmp_path / "some.json"
    report.write_text("{}")
    assert run("run", report)[0] == 3


@pytest.mark.parametrize("twice", ["flops: 0.6\nflops: 0.9", "no-latency: true\nflops: 0.6\nno_latency: false"])
def test_what_is_given_twice_is_said(run: Run, folder: Path, tmp_path: Path, twice: str) -> None:
    """YAML libraries take the last, in silence."""
    (tmp_path / "r.yaml").write_text(f"model: {folder / 'model.onnx'}\n{twice}\n")
    code, _, err = run("run", tmp_path / "r.yaml")
    assert code == 2 and f"{'flops' if 'no' not in twice else 'no-latency'} is given twice" in err


def test_a_file_replaces_nothing(run: Run, folder: Path) -> None:
    """A recipe of others, or a report, says where the output goes; that it may replace what is there is typed."""
    (folder / "small.onnx").write_bytes(b"mine")
    code, _, err = run("run", recipe(folder, force=True), "-q")
    assert code == 2 and "force is not read from a file" in err and "type --force" in err
    assert (folder / "small.onnx").read_bytes() == b"mine"
    code, _, err = run("run", recipe(folder), "--force", "-q")
    assert code == 0 and (folder / "small.onnx").read_bytes() != b"mine", err
