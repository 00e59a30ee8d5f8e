"""The command line: what it prints, how it ends, and that it writes nothing when it cannot do what was asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from zoo import ZooModel

from onnxprune.errors import near_file

Build = Callable[..., ZooModel]
Outcome = tuple[int, str, str]

QUICK = ["--no-latency", "--no-compensate", "--threads", "1"]


@pytest.fixture
def folder(zoo: Build, tmp_path: Path) -> Path:
    """A folder with a tiny classifier and rows for it."""
    model = zoo("bert", "torchscript", "sdpa")
    (tmp_path / "model.onnx").write_bytes(model.path.read_bytes())
    write_rows(tmp_path / "rows.jsonl", good_rows())
    return tmp_path


def good_rows(count: int = 24) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    lengths = [5, 7]
    return [
        {
            "input_ids": rng.integers(5, 100, lengths[i % 2]).tolist(),
            "attention_mask": [1] * lengths[i % 2],
            "label": i % 2,
        }
        for i in range(count)
    ]


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def refused(run: Callable[..., Outcome], folder: Path, code: int, says: str, *args: object) -> str:
    """One line on stderr that says what is wrong, nothing on stdout, no file written or changed."""
    before = listing(folder)
    ended, out, err = run(*args)
    assert ended == code, err
    assert out == ""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert says.lower() in last.lower(), last
    assert listing(folder) == before
    return last


# -- the model ---------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_onnx(run: Callable[..., Outcome], folder: Path) -> None:
    (folder / "text.onnx").write_text("this is not a model\n" * 50)
    refused(run, folder, 3, "not an ONNX file", folder / "text.onnx", "--flops", 0.6, "--calib", folder / "rows.jsonl")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file(run: Callable[..., Outcome], folder: Path, share: float) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "half.onnx").write_bytes(whole[: int(share * len(whole))])
    refused(run, folder, 3, "half.onnx", folder / "half.onnx", "--flops", 0.6, "--calib", folder / "rows.jsonl")


def test_a_model_that_is_not_there(run: Callable[..., Outcome], folder: Path) -> None:
    refused(run, folder, 3, "no such file", folder / "absent.onnx", "--flops", 0.6)
    refused(run, folder, 3, "holds no .onnx", _made(folder / "empty"), "--flops", 0.6)


@pytest.mark.parametrize("keep", [None, 100])
def test_external_data_that_is_missing_or_short(run: Callable[..., Outcome], folder: Path, keep: int | None) -> None:
    proto = onnx.load(folder / "model.onnx")
    onnx.save(proto, folder / "outside.onnx", save_as_external_data=True, location="outside.bin", size_threshold=0)
    if keep is None:
        (folder / "outside.bin").unlink()
    else:
        (folder / "outside.bin").write_bytes((folder / "outside.bin").read_bytes()[:keep])
    word = "missing" if keep is None else "truncated"
    line = refused(run, folder, 3, word, folder / "outside.onnx", "--flops", 0.6, "--calib", folder / "rows.jsonl")
    assert "outside.bin" in line


def test_an_ort_format_file(run: Callable[..., Outcome], folder: Path) -> None:
    (folder / "model.ort").write_bytes(b"ORTM" * 10)
    refused(run, folder, 4, "give the .onnx it was made from", folder / "model.ort", "--flops", 0.6)


def test_a_model_with_nothing_to_prune(run: Callable[..., Outcome], folder: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((4, 3), dtype=np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "plain",
        [onnx.helper.make_tensor_value_info("x", 1, ["n", 4])],
        [onnx.helper.make_tensor_value_info("y", 1, ["n", 3])],
        [weight],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / "plain.onnx")
    line = refused(run, folder, 4, "nothing to prune", folder / "plain.onnx", "--flops", 0.6)
    assert "an input of the graph" in line and "an output of the graph" in line


def test_an_opset_that_is_too_old(run: Callable[..., Outcome], folder: Path) -> None:
    text = '<ir_version: 3, opset_import: ["" : 6]> g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), folder / "old.onnx")
    refused(run, folder, 4, "opset 6", folder / "old.onnx", "--flops", 0.6)


# -- the rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"input_ids": [5, 6', "not JSON"),
        ({"attention_mask": [1, 1, 1]}, "input_ids"),
        ({"input_ids": [[[5, 6, 7]]], "attention_mask": [[[1, 1, 1]]]}, "shape"),
        ({"input_ids": [5, 6, 4000], "attention_mask": [1, 1, 1]}, "4000"),
        ({"input_ids": [5, "six"], "attention_mask": [1, 1]}, "input_ids"),
    ],
    ids=["not JSON", "a field is missing", "rank", "token out of range", "not a number"],
)
def test_a_bad_row_is_named(run: Callable[..., Outcome], folder: Path, bad: object, says: str) -> None:
    rows = good_rows()
    path = write_rows(folder / "bad.jsonl", [*rows[:2], bad, *rows[2:]])
    line = refused(run, folder, 3, says, folder / "model.onnx", "--flops", 0.6, "--calib", path)
    assert "bad.jsonl" in line and "3" in line


def test_rows_that_are_not_there(run: Callable[..., Outcome], folder: Path) -> None:
    (folder / "empty.jsonl").write_text("")
    model = folder / "model.onnx"
    refused(run, folder, 3, "empty.jsonl", model, "--flops", 0.6, "--calib", folder / "empty.jsonl")
    refused(run, folder, 3, "absent.jsonl", model, "--flops", 0.6, "--calib", folder / "absent.jsonl")
    args = ["--flops", 0.6, "--calib", folder / "rows.jsonl", "--eval", folder / "absent.jsonl"]
    refused(run, folder, 3, "absent.jsonl", model, *args)


# -- budgets and options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (["--flops", "0"], "between 0 and 1"),
        (["--flops", "1.2"], "between 0 and 1"),
        (["--flops", "abc"], "not a budget"),
        (["--flops", "25MB"], "not a unit of flops"),
        (["--flops", "0.6", "--params", "0.6"], "exactly one budget"),
        ([], "exactly one budget"),
        (["--flops", "0.6", "--method", "guess"], "guess"),
        (["--flops", "0.6", "--search", "luck"], "luck"),
        (["--flops", "0.6", "--units", "atoms"], "atoms"),
        (["--flops", "0.6", "--units", "heads,query_heads"], "choose one"),
        (["--flops", "0.6", "--shape", "length=9"], "length"),
        (["--flops", "0.6", "--ep", "abacus"], "abacus"),
        (["--flops", "0.6", "--round-to", "x"], "neither a number nor auto"),
        (["--flops", "0.6", "--nonsense"], "--nonsense"),
    ],
    ids=" ".join,
)
def test_a_wrong_request(run: Callable[..., Outcome], folder: Path, budget: list[str], says: str) -> None:
    refused(run, folder, 2, says, folder / "model.onnx", *budget, "--calib", folder / "rows.jsonl", *QUICK)


def test_a_method_without_rows(run: Callable[..., Outcome], folder: Path) -> None:
    shape = ["--shape", "batch_size=1,sequence_length=8"]
    refused(run, folder, 2, "--calib", folder / "model.onnx", "--flops", 0.6, "--method", "obs", *shape)


def test_a_budget_that_cannot_be_met_says_the_closest(run: Callable[..., Outcome], folder: Path) -> None:
    args = [folder / "model.onnx", "--calib", folder / "rows.jsonl", "--units", "heads,neurons", *QUICK]
    line = refused(run, folder, 5, "cannot be reached", *args, "--flops", 0.01)
    closest = float(next(w for w in line.replace(";", " ").split() if w.startswith("0.") and w != "0.010"))
    code, _, err = run(*args, "--flops", closest + 0.001, "--round-to", 1)
    assert code == 0, err


def test_files_that_would_be_lost(run: Callable[..., Outcome], folder: Path) -> None:
    model, rows = folder / "model.onnx", folder / "rows.jsonl"
    args = ["--flops", 0.6, "--calib", rows, *QUICK]
    refused(run, folder, 2, "would overwrite the input", model, *args, "-o", model)
    refused(run, folder, 2, "would overwrite the input", model, *args, "-o", model, "--force")
    (folder / "model.pruned.onnx").write_text("mine")
    refused(run, folder, 2, "exists already", model, *args)
    code, _, err = run(model, *args, "--force")
    assert code == 0, err
    onnx.checker.check_model(str(folder / "model.pruned.onnx"))


# -- what works --------------------------------------------------------------------------------------------------


def test_json_is_one_document(run: Callable[..., Outcome], folder: Path) -> None:
    code, out, err = run(folder / "model.onnx", "--flops", 0.6, "--calib", folder / "rows.jsonl", "--json", *QUICK)
    assert code == 0, err
    report = json.loads(out)
    assert report["schema_version"] >= 1
    assert report["flops"]["pruned"] <= 0.6 * report["flops"]["dense"]
    saved = json.loads((folder / "model.pruned.report.json").read_text())
    assert saved["flops"] == report["flops"]
    code, out, err = run("inspect", folder / "model.onnx", "--json")
    assert code == 0, err
    assert {g["kind"] for g in json.loads(out)["groups"]} >= {"heads", "neurons"}


def test_quiet_says_nothing(run: Callable[..., Outcome], folder: Path) -> None:
    code, out, err = run(folder / "model.onnx", "--flops", 0.6, "--calib", folder / "rows.jsonl", "-q", *QUICK)
    assert (code, out, err) == (0, "", "")


def test_a_dry_run_writes_nothing(run: Callable[..., Outcome], folder: Path) -> None:
    before = listing(folder)
    code, out, err = run(folder / "model.onnx", "--flops", 0.6, "--calib", folder / "rows.jsonl", "--dry-run", *QUICK)
    assert code == 0, err
    assert out
    assert listing(folder) == before


def test_plan_and_apply_are_prune(run: Callable[..., Outcome], folder: Path) -> None:
    """With refit weights and intercepts, to the byte."""
    model, args = folder / "model.onnx", ["--flops", 0.6, "--calib", folder / "rows.jsonl", "--threads", 1]
    code, _, err = run(model, *args, "--no-latency", "-o", folder / "direct.onnx")
    assert code == 0, err
    plan = folder / "direct.plan.json"
    code, _, err = run("apply", model, plan, "-o", folder / "applied.onnx")
    assert code == 0, err
    assert (folder / "applied.onnx").read_bytes() == (folder / "direct.onnx").read_bytes()
    refused(
        run, folder, 2, "made for a model with digest", "apply", folder / "direct.onnx", plan, "-o", folder / "x.onnx"
    )
    refused(run, folder, 3, "not a plan", "apply", model, folder / "rows.jsonl", "-o", folder / "x.onnx")


def test_the_plan_command_makes_the_same_plan(run: Callable[..., Outcome], folder: Path) -> None:
    model, rows = folder / "model.onnx", folder / "rows.jsonl"
    args = ["--flops", 0.6, "--calib", rows, "--threads", 1]
    code, _, err = run("plan", model, *args, "-o", folder / "plan.json")
    assert code == 0, err
    # Rows for the report are given, so that the same rows are learnt from.
    code, _, err = run(model, *args, "--eval", rows, "--no-latency", "-o", folder / "direct.onnx")
    assert code == 0, err
    made, direct = (json.loads((folder / name).read_text()) for name in ("plan.json", "direct.plan.json"))
    assert (made["keep"], made["drop"]) == (direct["keep"], direct["drop"])
    code, _, err = run("apply", model, folder / "plan.json", "-o", folder / "applied.onnx")
    assert code == 0, err
    assert (folder / "applied.onnx").read_bytes() == (folder / "direct.onnx").read_bytes()


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["inspect", "model.onnx"],
        ["--version"],
        ["prune", "absent.onnx", "--flops", "0.5"],
        ["model.onnx", "--flops", "60", "--threads", "1"],
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(folder: Path, args: list[str]) -> None:
    code = (
        "import sys; from onnxprune import cli\n"
        f"sys.argv = ['onnxprune', *{args!r}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'tokenizers', 'pandas', 'sklearn') if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_fewer_bits_are_measured_step_by_step(run: Callable[..., Outcome], folder: Path) -> None:
    options = ["--flops", "0.7", "--calib", folder / "rows.jsonl", "--eval", folder / "rows.jsonl", *QUICK]
    code, out, err = run(folder / "model.onnx", *options, "--quantize", "int8", "--json")
    assert code == 0, err
    steps = {step["name"]: step for step in json.loads(out)["steps"]}
    assert list(steps) == ["pruned", "quantised", "both"]
    assert [steps[name]["scheme"] for name in steps] == ["", "int8-dynamic", "int8-dynamic"]
    small = folder / "model.pruned.int8.onnx"
    assert steps["both"]["bytes"] == small.stat().st_size
    assert steps["pruned"]["drift"] == json.loads(out)["drift"]
    code, out, err = run("validate", folder / "model.onnx", small, "--eval", folder / "rows.jsonl", "--json")
    assert code == 0, err
    assert json.loads(out)["drift"]["max_abs"] == pytest.approx(steps["both"]["drift"]["max_abs"])


def test_export_from_the_command_line(run: Callable[..., Outcome], folder: Path) -> None:
    command = ["export", folder / "model.onnx", "--target", "server", "--quantize", "fp16", "-o", folder / "out"]
    code, out, err = run(*command, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["artefacts"][0]["scheme"] == "fp16"
    assert (folder / "out" / "manifest.json").exists()
    refused(run, folder, 2, "--force", *command)
    code, out, err = run(*command, "--force")
    assert code == 0, err
    assert "model.onnx" in out
    code, out, err = run("inspect", folder / "model.onnx", "--json")
    assert 0 < json.loads(out)["embeddings"]["share"] < 1


def test_json_stands_alone_whatever_native_libraries_print(folder: Path) -> None:
    """Execution providers write to descriptor 1 past Python."""
    program = (
        "import os, sys, onnxprune.cli as cli, onnxprune.pipeline.verbs as pipeline\n"
        "inspect = pipeline.inspect\n"
        "pipeline.inspect = lambda *a, **k: (os.write(1, b'# a library says hello\\n'), inspect(*a, **k))[1]\n"
        f"sys.argv = ['onnxprune', 'inspect', {str(folder / 'model.onnx')!r}, '--json']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert "a library says hello" in done.stderr


def test_sizes_are_stated_by_several_options(run: Callable[..., Outcome], folder: Path) -> None:
    code, out, _ = run(
        "inspect", folder / "model.onnx", "--json", "--shape", "batch_size=2", "--shape", "sequence_length=9"
    )
    assert code == 0
    assert json.loads(out)["shape"] == {"batch_size": 2, "sequence_length": 9}
    code, _, err = run("inspect", folder / "model.onnx", "--shape", "batch_size=2", "--shape", "batch_size=3")
    assert code == 2 and "give it once" in err


def test_rows_that_are_not_there_are_told_before_the_model_is_opened(run: Callable[..., Outcome], folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no model")
    for command in (["prune"], ["plan", "-o", folder / "p.json"]):
        code, _, err = run(*command, folder / "model.onnx", "--flops", "0.6", "--calib", folder / "nowhere.jsonl")
        assert code == 3 and "no such file or folder" in err


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (("--method", "obss"), "obs"),
        (("--method", "optin+0.5*sevn"), "seven"),
        (("--units", "chanels"), "channels"),
        (("--search", "tabel"), "table"),
        (("--metric", "acuracy"), "accuracy"),
        (("--ep", "cudaa"), "cuda"),
        (("--quantize", "fp-16"), "fp16"),
        (("--device", "cude"), "cuda"),
        (("--solver", "amdm"), "admm"),
    ],
)
def test_typos_in_values_get_suggestions(
    run: Callable[..., Outcome], folder: Path, asked: tuple[str, str], meant: str
) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text("{}\n")
    code, _, err = run("prune", folder / "model.onnx", "--flops", "0.6", "--calib", rows, *asked)
    assert code == 2 and err.strip().endswith(f"did you mean {meant}?"), err


def test_typos_in_paths_get_suggestions(run: Callable[..., Outcome], folder: Path) -> None:
    (folder / "rows.jsonl").write_text("{}\n")
    for asked, meant in (
        ((folder / "modle.onnx", "--calib", folder / "rows.jsonl"), folder / "model.onnx"),
        ((folder / "model.onnx", "--calib", folder / "row.jsonl"), folder / "rows.jsonl"),
        ((folder.with_name(f"{folder.name}s") / "model.onnx",), folder),
    ):
        code, _, err = run("prune", *asked, "--flops", "0.6")
        assert code == 3 and f"did you mean {meant}?" in err, err
    for nowhere in ("", "\0", "x" * 5000, "/", "a/b/c/d"):
        assert "did you mean" not in near_file(nowhere)


def test_help_by_its_name_and_the_module(run: Callable[..., Outcome]) -> None:
    for asked, told in ((["help"], "Commands:"), (["help", "bench"], "Pairs of runs at a shape")):
        code, out, _ = run(*asked)
        assert code == 0 and told in out
    done = subprocess.run([sys.executable, "-m", "onnxprune", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "onnxprune, version" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["inspect", ""], "an argument is empty"),
        ([""], "an argument is empty"),
        (["m.onnx", "--flops", "0.6", "--tokenizer", ""], "--tokenizer is empty"),
        (["m.onnx", "--flops", "0.6", "-o", ""], "-o is empty"),
        (["export", "m.onnx", "--target", "web", "--dense="], "--dense is empty"),
    ],
)
def test_variables_that_are_not_set(run: Callable[..., Outcome], arguments: list[str], told: str) -> None:
    """As a path, nothing is the folder that one is in."""
    code, _, err = run(*arguments)
    assert code == 2 and f"{told}: leave it out" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["inspect", "m.onnx", "--shape", "batch=1,batch=2"], "batch is 1 and 2: give it once"),
        (["bench", "m.onnx", "m.onnx", "--table", "t.json"], "--table is written with --import"),
        (["bench", "m.onnx", "m.onnx", "--runs", "6"], "6 pairs of runs are too few: a speed-up is the median over"),
    ],
)
def test_what_cannot_be_meant(run: Callable[..., Outcome], arguments: list[str], told: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and told in err
