"""Engines: every task is done once, whoever dies on the way, and errors stay what they are."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worker_tasks

from onnxprune.errors import BudgetError, OnnxPruneError, UsageError
from onnxprune.graph.outputs import temporary
from onnxprune.search import workers as engines
from onnxprune.search.worker_side import InFile
from onnxprune.search.workers import Workers, begin, opened

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:joblib.externals.loky"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(distributed|dask|tornado|ray)"),
]


@contextmanager
def local(threads: int = 0) -> Iterator[Workers]:
    with opened(2, threads=threads) as workers:
        assert workers is not None
        yield workers


@contextmanager
def dask() -> Iterator[Workers]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, resources={"phone": 1}, silence_logs=60
        ) as cluster,
        opened(None, cluster.scheduler_address.replace("tcp://", "dask://")) as workers,
    ):
        assert workers is not None
        yield workers


@contextmanager
def ray() -> Iterator[Workers]:
    engine = pytest.importorskip("ray")
    here = {"PYTHONPATH": os.pathsep.join(sys.path)}  # where the tasks of these tests are
    engine.init(
        num_cpus=2, resources={"phone": 1}, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": here},
    )  # fmt: skip
    try:
        with opened(None, "ray://auto") as workers:
            assert workers is not None
            yield workers
    finally:
        engine.shutdown()


ENGINES = [local, dask, ray]


@pytest.fixture(params=ENGINES, ids=lambda made: made.__name__)
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with request.param() as made:
        yield made


def test_an_engine(workers: Workers, tmp_path: Path) -> None:
    assert workers.count == 2
    more = workers.share({"more": 1})
    marker = str(tmp_path / "died")
    tasks = [(i, marker if i == 3 else "", 0.02) for i in range(8)]
    found = list(workers.run(worker_tasks.squared, tasks, more))
    assert sorted(found) == [(i, i * i + 1) for i in range(8)], "a worker that died changed something"
    assert (tmp_path / "died").exists()
    assert list(workers.run(worker_tasks.squared, [(2, "", 0.0)], more)) == [(0, 5)], "what is shared serves one run"
    many = [more, workers.share({"more": 2})]
    runs = [workers.run(worker_tasks.late, range(40), *many) for _ in range(3)]
    began = sorted((*which, i) for run in runs for i, which in run)
    back = sum(a[0] == b[0] and a[2] > b[2] for a, b in itertools.pairwise(began))
    assert back <= 2 * 2 + 2, "a worker was given tasks against their order, and a walk over the graph would begin anew"
    with pytest.raises(BudgetError, match="7 cannot be met") as caught:
        list(workers.run(worker_tasks.refused, [7]))
    assert caught.value.closest == 0.5
    with pytest.raises(UsageError, match="--on watch"):
        list(workers.run(worker_tasks.refused, [7], tag="watch"))


def test_tasks_are_handed_over_as_others_are_done() -> None:
    begun: list[int] = []

    def begin(index: int, task: str) -> str:
        begun.append(index)
        return task

    flying = engines._Flying(dict(enumerate("abcde")), 2, begin)
    assert flying.more() == ["a", "b"]
    assert flying.more() == []
    assert flying.landed("b") == 1
    assert flying.more() == ["c"]
    assert [flying.landed(task) for task in "ac"] == [0, 2]
    assert flying.more() == ["d", "e"]
    assert flying.begun == {"d": 3, "e": 4}
    assert begun == [0, 1, 2, 3, 4]


def test_workers_are_called_while_others_go_on() -> None:
    """What they cannot do then is told by the first task."""
    called: list[int] = []
    go = threading.Event()

    class Slow:
        count, cores = 2, 0

        def share(self, value: object) -> object:
            return value

        def run(self, function: Any, tasks: Any, *shared: Any, tag: str | None = None) -> Any:
            assert go.wait(5)
            for task in tasks:
                yield task, function(task)

    wait = begin(Slow(), called.append, 7)
    assert not called
    go.set()
    wait()
    assert called == [7, 7]
    begin(Slow(), lambda _: 1 / 0, 7)()


def test_what_workers_are_at_is_not_waited_for_where_a_run_fails() -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), local() as workers:
        wait = begin(workers, worker_tasks.asleep, 300)
        time.sleep(4)
        raise ZeroDivisionError
    wait()
    assert time.monotonic() - began < 100


def test_arrays_on_their_way_lie_in_the_runs_own_folder() -> None:
    """The next run takes that away, should this one be killed."""
    with local() as workers:
        ((_, file),) = workers.run(worker_tasks.lies, [np.zeros(1 << 18)])
        assert f"/{temporary.PREFIX}" in file
    assert not Path(file).exists()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
@pytest.mark.parametrize("engine", [partial(local, 1), dask], ids=["local", "dask"])
def test_who_is_at_the_last_task_has_the_cores_of_those_who_are_done(engine: Any) -> None:
    with engine() as workers:
        assert workers.cores == 2
        for _ in range(2):
            found = dict(workers.run(worker_tasks.cores, [False, False, False, True]))
            assert found == {0: 1, 1: 1, 2: 1, 3: 2}


def test_what_is_shared_goes_through_the_cluster_where_workers_do_not_see_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks = [(i, "", 0.0) for i in range(4)]
    with dask() as workers:
        more = workers.share({"more": 1})
        assert sorted(workers.run(worker_tasks.squared, tasks, more)) == [(i, i * i + 1) for i in range(4)]
        written: list[Path] = []

        def lost(value: object, folder: Path) -> InFile:
            written.append(folder)
            return InFile(tmp_path / "nowhere")

        monkeypatch.setattr(InFile, "of", lost)
        other = workers.share({"more": 2})
        for _ in range(2):
            assert sorted(workers.run(worker_tasks.squared, tasks, other)) == [(i, i * i + 2) for i in range(4)]
        assert len(written) == 1, "a worker that sees no file is told of another"
        assert sorted(workers.run(worker_tasks.squared, tasks, more)) == [(i, i * i + 1) for i in range(4)]


def test_a_process_may_remember_much(tmp_path: Path) -> None:
    with local() as workers:
        assert len({pid for _, pid in workers.run(worker_tasks.remembering, range(1, 9))}) <= 2


@pytest.mark.parametrize("cluster", [dask, ray], ids=lambda made: made.__name__)
def test_a_tag_finds_its_worker(cluster: object) -> None:
    assert callable(cluster)
    with cluster() as workers:
        assert len(list(workers.run(worker_tasks.process, [1], tag="phone"))) == 1


def test_who_is_killed_by_every_task_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "DEATHS", 1)
    tasks = [(1, str(tmp_path / "a" / "never"), 0.0)]
    with local() as workers, pytest.raises(OnnxPruneError, match="died"):
        list(workers.run(worker_tasks.killed, tasks))


@pytest.mark.parametrize(
    ("count", "cluster", "says"),
    [
        (2, "dask://h:1", "one of the two"),
        (0, None, "from 1 on"),
        (None, "spark://h:1", "give dask://"),
        (None, "dask://", "give dask://"),
    ],
)
def test_what_cannot_be_opened(count: int | None, cluster: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says), opened(count, cluster):
        pass


def test_nobody_is_asked_for() -> None:
    with opened(None) as workers:
        assert workers is None


def test_the_folder_that_a_run_is_in_is_no_place_for_modules_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a model that others made may hold a numpy.py, which processes started with -m would find first."""
    planted = tmp_path / "ran"
    for name in ("numpy", "onnx", "signal"):
        (tmp_path / f"{name}.py").write_text(f"open({str(planted)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with local() as workers:
        assert len({pid for _, pid in workers.run(worker_tasks.process, [1, 2, 3])}) >= 1
    assert not planted.exists() and "PYTHONSAFEPATH" not in os.environ
