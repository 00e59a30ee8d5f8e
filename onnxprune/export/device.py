"""Measuring on a phone: what goes on it, the script that does it, and what came back.

ONNX Runtime's own `onnxruntime_perf_test` does the timing; the script runs the models turn by turn, so that a phone
that warms up slows all of them, and writes one JSON file that `onnxprune bench --import` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.documents import built, read_object
from onnxprune.errors import DataError, NothingToPruneError, reading
from onnxprune.export import ort_format
from onnxprune.export.base import Artefact, Workshop
from onnxprune.graph import model as models
from onnxprune.graph.providers import CPU, SHORT_NAMES
from onnxprune.graph.runtime import Coverage
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import Costs
from onnxprune.measure.latency import LatencyRow, Times
from onnxprune.measure.metrics import bootstrap_interval
from onnxprune.measure.tables import device_kit
from onnxprune.measure.tables.source import write as write_micro
from onnxprune.measure.tables.table import Entry, LatencyTable

FORMAT = 2
_DENSE, _PRUNED = "dense.ort", "model.ort"


def write(shop: Workshop, artefacts: Sequence[Artefact]) -> Path:
    """`bench/`: the script, the dense model if it is not the one exported, and its modules at a dozen widths each."""
    folder = shop.folder / "bench"
    micro = folder / "micro"
    micro.mkdir(parents=True)
    sizes = shop.sizes()
    symbols = {d for s in shop.model.inputs for d in s.shape if isinstance(d, str)}
    bindings = {name: size for name, size in sizes.items() if name in symbols}
    reference = shop.dense or (shop.file if artefacts[0].scheme else None)
    if reference is not None:
        ort_format.convert(reference, folder / _DENSE)
    whole, modules = _modules(shop, reference, bindings, micro)
    script = (files("onnxprune.export") / "templates" / "run.sh").read_text(encoding="utf-8")
    dims = " ".join(f"-f {name}:{size}" for name, size in sorted(bindings.items()))
    (folder / "run.sh").write_text(script.replace("@DIMS@", dims), encoding="utf-8")
    told = {
        "format": FORMAT,
        "shapes": {s.name: [sizes.get(d, 1) if isinstance(d, str) else d or 1 for d in s.shape]
                   for s in shop.model.inputs},
        "shape": bindings,
        "whole": {"file": _PRUNED if reference is None else _DENSE, **whole},
        "micro": modules,
    }  # fmt: skip
    (folder / "setup.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_README, encoding="utf-8")
    return folder


def _modules(
    shop: Workshop, reference: Path | None, bindings: Mapping[str, int], folder: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What a table will say of the reference model, and of the micro-models written to `folder`, by file."""
    model = shop.model if reference is None else models.load(reference)
    try:
        costs = device_kit.costs_of(Costs(model, analyze(model), bindings), ("heads", "neurons", "blocks"), CPU)
    except NothingToPruneError as error:
        shop.say(f"the device kit has no micro-models: {error}")
        return {}, {}
    whole, *others = costs.needed()
    made = {}
    for micro in others:
        source = write_micro(micro, shop.scratch)
        ort_format.convert(source, folder / f"{source.stem}.ort")
        source.unlink()
        made[f"micro/{source.stem}.ort"] = dict(device_kit.told(micro))
    return dict(device_kit.told(whole)), made


_README = """# Measure on a phone

1. A phone with USB debugging, and `adb` here.
2. `onnxruntime_perf_test` for Android: in ONNX Runtime's sources,
   `./build.sh --android --android_abi arm64-v8a --config Release --build_shared_lib --use_xnnpack --use_nnapi`.
3. `PERF_TEST=path/to/onnxruntime_perf_test sh run.sh` writes `result.json`. Settings: `PROVIDERS="cpu xnnpack"`,
   `THREADS=1`, `ROUNDS=7`, `RUNS=30`, `DEVICE_DIR=/data/local/tmp/onnxprune`.
4. `onnxprune bench --import result.json --table phone.json`: dense against pruned with the interval of the speed-up,
   and what every module takes at every width, as a table that a search goes by:
   `onnxprune DENSE --latency 0.5 --latency-table phone.json`.

Leave the phone alone, unplugged and cool while it runs.
"""


# ---- what came back


def read_result(file: Path) -> tuple[list[LatencyRow], list[LatencyTable]]:
    """What `run.sh` wrote: dense against pruned per provider, and what modules take at each width.

    Returns:
        Rows as `latency.bench` gives them (their intervals are over rounds), and one table per provider, each time
        the median of the rounds' medians.

    Raises:
        DataError: not such a file, or nothing was measured.
    """
    told = read_object(file, "what bench/run.sh writes", DataError)
    with reading(f"{file}: not what bench/run.sh writes", DataError):
        runs, setup, threads = told["runs"], told["setup"], int(told["threads"])
        if told["format"] != FORMAT or not runs:
            raise DataError(f"{file}: holds no measurements of format {FORMAT}: run bench/run.sh again")
        times = _times_by(runs)
        rows = [
            _row(provider, own[_DENSE], own[_PRUNED], setup["shapes"], threads)
            for provider, own in times.items()
            if _DENSE in own and _PRUNED in own
        ]
        device = " ".join(str(told["device"][key]) for key in ("model", "chip"))
        tables = [
            LatencyTable(SHORT_NAMES.get(provider, provider), threads, setup["shape"], device,
                         f"Android {told['device']['android']}", tuple(_entries(own, setup)))
            for provider, own in times.items()
            if setup["micro"] and setup["whole"]["file"] in own
        ]  # fmt: skip
    return rows, tables


def _entries(own: Mapping[str, np.ndarray], setup: Mapping[str, Any]) -> Iterator[Entry]:
    """A provider's times as entries, the whole model first."""
    whole = setup["whole"]
    named = {whole["file"]: {k: v for k, v in whole.items() if k != "file"}, **setup["micro"]}
    for name, told in named.items():
        if name in own:
            medians = own[name][:, 0]
            error = float(np.std(medians)) / max(len(medians), 1) ** 0.5
            timed = {**told, "ms": float(np.median(medians)), "error": error}
            entry: Entry = built(Entry, timed, f"micro.{name}", DataError)
            yield entry


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
