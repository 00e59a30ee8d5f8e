"""Sparse weights from the command line: in the written file, alone and after a structured cut, planned and applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from unit.cli.test_main import Outcome, folder, listing, refused  # noqa: F401 -- fixtures
from zoo import ZooModel

import onnxprune
from onnxprune.errors import CheckError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.refit.solvers import parse
from onnxprune.refit.sparsify import zeros_in

Build = Callable[..., ZooModel]
Run = Callable[..., Outcome]


def products(file: Path) -> dict[str, np.ndarray]:
    """The weights of a file that a MatMul reads from the right, as [inputs, outputs], by their own account."""
    graph = onnx.load(file).graph
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    return {n.input[1]: held[n.input[1]] for n in graph.node if n.op_type == "MatMul" and n.input[1] in held}


def groups(weight: np.ndarray, n: int, m: int) -> bool:
    """Whether every output has at most n of every m consecutive inputs."""
    padded = np.pad(weight != 0, ((0, -len(weight) % m), (0, 0)))
    return bool((padded.reshape(-1, m, weight.shape[1]).sum(1) <= n).all())


@pytest.mark.parametrize("pattern", ["2:4", "1:2", "8:16", "4x1:0.5", "8x8:0.5", "pattern:4x4:0.5", "unstructured:0.4"])
def test_zeros_are_in_the_file(run: Run, folder: Path, pattern: str) -> None:  # noqa: F811
    output = folder / "sparse.onnx"
    code, out, err = run(
        folder / "model.onnx", "-o", output, "--sparsity", pattern, "--calib", folder / "rows.jsonl", "--no-latency",
        "--threads", 1, "--json",
    )  # fmt: skip
    assert code == 0, err
    report, plan = json.loads(out), json.loads((folder / "sparse.plan.json").read_text())
    assert report["budget"]["target"] == report["budget"]["achieved"] == 1
    assert report["equivalence"]["max_rel"] < 1e-4
    written, before = products(output), products(folder / "model.onnx")
    assert set(plan["sparsity"]) <= set(written) and set(plan["sparsity"].values()) == {pattern}
    assert len(plan["sparsity"]) == 12, "six of each of two layers"
    assert all(parse(pattern).satisfied(written[name]) for name in plan["sparsity"])
    zeros = sum(int((written[n] == 0).sum()) for n in plan["sparsity"]) / sum(written[n].size for n in plan["sparsity"])
    kept = 0.4 if pattern == "unstructured:0.4" else 0.5
    assert zeros == pytest.approx(1 - kept, abs=0.02) == report["sparsity"]["zeros"]
    assert report["sparsity"]["pattern"] == pattern
    assert all(np.count_nonzero(before[name]) > 0.9 * before[name].size for name in plan["sparsity"])


@pytest.mark.parametrize("pattern", ["2:4", "4x4:0.5"])
def test_zeros_are_counted_in_the_cut_matrices(run: Run, folder: Path, pattern: str) -> None:  # noqa: F811
    """Blocks, heads and neurons go first; the pattern holds in what is written, and apply gives the same file without
    data."""
    model, rows = folder / "model.onnx", folder / "rows.jsonl"
    asked = ["--flops", 0.7, "--round-to", 1, "--sparsity", pattern, "--calib", rows, "--threads", 1]
    asked += ["--units", "blocks,heads,neurons"]
    code, _, err = run(model, "-o", folder / "direct.onnx", *asked, "--eval", rows, "--no-latency")
    assert code == 0, err
    plan = json.loads((folder / "direct.plan.json").read_text())
    assert plan["keep"] or plan["drop"]
    written, before = products(folder / "direct.onnx"), products(model)
    assert plan["sparsity"]
    assert any(written[name].shape != before[name].shape for name in plan["sparsity"])
    allowed = parse(pattern).satisfied
    assert all(allowed(written[name]) for name in plan["sparsity"])
    assert not any(allowed(before[name]) for name in plan["sparsity"])
    assert pattern != "2:4" or all(groups(written[name], 2, 4) for name in plan["sparsity"])
    code, _, err = run("plan", model, *asked, "-o", folder / "plan.json")
    assert code == 0, err
    code, _, err = run("apply", model, folder / "plan.json", "-o", folder / "applied.onnx")
    assert code == 0, err
    assert (folder / "applied.onnx").read_bytes() == (folder / "direct.onnx").read_bytes()


@pytest.mark.parametrize("solver", ["sparsegpt", "wanda", "magnitude", "seven", "seven-dyn", "platon"])
def test_solvers_by_name(run: Run, folder: Path, solver: str) -> None:  # noqa: F811
    args = ["--sparsity", "2:4", "--solver", solver, "--calib", folder / "rows.jsonl", "--no-latency", "--threads", 1]
    code, _, err = run(folder / "model.onnx", "-o", folder / "sparse.onnx", *args)
    assert code == 0, err
    plan = Plan.load(folder / "sparse.plan.json")
    assert all(groups(products(folder / "sparse.onnx")[name], 2, 4) for name in plan.sparsity)


def test_magnitude_needs_no_rows_and_the_others_say_so(run: Run, folder: Path) -> None:  # noqa: F811
    model, shape = folder / "model.onnx", ["--shape", "batch_size=1,sequence_length=8"]
    asked = [model, "-o", folder / "sparse.onnx", "--sparsity", "2:4", "--no-latency", *shape]
    refused(run, folder, 2, "needs calibration rows", *asked, "--solver", "admm")
    refused(run, folder, 2, "calibration rows", *asked, "--finetune", 5)
    code, _, err = run(*asked)
    assert code == 0, err
    before, after = products(model), products(folder / "sparse.onnx")
    for name in Plan.load(folder / "sparse.plan.json").sparsity:
        kept = after[name] != 0
        np.testing.assert_array_equal(after[name][kept], before[name][kept])
        assert groups(after[name], 2, 4)


def test_method_admm_is_a_solver(run: Run, folder: Path) -> None:  # noqa: F811
    rows = ["--calib", folder / "rows.jsonl", "--no-latency", "--threads", 1]
    refused(run, folder, 2, "--sparsity", folder / "model.onnx", "--flops", 0.7, "--method", "admm", *rows)
    refused(run, folder, 2, "--sparsity", folder / "model.onnx", "--flops", 0.7, "--solver", "admm", *rows)
    refused(run, folder, 2, "not understood", folder / "model.onnx", "--sparsity", "2:4:8", *rows)
    code, out, err = run(folder / "model.onnx", "--sparsity", "8:16", "--dry-run", *rows)
    assert code == 0, err
    assert "zeros 8:16 in what is left" in out
    refused(run, folder, 2, "choose from", folder / "model.onnx", "--sparsity", "2:4", "--solver", "best", *rows)
    files = {}
    for name, args in {"a": ["--method", "admm"], "b": ["--solver", "admm"]}.items():
        code, _, err = run(folder / "model.onnx", "-o", folder / f"{name}.onnx", "--sparsity", "2:4", *args, *rows)
        assert code == 0, err
        files[name] = (folder / f"{name}.onnx").read_bytes()
    assert files["a"] == files["b"]


def test_finetuning_keeps_the_pattern(run: Run, folder: Path) -> None:  # noqa: F811
    args = ["--sparsity", "2:4", "--calib", folder / "rows.jsonl", "--no-latency", "--threads", 1, "--finetune", 20]
    code, _, err = run(folder / "model.onnx", "-o", folder / "tuned.onnx", *args)
    assert code == 0, err
    plan = Plan.load(folder / "tuned.plan.json")
    assert plan.sparsity and all(groups(products(folder / "tuned.onnx")[name], 2, 4) for name in plan.sparsity)


def test_mending_lowers_the_divergence(zoo: Build, tmp_path: Path) -> None:
    model = zoo("bert", "torchscript", "eager")
    rows = [model.sample(1, seed=i) for i in range(64)]
    found = {}
    for mends in (True, False):
        result = onnxprune.prune(
            model.path, calibration=rows, evaluation=[model.sample(1, seed=100 + i) for i in range(32)],
            sparsity="2:4", compensate=mends, measure_latency=False,
        )  # fmt: skip
        assert result.report.drift is not None
        found[mends] = result.report.drift.divergence
    assert found[True] < found[False]


def test_a_file_out_of_its_pattern_is_refused(run: Run, folder: Path) -> None:  # noqa: F811
    """One weight too many in one group, and the check that every run makes fails with its exit code."""
    args = ["--sparsity", "2:4", "--calib", folder / "rows.jsonl", "--no-latency", "--threads", 1]
    code, _, err = run(folder / "model.onnx", "-o", folder / "sparse.onnx", *args)
    assert code == 0, err
    dense, plan = models.load(folder / "model.onnx"), Plan.load(folder / "sparse.plan.json")
    structure = analyze(dense)
    assert zeros_in(folder / "sparse.onnx", dense, structure, plan) == pytest.approx(0.5, abs=0.01)
    written = ir.load(folder / "sparse.onnx")
    value = written.graph.initializers[min(plan.sparsity)]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[:4, 0] = 1.0
    value.const_value = ir.tensor(array, name=value.name)
    ir.save(written, folder / "broken.onnx")
    with pytest.raises(CheckError, match="not in the pattern") as caught:
        zeros_in(folder / "broken.onnx", dense, structure, plan)
    assert caught.value.exit_code == 6
    refused(
        run, folder, 6, "not in the pattern", "apply", folder / "model.onnx", _spoiled(folder, plan), "-o",
        folder / "x.onnx",
    )  # fmt: skip


def _spoiled(folder: Path, plan: Plan) -> Path:  # noqa: F811
    """The plan with a weight that is not in the pattern it names."""
    name = min(plan.sparsity)
    weights = {**plan.weights, name: np.ones_like(plan.weights[name])}
    Plan(plan.digest, weights=weights, intercepts=plan.intercepts, sparsity=plan.sparsity).save(folder / "bad.json")
    return folder / "bad.json"


def test_unknown_options_in_python() -> None:
    from onnxprune.graph.plan import Budget
    from onnxprune.search.options import Options

    with pytest.raises(UsageError, match="--finetune"):
        Options(Budget("flops", 1.0), sparsity="2:4", finetune=-1)
    with pytest.raises(UsageError, match="2:4"):
        Options(Budget("flops", 0.5), finetune=5)
