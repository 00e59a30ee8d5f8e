"""Latency tables as a job of their own: of one model, at shapes, on providers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.graph import joined, outputs
from onnxprune.graph.providers import SHORT_NAMES, resolve_providers
from onnxprune.graph.structure.analyze import analyze
from onnxprune.measure.cost import Costs
from onnxprune.measure.tables import device_kit, source
from onnxprune.measure.tables.micro_models import Cutter, Micro
from onnxprune.measure.tables.table import LatencyTable
from onnxprune.pipeline import remote
from onnxprune.pipeline.rows import shape_of
from onnxprune.search import workers as engines
from onnxprune.search.progress import Progress

UNITS = ("heads", "neurons", "blocks")


def profile(
    model: str | os.PathLike[str],
    shapes: Sequence[Mapping[str, int]] = ({},),
    units: Sequence[str] = UNITS,
    ep: Sequence[str] = ("cpu",),
    threads: Sequence[int] = (1,),
    progress: Progress | None = None,
    cluster: str | None = None,
    on: str | None = None,
) -> list[LatencyTable]:
    """Measure now what every module takes at every width that runs fast: here, or on the worker that owns a device.

    Args:
        shapes: sizes of the graph's dimensions, each a table; the batch is 1 where it is not stated.
        units: kinds that may be cut.
        ep, threads: providers and threads inside one operator; every combination is a table.
        cluster, on: the cluster's address, and the resource that its worker with the device has.

    Raises:
        UsageError: a provider that is not there, or a dimension without a size.
        NothingToPruneError: no unit of these kinds is free.
    """
    if cluster is not None or on is not None:
        if cluster is None or on is None:
            raise UsageError("a device's worker is found by both, --cluster URL and --on TAG")
        return _there(joined.find(model), (tuple(shapes), tuple(units), tuple(ep), tuple(threads)), cluster, on)
    tables: list[LatencyTable] = []
    told = progress or (lambda stage, done, of: None)
    for counted in _counted(model, shapes):
        for provider in resolve_providers(ep):
            for count in threads:

                def obtain(
                    cutter: Cutter, needed: Sequence[Micro], provider: str = provider, count: int = count
                ) -> LatencyTable:
                    bar = partial(told, f"table {len(tables) + 1}")
                    return source.obtained(cutter, needed, provider, count, fresh=True, progress=bar)

                tables.append(device_kit.costs_of(counted, units, provider, every=True, obtain=obtain).table)
    return tables


Asked = tuple[Sequence[Mapping[str, int]], Sequence[str], Sequence[str], Sequence[int]]
"""Shapes, units, providers and threads of `profile`."""


def _there(file: Path, asked: Asked, cluster: str, tag: str) -> list[LatencyTable]:
    """Tables that a tagged worker measures, which is sent the model."""
    files, root, name = (sorted(file.glob("*.onnx")), file, ".") if file.is_dir() else ([file], file.parent, file.name)
    with engines.opened(None, cluster) as workers:
        assert workers is not None
        sent = workers.share(remote.bytes_of(files, root))
        ((_, found),) = workers.run(measured_there, [(name, asked)], sent, tag=tag)
        return [LatencyTable.from_json(told) for told in found]


def measured_there(task: tuple[str, Asked], files: remote.Files) -> list[dict[str, Any]]:
    """In a worker: the tables, as JSON has them."""
    name, asked = task
    with outputs.scratch() as scratch:
        remote.receive(files, scratch)
        return [table.to_json() for table in profile(scratch / name, *asked)]


def export(
    model: str | os.PathLike[str],
    folder: Path,
    shapes: Sequence[Mapping[str, int]] = ({},),
    units: Sequence[str] = UNITS,
    ep: Sequence[str] = ("cpu",),
) -> Path:
    """Fill an empty folder with what measures the same on another machine."""
    provider = SHORT_NAMES.get(ep[0].lower(), ep[0])
    return device_kit.export(
        [device_kit.costs_of(counted, units, provider) for counted in _counted(model, shapes)], folder
    )


def _counted(model: str | os.PathLike[str], shapes: Sequence[Mapping[str, int]]) -> list[Costs]:
    dense = joined.load(model)
    structure = analyze(dense)
    return [Costs(dense, structure, shape_of(dense, shape, None)) for shape in shapes]
