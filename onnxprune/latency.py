"""How long a forward pass takes, dense against pruned, side by side.

Machines drift: another process, a warmer core. So both models run in one process, turn by turn, in alternating
order, and what is quoted is the ratio of their medians with its interval, never a time from one run against a time
from another. One thread and no spinning by default; never with profiling on.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import runtime
from onnxprune.errors import UnsupportedError, UsageError
from onnxprune.metrics import bootstrap_interval
from onnxprune.runtime import Coverage

if TYPE_CHECKING:
    from onnxprune.model import InputSpec

Array = NDArray[Any]
ModelFile = str | os.PathLike[str] | bytes

RUNS = 35
"""Fewest pairs of runs that a speed-up is quoted from."""
_IDS = 32
"""Token ids below this are in every vocabulary."""

_BATCH = re.compile(r"batch|^n$|^b$", re.IGNORECASE)
_PAST = re.compile(r"past", re.IGNORECASE)
_SEQUENCE = re.compile(r"seq|len|tokens|^s$|^t$", re.IGNORECASE)
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
class LatencyRow:
    """Dense against pruned on one provider at one shape.

    Attributes:
        provider: full name.
        batch: rows in a forward pass.
        shape: input name -> shape.
        threads: threads inside one operator.
        dense_ms, pruned_ms: times.
        speedup: median dense time / median pruned time.
        speedup_interval: its 95% interval (bootstrap over pairs of neighbouring runs).
        runs: pairs of runs.
        coverage: where the pruned graph's nodes run.
        dense_coverage: where the dense graph's nodes run.
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
    names = runtime.resolve_providers(providers)
    inputs = graph_inputs(dense)
    if {spec.name for spec in inputs} != {spec.name for spec in graph_inputs(pruned)}:
        raise UsageError("the two models take different inputs: they cannot be timed on the same rows")
    cases = [
        synthesize(inputs, batch=rows, sequence=tokens, dims=dims, examples=examples, seed=seed)
        for rows, tokens in product(batch or (None,), sequence or (None,))
    ]
    measured: list[LatencyRow] = []
    for provider in names:
        pair: _Pair | None = None
        for feeds in cases:
            if pair is None or provider in runtime.FIXED_SHAPES:
                fixed = symbols(inputs, feeds) if provider in runtime.FIXED_SHAPES else {}
                pair = _Pair(
                    *(
                        runtime.session(
                            model,
                            (provider,),
                            threads=threads,
                            spinning=spinning,
                            dims=fixed,
                            provider_options=provider_options,
                        )
                        for model in (dense, pruned)
                    )
                )
            measured.append(pair.measure(feeds, threads, runs, warmup, seed))
            if progress:
                progress(len(measured), len(names) * len(cases))
    return measured


class _Pair:
    """The dense and the pruned session on one provider."""

    def __init__(self, dense: runtime.Session, pruned: runtime.Session) -> None:
        self.sessions = (dense, pruned)
        self.coverage = runtime.placed(dense, "the dense model"), runtime.placed(pruned, "the pruned model")

    def measure(self, feeds: runtime.Feeds, threads: int, runs: int, warmup: int, seed: int) -> LatencyRow:
        walls, cpus = self._time(feeds, runs, warmup)
        return row(self.coverage[0].provider, feeds, threads, walls, cpus, self.coverage, seed)

    def _time(self, feeds: runtime.Feeds, runs: int, warmup: int) -> tuple[Array, Array]:
        """Wall and CPU milliseconds, each [2, runs]: dense, pruned."""
        for session in self.sessions * max(warmup, 1):
            runtime.run(session, feeds)  # the first one tells what is wrong with the feeds, if anything
        walls, cpus = np.zeros((2, runs)), np.zeros((2, runs))
        collecting = gc.isenabled()
        gc.disable()
        try:
            for turn in range(runs):
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
                    self.sessions[which].run(None, feeds)
                    walls[which, turn] = (time.perf_counter_ns() - wall) / 1e6
                    cpus[which, turn] = (time.process_time_ns() - cpu) / 1e6
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

    def ratio(drawn: Array) -> float:
        return float(np.median(walls[0, drawn]) / np.median(walls[1, drawn]))

    interval = bootstrap_interval(ratio, runs, seed=seed)
    assert interval is not None
    return LatencyRow(
        provider=provider,
        batch=next((value.shape[0] for value in feeds.values() if value.ndim), 1),
        shape={name: value.shape for name, value in feeds.items()},
        threads=threads,
        dense_ms=_times(walls[0], cpus[0]),
        pruned_ms=_times(walls[1], cpus[1]),
        speedup=ratio(np.arange(runs)),
        speedup_interval=interval,
        runs=runs,
        coverage=coverage[1],
        dense_coverage=coverage[0],
    )


def _times(walls: Array, cpus: Array) -> Times:
    p50, p90, p99 = np.percentile(walls, (50, 90, 99))
    return Times(float(walls.min()), float(p50), float(p90), float(p99), float(np.median(cpus)))


