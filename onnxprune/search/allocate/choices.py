"""What a search chooses between: modules at levels, each with a cost and a damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy.typing as npt

Allocation = Mapping[str, int]
"""Module id -> index of its chosen level."""

Evaluate = Callable[[Allocation], npt.ArrayLike]
"""The measured divergence of a whole allocation, of every row or as one number; smaller is better."""


@dataclass(frozen=True)
class Level:
    """One state a module can be put in.

    Attributes:
        kept: units left; 0 is the module dropped.
        cost: in the budget's unit, whatever that is.
        damage: divergence with only this module at this level; infinite if the level is not allowed.
    """

    kept: int
    cost: float
    damage: float


@dataclass(frozen=True)
class Module:
    """A head group, a feed-forward layer, a block: something with levels, in any order."""

    id: str
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError(f"module {self.id} has no level to be at")


def cost_of(modules: Iterable[Module], allocation: Allocation) -> float:
    """The cost of an allocation: the sum over modules, rounded once, so that the order plays no part."""
    return math.fsum(module.levels[allocation[module.id]].cost for module in modules)


def damage_of(modules: Iterable[Module], allocation: Allocation) -> float:
    """The damage of an allocation as if damages added up, which they only nearly do."""
    return math.fsum(module.levels[allocation[module.id]].damage for module in modules)


def merged(name: str, members: Sequence[Module]) -> Module:
    """Modules that must be at the same level, as one."""
    rows = zip(*(m.levels for m in members), strict=True)
    return Module(name, tuple(Level(r[0].kept, sum(x.cost for x in r), sum(x.damage for x in r)) for r in rows))


def alike(modules: Sequence[Module], kinds: Mapping[str, str]) -> dict[str, list[Module]]:
    """Modules that a uniform plan cuts alike: those of one kind (by module id) with as many levels, under one name."""
    found: dict[str, list[Module]] = {}
    for module in modules:
        found.setdefault(f"{kinds[module.id]}:{len(module.levels)}", []).append(module)
    return found
