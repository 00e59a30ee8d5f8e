"""onnxprune: makes transformer .onnx files smaller and faster, to a budget, without retraining, and proves it.

import onnxprune
result = onnxprune.prune("model.onnx", "small.onnx", flops=0.6, calibration="data.jsonl", evaluation="dev.jsonl")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxprune.job import Result
    from onnxprune.model import load
    from onnxprune.pipeline import apply, inspect, make_plan, prune, sweep
    from onnxprune.plan import Budget, Plan, Structure
    from onnxprune.structure import analyze
    from onnxprune.validation import validate

_HOME = {
    "load": "model", "analyze": "structure", "validate": "validation", "Plan": "plan", "Budget": "plan",
    "Structure": "plan", "prune": "pipeline", "apply": "pipeline", "inspect": "pipeline", "make_plan": "pipeline",
    "sweep": "pipeline", "Result": "job",
}  # fmt: skip

__all__ = [
    "Budget",
    "Plan",
    "Result",
    "Structure",
    "analyze",
    "apply",
    "inspect",
    "load",
    "make_plan",
    "prune",
    "sweep",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `onnxprune --help` stays instant."""
    if name not in _HOME:
        raise AttributeError(f"module onnxprune has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(f"onnxprune.{_HOME[name]}"), name)
