"""Latency tables: what each micro-model takes on one provider at one shape; to and from files, and as curves.

One format for all of them: measured here, by `measure.py` on another machine, or imported from a phone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.documents import built, read_object
from onnxprune.errors import DataError
from onnxprune.measure.tables.micro_models import WHOLE
from onnxprune.measure.tables.timing_script import FORMAT

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """One micro-model.

    Attributes:
        signature: of its graph (`micro.Micro`).
        kind, units, of: of its units.
        ms: time, milliseconds (`measure.summary`); calling it is part of that.
        error: standard error of it.
    """

    signature: str
    kind: str
    units: int
    of: int
    ms: float
    error: float


@dataclass(frozen=True)
class LatencyTable:
    """What micro-models take.

    Attributes:
        provider: full name.
        threads: threads inside one operator.
        shape: sizes of the graph's symbolic dimensions.
        machine, runtime: where it was measured.
        entries: the whole model, and every module at every width.
    """

    provider: str
    threads: int
    shape: Mapping[str, int]
    machine: str
    runtime: str
    entries: tuple[Entry, ...]

    @cached_property
    def by_signature(self) -> dict[str, Entry]:
        return {entry.signature: entry for entry in self.entries}

    @property
    def whole(self) -> Entry | None:
        """The dense model."""
        return next((e for e in self.entries if e.kind == WHOLE), None)

    def merged(self, other: LatencyTable) -> LatencyTable:
        """This table with what only the other one knows, in this one's time (the whole model sets the scale)."""
        mine, theirs = self.whole, other.whole
        if mine is None or theirs is None or mine.signature != theirs.signature:
            return self
        scale = mine.ms / theirs.ms
        new = [e for e in other.entries if e.signature not in self.by_signature]
        scaled = [Entry(e.signature, e.kind, e.units, e.of, e.ms * scale, e.error * scale) for e in new]
        return LatencyTable(self.provider, self.threads, self.shape, self.machine, self.runtime,
                            (*self.entries, *scaled))  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": dict(self.shape), "entries": [asdict(e) for e in self.entries]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyTable:
        """The table that `to_json` wrote.

        Raises:
            DataError: a field is missing or of another kind, or there are no times.
        """
        table: LatencyTable = built(cls, data, "table", DataError)
        if not table.entries or not all(math.isfinite(e.ms) and e.ms >= 0 for e in table.entries):
            raise DataError("no entries, or times that are no times")
        if not 1 <= table.threads <= MOST_THREADS:
            raise DataError(f"threads: {table.threads}, where 1 to {MOST_THREADS} are possible")
        if not all(0 <= count < 2**31 for e in table.entries for count in (e.units, e.of)):
            raise DataError("numbers of units that no module has")
        if not all(0 < size < 2**31 for size in table.shape.values()):
            raise DataError("a shape whose sizes are none")
        return table


def save(tables: Sequence[LatencyTable], path: str | os.PathLike[str]) -> None:
    """Write tables to one file."""
    told = {"format": FORMAT, "tables": [t.to_json() for t in tables]}
    Path(path).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def load(path: str | os.PathLike[str]) -> list[LatencyTable]:
    """Read the tables of a file.

    Raises:
        DataError: it cannot be read, or holds no tables of this format.
    """
    told = read_object(path, _WHAT, DataError)
    version = told.get("format")
    if type(version) is not int or not isinstance(told.get("tables"), list):
        raise DataError(f"{os.fspath(path)}: not {_WHAT}")
    if version != FORMAT:
        raise DataError(f"{os.fspath(path)}: latency tables of format {version}; {FORMAT} is known here")
    try:
        return [LatencyTable.from_json(t) for t in told["tables"]]
    except DataError as error:
        raise DataError(f"{os.fspath(path)}: not {_WHAT}: {error}") from error


_WHAT = (
    "a latency table (`onnxprune profile` makes one, and `onnxprune bench --import RESULT --table TABLE` makes one "
    "from what a phone measured)"
)


MOST_THREADS = 1024
"""Inside an operator; a runtime takes what it is told, and dies of too many."""


class Curve:
    """A module's milliseconds over the units it keeps, beyond what calling it takes; never falling with more units.

    A width that takes longer than a wider one costs what that one does (an implementation is free to compute the
    wider one), so that measured noise and slow widths cannot lure a search.

    Args:
        points: units -> milliseconds; 0 is the module gone.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        idle = points.get(0, 0.0)
        self.units = np.array(sorted(points))
        above = np.maximum([points[u] - idle for u in self.units.tolist()], 0.0)
        self.ms: Array = np.minimum.accumulate(above[::-1])[::-1]

    def at(self, units: npt.ArrayLike) -> Array:
        """Milliseconds at numbers of units; between those that were measured, on a straight line."""
        return np.asarray(np.interp(np.asarray(units, dtype=np.float64), self.units, self.ms), dtype=np.float64)

    def offered(self, counts: Iterable[int]) -> npt.NDArray[np.bool_]:
        """Which of some ascending numbers of units are worth choosing: those that take less than every larger one."""
        ms = self.at(list(counts))
        wider = np.append(np.minimum.accumulate(ms[::-1])[::-1][1:], np.inf)
        return np.asarray(ms < wider)
