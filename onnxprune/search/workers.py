"""Where tasks run: processes of this machine, a Dask or a Ray cluster. The only file that knows of any engine.

A task is an argument that can be pickled, for a function of a module; results come as they are done. What all tasks of
a run read (rows, weights) is shared once, not sent with each. A worker that dies takes nothing along but the tasks that
it was at, which run again elsewhere: joblib's processes are started anew here, Dask and Ray do it themselves.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.graph import outputs
from onnxprune.search.worker_side import Cores, InFile, Place, Unseen, call, told, where

DEATHS = 3
"""How often workers may die in one run before it is given up: a task that takes too much memory kills each."""
PATIENCE = 30
"""Seconds in which a cluster must answer."""

_SAFE = "PYTHONSAFEPATH"
"""Keeps the folder that a process is in out of where it looks for modules."""
AHEAD = 2
"""Tasks that a cluster is handed at a time, for each that it runs at once."""

Function = Callable[..., Any]
"""function(task, *shared) -> result."""


class Workers(Protocol):
    """Somewhere tasks run.

    Attributes:
        count: tasks that run at once.
        cores: of this machine, on which they do; 0 where others have them.
    """

    count: int
    cores: int

    def share(self, value: Any) -> Any:
        """A handle of what many tasks read; a worker is handed the value itself."""

    def run(
        self, function: Function, tasks: Sequence[Any], *shared: Any, tag: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        """(index of a task, its result), as they are done.

        Args:
            shared: handles; the function is called with their values behind the task.
            tag: a resource that a worker must have: the device it owns.

        Raises:
            OnnxPruneError: what a task raised, or that workers died again and again.
            UsageError: no worker has the tag.
        """


@contextmanager
def opened(count: int | None, cluster: str | None = None, threads: int = 0) -> Iterator[Workers | None]:
    """The workers that were asked for; None where all is done in this process.

    Args:
        count: processes of this machine.
        cluster: dask://HOST:PORT of a scheduler, ray://HOST:PORT of a Ray client server, or ray://auto.
        threads: of each process; 0 shares the cores out. A cluster's workers have the threads they were started with.

    Raises:
        UsageError: both, an address of another kind, an engine that is not installed, or nobody answers.
    """
    if count is None and cluster is None:
        yield None
        return
    if count is not None and cluster is not None:
        raise UsageError("--workers are processes of this machine, --cluster others: give one of the two")
    scheme, _, address = (cluster or "").partition("://")
    if count is not None:
        if count < 1:
            raise UsageError(f"--workers {count}: give a number from 1 on")
        made: _Local | _Dask | _Ray = _Local(count, threads or max((os.cpu_count() or 1) // count, 1))
    elif scheme == "dask" and address:
        made = _Dask(address)
    elif scheme == "ray" and address:
        made = _Ray(address)
    else:
        raise UsageError(f"--cluster {cluster}: give dask://HOST:PORT, ray://HOST:PORT, or ray://auto on its head node")
    try:
        yield made
    except BaseException:
        made.close(at_once=True)
        raise
    made.close()


def begin(workers: Workers, function: Function, task: Any) -> Callable[[], None]:
    """Have every worker do the same once, behind the caller's back: while it reads a model, they do too.

    Args:
        function: of the task.

    Returns:
        What waits until they are done. That they could not be called is told by the first task that cannot.
    """

    def called() -> None:
        with suppress(Exception):
            for _ in workers.run(function, [task] * workers.count):
                pass

    thread = threading.Thread(target=called, daemon=True)
    thread.start()
    return thread.join


def _numbered(index: int, function: Function, task: Any, cores: Cores, *shared: Any) -> tuple[int, Any]:
    """In a process of this machine.

    It remembers a planner between tasks, and so grows. Where psutil is there, loky takes 300 MB for a leak, ends the
    process, and what it knew would be measured again.
    """
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    return index, call(function, task, cores, *shared)


class _Flying:
    """Tasks that a cluster has been handed: some for each that it runs at once, and more as they are done.

    So it begins them in their order, whichever worker it gives them to, and each goes on from what it did last.

    Args:
        left: index -> task.
        most: how many are handed over at a time.
        begin: hands over the task of an index, and gives the engine's handle.
    """

    def __init__(self, left: Mapping[int, Any], most: int, begin: Callable[[int, Any], Any]) -> None:
        self._waiting, self._most, self._begin = deque(left.items()), most, begin
        self.begun: dict[Any, int] = {}

    def more(self) -> list[Any]:
        """Hand over what there is room for: the handles."""
        room = min(self._most - len(self.begun), len(self._waiting))
        made = {self._begin(index, task): index for index, task in (self._waiting.popleft() for _ in range(room))}
        self.begun |= made
        return list(made)

    def landed(self, handle: Any) -> int:
        """The index of one that is done."""
        return self.begun.pop(handle)


def _given_up(what: str) -> OnnxPruneError:
    return OnnxPruneError(
        f"workers died {DEATHS + 1} times ({what}): most likely a task took more memory than there is; give fewer "
        "workers, or more memory to each"
    )


class _Local:
    """Processes of this machine (joblib's loky), each with its share of the cores."""

    def __init__(self, count: int, threads: int) -> None:
        self.count, self.threads, self.cores = count, threads, count * threads
        self._scratch = outputs.Scratch()
        self._free = Cores(self._scratch.path / "cores", self.cores, count)
        self._over = False
        # A process that is started with -m or -c looks for modules where it is first, and that may be the folder of a
        # model that others made, with a numpy.py in it.
        self._before = os.environ.get(_SAFE)
        os.environ[_SAFE] = "1"

    def share(self, value: Any) -> InFile:
        return InFile.of(value, self._scratch.path)

    def run(
        self, function: Function, tasks: Sequence[Any], *shared: Any, tag: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        if tag is not None:
            raise UsageError(f"--on {tag}: only a cluster's workers have tags; give its address with --cluster")
        left = dict(enumerate(tasks))
        deaths = 0
        while left and not self._over:
            with parallel_config(
                backend="loky", n_jobs=self.count, inner_max_num_threads=self.threads,
                temp_folder=str(self._scratch.path),  # where it goes with a killed run, too
            ):  # fmt: skip
                pool = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=2 * self.count)
            self._free.share_out(len(left))
            made = pool(delayed(_numbered)(i, function, task, self._free, *shared) for i, task in list(left.items()))
            try:
                for index, result in made:
                    del left[index]
                    self._free.share_out(len(left))
                    yield index, told(result)
            except TerminatedWorkerError as error:
                deaths += 1
                if deaths > DEATHS:
                    raise _given_up(f"{len(left)} tasks are left") from error
            finally:
                made.close()

    def close(self, at_once: bool = False) -> None:
        from joblib.externals.loky import get_reusable_executor

        self._over = True
        get_reusable_executor(reuse=True).shutdown(wait=True, kill_workers=at_once)
        if self._before is None:
            os.environ.pop(_SAFE, None)
        else:
            os.environ[_SAFE] = self._before
        self._scratch.close()


@dataclass(eq=False)
class _Held:
    """Something shared that lies in a file, or in an engine's object store, and is put there again should it be lost.

    Attributes:
        handle: the engine's.
    """

    value: Any
    handle: Any = None
    file: InFile | None = None


class _Dask:
    """A Dask cluster: its scheduler runs the tasks of a dead worker again.

    What tasks share lies in files where all workers see them, and goes through the scheduler otherwise.
    """

    def __init__(self, address: str) -> None:
        self._dask = _engine("distributed", "dask")
        try:
            self._client = self._dask.Client(f"tcp://{address}", timeout=PATIENCE, set_as_default=False)
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(f"--cluster dask://{address}: no scheduler with workers answers ({error})") from error
        self.count = sum(self._client.ncores().values())
        self._scratch = outputs.Scratch()
        found = list(self._client.run(where, self._scratch.path, on_error="return").values())
        if any(isinstance(place, ImportError) for place in found):
            self.close()
            raise UsageError(f"--cluster dask://{address}: onnxprune is not installed where its workers are")
        places = [place for place in found if isinstance(place, Place)]  # one that died just now is none
        self._seen = all(place.sees for place in places)
        self.cores = self.count if all(place.machine == where().machine for place in places) else 0
        self._free = Cores(self._scratch.path / "cores", self.cores, self.count)

    def share(self, value: Any) -> _Held:
        return _Held(value)

    def run(
        self, function: Function, tasks: Sequence[Any], *shared: Any, tag: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        if tag is not None:
            known = [w.get("resources", {}) for w in self._client.scheduler_info(n_workers=-1)["workers"].values()]
            _require(tag, {name for resources in known for name in resources})
        needs = None if tag is None else {tag: 1}
        left = dict(enumerate(tasks))
        for _ in range(DEATHS + 1):
            handles = [self._there(held) for held in shared]
            submit = partial(self._client.submit, call, function, pure=False, resources=needs)

            def begin(index: int, task: Any, submit: Function = submit, handles: Sequence[Any] = handles) -> Any:
                return submit(task, self._free, *handles, priority=-index)

            flying = _Flying(left, AHEAD * self.count, begin)
            self._free.share_out(len(left))
            try:
                done = self._dask.as_completed(flying.more(), loop=self._client.loop)
                for future in done:
                    index = flying.landed(future)
                    done.update(flying.more())  # before who asks is busy with the result
                    if future.status == "finished":
                        if isinstance(result := future.result(), Unseen):  # by a worker that came later
                            self._seen = False
                            continue
                        del left[index]
                        self._free.share_out(len(left))
                        yield index, told(result)
                    elif future.status == "error" and not isinstance(future.exception(), self._lost()):
                        future.result()
            finally:
                self._client.cancel(list(flying.begun))
            if not left:
                return
            for held in shared:  # what died may have been the last that held it
                held.handle = None
        raise _given_up(f"{len(left)} tasks are left")

    def _there(self, held: _Held) -> Any:
        if self._seen:
            held.file = held.file or InFile.of(held.value, self._scratch.path)
            return held.file
        if held.handle is None or held.handle.status in ("cancelled", "lost", "error"):
            (held.handle,) = self._client.scatter([held.value], broadcast=True, hash=False)  # a dict is one value
        return held.handle

    def _lost(self) -> tuple[type[BaseException], ...]:
        from concurrent.futures import CancelledError

        return self._dask.KilledWorker, self._dask.client.FutureCancelledError, CancelledError

    def close(self, at_once: bool = False) -> None:
        self._client.close()
        self._scratch.close()


class _Ray:
    """A Ray cluster: it runs the tasks of a dead worker again. Workers of one machine read what is shared in place."""

    cores = 0

    def __init__(self, address: str) -> None:
        self._ray = _engine("ray", "ray")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            try:
                self._ray.init("auto" if address == "auto" else f"ray://{address}", log_to_driver=False)
            except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
                raise UsageError(f"--cluster ray://{address}: no cluster answers there ({error})") from error
        self.count = int(self._ray.cluster_resources().get("CPU", 1))

    def share(self, value: Any) -> _Held:
        return _Held(value)

    def run(
        self, function: Function, tasks: Sequence[Any], *shared: Any, tag: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        ray = self._ray
        if tag is not None:
            _require(tag, set(ray.cluster_resources()))
        remote = ray.remote(max_retries=DEATHS, num_cpus=1)(call)
        if tag is not None:
            remote = remote.options(resources={tag: 1})
        left = dict(enumerate(tasks))
        for _ in range(DEATHS + 1):
            handles = [self._there(held) for held in shared]

            def begin(index: int, task: Any, handles: Sequence[Any] = handles) -> Any:
                return remote.remote(function, task, None, *handles)

            flying = _Flying(left, AHEAD * self.count, begin)
            try:
                flying.more()
                while flying.begun:
                    (done, *_), _ = ray.wait(list(flying.begun), num_returns=1)
                    index = flying.landed(done)
                    flying.more()  # before who asks is busy with the result
                    try:
                        result = ray.get(done)
                    except ray.exceptions.ObjectLostError:
                        continue
                    del left[index]
                    yield index, told(result)
            except ray.exceptions.WorkerCrashedError as error:
                raise _given_up(f"{len(left)} tasks are left") from error
            finally:
                for ref in flying.begun:
                    ray.cancel(ref, force=True)
            if not left:
                return
            for held in shared:
                held.handle = None
        raise _given_up(f"{len(left)} tasks are left")

    def _there(self, held: _Held) -> Any:
        if held.handle is None:
            held.handle = self._ray.put(held.value)
        return held.handle

    def close(self, at_once: bool = False) -> None:
        if self._ours:
            self._ray.shutdown()


def _require(tag: str, known: set[str]) -> None:
    if tag not in known:
        there = ", ".join(sorted(known)) or "none"
        raise UsageError(f"--on {tag}: no worker of the cluster has that resource; there are: {there}")


def _engine(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"--cluster {extra}://…: the package {module} is not installed: pip install 'onnxprune[{extra}]'"
        ) from error
