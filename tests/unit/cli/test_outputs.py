"""What commands write, and what they never do: on two blocks of an MLP, so that a command takes a moment."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from kills import mlp
from small_jobs import QUICK, ROWS, Run, contents

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.graph import model_files, outputs
from onnxprune.graph.structure.analyze import analyze

PROFILE = ["--units", "neurons", "-q"]
CLOBBERS: dict[str, list[str]] = {
    "prune the model": ["prune", "model.onnx", "-o", "model.onnx", *QUICK],
    "prune the rows": ["prune", "model.onnx", "-o", "rows.jsonl", *QUICK],
    "prune a link to the model": ["prune", "model.onnx", "-o", "symlink.onnx", *QUICK],
    "prune a name of the model": ["prune", "model.onnx", "-o", "hardlink.onnx", *QUICK],
    "prune the weights": ["prune", "parted.onnx", "-o", "parted.bin", *QUICK],
    "prune the weights' link": ["prune", "parted.onnx", "-o", "weights.onnx", *QUICK],
    "prune the configuration": ["prune", "model.onnx", "-o", "config.json", *QUICK],
    "prune the tokenizer": ["prune", "model.onnx", "-o", "tok/tokenizer.json", "--tokenizer", "tok", *QUICK],
    "prune the table": ["prune", "model.onnx", "-o", "table.json", "--latency-table", "table.json", *QUICK],
    "plan the model": ["plan", "model.onnx", "-o", "model.onnx", "--flops", "0.6", *ROWS],
    "plan's tensors the model": ["plan", "m.safetensors", "-o", "m.json", "--flops", "0.6", *ROWS],
    "apply the plan": ["apply", "model.onnx", "p.json", "-o", "p.json", "-q"],
    "apply the tensors": ["apply", "model.onnx", "p.json", "-o", "p.safetensors", "-q"],
    "sweep's page the model": [
        "sweep",
        "model.onnx",
        "--flops",
        "0.8",
        "--report",
        "model.onnx",
        "--no-latency",
        *ROWS,
    ],
    "sweep's page the rows": ["sweep", "model.onnx", "--flops", "0.8", "--report", "rows.jsonl", "--no-latency", *ROWS],
    "profile the model": ["profile", "model.onnx", "-o", "model.onnx", *PROFILE],
    "profile over the folder": ["profile", "model.onnx", "--micro", ".", *PROFILE],
    "export over the folder": ["export", "model.onnx", "--target", "server", "-o", ".", "-q"],
    "export through a link": ["export", "model.onnx", "--target", "server", "-o", "here", "-q"],
    "export over the model": ["export", "model.onnx", "--target", "server", "-o", "model.onnx", "-q"],
    "bench over what was measured": ["bench", "--import", "result.json", "--table", "result.json"],
    "a recipe over itself": ["run", "recipe.yaml"],
}


@pytest.mark.parametrize("case", CLOBBERS)
def test_no_input_is_written(run: Run, folder: Path, case: str) -> None:
    (folder / "symlink.onnx").symlink_to("model.onnx")
    (folder / "hardlink.onnx").hardlink_to("model.onnx")
    (folder / "weights.onnx").symlink_to("parted.bin")
    (folder / "here").symlink_to(".", target_is_directory=True)
    (folder / "m.safetensors").write_bytes((folder / "model.onnx").read_bytes())
    (folder / "tok").mkdir()
    for name in ("tok/tokenizer.json", "table.json", "result.json"):
        (folder / name).write_text("{}")
    onnxprune_plan(folder)
    recipe = {"model": "model.onnx", "output": "recipe.yaml", "flops": 0.6, "calib": "rows.jsonl", "no-latency": True}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = contents(folder)
    for force in ([], ["--force"]):
        code, out, err = run(*CLOBBERS[case], *force)
        assert code in (2, 3) and not out and "Traceback" not in err, err
        assert contents(folder) == before
    if case != "bench over what was measured":  # which is refused for what it is before it is asked about
        assert "overwrite the input" in err or "is a file" in err or "without a manifest.json" in err


@pytest.mark.parametrize("verb", ["prune", "plan", "sweep"])
def test_no_file_that_rows_name_is_written(run: Run, folder: Path, verb: str) -> None:
    """Images are inputs as much as the file of rows is."""
    from PIL import Image
    from random_graphs import build

    onnx.save(build("resnet", 1), folder / "conv.onnx")
    (folder / "sw").mkdir()
    outs = {"prune": "a.onnx", "plan": "a.json", "sweep": "sw/conv.flops-0.8.report.html"}
    image = folder / outs[verb].replace("a.onnx", "a.report.html")
    Image.new("RGB", (8, 8)).save(image, "PNG")
    named = image.relative_to(folder).as_posix()
    (folder / "images.jsonl").write_text(f'{{"image": "{named}"}}\n' * 4)
    before = contents(folder)
    out = "sw" if verb == "sweep" else outs[verb]
    timed = [] if verb == "plan" else ["--no-latency"]
    asked = [verb, "conv.onnx", "-o", out, "--flops", "0.8", *timed, "--calib", "images.jsonl", "-q", "--force"]
    code, _, error = run(*asked)
    assert code == 2 and "would overwrite" in error and "which the rows name" in error, error
    assert contents(folder) == before


@pytest.mark.parametrize("named", ["", ".", "..", "/"])
def test_a_name_that_is_none_is_said(run: Run, folder: Path, named: str) -> None:
    for command in (
        ["prune", "model.onnx", "-o", named, *QUICK],
        ["plan", "model.onnx", "-o", named, "--flops", "0.6", *ROWS],
    ):
        code, _, error = run(*command)
        assert code == 2 and ("name a file in it" if named else "-o is empty") in error, error


def test_a_report_repeats_its_run_in_place(run: Run, folder: Path) -> None:
    """The report that is read belongs to the set that is replaced, and goes with it; as a target it does not."""
    assert run("prune", "model.onnx", "-o", "o.onnx", *QUICK)[0] == 0
    before, plan = contents(folder), (folder / "o.plan.json").read_bytes()
    code, _, error = run("run", "o.report.json", "-q")
    assert code == 2 and "exists already" in error and contents(folder) == before
    code, _, error = run("run", "o.report.json", "-q", "--force", "-o", "o.report.json")
    assert code == 2 and "overwrite the input" in error and contents(folder) == before
    code, _, error = run("run", "o.report.json", "-q", "--force")
    assert code == 0, error
    assert (folder / "o.plan.json").read_bytes() == plan and contents(folder).keys() == before.keys()
    assert onnx.load(folder / "o.onnx").graph.node == onnx.load_from_string(before["o.onnx"]).graph.node
    (folder / "other.report.json").write_bytes((folder / "o.report.json").read_bytes())
    code, _, error = run(
        "run", "other.report.json", "-q", "--force", "--calib", "other.report.json", "-o", "other.onnx"
    )
    assert code == 2 and "overwrite the input" in error, "rows stay, whatever they are called"


@pytest.mark.parametrize("scheme", ["fp16", "fp16-compute"])
def test_a_file_in_fewer_bits_brings_its_weights(
    run: Run, folder: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than two gigabytes, which lie beside the file and are found by the name in it."""
    from onnxprune.graph import model as models
    from onnxprune.graph import runtime

    monkeypatch.setattr(models, "_EMBED_LIMIT", 100)
    code, _, error = run("prune", "model.onnx", "-o", "o.onnx", "--quantize", scheme, *QUICK)
    assert code == 0, error
    fewer = folder / f"o.{scheme}.onnx"
    assert fewer.exists() and "no file in fewer bits" not in error
    assert model_files.locations(fewer) == {f"{fewer.name}.data"} and (folder / f"{fewer.name}.data").exists()
    (folder / "elsewhere").mkdir()
    for name in (fewer.name, f"{fewer.name}.data"):
        (folder / name).rename(folder / "elsewhere" / name)
    runtime.session(folder / "elsewhere" / fewer.name)