def graph_inputs(model: ModelFile) -> tuple[InputSpec, ...]:
    """The inputs of a file as ONNX Runtime sees them."""
    return _specs(runtime.session(model, optimization="none").get_inputs(), "input")


def graph_outputs(model: ModelFile) -> tuple[InputSpec, ...]:
    """The outputs of a file as ONNX Runtime sees them."""
    return _specs(runtime.session(model, optimization="none").get_outputs(), "output")


def _specs(values: Iterable[Any], what: str) -> tuple[InputSpec, ...]:
    from onnxprune.model import InputSpec

    specs = []
    for held in values:
        if held.type not in _TYPES:
            raise UnsupportedError(f"{what} {held.name} is of type {held.type}; only tensors of numbers can be made up")
        specs.append(InputSpec(held.name, np.dtype(_TYPES[held.type]), tuple(held.shape)))
    return tuple(specs)


def synthesize(
    inputs: Iterable[InputSpec],
    *,
    batch: int | None = None,
    sequence: int | None = None,
    dims: Mapping[str, int] | None = None,
    examples: Sequence[runtime.Feeds] = (),
    seed: int = 0,
) -> dict[str, Array]:
    """Feeds of given sizes for timing: what they hold is plausible, not meaningful.

    Masks are ones, token types zeros, positions count up, caches (`past…`) are empty; other values are drawn from the
    examples where there are any, so that every id is one the model knows.

    Raises:
        UsageError: a dimension that nothing gives a size to, or a size that the graph has fixed otherwise.
    """
    rng = np.random.default_rng(seed)
    sizes = _Sizes(batch, sequence, dims or {}, examples)
    return {spec.name: _values(spec, sizes.shape(spec), examples, rng) for spec in inputs}


class _Sizes:
    """Sizes of symbolic dimensions, from what was asked and what was seen."""

    def __init__(
        self, batch: int | None, sequence: int | None, dims: Mapping[str, int], examples: Sequence[runtime.Feeds]
    ) -> None:
        self.batch, self.sequence, self.dims, self.examples = batch, sequence, dims, examples

    def shape(self, spec: InputSpec) -> tuple[int, ...]:
        return tuple(self._size(spec, axis, dim) for axis, dim in enumerate(spec.shape))

    def _size(self, spec: InputSpec, axis: int, dim: int | str | None) -> int:
        if isinstance(dim, int):
            if axis == 0 and len(spec.shape) > 1 and self.batch not in (None, dim):
                raise UsageError(f"the graph fixes the batch of {spec.name} at {dim}; {self.batch} cannot be timed")
            return dim
        found = self._named(dim, axis) if dim else None
        if found is None and axis == 0:
            found = self.batch or 1
        if found is None and not dim and axis == 1 and spec.dtype.kind in "iu":
            found = self.sequence
        seen = [feeds[spec.name].shape[axis] for feeds in self.examples if spec.name in feeds]
        if found is None and seen:
            found = round(sum(seen) / len(seen))
        if found is None:
            raise UsageError(
                f"dimension {axis} of input {spec.name} ({dim or 'unnamed'}) has no size; name it with --shape "
                f"{dim or 'NAME'}=SIZE, or give --batch and --seq"
            )
        return found

    def _named(self, dim: str, axis: int) -> int | None:
        """Size of a dimension by its name; sums such as `past_sequence_length + 1` by their parts."""
        if dim in self.dims:
            return self.dims[dim]
        if "+" in dim:
            parts = [self._named(part.strip(), axis) for part in dim.split("+")]
            return None if None in parts else sum(part for part in parts if part is not None)
        if dim.isdigit():
            return int(dim)
        if _PAST.search(dim):
            return 0
        if _BATCH.search(dim):
            return self.batch or 1
        return self.sequence if _SEQUENCE.search(dim) else None


def _values(
    spec: InputSpec, shape: tuple[int, ...], examples: Sequence[runtime.Feeds], rng: np.random.Generator
) -> Array:
    name = spec.name.lower()
    if "mask" in name and (spec.dtype.kind in "iub" or len(shape) == 2):
        return np.ones(shape, spec.dtype)
    if "mask" in name or "token_type" in name:
        return np.zeros(shape, spec.dtype)
    if "position" in name and spec.dtype.kind in "iu":
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(spec.dtype)
    seen = [np.ravel(feeds[spec.name]) for feeds in examples if spec.name in feeds]
    pool = np.concatenate(seen) if seen else np.zeros(0, spec.dtype)
    if spec.dtype.kind == "f":
        middle, spread = (float(pool.mean()), float(pool.std())) if pool.size else (0.0, 1.0)
        return rng.normal(middle, spread, shape).astype(spec.dtype)
    if pool.size:
        return rng.choice(pool, shape).astype(spec.dtype)
    return rng.integers(0, _IDS if spec.dtype.kind != "b" else 1, shape).astype(spec.dtype)


def symbols(inputs: Iterable[InputSpec], feeds: runtime.Feeds) -> dict[str, int]:
    """Symbolic dimension -> its size in the feeds."""
    return {
        dim: feeds[spec.name].shape[axis]
        for spec in inputs
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str)
    }
