"""What was measured on a model, kept in a file: a further budget needs no second scoring, an interrupted run resumes.

It holds the order of the units and the damage table of the model as it was loaded, site by site as they are measured.
They count for one model, one set of rows and one set of options, whose digest is in the file; anything else in its
place is measured anew and overwritten. In a store (store.py) every row of the table is an object of its own, in a
folder that has the digest's name, so that runs of many models, methods and machines share one.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import numpy as np

from onnxprune.data import Dataset
from onnxprune.documents import built, read_object
from onnxprune.errors import InputError
from onnxprune.graph.outputs import write_cache
from onnxprune.graph.plan import Ranking
from onnxprune.search.damage_table import Row
from onnxprune.search.options import Options
from onnxprune.search.store import Store

logger = logging.getLogger(__name__)

SCHEMA = 2
ELSEWHERE = (
    "budget", "shape", "swaps", "staged", "uniform", "round_to", "device", "threads", "sparsity", "solver", "finetune",
    "tune", "keep_unread", "provider", "latency_threads", "latency_table", "max_memory",
)  # fmt: skip
"""Options that change neither the order of units nor what a level costs in accuracy."""


@dataclass(frozen=True)
class _Order:
    """A group's ranking, as the file has it."""

    order: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class _Damage:
    """A group's damage at some levels, as the file has it; `asked`: those that led to them."""

    asked: tuple[int, ...]
    levels: tuple[int, ...]
    damage: tuple[float, ...]


@dataclass(frozen=True)
class _Kept:
    """The file; `digest` is that of all else in it, so that what is damaged or changed counts for nothing."""

    schema_version: int
    key: str
    rankings: Mapping[str, _Order]
    table: Mapping[str, _Damage]
    digest: str


SELDOM = 20.0
"""How many times as long as it takes to write the file it stays as it is, while rows come."""


@dataclass(eq=False)
class Scores:
    """Orders and damages, in memory and, where there is a path, in a file; where there is a store, in that too.

    Attributes:
        key: what they count for (`key_of`).
        rankings: group id -> order; empty while not measured.
        table: group id -> (levels asked for, what was measured: at these, and between them where it bends).
    """

    path: Path | None
    key: str
    rankings: dict[str, Ranking] = field(default_factory=dict)
    table: dict[str, tuple[list[int], Row]] = field(default_factory=dict)
    store: Store | None = None
    _unsaved: bool = False
    _saved: float = 0.0
    _took: float = 0.0

    @classmethod
    def open(cls, path: Path | None, key: str, store: Store | None = None) -> Scores:
        """What a file and a store hold, if it counts; nothing otherwise."""
        scores = cls(path, key, store=store)
        if path is not None and path.exists():
            try:
                scores._take(read_object(path, "scores"), str(path))
            except InputError as error:
                logger.info("measured anew: %s", error)
        for name, text in store.below(scores._folder).items() if store is not None else ():
            try:
                scores._take(json.loads(text), name)
            except (InputError, ValueError, RecursionError) as error:
                logger.info("measured anew: %s", error)
        return scores

    def _take(self, data: Any, where: str) -> None:
        kept: _Kept = built(_Kept, data, where)
        if kept.schema_version == SCHEMA and kept.key == self.key and kept.digest == _digest(data):
            self.rankings |= {k: Ranking(k, v.order, v.scores) for k, v in kept.rankings.items()}
            self.table |= {
                k: (list(v.asked), Row(v.levels, np.array(v.damage, dtype=np.float64))) for k, v in kept.table.items()
            }
            logger.info("scores from %s", where)

    @property
    def _folder(self) -> str:
        return f"scores/{self.key}"

    def measured(self, grid: Mapping[str, Sequence[int]]) -> dict[str, Row]:
        """The rows of a damage table that these levels led to, as far as they are known."""
        return {k: self.table[k][1] for k, levels in grid.items() if k in self.table and self.table[k][0] == [*levels]}

    def keep_rankings(self, rankings: Mapping[str, Ranking]) -> None:
        self.rankings, self.table = dict(rankings), {}
        self._save("rankings", rankings, {})

    def keep_rows(self, grid: Mapping[str, Sequence[int]], measured: Mapping[str, Row]) -> None:
        """Rows of the table, with the levels that led to them; `save` when the last has come."""
        for name, row in measured.items():
            self.table[name] = (list(grid[name]), row)
            self._save(f"row.{quote(name, safe='')}", {}, {name: self.table[name]})

    def save(self) -> None:
        """Write what is not in the file yet."""
        if not self._unsaved:
            return
        begun, self._unsaved = monotonic(), False
        if self.path is not None and not write_cache(self.path, self._document(self.rankings, self.table), _is_scores):
            self.path = None
        self._saved = monotonic()
        self._took = self._saved - begun

    def _save(self, name: str, rankings: Mapping[str, Ranking], table: Mapping[str, tuple[list[int], Row]]) -> None:
        self._unsaved = True
        if not table or monotonic() - self._saved >= SELDOM * self._took:  # the whole file is written each time
            self.save()
        if self.store is not None:
            self.store.put(f"{self._folder}/{name}.json", self._document(rankings, table).encode())

    def _document(self, rankings: Mapping[str, Ranking], table: Mapping[str, tuple[list[int], Row]]) -> str:
        data = {
            "schema_version": SCHEMA,
            "key": self.key,
            "rankings": {k: {"order": r.order, "scores": r.scores} for k, r in rankings.items()},
            "table": {
                k: {"asked": asked, "levels": list(row.levels), "damage": row.damage.tolist()}
                for k, (asked, row) in table.items()
            },
        }
        data["digest"] = _digest(json.loads(json.dumps(data, default=_plain)))
        return json.dumps(data, default=_plain)


def _is_scores(text: str) -> bool:
    """Whether a text is such a file, of whatever model and version."""
    told = json.loads(text)
    return isinstance(told, dict) and {"schema_version", "key", "rankings", "table"} <= told.keys()


def _digest(data: Mapping[str, Any]) -> str:
    """Of the file's contents, as JSON gives them back."""
    told = {name: held for name, held in data.items() if name != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def key_of(model: str, method: str, options: Options, rows: Dataset | None, version: str) -> str:
    """The digest of all that orders and damages depend on.

    Args:
        model: its digest.
        method: the one that "auto" came to.
    """
    asked = {k: v for k, v in options.to_json().items() if k not in ELSEWHERE}
    told = {**asked, "model": model, "method": method, "data": rows.digest if rows else None, "version": version}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
