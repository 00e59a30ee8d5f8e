"""Where a latency table comes from: a file that was given, this machine's cache, or a measurement now.

Cached tables lie in `$XDG_CACHE_HOME/onnxprune/latency` (`~/.cache/…` where that is not set), one file per machine,
runtime, provider, number of threads, shape and architecture; deleting them costs nothing but the time to measure.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onnxprune.errors import DataError
from onnxprune.graph import model as models
from onnxprune.graph import model_files, outputs, patience, runtime
from onnxprune.graph.providers import FIXED_SHAPES, short_name
from onnxprune.graph.structure.sites import Site
from onnxprune.measure.tables import timing_script
from onnxprune.measure.tables.micro_models import IDLE, WHOLE, Cutter, Micro
from onnxprune.measure.tables.table import Entry, LatencyTable, load, save
from onnxprune.measure.tables.timing_script import Run

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Where tables are kept for the next run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxprune" / "latency"


def obtained(
    cutter: Cutter,
    needed: Sequence[Micro],
    provider: str,
    threads: int,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
) -> LatencyTable:
    """The table of what is needed (the whole model first), from the cache or measured now and put there.

    Args:
        fresh: measure even if there is a table.
    """
    shape, version = dict(cutter.costs.bindings), _version()
    key = [timing_script.machine(), version, provider, threads, sorted(shape.items()), needed[0].signature]
    file = cache_folder() / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    known = None if fresh else _cached(file)
    if known is not None and all(m.signature in known.by_signature for m in needed):
        logger.info("latency table: %s", file)
        return known
    entries = measured(needed, provider, threads, progress)
    table = LatencyTable(provider, threads, shape, timing_script.machine(), version, entries)
    table = table if known is None else table.merged(known)
    _keep(table, file)
    return table


def measured(
    needed: Sequence[Micro], provider: str, threads: int, progress: Progress | None = None
) -> tuple[Entry, ...]:
    """Time micro-models on a provider of this machine.

    Raises:
        UsageError, CheckError: the provider is not there, or takes nothing of the model.
    """
    with outputs.scratch() as scratch:
        told = [entry(micro, write(micro, scratch)) for micro in needed]

        def opened(one: Mapping[str, Any]) -> Run:
            fixed = one["fixed"] if provider in FIXED_SHAPES else {}
            session = runtime.session(one["file"], (provider,), threads=threads, dims=fixed)
            if one["kind"] == WHOLE:
                runtime.placed(session)
            feeds = timing_script.drawn(one["ports"])
            return partial(patience.run, session, None, feeds)

        rows = timing_script.timed(told, opened, timing_script.clock(provider, threads), progress=progress)
    kept = ("signature", "kind", "units", "of", "ms", "error")
    return tuple(Entry(**{k: row[k] for k in kept}) for row in rows)


def write(micro: Micro, folder: Path) -> Path:
    """A micro-model as a file; the whole model is one already."""
    if micro.model is None:
        assert micro.file is not None
        return micro.file
    return models.save(micro.model, folder / f"{micro.kind}_{micro.units}_{micro.signature[:8]}.onnx")[0]


def entry(micro: Micro, file: Path) -> dict[str, Any]:
    """What `measure.timed` is told of a model."""
    ports = [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape), "low": p.low, "high": p.high}
             for p in micro.ports]  # fmt: skip
    return {
        "file": str(file), "bytes": model_files.size(file), "signature": micro.signature, "kind": micro.kind,
        "units": micro.units, "of": micro.of, "ports": ports, "fixed": dict(micro.fixed),
    }  # fmt: skip


def chosen(file: Path, provider: str, bindings: Mapping[str, int]) -> LatencyTable:
    """The table of a file for a shape: the only provider's, or `provider`'s where there are several.

    Raises:
        DataError: the file holds none for the shape, or several and none for the provider.
    """
    tables = load(file)
    fitting = [t for t in tables if dict(t.shape) == dict(bindings)]
    if not fitting:
        there = "; ".join(dict.fromkeys(_said(t.shape) for t in tables))
        raise DataError(f"{file}: no latency table at {_said(bindings)}; it has {there}: choose one with --shape")
    if len(fitting) > 1:
        named = [t for t in fitting if t.provider == provider]
        if len(named) != 1:
            there = ", ".join(f"{short_name(t.provider)} ({t.threads} threads)" for t in fitting)
            raise DataError(f"{file}: holds several tables for one shape ({there}); name the provider with --ep")
        fitting = named
    return fitting[0]


def widths_in(table: LatencyTable, site: Site) -> list[int]:
    """The numbers of units at which a table may know a site's module, none and all among them."""
    group = site.group
    known = {e.units for e in table.entries if e.kind == group.kind and e.of == group.size}
    known |= {0} if any(e.kind == IDLE for e in table.entries) else set()
    return sorted(known | {group.size})


def _said(shape: Mapping[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in sorted(shape.items())) or "fixed shapes"


def _cached(file: Path) -> LatencyTable | None:
    try:
        return load(file)[0]
    except (DataError, IndexError):
        return None


def _keep(table: LatencyTable, file: Path) -> None:
    """Into the cache; a folder that cannot be written costs the next run its time, not this one its result."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        save([table], part)
        part.replace(file)
    except OSError as error:
        logger.warning("the latency table is not cached: %s", error)


def _version() -> str:
    import onnxruntime as ort

    return f"onnxruntime {ort.__version__}"
