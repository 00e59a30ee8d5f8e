"""The next steps: what was not measured, what is worth a try, as commands that can be pasted."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from made_reports import full, latency

from onnxprune.cli.main import cli
from onnxprune.measure.validation import Accuracy
from onnxprune.report import (
    ModelInfo,
    Report,
    Sparsity,
    advice,
)


def steps(report: Report) -> str:
    return " ".join(f"{step.text} {step.command}" for step in advice.next_steps(report))


def test_what_was_not_measured_is_named_with_its_command() -> None:
    said = steps(full(accuracy=None, latency=()))
    assert "onnxprune validate models/bert/model.onnx models/bert/model.pruned.onnx" in said
    assert "onnxprune bench models/bert/model.onnx" in said
    assert "bench" not in steps(full()) and "validate" not in steps(full())


def test_sure_losses_and_no_losses_lead_to_different_steps() -> None:
    held = full().accuracy
    assert held is not None
    assert "--max-drop" in steps(full(accuracy=replace(held, drop=0.05, confidence_interval=(0.03, 0.07))))
    assert "sweep" in steps(full())
    unsure = steps(full(accuracy=replace(held, confidence_interval=(-0.02, 0.03))))
    assert "uncertain by 5.0 points" in unsure
    assert "sweep" not in unsure


def test_providers_that_gain_nothing_are_named() -> None:
    said = steps(full(latency=(latency(1.0, 0.95, 1.05), latency(1.4, 1.3, 1.5, nodes=7))))
    assert "cpu at 1 × 128: no speed-up (1.00× [0.95, 1.05])" in said
    assert "7 of 10 nodes in 3 partitions" in said


def test_zeros_that_bring_no_speed_are_said_to() -> None:
    said = steps(full(sparsity=Sparsity("2:4", 0.5, ("TensorrtExecutionProvider",))))
    assert "2:4 zeros bring no speed on cpu" in said
    assert "made for tensorrt" in said
    assert "bring no speed on any provider" in steps(full(latency=(), sparsity=Sparsity("2:4", 0.5)))
    fast = full(latency=(latency(1.6, 1.5, 1.7, "TensorrtExecutionProvider"),))
    assert "no speed on" not in steps(replace(fast, sparsity=Sparsity("2:4", 0.5, ("TensorrtExecutionProvider",))))


def test_paths_are_quoted_for_the_shell() -> None:
    assert "'my model.onnx'" in steps(full(model=ModelInfo("my model.onnx", "", 17)))


def test_of_a_broken_model_the_next_step_is_a_larger_budget() -> None:
    first = advice.next_steps(full(broken=("the pruned model computes something else",)))[0]
    budgets = shlex.split(first.command)[shlex.split(first.command).index("--flops") + 1].split(",")
    assert shlex.split(first.command)[:2] == ["onnxprune", "sweep"]
    assert all(full().flops.ratio < float(share) < 1 for share in budgets)


def test_suggested_commands_can_be_pasted(tmp_path: Path) -> None:
    """They parse, name the run's own files and options, and write under a name of their own."""
    recipe = {
        "sources": {
            "calibration": f"{tmp_path}/my rows.jsonl", "evaluation": f"{tmp_path}/dev.jsonl",
            "columns": {"text": "sentence"}, "tokenizer": "tok", "max_length": 64, "allow_outside": True,
            "mean": [-0.5, 0.4, 0.4], "preset": None, "layout": "nhwc",
        }
    }  # fmt: skip
    lossy = Accuracy("accuracy", 0.9, 0.8, 0.1, 872, (0.05, 0.15), True, "")
    slow = (latency(1.01, 0.97, 1.04),)
    seen = set()
    for changes in (
        {},
        {"broken": ("gone",)},
        {"accuracy": lossy},
        {"latency": slow},
        {"latency": ()},
        {"accuracy": None},
    ):
        for step in advice.next_steps(full(recipe=recipe, **changes)):
            if step.command:
                program, *words = shlex.split(step.command)
                assert program == "onnxprune"
                name = words[0] if words[0] in cli.commands else "prune"
                words = words[1:] if words[0] in cli.commands else words
                context = cli.commands[name].make_context(name, words)
                seen.add(name)
                if name in ("prune", "sweep"):
                    assert context.params["calibration"] == f"{tmp_path}/my rows.jsonl"
                    assert context.params["columns"] == {"text": "sentence"} and context.params["max_length"] == 64
                if name != "bench":
                    assert context.params["mean"] == (-0.5, 0.4, 0.4) and context.params["allow_outside"]
                if name == "prune":
                    assert str(context.params["output_option"]).startswith("models/bert/model.pruned.")
    assert seen == {"prune", "sweep", "validate", "bench"}
