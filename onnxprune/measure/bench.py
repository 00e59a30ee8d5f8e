"""Everything `bench` measures: times on every runtime, placement where times mean nothing, and time by operator."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.graph import example_feeds, runtime
from onnxprune.graph import model as models
from onnxprune.graph.providers import CPU, resolve_providers, simulated
from onnxprune.graph.runtime import Coverage
from onnxprune.measure import latency, node, operator_profile
from onnxprune.measure.latency import LatencyRow
from onnxprune.measure.runnable_sizes import runnable

logger = logging.getLogger(__name__)

_LENGTH = 128
"""What is tried first of dimensions without a size: a length of text."""
PROFILED = 15
"""Passes that times by operator are medians of."""


@dataclass(frozen=True)
class Placement:
    """Where nodes run on a simulated provider, and what it answers: its times would say nothing.

    Attributes:
        provider: full name.
        shape: input name -> shape.
        coverage, dense_coverage: of the pruned and the dense graph.
        difference, dense_difference: largest distance of an output from the CPU's, relative to its scale.
    """

    provider: str
    shape: Mapping[str, tuple[int, ...]]
    coverage: Coverage
    dense_coverage: Coverage
    difference: float
    dense_difference: float


@dataclass(frozen=True)
class OperatorRow:
    """Time in one type of operator, fused as it runs; profiling slows what it measures, so shares count, not sums.

    Attributes:
        shape: input name -> shape.
        dense, pruned: (calls, milliseconds) of one forward pass: medians.
    """

    op: str
    shape: Mapping[str, tuple[int, ...]]
    dense: tuple[int, float]
    pruned: tuple[int, float]


@dataclass(frozen=True)
class Benchmark:
    """What was measured."""

    latency: tuple[LatencyRow, ...]
    placement: tuple[Placement, ...] = ()
    operators: tuple[OperatorRow, ...] = ()


def measure(
    dense: Path,
    pruned: Path,
    *,
    providers: Sequence[str] = ("cpu",),
    batch: Sequence[int] = (),
    sequence: Sequence[int] = (),
    dims: Mapping[str, int] | None = None,
    threads: Sequence[int] = (1,),
    runs: int = 50,
    profile: bool = False,
    seed: int = 0,
) -> Benchmark:
    """Dense against pruned on every provider, at every batch, sequence and number of threads.

    Args:
        providers: execution providers, and `node` or `web` for the JavaScript builds.
        profile: also measure time by operator on the CPU, in passes of its own.

    Raises:
        OnnxPruneError: as `latency.bench` and `javascript.time`.
    """
    dims = _stated_or_found(dense, batch, sequence, dims or {})
    scripted = [p for p in providers if p in node.PACKAGES]
    named = resolve_providers([p for p in providers if p not in scripted]) if len(scripted) < len(providers) else ()
    if profile and CPU not in named:
        raise UsageError("--profile measures operators on the CPU: name it, --ep cpu")
    elsewhere = bool(scripted) or profile or any(map(simulated, named))
    cases = latency.made_feeds(dense, batch, sequence, dims, seed=seed) if elsewhere else []
    timed: list[LatencyRow] = []
    for count in threads:
        real = [p for p in named if not simulated(p)]
        if real:
            timed += latency.bench(
                dense, pruned, providers=real, batch=batch, sequence=sequence, dims=dims, threads=count, runs=runs,
                seed=seed,
            )  # fmt: skip
        timed += [_scripted(p, dense, pruned, feeds, count, runs, seed) for p in scripted for feeds in cases]
    placed = [_placement(p, dense, pruned, feeds) for p in named if simulated(p) for feeds in cases]
    operators: list[OperatorRow] = []
    if profile:
        operators = [row for feeds in cases for row in _operators(dense, pruned, feeds, threads[0])]
    return Benchmark(tuple(timed), tuple(placed), tuple(operators))


def _stated_or_found(
    dense: Path, batch: Sequence[int], sequence: Sequence[int], dims: Mapping[str, int]
) -> Mapping[str, int]:
    """Sizes of the dense model's dimensions: as stated, and of those that nothing says some that it runs with; said."""
    first = {"batch": next(iter(batch), None), "sequence": next(iter(sequence), None)}
    names = example_feeds.unsized(latency.graph_inputs(dense), **first, dims=dims)
    found: dict[str, int] = {}
    with suppress(OnnxPruneError):  # what cannot be analysed may still be timed, at stated sizes
        sizes = runnable(models.load(dense), dims, _LENGTH, told=True) if names else {}
        found = {name: sizes[name] for name in names if name in sizes}
    if found:
        told = ",".join(f"{name}={size}" for name, size in found.items())
        logger.warning("timed at %s, which nobody stated: --shape says otherwise", told)
    return {**found, **dims}


def _scripted(
    name: str, dense: Path, pruned: Path, feeds: runtime.Feeds, threads: int, runs: int, seed: int
) -> LatencyRow:
    found = node.time(name, dense, pruned, feeds, threads=threads, runs=runs)
    provider = node.PACKAGES[name]
    unknown = Coverage(
        provider, 0, 0, None
    )  # the one provider of the session has all nodes, and their number is not told
    return latency.row(provider, feeds, threads, found.walls, found.cpus, (unknown, unknown), seed)


def _placement(provider: str, dense: Path, pruned: Path, feeds: runtime.Feeds) -> Placement:
    """Both files on a provider against the CPU, at the shape of these feeds.

    Raises:
        CheckError: it takes none of the nodes.
    """
    fixed = latency.symbols(latency.graph_inputs(dense), feeds)
    coverages, differences = [], []
    for model, label in ((dense, "the dense model"), (pruned, "the pruned model")):
        opened = runtime.session(model, (provider,), dims=fixed)
        coverages.append(runtime.placed(opened, label))
        found, expected = runtime.run(opened, feeds), runtime.run(runtime.session(model), feeds)
        differences.append(max(_apart(found[name], value) for name, value in expected.items()))
    shape = {name: value.shape for name, value in feeds.items()}
    return Placement(provider, shape, coverages[1], coverages[0], differences[1], differences[0])


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    if not expected.size:
        return 0.0
    scale = max(float(np.abs(expected).max()), 1e-12)
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _operators(dense: Path, pruned: Path, feeds: runtime.Feeds, threads: int) -> list[OperatorRow]:
    """Types of operators, the most expensive of the dense model first."""
    totals: dict[str, list[tuple[int, float]]] = defaultdict(lambda: [(0, 0.0), (0, 0.0)])
    for which, model in enumerate((dense, pruned)):
        for op, told in operator_profile.by_operator(model, feeds, threads=threads, passes=PROFILED).items():
            totals[op][which] = told
    shape = {name: value.shape for name, value in feeds.items()}
    ordered = sorted(totals.items(), key=lambda item: -max(item[1][0][1], item[1][1][1]))
    return [OperatorRow(op, shape, before, after) for op, (before, after) in ordered]
