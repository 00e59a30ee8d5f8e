"""What a search chooses between: modules at levels, each with a cost and a damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Allocation = Mapping[str, int]
"""Module id -> index of its chosen level."""

Evaluate = Callable[[Allocation], npt.ArrayLike]
"""The measured divergence of a whole allocation, of every row or as one number; smaller is better."""


class Prices(Protocol):
    """What allocations cost where costs are more than the sum of the levels' own.

    A convolution's cost is the product of two widths, and each is another module's.
    """

    def total(self, allocation: Allocation) -> float:
        """The whole cost of an allocation, exactly."""

    def levels(self, module: str, allocation: Allocation) -> npt.NDArray[np.float64]:
        """The whole cost at each level of one module, all others as they are in `allocation`: [levels]."""


@dataclass(frozen=True)
class Level:
    """One state a module can be put in.

    Attributes:
        kept: units left; 0 is the module dropped.
        cost: in the budget's unit, whatever that is, above the cheapest level; where costs do not add up, as long as
            all other modules are whole.
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


class Additive:
    """`Prices` of modules whose costs add up."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = {m.id: m for m in modules}
        self.costs = {m.id: np.array([level.cost for level in m.levels]) for m in modules}
        self._last: tuple[dict[str, int], float] = ({}, 0.0)

    def total(self, allocation: Allocation) -> float:
        if self._last[0] != allocation:
            self._last = dict(allocation), cost_of(self.modules.values(), allocation)
        return self._last[1]

    def levels(self, module: str, allocation: Allocation) -> npt.NDArray[np.float64]:
        return np.asarray(self.total(allocation) - self.costs[module][allocation[module]] + self.costs[module])


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
