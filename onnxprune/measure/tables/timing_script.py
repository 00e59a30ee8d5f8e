"""Times the micro-models of a folder on this machine, and writes a latency table: `python measure.py [options]`.

This file is part of onnxprune, and also stands alone: `onnxprune profile --micro` puts it beside the models, where it
needs nothing but onnxruntime and numpy.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
"""Version of latency tables."""

ROUNDS = 25
WARMUP = 3
CHUNK = 1_000_000_000
"""Bytes of models that are open at once."""

CPU = "CPUExecutionProvider"

Run = Callable[[], Any]
Now = Callable[[], int]


def clock(provider: str, threads: int) -> Now:
    """Nanoseconds: of the processor where one thread does all the work, so that other processes count less.

    Wall-clock time otherwise, and where the processor's is counted too coarsely.
    """
    fine = hasattr(time, "thread_time_ns") and time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time_ns if provider == CPU and threads == 1 and fine else time.perf_counter_ns


def interleaved(runs: Sequence[Run], now: Now, rounds: int = ROUNDS, warmup: int = WARMUP, seed: int = 0) -> np.ndarray:
    """Milliseconds [runs, rounds] of each run, once a round, in an order drawn anew for every round.

    Machines drift and caches remember: so none is always measured first, nor always after the same other one.
    """
    random = np.random.default_rng(seed)
    for run in runs:
        for _ in range(max(warmup, 1)):
            run()
    times = np.zeros((len(runs), rounds))
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for which in random.permutation(len(runs)).tolist():
                start = now()
                runs[which]()
                times[which, turn] = (now() - start) / 1e6
    finally:
        if collecting:
            gc.enable()
    return times


def summary(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(milliseconds [runs], their standard errors [runs]) of times [runs, rounds].

    The median of the faster half: what disturbs a run makes it slower, never faster, so that on a quiet machine this
    is the median, nearly, and on a busy one it is what the median would be on a quiet one.
    """
    middle, upper = np.quantile(times, (0.25, 0.5), axis=1)
    return middle, 1.36 * (upper - middle) / 0.674 / np.sqrt(times.shape[1])


def timed(
    entries: Sequence[Mapping[str, Any]],
    opened: Callable[[Mapping[str, Any]], Run],
    now: Now,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Time models, so many at once as memory holds; the first, the whole model, is among them every time.

    Args:
        entries: `bytes` of each model, and what else is to be told about it.
        opened: gives what runs an entry's model once.

    Returns:
        The entries with `ms` and `error`, in the first chunk's time: what the whole model takes in the others scales
        theirs.
    """
    whole, *others = entries
    chunks = _chunks(others)
    found: list[dict[str, Any]] = []
    done = 0
    for chunk in chunks:
        times = interleaved([opened(e) for e in (whole, *chunk)], now, rounds)
        middle, error = summary(times)
        scale = found[0]["ms"] / middle[0] if found else 1.0
        rows = [
            {**{k: v for k, v in e.items() if k != "bytes"}, "ms": float(m * scale), "error": float(s * scale)}
            for e, m, s in zip((whole, *chunk), middle, error, strict=True)
        ]
        found += rows[1:] if found else rows
        done += len(chunk)
        if progress is not None:
            progress(done, len(others))
    return found


def _chunks(entries: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Consecutive entries that together are at most `CHUNK` bytes large; at least one."""
    chunks: list[list[Mapping[str, Any]]] = [[]]
    room = CHUNK
    for entry in entries:
        if chunks[-1] and entry["bytes"] > room:
            chunks.append([])
            room = CHUNK
        chunks[-1].append(entry)
        room -= entry["bytes"]
    return chunks


def drawn(ports: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, np.ndarray]:
    """Values for inputs: whole numbers from `low` to `high`, N(0, 1) where these are None."""
    random = np.random.default_rng(seed)
    found = {}
    for port in ports:
        shape, kind = tuple(port["shape"]), np.dtype(port["dtype"])
        if port["low"] is None:
            found[port["name"]] = random.standard_normal(shape).astype(kind)
        else:
            found[port["name"]] = random.integers(port["low"], port["high"] + 1, shape).astype(kind)
    return found


def machine() -> str:
    """The processor, in words: tables of the same words are of equal machines."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


# ---- alone, beside exported micro-models


def main() -> None:
    """Time every shape of setup.json on one provider, and write the table."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else ONNX Runtime tells its makers what it opens
    import onnxruntime as ort

    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Time the micro-models beside this file, into a latency table.")
    parser.add_argument("--ep", default=CPU, help="ONNX Runtime's full name of the execution provider")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of every model")
    parser.add_argument("-o", "--output", default=str(here / "table.json"))
    asked = parser.parse_args()
    if asked.ep not in ort.get_available_providers():
        sys.exit(f"{asked.ep} is not in this onnxruntime; it has {', '.join(ort.get_available_providers())}")
    setup = json.loads((here / "setup.json").read_text(encoding="utf-8"))

    def opened(entry: Mapping[str, Any]) -> Run:
        options = ort.SessionOptions()
        options.intra_op_num_threads = asked.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for name, size in entry["fixed"].items():
            options.add_free_dimension_override_by_name(name, size)
        providers = list(dict.fromkeys((asked.ep, CPU)))
        session = ort.InferenceSession(str(here / entry["file"]), options, providers=providers)
        if session.get_providers()[0] != asked.ep:
            sys.exit(f"{asked.ep} does not load here: what is measured would be the CPU's time")
        feeds = drawn(entry["ports"])
        return lambda: session.run(None, feeds)

    tables = []
    for part in setup["shapes"]:
        rows = timed(
            part["entries"], opened, clock(asked.ep, asked.threads), asked.rounds,
            lambda done, of: print(f"{part['shape']}: {done} of {of}", file=sys.stderr),  # noqa: B023
        )  # fmt: skip
        kept = ("signature", "kind", "units", "of", "ms", "error")
        tables.append({
            "provider": asked.ep, "threads": asked.threads, "shape": part["shape"], "machine": machine(),
            "runtime": f"onnxruntime {ort.__version__}", "entries": [{k: r[k] for k in kept} for r in rows],
        })  # fmt: skip
    Path(asked.output).write_text(json.dumps({"format": FORMAT, "tables": tables}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {asked.output}: onnxprune MODEL --latency 0.5 --latency-table {Path(asked.output).name}")


if __name__ == "__main__":
    main()
