"""The report as data: frozen, versioned, to JSON and back without loss."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.documents import built, read_object, utf8
from onnxprune.errors import DataError, one_line
from onnxprune.export.precision import Step
from onnxprune.measure.drift import Drift
from onnxprune.measure.drop_search import DropSearch
from onnxprune.measure.equivalence import Equivalence
from onnxprune.measure.flips import Flips
from onnxprune.measure.latency import LatencyRow
from onnxprune.measure.layer_drift import LayerDrift
from onnxprune.measure.slices import Slice
from onnxprune.measure.tables.landing import Landing
from onnxprune.measure.uncounted import Uncounted
from onnxprune.measure.validation import Accuracy

SCHEMA_VERSION = 2
"""Raised when a field changes its meaning or goes; new fields with defaults do not raise it.

2: intervals of a drop are never of width zero, `warnings` hold what rows cannot tell, `budget` may be `max_drop`.
"""
_READABLE = (1, SCHEMA_VERSION)


@dataclass(frozen=True)
class ModelInfo:
    """The model that was pruned.

    Attributes:
        path: its file.
        sha256: of the file and its external data, in hex.
        opset: of the default operator domain.
        pruned_path: the file that was written.
    """

    path: str
    sha256: str
    opset: int
    pruned_path: str = ""


@dataclass(frozen=True)
class Budget:
    """What was asked for and what came out.

    Attributes:
        kind: `flops`, `params`, `size`, `latency` or `max_drop`.
        target, achieved: in `unit`.
        unit: `kept` for a fraction of the dense model; else `FLOP`, `parameters`, `bytes`, `ms`, `points`, ….
    """

    kind: str
    target: float
    achieved: float
    unit: str = "kept"


@dataclass(frozen=True)
class Change:
    """A quantity before and after."""

    dense: int
    pruned: int

    @property
    def ratio(self) -> float:
        """Share that is kept; 1 of nothing."""
        return self.pruned / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class Flops(Change):
    """Floating-point operations (two per multiply-accumulate) of one forward pass.

    Attributes:
        by_op: the same by operator type.
        shape: the sizes of the symbolic dimensions at which they are counted.
        unread: of `pruned`, which the budget counts, what the written graph does not compute, because nothing reads it.
    """

    by_op: Mapping[str, Change] = field(default_factory=dict)
    shape: Mapping[str, int] = field(default_factory=dict)
    unread: int = 0

    @property
    def computed(self) -> Change:
        """What the written graph computes, against the dense one."""
        return Change(self.dense, self.pruned - self.unread)


@dataclass(frozen=True)
class Units:
    """The units of one group: heads of a layer, neurons of an FFN, or one residual branch (total 1).

    Attributes:
        id: as in the plan.
        kind: heads, neurons, channels, …
        layer: position among the groups of its kind; of dimensions within heads, that of their heads.
        total, kept: counts.
        index: which ones are kept, sorted; None where that is not told.
        name: the node that reads them, or, of a branch, adds it; empty where that is not told.
        branch: of blocks, what the branch is: attention, ffn, …
    """

    id: str
    kind: str
    layer: int
    total: int
    kept: int
    index: tuple[int, ...] | None = None
    name: str = ""
    branch: str = ""


@dataclass(frozen=True)
class Sparsity:
    """Zeros inside matrices, left there or skipped.

    Attributes:
        pattern: `2:4`, `4:8`, ….
        zeros: share of the pruned matrices' weights that are zero.
        accelerated: full names of the providers that run the pattern faster; on all others it brings no speed.
        skipped: floating-point operations with the zeros multiplied and without, where the graph itself leaves them
            out (tiles), on every provider.
    """

    pattern: str
    zeros: float
    accelerated: tuple[str, ...] = ()
    skipped: Change | None = None


@dataclass(frozen=True)
class Report:
    """Everything worth knowing about one pruned model.

    Attributes:
        model, budget, flops: see their types.
        params, size_bytes: before and after.
        units: what was cut, group by group.
        recipe: what repeats the run: options, seed, versions.
        equivalence: the written file against the plan; None if it was not checked.
        accuracy: task metric with its interval; None without evaluation rows.
        further: more metrics.
        drift: outputs against the dense model's.
        flips: the evaluation rows that are answered otherwise; None where rows have no one answer.
        slices: the metric on parts of the rows, by class and by length.
        layers: how far the residual stream moved, block by block.
        latency: dense against pruned, interleaved; empty if it was not measured.
        landing: how a latency budget was met; None for other budgets.
        drop_search: how the evaluation rows chose the size, where the budget is a largest drop.
        sparsity: zeros inside matrices, if any.
        uncounted: what the FLOPs leave out: control flow and unknown operators that run products.
        steps: pruning alone, fewer bits alone, both together; empty without --quantize.
        files: name -> SHA-256 of every file that was written with it.
        warnings: what the user must know; first of all what `broken` says.
        broken: what makes the pruned model useless, whatever it saves.
        seconds: by stage.
        peak_memory_bytes: of the process.
        schema_version: of this format.
    """

    model: ModelInfo
    budget: Budget
    flops: Flops
    params: Change
    size_bytes: Change
    units: tuple[Units, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    equivalence: Equivalence | None = None
    accuracy: Accuracy | None = None
    further: tuple[Accuracy, ...] = ()
    drift: Drift | None = None
    flips: Flips | None = None
    slices: tuple[Slice, ...] = ()
    layers: tuple[LayerDrift, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    landing: Landing | None = None
    drop_search: DropSearch | None = None
    sparsity: Sparsity | None = None
    steps: tuple[Step, ...] = ()
    uncounted: tuple[Uncounted, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    schema_version: int = SCHEMA_VERSION

    def __repr__(self) -> str:
        kept = f"{self.flops.ratio:.1%} of the FLOPs, {self.size_bytes.ratio:.1%} of the bytes"
        return f"<Report of {self.model.path}: {kept}>"

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; numbers that JSON lacks become None."""
        written = _write(self)
        assert isinstance(written, dict)
        return written

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report that `to_json` wrote; keys it does not know are left out.

        Raises:
            DataError: another schema version, or a field that is missing or of the wrong kind (names it).
        """
        version = data.get("schema_version")
        if version not in _READABLE:
            raise DataError(f"this is no report of schema version {SCHEMA_VERSION} (schema_version is {version!r})")
        units = data.get("units")
        if isinstance(units, list):  # their indices are written as ranges
            data = {**data, "units": [_spread(unit) for unit in units]}
        report: Report = built(cls, data, "report", DataError)
        return report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        Path(path).write_text(utf8(text), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read a JSON file.

        Raises:
            DataError: it cannot be read, or is no report.
        """
        try:
            return cls.from_json(read_object(path, "a report", DataError))
        except DataError as error:
            where = os.fspath(path)
            raise error if str(error).startswith(where) else DataError(f"{where}: not a report: {error}") from error


