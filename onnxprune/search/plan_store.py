"""Finished plans outside of memory: in files of this run, and in a store, from which an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError
from onnxprune.graph import outputs
from onnxprune.graph.plan import Budget, Plan
from onnxprune.graph.plan_file import tensors_beside
from onnxprune.search.planner import Planner
from onnxprune.search.store import Store

logger = logging.getLogger(__name__)

HOW = ("threads", "max_memory", "device")
"""Options about how a plan is made, not about what it is."""
_FILE = "plan.json"


@dataclass(frozen=True)
class Filed:
    """A plan in a file, which must last as long as the plan is asked for.

    Attributes:
        notes: the plan's, as they were: a file has lists for tuples.
    """

    file: Path
    notes: Mapping[str, Any]

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> Filed:
        """A plan put away in a folder that nothing else is put into."""
        file = folder / _FILE
        plan.save(file)
        return cls(file, plan.notes)

    def read(self) -> Plan:
        """The plan."""
        return replace(Plan.load(self.file), notes=self.notes)


def name_of(planner: Planner, budget: Budget) -> str | None:
    """Where a plan lies: the digest of all that it depends on; None for one that is not kept.

    Plans that were chosen by what this machine took for them are not.
    """
    if planner.scores.store is None or budget.kind == "latency":
        return None
    asked = {k: v for k, v in planner.options.to_json().items() if k not in HOW}
    told = [planner.scores.key, asked, planner.method, dict(planner.costs.bindings), budget.kind, budget.value]
    text = json.dumps([*told, budget.relative], sort_keys=True, default=str)
    return f"plans/{hashlib.sha256(text.encode()).hexdigest()}"


def kept(planner: Planner, budget: Budget) -> Plan | None:
    """The plan, if an earlier run made it and all of it is there."""
    store, name = planner.scores.store, name_of(planner, budget)
    if store is None or name is None:
        return None
    held = store.below(name)
    if _FILE not in held:
        return None
    with outputs.scratch() as scratch:
        for part, data in held.items():
            if Path(part).name == part:
                (scratch / part).write_bytes(data)
        try:
            plan = Plan.load(scratch / _FILE)
        except InputError as error:
            logger.info("planned anew: %s", error)
            return None
    return plan if plan.digest == planner.model.digest else None


def keep(planner: Planner, budget: Budget, plan: Plan) -> None:
    """Put a finished plan away, its tensors first."""
    store, name = planner.scores.store, name_of(planner, budget)
    if store is None or name is None:
        return
    with outputs.scratch() as scratch:
        file = scratch / _FILE
        plan.save(file)
        _put(store, name, tensors_beside(file)) and _put(store, name, file)


def _put(store: Store, folder: str, file: Path) -> bool:
    return not file.exists() or store.put(f"{folder}/{file.name}", file.read_bytes())
