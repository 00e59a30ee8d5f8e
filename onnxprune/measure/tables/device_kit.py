"""A folder to measure with elsewhere: the model, its micro-models, and the script that times them into a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.errors import NothingToPruneError
from onnxprune.graph import model_files
from onnxprune.graph.model import Model
from onnxprune.graph.outputs import manifest
from onnxprune.graph.structure.sites import Site, find_sites, levels
from onnxprune.measure.cost import Costs
from onnxprune.measure.tables import timing_script
from onnxprune.measure.tables.costs import LatencyCosts
from onnxprune.measure.tables.fast_widths import measured, step
from onnxprune.measure.tables.micro_models import Cutter, Micro
from onnxprune.measure.tables.source import entry, write
from onnxprune.measure.tables.table import LatencyTable

MODEL = "model.onnx"

_README = """# Measure elsewhere

What the model's modules take on the machine that will run it, at each width:

    pip install onnxruntime numpy
    python measure.py                       # --ep CUDAExecutionProvider --threads 4 …

writes `table.json`. Back at the model, the search goes by it:

    onnxprune MODEL --latency 0.5 --latency-table table.json {shape}--calib …

Leave the machine alone while it measures.
"""


def export(costs: Sequence[LatencyCosts], folder: Path) -> Path:
    """Fill an empty folder: `model.onnx`, `micro/`, `setup.json`, `measure.py`, a README, and what lists them.

    Several graphs keep their names.

    Args:
        costs: one per shape.
    """
    micro = folder / "micro"
    micro.mkdir(parents=True)
    dense = costs[0].model
    assert dense.path is not None
    for source, file in _named(dense).items():
        shutil.copy(source, folder / file)
        for name in model_files.locations(source):  # weights beside a file are found by the name that stands in it
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.parent / name, folder / name)
    shapes = [{"shape": dict(c.bindings), "entries": [_entry(m, micro, c) for m in c.needed()]} for c in costs]
    (folder / "setup.json").write_text(
        json.dumps({"format": timing_script.FORMAT, "shapes": shapes}, indent=1) + "\n", encoding="utf-8"
    )
    shutil.copy(timing_script.__file__, folder / "measure.py")
    named = ",".join(f"{k}={v}" for k, v in costs[0].bindings.items())
    (folder / "README.md").write_text(_README.format(shape=f"--shape {named} " if named else ""), encoding="utf-8")
    manifest.write(folder)
    return folder


def _named(dense: Model) -> dict[Path, str]:
    """What the model's files are called there; several keep their names."""
    assert dense.path is not None
    return {part.file: part.file.name for part in dense.parts} or {dense.path: MODEL}


def _entry(micro: Micro, folder: Path, costs: LatencyCosts) -> dict[str, Any]:
    if micro.file is not None:
        micro = replace(micro, file=folder.parent / _named(costs.model)[micro.file])
    made = entry(micro, write(micro, folder))
    return {**made, "file": Path(made["file"]).relative_to(folder.parent).as_posix()}


def costs_of(
    counted: Costs,
    units: Sequence[str],
    provider: str,
    *,
    every: bool = False,
    obtain: Callable[[Cutter, Sequence[Micro]], LatencyTable] | None = None,
) -> LatencyCosts:
    """Costs by a table of all that may be cut.

    Args:
        counted: of the model at one shape.
        units: kinds that may be cut.
        provider: whose fast widths are measured.
        every: at every such width, instead of about a dozen, closer together where little is left.
        obtain: gives the table; None where it is measured elsewhere.

    Raises:
        NothingToPruneError: no unit of these kinds is free.
    """
    model, structure = counted.model, counted.structure
    sites = find_sites(model.graph, structure, units)
    if not sites:
        raise NothingToPruneError(f"no {', '.join(units)} are free to be cut: there is nothing to measure")

    def widths(site: Site) -> list[int]:
        return measured(site, provider, None) if every else sorted({0, *levels(site, step(site, provider, None))})

    return LatencyCosts(model, structure, counted.bindings, sites, widths, obtain or _elsewhere)


def _elsewhere(cutter: Cutter, needed: Sequence[Micro]) -> LatencyTable:
    raise AssertionError("this table is measured elsewhere")


def told(micro: Micro) -> Mapping[str, Any]:
    """What a table's entry says of a micro-model before it is timed."""
    return {"signature": micro.signature, "kind": micro.kind, "units": micro.units, "of": micro.of}
