"""A sweep on workers against the same in one process: seconds, speed-up, and whether all plans are the same.

    python tests/bench/workers.py exports/sst2 --calib rows.jsonl --eval dev.jsonl --engines local,dask,ray --kill
    python tests/bench/workers.py exports/sst2 --calib rows.jsonl --times times.json

Five budgets by three methods, one thread each, on two workers: processes of this machine, and clusters of Dask and Ray
that are started here with two workers of one core. `--one` runs each engine with one worker, too.
`--kill` ends a worker once, in the middle of the plans. `--times` runs every task alone in this process instead and
writes what each took, in processor seconds, which `simulate_workers.py` begins from.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.graph.outputs import Inputs
from onnxprune.graph.plan import Budget, Plan
from onnxprune.pipeline import output_files
from onnxprune.pipeline.fleet import Fleet
from onnxprune.pipeline.job import Job
from onnxprune.pipeline.sweep import sweep
from onnxprune.search.options import Options


class Timed:
    """Workers that are this process, and know what every task took."""

    count, cores = 1, 0

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def share(self, value: Any) -> Any:
        return value

    def run(
        self, function: Callable[..., Any], tasks: Sequence[Any], *shared: Any, tag: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        for i, task in enumerate(tasks):
            start = time.process_time()
            found = function(task, *shared)
            self.seconds.setdefault(function.__name__, []).append(time.process_time() - start)
            yield i, found


def times(args: argparse.Namespace) -> dict[str, Any]:
    """What every task takes, and the sizes that it depends on."""
    methods = args.methods.split(",")
    budgets = [Budget("flops", float(b)) for b in args.flops.split(",")]
    options = Options(budgets[0], method=methods[0], rows=args.rows)
    start = time.process_time()
    job = Job.open(args.model, options, args.calib, args.eval, measure=False)
    opened = time.process_time() - start
    made = Timed()
    fleet = Fleet(made, job)
    jobs = [job.by(method) for method in methods]
    fleet.measure(jobs)
    finish = []
    for i, k, plan, _ in fleet.plans(jobs, budgets):
        start = time.process_time()
        with output_files.opened(None, jobs[i].home, Inputs()) as nowhere:
            jobs[i].finish(plan.read(), budgets[k], nowhere)
        finish.append(time.process_time() - start)
    planner, costs = job.planner, job.planner.costs
    fit = planner.fit.dataset
    return {
        "open": opened, **made.seconds, "finish": finish, "budgets": [b.value for b in budgets], "methods": methods,
        "sites": len(planner.sites), "layers": len([b for b in job.structure.branches if b.kind == "attention"]),
        "params": costs.params(), "macs": costs.macs(), "tokens_of_shape": int(np.prod(list(costs.bindings.values()))),
        "fit_tokens": sum(e.tokens for e in fit.examples), "rows": len(job.learn or ()),
        "judge_tokens": sum(e.tokens for e in job.judge.examples) if job.judge else 0,
        "bytes": sum(f.stat().st_size for f in job.dense.files),
    }  # fmt: skip


@contextmanager
def engine(name: str, count: int) -> Iterator[tuple[dict[str, Any], Callable[[], list[int]]]]:
    """(keyword arguments of a sweep, process ids of the workers) for an engine that is started here."""
    if name == "local":
        yield {"workers": count, "threads": 1}, lambda: _found("LokyProcess")
    elif name == "dask":
        from distributed import LocalCluster

        with LocalCluster(
            n_workers=count, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster:
            yield (
                {"cluster": cluster.scheduler_address.replace("tcp://", "dask://")},
                lambda: [w.pid for w in cluster.workers.values()],
            )
    else:
        import ray

        ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)
        try:
            yield (
                {"cluster": "ray://auto"},
                lambda: _found("ray::call"),
            )
        finally:
            ray.shutdown()


def _found(sign: str) -> list[int]:
    """Process ids of workers, by their command lines."""
    import psutil

    return [p.pid for p in psutil.Process().children(recursive=True) if sign in " ".join(p.cmdline())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--eval")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--flops", default="0.8,0.7,0.6,0.5,0.4")
    parser.add_argument("--methods", default="obs,wanda,fisher")
    parser.add_argument("--engines", default="local")
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--one", action="store_true")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--times", type=Path)
    args = parser.parse_args()
    if args.times:
        args.times.write_text(json.dumps(times(args), indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        alone = _swept(args, Path(scratch) / "here", {})
        print(f"in one process: {alone:.0f} s", flush=True)
        for name in args.engines.split(","):
            one = 0.0
            if args.one:
                with engine(name, 1) as (how, _):
                    one = _swept(args, Path(scratch) / f"{name}-one", how)
            with engine(name, args.count) as (how, pids):
                killed: list[int] = []
                if args.kill:
                    threading.Thread(target=_kill, args=(pids, killed, alone / args.count / 2), daemon=True).start()
                seconds = _swept(args, Path(scratch) / name, how)
            same = _same(Path(scratch) / "here", Path(scratch) / name)
            dead = f", worker {killed[0]} killed" if killed else ""
            beside = f", {one / seconds:.2f}× one worker's {one:.0f} s" if one else ""
            print(
                f"{name}, {args.count} workers: {seconds:.0f} s, {alone / seconds:.2f}×{beside}, plans the same: "
                f"{same}{dead}",
                flush=True,
            )


def _swept(args: argparse.Namespace, folder: Path, how: Mapping[str, Any]) -> float:
    how = dict(how)
    options = {"rows": args.rows, "threads": how.pop("threads", 0)}
    start = time.perf_counter()
    sweep(
        args.model, [float(b) for b in args.flops.split(",")], folder, calibration=args.calib, evaluation=args.eval,
        methods=args.methods.split(","), measure=False, options=options, **how,
    )  # fmt: skip
    return time.perf_counter() - start


def _kill(pids: Callable[[], list[int]], killed: list[int], after: float) -> None:
    time.sleep(after)
    if found := pids():
        os.kill(found[0], signal.SIGKILL)
        killed.append(found[0])


def _same(first: Path, second: Path) -> bool:
    """Whether two folders hold the same plans, bit for bit."""
    names = sorted(p.name for p in first.glob("*.plan.json"))
    if names != sorted(p.name for p in second.glob("*.plan.json")):
        return False
    for name in names:
        one, other = Plan.load(first / name), Plan.load(second / name)
        for kind in ("weights", "intercepts", "rests", "maps"):
            held = getattr(one, kind), getattr(other, kind)
            if held[0].keys() != held[1].keys() or any(not np.array_equal(held[0][k], held[1][k]) for k in held[0]):
                return False
        if one.keep != other.keep or one.drop != other.drop:
            return False
    return True


if __name__ == "__main__":
    main()
