"""Measuring on a phone: what goes on it, the script that does it, and what came back.

ONNX Runtime's own `onnxruntime_perf_test` does the timing; the script runs the models turn by turn, so that a phone
that warms up slows all of them, and writes one JSON file that `onnxprune bench --import` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model as models
from onnxprune.errors import DataError
from onnxprune.export import ort_format
from onnxprune.export.base import Artefact, Workshop
from onnxprune.export.fixed import sizes_for
from onnxprune.latency import LatencyRow, Times
from onnxprune.metrics import bootstrap_interval
from onnxprune.runtime import SHORT_NAMES, Coverage

FORMAT = 1
_SHARES = (0.25, 0.5, 0.75, 1.0)
_DENSE, _PRUNED = "dense.ort", "model.ort"


def write(shop: Workshop, artefacts: Sequence[Artefact]) -> Path:
    """`bench/`: the script, the dense model if it is known, and one small model per matrix product and width."""
    folder = shop.folder / "bench"
    micro = folder / "micro"
    micro.mkdir(parents=True)
    sizes = sizes_for(shop.model.inputs, shop.asked.shape, shop.read(shop.model.inputs), shop.companions)
    symbols = {d for s in shop.model.inputs for d in s.shape if isinstance(d, str)}
    tokens = max((size for name, size in sizes.items() if name in symbols), default=1)
    if shop.dense is not None:
        ort_format.convert(shop.dense, folder / _DENSE)
    made = [_product(inner, width, tokens, micro, shop.scratch) for inner, width in _widths(shop.model.graph)]
    script = (files("onnxprune.export") / "templates" / "run.sh").read_text(encoding="utf-8")
    dims = " ".join(f"-f {name}:{size}" for name, size in sorted(sizes.items()) if name in symbols)
    (folder / "run.sh").write_text(script.replace("@DIMS@", dims), encoding="utf-8")
    told = {
        "format": FORMAT,
        "shapes": {name: [sizes.get(d, 1) if isinstance(d, str) else d or 1 for d in s.shape] for s, name in
                   ((s, s.name) for s in shop.model.inputs)},
        "micro": {m["file"]: {k: v for k, v in m.items() if k != "file"} for m in made},
    }  # fmt: skip
    (folder / "setup.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README, encoding="utf-8")
    return folder


_README = """# Measure on a phone

1. A phone with USB debugging, and `adb` here.
2. `onnxruntime_perf_test` for Android: in ONNX Runtime's sources,
   `./build.sh --android --android_abi arm64-v8a --config Release --build_shared_lib --use_xnnpack --use_nnapi`.
3. `PERF_TEST=path/to/onnxruntime_perf_test sh run.sh` writes `result.json`. Settings: `PROVIDERS="cpu xnnpack"`,
   `THREADS=1`, `ROUNDS=7`, `RUNS=30`, `DEVICE_DIR=/data/local/tmp/onnxprune`.
4. `onnxprune bench --import result.json`: dense against pruned with the interval of the speed-up, and what every matrix
   product costs at every width (`--json` for a table).

Leave the phone alone, unplugged and cool while it runs.
"""


def _widths(graph: ir.Graph) -> list[tuple[int, int]]:
    """(inner dimension, width) of the graph's matrix products, and of narrower ones, each once."""
    found = set()
    for node in graph:
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1 else None
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        turned = node.attributes.get("transB")
        shape = [int(d) for d in weight.const_value.shape.numpy()]
        inner, width = reversed(shape) if turned is not None and turned.as_int() else shape
        found |= {(inner, max(8, round(width * share / 8) * 8)) for share in _SHARES}
    return sorted(found)


def _product(inner: int, width: int, tokens: int, folder: Path, scratch: Path) -> dict[str, Any]:
    """One small model: [tokens, inner] times [inner, width]."""
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", shape=ir.Shape([tokens, inner]), type=ir.TensorType(ir.DataType.FLOAT))
    tensor = ir.Tensor(rng.normal(0, 0.05, (inner, width)).astype(np.float32), name="w")
    w = ir.Value(name="w", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    node = ir.node("MatMul", [x, w], name="product")
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape([tokens, width]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 17}, name="product")
    name = f"matmul_{tokens}x{inner}x{width}"
    source = models.save(ir.Model(graph, ir_version=8), scratch / f"{name}.onnx")[0]
    ort_format.convert(source, folder / f"{name}.ort")
    return {"file": f"micro/{name}.ort", "op": "MatMul", "tokens": tokens, "inner": inner, "width": width}


# ---- what came back


def read_result(file: Path) -> tuple[list[LatencyRow], list[dict[str, Any]]]:
    """What `run.sh` wrote: dense against pruned per provider, and the cost of each matrix product.

    Returns:
        Rows as `latency.bench` gives them (their intervals are over rounds), and a table: provider, op, tokens, inner,
        width, ms (the median of the rounds' medians).

    Raises:
        DataError: not such a file, or nothing was measured.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        runs, setup, threads = told["runs"], told["setup"], int(told["threads"])
        if told["format"] != FORMAT or not runs:
            raise DataError(f"{file}: holds no measurements of format {FORMAT}: run bench/run.sh again")
        times = _times_by(runs)
        rows = [
            _row(provider, own[_DENSE], own[_PRUNED], setup["shapes"], threads)
            for provider, own in times.items()
            if _DENSE in own and _PRUNED in own
        ]
        table = [
            {"provider": provider, **setup["micro"][name], "ms": float(np.median(values[:, 0]))}
            for provider, own in times.items()
            for name, values in own.items()
            if name in setup["micro"]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{file}: not what bench/run.sh writes ({error!r})") from error
    return rows, table


def _times_by(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Provider -> model -> [rounds, (p50, p90, p99, min)] milliseconds."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for run in runs:
        line = [float(run[key]) for key in ("p50", "p90", "p99", "min")]
        found.setdefault(run["provider"], {}).setdefault(re.sub(r"^\./", "", run["model"]), []).append(line)
    return {p: {m: np.array(v) for m, v in own.items()} for p, own in found.items()}


def _row(
    provider: str, dense: np.ndarray, pruned: np.ndarray, shapes: Mapping[str, Sequence[int]], threads: int
) -> LatencyRow:
    rounds = min(len(dense), len(pruned))

    def ratio(drawn: np.ndarray) -> float:
        return float(np.median(dense[drawn, 0]) / np.median(pruned[drawn, 0]))

    interval = bootstrap_interval(ratio, rounds, seed=0) if rounds > 1 else None
    value = ratio(np.arange(rounds))
    full = SHORT_NAMES.get(provider, provider)
    shape = {name: tuple(size) for name, size in shapes.items()}
    first = next(iter(shape.values()), (1,))
    return LatencyRow(
        full, first[0], shape, threads, _summary(dense), _summary(pruned), value, interval or (value, value), rounds,
        Coverage(full, 0, 0, None), Coverage(full, 0, 0, None),
    )  # fmt: skip


def _summary(values: np.ndarray) -> Times:
    p50, p90, p99 = (float(np.median(values[:, i])) for i in range(3))
    return Times(float(values[:, 3].min()), p50, p90, p99, float("nan"))
