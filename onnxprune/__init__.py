"""onnxprune: makes transformer .onnx files smaller and faster, to a budget, without retraining, and proves it.

import onnxprune
result = onnxprune.prune("model.onnx", "small.onnx", flops=0.6, calibration="data.jsonl", evaluation="dev.jsonl")
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Torch's threads wait for each other after every operator. By default they spin meanwhile, on cores that the slowest of
# them may be waiting for where other programs run. OpenMP reads this once, when torch is loaded.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# oneDNN keeps what it compiles for each of the last 1024 shapes of products, a megabyte each. A run meets hundreds, and
# some dozens of them over and over; compiling takes two milliseconds. It reads this once, at the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# ONNX Runtime from 1.29 on sends its makers, over the network, what models it opens. It reads this once, when the first
# session is made; `graph.runtime` asks it again where it was loaded before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from onnxprune.graph.model import load
    from onnxprune.graph.plan import Budget, Plan, Structure
    from onnxprune.graph.structure.analyze import analyze
    from onnxprune.pipeline.comparison import validate
    from onnxprune.pipeline.result import Result
    from onnxprune.pipeline.steps import Steps
    from onnxprune.pipeline.sweep import sweep
    from onnxprune.pipeline.verbs import apply, inspect, make_plan, prune
    from onnxprune.score import add_method, per_unit
    from onnxprune.search.options import Options

_HOME = {
    "load": "graph.model", "analyze": "graph.structure.analyze", "Plan": "graph.plan", "Budget": "graph.plan",
    "Structure": "graph.plan", "validate": "pipeline.comparison", "prune": "pipeline.verbs", "apply": "pipeline.verbs",
    "inspect": "pipeline.verbs", "make_plan": "pipeline.verbs", "sweep": "pipeline.sweep", "Result": "pipeline.result",
    "Steps": "pipeline.steps", "add_method": "score", "per_unit": "score",
    "Options": "search.options",
}  # fmt: skip

__all__ = [
    "Budget",
    "Options",
    "Plan",
    "Result",
    "Steps",
    "Structure",
    "add_method",
    "analyze",
    "apply",
    "inspect",
    "load",
    "make_plan",
    "per_unit",
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