def ranges(index: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) -> "0-2,5": how unit indices are written."""
    parts: list[list[int]] = []
    for i in index:
        if parts and i == parts[-1][1] + 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def unranges(text: str) -> tuple[int, ...]:
    """ "0-2,5" -> (0, 1, 2, 5).

    Raises:
        DataError: it is not of that form, or names more than ten million units.
    """
    found: list[int] = []
    for part in filter(None, text.split(",")):
        bounds = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII)
        if bounds is None:
            raise DataError(f"{one_line(part, 40)!r} is no range of units such as 0-2")
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        if last - first + len(found) > _MOST_UNITS:
            raise DataError(f"{one_line(part, 40)}: more units than any model has")
        found.extend(range(first, last + 1))
    return tuple(found)


_MOST_UNITS = 10_000_000


def _spread(unit: Any) -> Any:
    """One entry of `units` with its index as the list that the ranges stand for."""
    if not isinstance(unit, Mapping) or not isinstance(unit.get("index"), str):
        return unit
    return {**unit, "index": list(unranges(unit["index"]))}


def _write(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        written = {f.name: _write(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Change):
            written["ratio"] = value.ratio
        if isinstance(value, Units) and value.index is not None:
            written["index"] = ranges(value.index)
        return written
    if isinstance(value, Mapping):
        return {str(key): _write(held) for key, held in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_write(held) for held in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _write(value.item())
    if hasattr(value, "tolist"):
        return _write(value.tolist())
    return str(value)
