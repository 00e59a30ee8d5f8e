"""Latency tables as a job of their own: of one model, at shapes, on providers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from onnxprune.graph import model as models
from onnxprune.graph import runtime
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import Costs
from onnxprune.measure.tables import device_kit, source
from onnxprune.measure.tables.micro_models import Cutter, Micro
from onnxprune.measure.tables.table import LatencyTable
from onnxprune.pipeline.rows import shape_of
from onnxprune.search.progress import Progress

UNITS = ("heads", "neurons", "blocks")


def profile(
    model: str | os.PathLike[str],
    shapes: Sequence[Mapping[str, int]] = ({},),
    units: Sequence[str] = UNITS,
    ep: Sequence[str] = ("cpu",),
    threads: Sequence[int] = (1,),
    progress: Progress | None = None,
) -> list[LatencyTable]:
    """Measure, here and now, what every module takes at every width that runs fast.

    Args:
        shapes: sizes of the graph's dimensions, each a table; the batch is 1 where it is not stated.
        units: kinds that may be cut.
        ep, threads: providers and threads inside one operator; every combination is a table.

    Raises:
        UsageError: a provider that is not there, or a dimension without a size.
        NothingToPruneError: no unit of these kinds is free.
    """
    tables: list[LatencyTable] = []
    told = progress or (lambda stage, done, of: None)
    for counted in _counted(model, shapes):
        for provider in runtime.resolve_providers(ep):
            for count in threads:

                def obtain(
                    cutter: Cutter, needed: Sequence[Micro], provider: str = provider, count: int = count
                ) -> LatencyTable:
                    bar = partial(told, f"table {len(tables) + 1}")
                    return source.obtained(cutter, needed, provider, count, fresh=True, progress=bar)

                tables.append(device_kit.costs_of(counted, units, provider, every=True, obtain=obtain).table)
    return tables


def export(
    model: str | os.PathLike[str],
    folder: Path,
    shapes: Sequence[Mapping[str, int]] = ({},),
    units: Sequence[str] = UNITS,
    ep: Sequence[str] = ("cpu",),
) -> Path:
    """Fill an empty folder with what measures the same on another machine."""
    provider = runtime.SHORT_NAMES.get(ep[0].lower(), ep[0])
    return device_kit.export(
        [device_kit.costs_of(counted, units, provider) for counted in _counted(model, shapes)], folder
    )


def _counted(model: str | os.PathLike[str], shapes: Sequence[Mapping[str, int]]) -> list[Costs]:
    dense = models.load(model)
    structure = analyze(dense)
    return [Costs(dense, structure, shape_of(dense, shape, None)) for shape in shapes]
