"""The report as data: frozen, versioned, to JSON and back without loss."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.errors import DataError
from onnxprune.export.precision import Step
from onnxprune.measure.equivalence import Equivalence
from onnxprune.measure.latency import LatencyRow
from onnxprune.measure.tables.landing import Landing
from onnxprune.measure.validation import Accuracy, Drift

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning or goes; new fields with defaults do not raise it."""


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
        layer: position among the groups of its kind.
        total, kept: counts.
        index: which ones are kept, sorted; None where that is not told.
    """

    id: str
    kind: str
    layer: int
    total: int
    kept: int
    index: tuple[int, ...] | None = None


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
        latency: dense against pruned, interleaved; empty if it was not measured.
        landing: how a latency budget was met; None for other budgets.
        sparsity: zeros inside matrices, if any.
        steps: pruning alone, fewer bits alone, both together; empty without --quantize.
        warnings: what the user must know.
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
    latency: tuple[LatencyRow, ...] = ()
    landing: Landing | None = None
    sparsity: Sparsity | None = None
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    schema_version: int = SCHEMA_VERSION

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
        if version != SCHEMA_VERSION:
            raise DataError(f"this is no report of schema version {SCHEMA_VERSION} (schema_version is {version!r})")
        report = _read(cls, data, "report")
        assert isinstance(report, cls)
        return report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read a JSON file.

        Raises:
            DataError: it cannot be read, or is no report.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{os.fspath(path)}: not a readable report ({error})") from error
        if not isinstance(data, dict):
            raise DataError(f"{os.fspath(path)}: not a report (a {type(data).__name__})")
        return cls.from_json(data)


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
    """ "0-2,5" -> (0, 1, 2, 5)."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


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


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; `where` names the field in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_fields(kind, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(value):
            return tuple(_read(k, held, f"{where}[{i}]") for i, (k, held) in enumerate(zip(kinds, value, strict=True)))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _read(arguments[1], held, f"{where}.{key}") for key, held in value.items()}
    if kind is float and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        return math.nan if value is None else float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise DataError(f"{where}: {str(value)[:60]!r} is not what belongs there ({kind})")


def _read_fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {str(value)[:60]!r} is not an object")
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for held in dataclasses.fields(kind):
        required = held.default is dataclasses.MISSING and held.default_factory is dataclasses.MISSING
        if held.name in value:
            raw = value[held.name]
            if kind is Units and held.name == "index" and isinstance(raw, str):
                raw = unranges(raw)
            given[held.name] = _read(hints[held.name], raw, f"{where}.{held.name}")
        elif required:
            raise DataError(f"{where}.{held.name} is missing")
    return kind(**given)