def test_a_kit_for_elsewhere_has_its_weights_by_the_names_in_the_file(run: Run, folder: Path) -> None:
    """As a cache keeps them: the model and its weights are links to what other names stand for."""
    from onnxprune.graph import runtime

    (folder / "blobs").mkdir()
    (folder / "snapshot").mkdir()
    for name, blob in (("parted.onnx", "aaa"), ("parted.bin", "bbb")):
        (folder / name).rename(folder / "blobs" / blob)
        (folder / "snapshot" / name).symlink_to(f"../blobs/{blob}")
    code, _, error = run("profile", "snapshot/parted.onnx", "--micro", "kit", *PROFILE)
    assert code == 0, error
    assert (folder / "kit" / "parted.bin").is_file() and not (folder / "kit" / "bbb").exists()
    runtime.session(folder / "kit" / "model.onnx")


def onnxprune_plan(folder: Path) -> None:
    import numpy as np

    from onnxprune.graph import model as models
    from onnxprune.graph.plan import Plan

    dense = models.load(folder / "model.onnx")
    group = analyze(dense).groups[0]
    Plan(dense.digest, {group.id: tuple(range(8))}, intercepts={"m0": np.zeros(8, np.float32)}).save(folder / "p.json")


SIDES: dict[str, tuple[list[str], list[str]]] = {
    "prune": (["prune", "model.onnx", "-o", "s.onnx", *QUICK], ["s.plan.json", "s.report.html", "s.onnx.data"]),
    "prune to fewer bits": (["prune", "model.onnx", "-o", "s.onnx", "--quantize", "fp16", *QUICK], ["s.fp16.onnx"]),
    "plan": (["plan", "model.onnx", "-o", "a.json", "--flops", "0.6", *ROWS], ["a.safetensors"]),
    "apply": (["apply", "model.onnx", "p.json", "-o", "s.onnx", "-q"], ["s.report.json", "s.plan.safetensors"]),
    "sweep": (["sweep", "model.onnx", "-o", "sw", "--flops", "0.8", "--no-latency", *ROWS],
              ["sw/model.flops-0.8.report.json"]),
    "sweep's page": (["sweep", "model.onnx", "--flops", "0.8", "--report", "c.html", *ROWS], ["c.html"]),
    "profile": (["profile", "model.onnx", "-o", "t.json", *PROFILE], ["t.json"]),
    "micro-models": (["profile", "model.onnx", "--micro", "kit", *PROFILE], ["kit/measure.py"]),
    "export": (["export", "model.onnx", "--target", "server", "-o", "docs", "-q"], ["docs/mine.txt"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SIDES)
def test_every_file_of_an_output_is_asked_about_before_any_work(
    run: Run, folder: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, there = SIDES[case]
    onnxprune_plan(folder)
    for name in there:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    before = contents(folder)

    def worked(*_: object, **__: object) -> Any:
        raise AssertionError("a model was loaded before the output was asked about")

    monkeypatch.setattr("onnxprune.graph.model.load", worked)
    code, out, err = run(*command)
    assert code == 2 and not out and contents(folder) == before
    last = err.strip().splitlines()[-1]
    assert "exists already" in last and all(Path(name).name in last for name in there)


def test_force_replaces_exactly_the_set(run: Run, folder: Path) -> None:
    assert run("model.onnx", "-o", "s.onnx", "--quantize", "fp16", *QUICK)[0] == 0
    told = json.loads((folder / "s.report.json").read_text())
    assert set(told["files"]) == {n for n in contents(folder) if n.startswith("s.") and n != "s.report.json"}
    assert all(outputs.digest(folder / name) == digest for name, digest in told["files"].items())
    (folder / "s.notes.txt").write_text("mine")
    before = contents(folder)
    code, _, err = run("model.onnx", "-o", "s.onnx", "--force", *QUICK)
    assert code == 0, err
    after = contents(folder)
    assert set(before) - set(after) == {"s.fp16.onnx"}, "the file in fewer bits was made of the older model"
    assert after["s.notes.txt"] == b"mine"


def test_an_applied_model_keeps_no_report_of_another(run: Run, folder: Path) -> None:
    assert run("model.onnx", "-o", "s.onnx", *QUICK)[0] == 0
    assert run("plan", "model.onnx", "-o", "p.json", "--flops", "0.8", *ROWS)[0] == 0
    assert run("apply", "model.onnx", "p.json", "-o", "s.onnx", "-q")[0] == 2
    code, _, err = run("apply", "model.onnx", "p.json", "-o", "s.onnx", "--force", "-q")
    assert code == 0, err
    assert [n for n in contents(folder) if n.startswith("s.")] == ["s.onnx"]


def test_a_plan_under_the_name_of_its_output_stays(run: Run, folder: Path) -> None:
    assert run("plan", "model.onnx", "-o", "s.plan.json", "--flops", "0.6", *ROWS)[0] == 0
    for force in ([], ["--force"]):
        code, _, err = run("apply", "model.onnx", "s.plan.json", "-o", "s.onnx", "-q", *force)
        assert code == 0, err
        assert {n for n in contents(folder) if n.startswith("s.")} == {"s.onnx", "s.plan.json", "s.plan.safetensors"}


@pytest.mark.parametrize("damage", ["another's", "missing", "none told", "old and another's", "old and none told"])
def test_tensors_of_another_plan_are_refused(run: Run, folder: Path, damage: str) -> None:
    for name, share in (("a", "0.5"), ("b", "0.8")):
        assert run("plan", "model.onnx", "-o", f"{name}.json", "--flops", share, *ROWS)[0] == 0
    told = json.loads((folder / "a.json").read_text())
    assert told["tensors"] > 0
    if "old" in damage:
        del told["tensors_sha256"]
    if "none told" in damage:
        told["tensors"] = 0
    if damage == "old and another's":
        told["tensors"] += 1
    (folder / "a.json").write_text(json.dumps(told))
    if damage == "another's":
        (folder / "a.safetensors").write_bytes((folder / "b.safetensors").read_bytes())
    elif damage == "missing":
        (folder / "a.safetensors").unlink()
    code, _, err = run("apply", "model.onnx", "a.json", "-o", "o.onnx", "-q")
    assert code == 3 and "a.json" in err and not (folder / "o.onnx").exists()


# ---- tokenizer and configuration


def test_another_models_companions_are_not_mixed_with_ones_own(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "config.json").write_text('{"model": "another"}')
    (folder / "out" / "vocab.txt").write_text("another's")
    code, _, err = run("model.onnx", "-o", "out/s.onnx", *QUICK)
    assert code == 2 and "out/config.json is another model's" in err and "-o" in err
    assert json.loads((folder / "out" / "config.json").read_text()) == {"model": "another"}
    assert {p.name for p in (folder / "out").iterdir()} == {"config.json", "vocab.txt"}
    with caplog.at_level(logging.WARNING):
        code, _, err = run("model.onnx", "-o", "out/s.onnx", "--force", *QUICK)
    assert code == 0, err
    assert "config.json in out: replaced by the model's own" in caplog.text
    assert "vocab.txt in out: there is no such file beside the model" in caplog.text
    told = json.loads((folder / "out" / "s.report.json").read_text())
    assert any("config.json in out: replaced" in line for line in told["warnings"])
    assert json.loads((folder / "out" / "config.json").read_text()) == {"model": "first"}
    assert (folder / "out" / "vocab.txt").read_text() == "another's"
    caplog.clear()
    assert run("model.onnx", "-o", "out/t.onnx", *QUICK)[0] == 0
    assert "config.json" not in caplog.text, "the same companion is no news"
    (folder / "out" / "merges.txt").write_text("another's")
    caplog.clear()
    assert run("model.onnx", "-o", "out/u.onnx", *QUICK)[0] == 0
    assert caplog.text.count("there is no such file") == 1 and "vocab.txt, merges.txt in out" in caplog.text


@pytest.mark.parametrize(
    "command", [["prune", "-o", "out/", *QUICK], ["export", "-o", "out", "--target", "server", "-q"]]
)
def test_companions_that_are_links_out_of_the_models_folder_are_not_carried_off(
    run: Run, folder: Path, command: list[str]
) -> None:
    (folder / "secret").write_text("of the user")
    given = folder / "given"
    given.mkdir()
    onnx.save(mlp(16), given / "model.onnx")
    (given / "vocab.txt").symlink_to("../secret")
    code, _, err = run(command[0], "given/model.onnx", *command[1:])
    assert code == 3 and "given/vocab.txt: is a link out of the model's folder" in err
    assert not (folder / "out").exists()


def test_companions_that_are_links_into_the_folder_of_the_graphs_own_files_are_the_models(
    run: Run, folder: Path
) -> None:
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc"
    for place in (blobs, snapshot / "onnx"):
        place.mkdir(parents=True)
    onnx.save(mlp(16), blobs / "one")
    (blobs / "two").write_text('{"of": "the hub"}')
    (snapshot / "onnx" / "model.onnx").symlink_to("../../../blobs/one")
    (snapshot / "config.json").symlink_to("../../blobs/two")
    code, _, err = run("snapshots/abc/onnx/model.onnx", "-o", "out/", *QUICK)
    assert code == 0, err
    assert (folder / "out" / "config.json").read_text() == '{"of": "the hub"}'


def test_a_repository_keeps_its_graphs_in_a_folder_below_what_belongs_to_them(run: Run, folder: Path) -> None:
    below = folder / "repo" / "onnx"
    below.mkdir(parents=True)
    for name in ("model.onnx", "model_fp16.onnx"):
        onnx.save(mlp(16), below / name)
    (folder / "repo" / "tokenizer.json").write_text('{"of": "the repository"}')
    (folder / "out").mkdir()
    (folder / "out" / "tokenizer.json").write_text('{"of": "another"}')
    assert "is another model's" in run("prune", "repo", "-o", "out/small.onnx", *QUICK)[2]
    (folder / "out" / "tokenizer.json").unlink()
    code, _, err = run("prune", "repo", "-o", "out/small.onnx", *QUICK)
    assert code == 0, err
    assert (folder / "out" / "tokenizer.json").read_bytes() == (folder / "repo" / "tokenizer.json").read_bytes()
    before = contents(folder / "repo")
    code, _, err = run("prune", "repo", "-o", "repo/tokenizer.json", *QUICK, "--force")
    assert code == 2 and contents(folder / "repo") == before, err
    code, _, err = run("prune", "repo", *QUICK)
    assert code == 0 and (below / "model.pruned.onnx").exists(), err


def test_a_sweep_says_it_once(run: Run, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "sw").mkdir()
    (folder / "sw" / "vocab.txt").write_text("another's")
    code, _, err = run("sweep", "model.onnx", "-o", "sw", "--flops", "0.8,0.6", "--no-latency", *ROWS)
    assert code == 0, err
    assert caplog.text.count("vocab.txt in sw: there is no such file") == 1
    for share in ("0.8", "0.6"):
        told = json.loads((folder / "sw" / f"model.flops-{share}.report.json").read_text())
        assert any("vocab.txt in sw: there is no such file" in line for line in told["warnings"])


def test_a_sweep_does_not_write_its_page_over_a_report(run: Run, folder: Path) -> None:
    page = "sw/model.flops-0.8.report.html"
    code, _, err = run("sweep", "model.onnx", "-o", "sw", "--flops", "0.8", "--report", page, "--no-latency", *ROWS)
    assert code == 2 and "under another option" in err and not (folder / "sw").exists()


# ---- export, and Python


def test_an_export_does_not_take_the_report_of_another_model(
    run: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run("model.onnx", "-o", "s.onnx", *QUICK)[0] == 0
    assert run("export", "s.onnx", "--target", "server", "-o", "x", "-q")[0] == 0
    assert json.loads((folder / "x" / "report.json").read_text())["dense_bytes"] > 0
    onnx.save(mlp(12), folder / "s.onnx")
    code, _, err = run("export", "s.onnx", "--target", "server", "-o", "x", "--force", "-q")
    assert code == 0, err
    assert json.loads((folder / "x" / "report.json").read_text())["dense_bytes"] == 0
    assert "s.report.json" in caplog.text and "another model" in caplog.text


def test_saving_from_python_asks_too(folder: Path) -> None:
    result = onnxprune.prune("model.onnx", flops=0.6, calibration="rows.jsonl", measure_latency=False, compensate=False)
    assert result.files == ()
    (folder / "s.report.json").write_text("of another model")
    for target in ("model.onnx", "rows.jsonl", "config.json"):
        with pytest.raises(UsageError, match="overwrite the input"):
            result.save(target, force=True)
    with pytest.raises(UsageError, match=r"s\.report\.json: exists already"):
        result.save("s.onnx")
    assert result.save("s.onnx", force=True) == [Path("s.onnx")]
    assert not (folder / "s.report.json").exists()


def test_a_name_that_ends_as_a_folders_does_is_a_folder_there_or_not(run: Run, folder: Path) -> None:
    """`-o new/` is where things go under their usual names, by every command and in a recipe; no file is called new."""
    (folder / "there").mkdir()
    recipe = {"model": "model.onnx", "output": "recipe/", "flops": 0.6, "method": "magnitude", "no-latency": True}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    blind = ["--flops", "0.6", "--method", "magnitude", "-q"]
    for place in ("new/", "deep/er/", "there/", "dotted/."):
        code, _, err = run("prune", "model.onnx", "-o", place, "--no-latency", *blind)
        assert code == 0, err
        made = {file.name for file in (folder / place).iterdir()}
        assert {"model.pruned.onnx", "model.pruned.plan.json", "model.pruned.report.json"} <= made
    for arguments, file in (
        (["plan", "model.onnx", "-o", "plans/", *blind], "plans/model.plan.json"),
        (["apply", "model.onnx", "plans/model.plan.json", "-o", "applied/", "-q"], "applied/model.pruned.onnx"),
        (["sweep", "model.onnx", "-o", "all/", "--report", "page/", "--no-latency", *blind], "page/model.sweep.html"),
        (["profile", "model.onnx", "-o", "tables/", *PROFILE], "tables/model.table.json"),
        (["run", "recipe.yaml", "-q"], "recipe/model.pruned.onnx"),
    ):
        code, _, err = run(*arguments)
        assert code == 0 and (folder / file).is_file(), err
    code, _, err = run("prune", "model.onnx", "-o", "there", "--no-latency", *blind)
    assert code == 2 and "end it with a slash" in err
    assert onnxprune.prune("model.onnx", "py/", flops=0.6, method="magnitude", measure_latency=False).files
    assert (folder / "py" / "model.pruned.onnx").is_file()
