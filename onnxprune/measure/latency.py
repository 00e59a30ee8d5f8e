"""How long a forward pass takes, dense against pruned, side by side.

Machines drift: another process, a warmer core. So both models run in one process, turn by turn, in alternating
order, and what is quoted is the median of the ratios of neighbouring runs with its interval, never a time from one run
against a time from another: a core that runs at two speeds, as a shared one does, moves both of a pair, where medians
of each model's own times may fall into different states. On a loaded machine even neighbours may be interrupted
unequally often: at one thread the ratio must agree with that of processor time, or the latter is quoted, and said. One
thread and no spinning by default; never with profiling on.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import OnnxPruneError, UnsupportedError, UsageError
from onnxprune.graph import runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.providers import FIXED_SHAPES, on_processor, resolve_providers
from onnxprune.graph.runtime import Coverage
from onnxprune.measure.metrics import bootstrap_interval

if TYPE_CHECKING:
    from onnxprune.graph.model import InputSpec

Array = NDArray[Any]
ModelFile = str | os.PathLike[str] | bytes

AGREE = 1.1
"""By how much wall-clock and processor time may disagree on a ratio, at one thread, where their intervals do too."""
RUNS = 35
"""Fewest pairs of runs that a speed-up is quoted from."""
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Times:
    """Milliseconds of one forward pass, over the runs.

    Attributes:
        min, p50, p90, p99: wall-clock time.
        cpu: median time on all cores together.
    """

    min: float
    p50: float
    p90: float
    p99: float
    cpu: float


@dataclass(frozen=True)
class Call:
    """One of the graphs that a call of a model runs, dense and pruned.

    Attributes:
        dense, pruned: files, with the same inputs.
        feeds: what it takes.
        times: how often it runs.
    """

    dense: ModelFile
    pruned: ModelFile
    feeds: runtime.Feeds
    times: int = 1


@dataclass(frozen=True)
class LatencyRow:
    """Dense against pruned on one provider at one shape.

    Attributes:
        provider: full name.
        batch: rows in a forward pass.
        shape: input name -> shape.
        threads: threads inside one operator.
        dense_ms, pruned_ms: times.
        speedup: median, over pairs of neighbouring runs, of the dense time / the pruned time.
        speedup_interval: its 95% interval (bootstrap over the pairs).
        runs: pairs of runs.
        coverage: where the pruned graph's nodes run.
        dense_coverage: where the dense graph's nodes run.
        clock: which time the speed-up is of: "wall", or "processor" where other programs had the cores.
        said: why it is not wall-clock time.
    """

    provider: str
    batch: int
    shape: Mapping[str, tuple[int, ...]]
    threads: int
    dense_ms: Times
    pruned_ms: Times
    speedup: float
    speedup_interval: tuple[float, float]
    runs: int
    coverage: Coverage
    dense_coverage: Coverage
    clock: str = "wall"
    said: str = ""


def bench(
    dense: ModelFile,
    pruned: ModelFile,
    *,
    providers: Sequence[str] = ("cpu",),
    batch: Sequence[int] = (),
    sequence: Sequence[int] = (),
    dims: Mapping[str, int] | None = None,
    examples: Sequence[runtime.Feeds] = (),
    threads: int = 1,
    spinning: bool = False,
    runs: int = RUNS,
    warmup: int = 5,
    seed: int = 0,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[LatencyRow]:
    """Time both models on every provider at every shape.

    Args:
        dense, pruned: files, or serialised models, with the same inputs.
        providers: each is measured on its own, with the CPU for what it leaves.
        batch, sequence: sizes of the batch and of the sequence dimensions; every combination is measured. Where they
            are left out: the graph's own or 1, and `dims` or the examples' mean.
        dims: sizes of symbolic dimensions by the graph's names; they come before everything else.
        examples: real feeds; values are drawn from them, so that ids are in range.
        threads, spinning: of the sessions.
        runs: pairs of timed runs, at least 35.
        warmup: pairs of runs before them that do not count.
        seed: of the feeds and of the bootstrap.
        provider_options: by full provider name.
        progress: called with (shapes done, shapes).

    Raises:
        UsageError: fewer than 35 runs, a dimension without a size, models with different inputs, or a provider that
            is not there.
        CheckError: a provider takes none of the nodes, so that its time would be the CPU's.
    """
    if runs < RUNS:
        raise UsageError(f"{runs} runs are too few to quote a speed-up from; at least {RUNS} are needed")
    names = resolve_providers(providers)
    inputs = graph_inputs(dense)
    if {spec.name for spec in inputs} != {spec.name for spec in graph_inputs(pruned)}:
        raise UsageError("the two models take different inputs: they cannot be timed on the same rows")
    cases = made_feeds(dense, batch, sequence, dims, examples, seed)
    measured: list[LatencyRow] = []
    for provider in names:
        pair: _Pair | None = None
        for feeds in cases:
            if pair is None or provider in FIXED_SHAPES:
                fixed = symbols(inputs, feeds) if provider in FIXED_SHAPES else {}
                pair = _Pair.opened(
                    dense, pruned, (provider,), threads=threads, spinning=spinning, dims=fixed,
                    provider_options=provider_options,
                )  # fmt: skip
            walls, cpus = _timed([(pair, feeds, 1)], runs, warmup)
            measured.append(row(pair.coverage[0].provider, feeds, threads, walls, cpus, pair.coverage, seed))
            if progress:
                progress(len(measured), len(names) * len(cases))
    return measured


def bench_calls(
    calls: Sequence[Call],
    shape: runtime.Feeds,
    *,
    providers: Sequence[str] = ("cpu",),
    threads: int = 1,
    runs: int = RUNS,
    warmup: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[LatencyRow]:
    """Time a model of several graphs, each in a session of its own, as what a call of it takes altogether.

    Args:
        calls: its graphs; each is run once a turn, and counts as often as it runs.
        shape: feeds of the whole, whose shapes are told.

    Raises:
        UsageError, CheckError: as `bench`.
    """
    names = resolve_providers(providers)
    measured = []
    for provider in names:
        pairs = []
        for call in calls:
            fixed = symbols(graph_inputs(call.dense), call.feeds) if provider in FIXED_SHAPES else {}
            pair = _Pair.opened(call.dense, call.pruned, (provider,), threads=threads, dims=fixed)
            pairs.append((pair, call.feeds, call.times))
        walls, cpus = _timed(pairs, runs, warmup)
        dense, pruned = (Coverage.all([pair.coverage[which] for pair, _, _ in pairs]) for which in (0, 1))
        measured.append(row(provider, shape, threads, walls, cpus, (dense, pruned), seed))
        if progress:
            progress(len(measured), len(names))
    return measured


class _Pair:
    """The dense and the pruned session on one provider."""

    def __init__(self, dense: runtime.Session, pruned: runtime.Session) -> None:
        self.sessions = (dense, pruned)
        self.coverage = runtime.placed(dense, "the dense model"), runtime.placed(pruned, "the pruned model")

    @classmethod
    def opened(cls, dense: ModelFile, pruned: ModelFile, providers: Sequence[str], **asked: Any) -> _Pair:
        return cls(*(runtime.session(model, providers, **asked) for model in (dense, pruned)))


def _timed(pairs: Sequence[tuple[_Pair, runtime.Feeds, int]], runs: int, warmup: int) -> tuple[Array, Array]:
    """Wall and CPU milliseconds, each [2, runs]: dense, pruned; of all pairs, each as often as it counts."""
    for pair, feeds, _ in pairs:
        for session in pair.sessions * max(warmup, 1):
            runtime.run(session, feeds)  # the first one tells what is wrong with the feeds, if anything
    walls, cpus = np.zeros((2, runs)), np.zeros((2, runs))
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(runs):
            for pair, feeds, times in pairs:
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
                    pair.sessions[which].run(None, feeds)
                    walls[which, turn] += times * (time.perf_counter_ns() - wall) / 1e6
                    cpus[which, turn] += times * (time.process_time_ns() - cpu) / 1e6
    finally:
        if collecting:
            gc.enable()
    return walls, cpus


def row(
    provider: str,
    feeds: runtime.Feeds,
    threads: int,
    walls: Array,
    cpus: Array,
    coverage: tuple[Coverage, Coverage],
    seed: int,
) -> LatencyRow:
    """What pairs of runs say.

    Args:
        walls, cpus: milliseconds, each [2, runs]: dense, pruned, neighbours in time.
        coverage: of the dense and of the pruned session.
        seed: of the bootstrap.
    """
    runs = walls.shape[1]
    found, interval = _ratio(walls, seed)
    clock, said = "wall", ""
    if threads == 1 and on_processor(provider) and (cpus > 0).all():
        own, its = _ratio(cpus, seed)
        apart = interval[0] > its[1] or its[0] > interval[1]
        if apart and max(found / own, own / found) > AGREE:
            said = (
                f"by the clock it was {found:.2f}× [{interval[0]:.2f}, {interval[1]:.2f}] and by processor time "
                f"{own:.2f}×: other programs had the cores; the latter is quoted"
            )
            clock, found, interval = "processor", own, its
    return LatencyRow(
        provider=provider,
        batch=next((value.shape[0] for value in feeds.values() if value.ndim), 1),
        shape={name: value.shape for name, value in feeds.items()},
        threads=threads,
        dense_ms=_times(walls[0], cpus[0]),
        pruned_ms=_times(walls[1], cpus[1]),
        speedup=found,
        speedup_interval=interval,
        runs=runs,
        coverage=coverage[1],
        dense_coverage=coverage[0],
        clock=clock,
        said=said,
    )


def _ratio(times: Array, seed: int) -> tuple[float, tuple[float, float]]:
    """The median over pairs of the dense time / the pruned time, and its 95% interval. times [2, runs]"""

    def ratio(drawn: Array) -> float:
        return float(np.median(times[0, drawn] / times[1, drawn]))

    interval = bootstrap_interval(ratio, times.shape[1], seed=seed)
    assert interval is not None
    return ratio(np.arange(times.shape[1])), interval


def _times(walls: Array, cpus: Array) -> Times:
    p50, p90, p99 = np.percentile(walls, (50, 90, 99))
    return Times(float(walls.min()), float(p50), float(p90), float(p99), float(np.median(cpus)))


def made_feeds(
    model: ModelFile,
    batch: Sequence[int] = (),
    sequence: Sequence[int] = (),
    dims: Mapping[str, int] | None = None,
    examples: Sequence[runtime.Feeds] = (),
    seed: int = 0,
) -> list[dict[str, Array]]:
    """Feeds of every size that a file runs on: its tables may be shorter than most, and then all ids are 0."""
    opened = runtime.session(model, optimization="none")
    inputs = _specs(opened.get_inputs(), "input")
    found = []
    for rows, tokens in product(batch or (None,), sequence or (None,)):
        made = partial(synthesize, inputs, batch=rows, sequence=tokens, dims=dims, examples=examples, seed=seed)
        feeds = made()
        if any(spec.dtype.kind in "iu" for spec in inputs):
            try:
                runtime.run(opened, feeds)
            except OnnxPruneError:
                with suppress(OnnxPruneError):  # where these do not run either, the first tell why
                    runtime.run(opened, tame := made(ids=1))
                    feeds = tame
        found.append(feeds)
    return found


def graph_inputs(model: ModelFile) -> tuple[InputSpec, ...]:
    """The inputs of a file as ONNX Runtime sees them."""
    return _specs(runtime.session(model, optimization="none").get_inputs(), "input")


def graph_outputs(model: ModelFile) -> tuple[InputSpec, ...]:
    """The outputs of a file as ONNX Runtime sees them."""
    return _specs(runtime.session(model, optimization="none").get_outputs(), "output")


def _specs(values: Iterable[Any], what: str) -> tuple[InputSpec, ...]:
    from onnxprune.graph.model import InputSpec

    specs = []
    for held in values:
        if held.type not in _TYPES:
            raise UnsupportedError(f"{what} {held.name} is of type {held.type}; only tensors of numbers can be made up")
        specs.append(InputSpec(held.name, np.dtype(_TYPES[held.type]), tuple(held.shape)))
    return tuple(specs)


def symbols(inputs: Iterable[InputSpec], feeds: runtime.Feeds) -> dict[str, int]:
    """Symbolic dimension -> its size in the feeds."""
    return {
        dim: feeds[spec.name].shape[axis]
        for spec in inputs
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str)
    }
