"""The work of several plans, spread over workers: orders of units, rows of the damage tables, finished plans.

Parts are fixed by the work, never by the number of workers: each is computed as it would be here, and what they give is
put together by what it belongs to. So a plan does not depend on how many workers there were, nor on which was first.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.graph import outputs
from onnxprune.graph.plan import Budget, Plan
from onnxprune.pipeline import remote
from onnxprune.pipeline.job import Job
from onnxprune.pipeline.remote import Brief, Early, Known, Lacking, Task
from onnxprune.pipeline.written import Product
from onnxprune.probe import threads
from onnxprune.search import by_table, plan_store
from onnxprune.search import workers as engines
from onnxprune.search.options import Options
from onnxprune.search.plan_store import Filed
from onnxprune.search.problem import Seen
from onnxprune.search.scored_model import lasts
from onnxprune.search.workers import Function, Workers

logger = logging.getLogger(__name__)

SENT = 2**32
"""Bytes of second moments that are sent to workers; beyond, each takes them itself."""


@contextmanager
def opened(
    file: Path, options: Options, workers: int | None, cluster: str | None
) -> Iterator[Callable[[Job], Fleet] | None]:
    """What makes a fleet of the workers that were asked for; they read the model while who asks does. None without any.

    Until it is made their cores look at the rows for who asks.

    Args:
        file: the model's, or its folder.
        workers, cluster: of `search.workers.opened`.
    """
    with engines.opened(workers, cluster, options.threads) as hands:
        if hands is None:
            yield None
            return
        wait = engines.begin(hands, remote.ready, Early.of(file, options))
        with ExitStack() as waiting:
            waiting.enter_context(threads.lent(lambda: hands.cores))

            def of(job: Job) -> Fleet:
                wait()
                made = Fleet(hands, job)
                waiting.close()
                return made

            yield of


class Fleet:
    """Workers that know one model and its rows.

    Args:
        job: of the model and the rows; those that are handed in later differ from it in the method alone.
    """

    def __init__(self, workers: Workers, job: Job) -> None:
        if job.options.budget.kind == "latency" or job.options.latency_table is not None:
            raise UsageError(
                "--latency and --latency-table go by what this machine takes, or by a table that workers do not see: "
                "leave out --workers and --cluster"
            )
        self.workers = workers
        self._dense, self._home = job.dense, job.home.resolve()
        self._desk = outputs.Lasting()
        key = uuid.uuid4().hex
        (self._desk.path / key).touch()
        self._brief = workers.share(
            Brief(
                key, self._home, job.dense.digest, self._desk.path, replace(job.planner.options), job.learn,
                dict(job.planner.costs.bindings), job.judge, job.providers, job.metric, job.level,
                job.flips, _seen(job),
            )
        )  # fmt: skip
        self._files: Any = None

    def measure(self, jobs: Sequence[Job]) -> None:
        """Fill the jobs' scores with what plans within any budget begin by: orders first, then tables."""
        lasting = [j for j in jobs if lasts(j.planner, j.planner.first) and j.options.snip_threshold is None]
        lacking = [j for j in lasting if j.planner.scores.rankings.keys() != {s.id for s in j.planner.sites}]
        tasks = [Task(j.planner.method) for j in lacking]
        for index, found in self._run(remote.order, tasks, jobs, {}, "score"):
            lacking[index].planner.scores.keep_rankings(found)
        rows: list[tuple[Job, str]] = []
        for job in lasting:
            if job.options.search != "rank":
                known = job.planner.scores.measured(by_table.whole_grid(job.planner))
                rows += [(job, s.id) for s in job.planner.begun() if s.id not in known]
        tasks = [Task(j.planner.method, site) for j, site in rows]
        orders = {j.planner.method: Known(j.planner.scores.rankings) for j in lasting}
        try:
            for index, found in self._run(remote.row, tasks, jobs, orders, "table"):
                job, site = rows[index]
                job.planner.scores.keep_rows(by_table.whole_grid(job.planner), {site: found})
        finally:
            for job in lasting:
                job.planner.scores.save()

    def plans(
        self,
        jobs: Sequence[Job],
        budgets: Sequence[Budget],
        names: Mapping[tuple[int, int], str] = MappingProxyType({}),
    ) -> Iterator[tuple[int, int, Filed, Product | None]]:
        """(job's index, budget's index, finished plan, the file of it that lies here already), as they are done.

        What is in files lasts as long as this fleet.

        Args:
            names: (job's index, budget's index) -> what its file is to be called, where it is wanted.
        """
        asked = []
        for i, job in enumerate(jobs):
            for k, budget in enumerate(budgets):
                if (plan := plan_store.kept(job.planner, budget)) is not None:
                    yield i, k, self._filed(plan), None
                else:
                    asked.append((i, k))
        # The smallest budgets take longest: what is begun last should be short.
        asked.sort(key=lambda pair: (budgets[pair[1]].value, pair[0]))
        tasks = [Task(jobs[i].planner.method, budget=budgets[k], name=names.get((i, k), "")) for i, k in asked]
        scores = {j.planner.method: Known(j.planner.scores.rankings, j.planner.scores.table) for j in jobs}
        for index, found in self._run(remote.plan, tasks, jobs, scores, "plan"):
            (i, k), job = asked[index], jobs[asked[index][0]]
            for stage, seconds in found.seconds.items():
                job.clock.seconds[stage] += seconds
            if found.findings is not None:
                job.found[found.written] = found.findings
            filed = found.plan if isinstance(found.plan, Filed) else self._filed(found.plan)
            if job.planner.scores.store is not None:
                plan_store.keep(job.planner, budgets[k], filed.read())
            yield i, k, filed, found.product

    def _filed(self, plan: Plan) -> Filed:
        folder = self._desk.path / uuid.uuid4().hex
        folder.mkdir()
        return Filed.of(plan, folder)

    def _run(
        self, function: Function, tasks: Sequence[Task], jobs: Sequence[Job], known: Mapping[str, Known], stage: str
    ) -> Iterator[tuple[int, Any]]:
        """Results by index, as they come; workers that do not see the model's file are sent it.

        Args:
            known: by method. It is shared: an order may hold matrices of all its units.
        """
        left = dict(enumerate(tasks))
        held = self.workers.share(known) if tasks else None
        while left:
            names = list(left)
            shared = [self._brief, held] if self._files is None else [self._brief, held, self._files]
            for i, found in self.workers.run(function, [left[name] for name in names], *shared):
                if isinstance(found, Lacking):
                    continue
                del left[names[i]]
                jobs[0].planner.progress(stage, len(tasks) - len(left), len(tasks))
                yield names[i], found
            if left and self._files is None:
                logger.info("workers do not see %s: it is sent", self._home)
                root = self._home if self._dense.several else self._home.parent
                self._files = self.workers.share(remote.bytes_of([f.resolve() for f in self._dense.files], root))


def _seen(job: Job) -> Seen | None:
    """What the job's planner saw of the rows, unless workers see it sooner than it is sent, or it is on a GPU."""
    if job.planner.interpreter.device != "cpu":
        return None
    seen = job.planner.seen()
    return seen if sum(gram.nbytes for gram in seen.moments.values()) <= SENT else None
