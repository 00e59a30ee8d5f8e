"""Reports as tests want them: one with all there is to say, and what it says on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from onnxprune.graph.runtime import Coverage
from onnxprune.measure.equivalence import Equivalence
from onnxprune.measure.latency import LatencyRow, Times
from onnxprune.measure.validation import Accuracy, Drift
from onnxprune.report import (
    Budget,
    Change,
    Flops,
    ModelInfo,
    Report,
    Units,
    terminal,
)

EVIL = "<script>alert('1')</script>&\"[red]x[/red]"
CPU = "CPUExecutionProvider"


def latency(
    speedup: float, low: float, high: float, provider: str = CPU, nodes: int = 10, batch: int = 1
) -> LatencyRow:
    def times(p50: float) -> Times:
        return Times(0.9 * p50, p50, 1.1 * p50, 1.3 * p50, p50)

    shape = {"input_ids": (batch, 128), "attention_mask": (batch, 128)}
    coverage = Coverage(provider, nodes, 10, 1 if nodes == 10 else 3)
    return LatencyRow(
        provider, batch, shape, 1, times(10), times(10 / speedup), speedup, (low, high), 35, coverage, coverage
    )


def full(**changes: Any) -> Report:
    held = Report(
        model=ModelInfo("models/bert/model.onnx", "ab" * 32, 17, "models/bert/model.pruned.onnx"),
        budget=Budget("flops", 0.6, 0.5996),
        flops=Flops(
            1000, 600, {"MatMul": Change(900, 500), "Gemm": Change(100, 100)}, {"batch_size": 1, "sequence_length": 26}
        ),
        params=Change(22_713_602, 18_000_000),
        size_bytes=Change(90_966_181, 72_000_000),
        units=(
            Units("heads.0", "heads", 0, 12, 11, tuple(range(11))),
            Units("heads.1", "heads", 1, 12, 0, ()),
            Units("neurons.0", "neurons", 0, 1536, 768),
            Units("block.1", "attention_blocks", 1, 1, 0),
        ),
        recipe={"seed": 0, "method": "optin", "paths": [Path("a.jsonl")], "alpha": np.float32(0.5)},
        equivalence=Equivalence(1e-6, 2e-7, 64, "logits"),
        accuracy=Accuracy("accuracy", 0.8968, 0.8945, 0.0023, 872, (-0.0046, 0.0092), True, "class labels"),
        further=(Accuracy("perplexity", 20.0, 21.5, 1.5, 872, (1.0, 2.0), False),),
        drift=Drift(0.012, "logits: KL", 0.012, 0.998, 0.977, 0.83),
        latency=(latency(1.6, 1.55, 1.65), latency(1.01, 0.97, 1.04, batch=8)),
        warnings=("3 of 512 rows were cut off.",),
        seconds={"score": 9.5, "validate": 22.0},
        peak_memory_bytes=1_830_000_000,
    )
    return replace(held, **changes)


def plain(report: Report, width: int = 110) -> str:
    stream = io.StringIO()
    terminal.print_report(report, Console(file=stream, width=width))
    return stream.getvalue()
