"""The data that flows through the pipeline: what can be cut (Structure), in which order (Ranking), what is (Plan).

All frozen, all to and from files. A plan names units of one model (its digest); applying it needs no data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cached_property, lru_cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.documents import built, read_object
from onnxprune.errors import InputError, UsageError
from onnxprune.graph.axes import Layout, Mask, in_whole_terms
from onnxprune.graph.plan_file import Written, tensors_beside, tensors_of, write_tensors

SCHEMA = 1
"""Version of plan.json."""


@dataclass(frozen=True)
class Reader:
    """A use where units disappear: input `input` of `node`, contracted along `axis` (counted from the front).

    `weight` is the initializer it is contracted with, along `weight_axis`; None where both operands are activations.
    """

    node: str
    input: int
    axis: int
    weight: str | None = None
    weight_axis: int = 0


@dataclass(frozen=True)
class Group:
    """Units that can be cut one by one: the heads of a layer, the neurons of an FFN, the channels of a stage.

    Attributes:
        id: kind and layer ("heads.3").
        kind: heads, neurons, channels, query_heads, head_dims, …
        layer: position among the groups of its kind, in graph order.
        atom: the atom whose indices are the units.
        shape: (*sizes of the context atoms, size); a unit is a flat index into it.
        context: outer atoms that choose their own units (a head its own dimensions).
        readers: where the units are gated.
        branch: the residual branch they live in, if any.
        name: a node of the graph, for people to find it.
    """

    id: str
    kind: str
    layer: int
    atom: int
    shape: tuple[int, ...]
    context: tuple[int, ...]
    readers: tuple[Reader, ...]
    branch: str | None = None
    name: str = ""

    @property
    def size(self) -> int:
        """Units in the group."""
        return prod(self.shape)


@dataclass(frozen=True)
class Branch:
    """A residual branch `y = x + f(x)`, which can be left out as a whole.

    Attributes:
        add: the node that adds it, `operand` the input it arrives at, `value` its name; `skip` is x.
        nodes: every node of f.
        reader: the last contraction of f, gated to stand for the whole branch; None: the addition itself.
    """

    id: str
    kind: str
    layer: int
    add: str
    operand: int
    value: str
    skip: str
    nodes: tuple[str, ...]
    reader: Reader | None
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Pin:
    """Why dimensions of `size` may not be cut; `where` is one value that has them."""

    size: int
    reasons: tuple[str, ...]
    where: str
    count: int


@dataclass(frozen=True)
class Structure:
    """What the analysis found. `layouts` holds every value's dimensions in atoms, `sizes` the atoms' sizes.

    Attributes:
        twins: of several graphs: residual branch -> the same one in graphs that have its weights too.
        mirrors: the same of values that products give.
    """

    digest: str
    sizes: tuple[int, ...]
    layouts: Mapping[str, tuple[Layout, ...]]
    groups: tuple[Group, ...]
    branches: tuple[Branch, ...]
    pins: tuple[Pin, ...]
    batch: int | None = None
    twins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        units = ", ".join(f"{group.id}[{group.size}]" for group in self.groups[:4])
        more = ", …" if len(self.groups) > 4 else ""
        return f"<onnxprune.Structure: {len(self.groups)} groups ({units}{more}), {len(self.branches)} branches>"

    def with_twins(self, names: Iterable[str]) -> tuple[str, ...]:
        """Branches, each with the same ones in other graphs."""
        return tuple(dict.fromkeys(n for name in names for n in (name, *self.twins.get(name, ()))))

    @cached_property
    def _by_id(self) -> dict[str, Group | Branch]:
        groups: dict[str, Group | Branch] = {g.id: g for g in self.groups}
        return groups | {b.id: b for b in self.branches}

    def group(self, name: str) -> Group:
        found = self._by_id.get(name)
        if not isinstance(found, Group):
            raise UsageError(f"{name}: the model has no such group of units")
        return found

    def branch(self, name: str) -> Branch:
        found = self._by_id.get(name)
        if not isinstance(found, Branch):
            raise UsageError(f"{name}: the model has no such residual branch")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Structure:
        return cls(
            digest=data["digest"],
            sizes=tuple(data["sizes"]),
            layouts={k: tuple(map(_tuples, v)) for k, v in data["layouts"].items()},
            groups=tuple(
                Group(**{**_tupled(g), "readers": tuple(Reader(**r) for r in g["readers"])}) for g in data["groups"]
            ),
            branches=tuple(
                Branch(**{**_tupled(b), "reader": Reader(**b["reader"]) if b["reader"] else None})
                for b in data["branches"]
            ),
            pins=tuple(Pin(**_tupled(p)) for p in data["pins"]),
            batch=data.get("batch"),
            twins=_tupled(data.get("twins", {})),
            mirrors=_tupled(data.get("mirrors", {})),
        )


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _tupled(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _tuples(v) for k, v in data.items()}


@dataclass(frozen=True)
class Ranking:
    """The units of one group, from the one to keep longest to the first to go; `scores` by unit, higher is dearer."""

    group: str
    order: tuple[int, ...]
    scores: tuple[float, ...] = ()

    def keep(self, count: int) -> tuple[int, ...]:
        """The `count` best units, in index order."""
        return tuple(sorted(self.order[:count]))


@dataclass(frozen=True)
class Tile:
    """Outputs of a matrix that share one range of inputs: all its other inputs have zeros there.

    Positions are those of the matrix as it is written (cut, and in the plan's order), [first, last) of its outputs and
    [start, stop) of its inputs.
    """

    first: int
    last: int
    start: int
    stop: int

    @property
    def area(self) -> int:
        """Weights that are left."""
        return (self.last - self.first) * (self.stop - self.start)


@lru_cache(maxsize=1 << 12)
def _mask(name: str, kind: str, shape: tuple[int, ...], context: tuple[int, ...], units: tuple[int, ...]) -> Mask:
    """The units of a group that stay; searches ask for the same ones time and again."""
    size = prod(shape)
    if not units or min(units) < 0 or max(units) >= size:
        raise UsageError(f"{name}: keeps {len(units)} units of {size}; at least one must stay, none out of range")
    if len(set(units)) < len(units):
        raise UsageError(f"{name}: a unit is named twice; every one is kept or not")
    kept = np.zeros(size, dtype=bool)
    kept[list(units)] = True
    kept = kept.reshape(shape)
    counts = np.unique(kept.sum(axis=-1))
    if len(counts[counts > 0]) > 1:
        raise UsageError(f"{name}: every {kind} choice must keep the same number; found {counts.tolist()}")
    kept.flags.writeable = False
    return Mask(kept, context)


@dataclass(frozen=True)
class Plan:
    """What stays and what goes.

    Attributes:
        digest: of the model it was made for.
        keep: group id -> units that stay (sorted flat indices); a group that is not named stays whole.
        drop: residual branches that go.
        weights: initializer name -> refit weight, in the original shape.
        intercepts: value name -> vector to add to it along its last axis.
        rests: branch id -> vector that takes the place of a dropped branch (its mean, from compensation).
        maps: branch id -> [1 + d, d], a linear map of the stream x that stands in for a dropped branch, besides its
            rest: the first row is a constant, the others are what x is multiplied with.
        sparsity: initializer name -> pattern of the zeros that its weight has once it is cut ("2:4").
        notes: anything worth keeping with it (budget, options); not read back by the tool.
        order: value name -> the kept indices of its last axis in the order in which they are written, wherever that
            dimension is shown; ascending where no value of it is named.
        tiles: initializer name -> its tiles, side by side: its product is written as one smaller product for each.
        files: of several graphs, file name -> digest; `digest` is of all. Names in the plan begin with their file's.
    """

    digest: str
    keep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    intercepts: Mapping[str, np.ndarray] = field(default_factory=dict)
    rests: Mapping[str, np.ndarray] = field(default_factory=dict)
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    sparsity: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    order: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tiles: Mapping[str, tuple[Tile, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        units = sum(map(len, self.keep.values()))
        return f"<Plan: {units} units kept of {len(self.keep)} groups, {len(self.drop)} branches dropped>"

    def masks(self, structure: Structure) -> dict[int, Mask]:
        """atom -> Mask, for `axes.flat_mask`.

        Raises:
            UsageError: an unknown group, a unit out of range, or an uneven choice that no tensor can hold.
        """
        masks: dict[int, Mask] = {}
        for name, units in self.keep.items():
            group = structure.group(name)
            masks[group.atom] = _mask(name, group.kind, group.shape, group.context, tuple(units))
        return masks

    def everywhere(self, structure: Structure) -> Plan:
        """The plan with what it says of one graph said of the others that have the same weights, too."""
        drop = structure.with_twins(self.drop)
        if drop == self.drop and not structure.mirrors:
            return self
        origin = {twin: name for name in self.drop for twin in structure.twins.get(name, ())}
        return replace(
            self,
            drop=drop,
            rests={**self.rests, **{t: self.rests[n] for t, n in origin.items() if n in self.rests}},
            maps={**self.maps, **{t: self.maps[n] for t, n in origin.items() if n in self.maps}},
            intercepts={n: v for k, v in self.intercepts.items() for n in (k, *structure.mirrors.get(k, ()))},
        )

    def led(self, structure: Structure) -> Plan:
        """What the plan says of the graphs that no other leads: what `everywhere` added is left out."""
        copies = {name for twins in structure.twins.values() for name in twins}
        mirrored = {name for others in structure.mirrors.values() for name in others}
        if not copies and not mirrored:
            return self
        return replace(
            self,
            drop=tuple(name for name in self.drop if name not in copies),
            rests={name: rest for name, rest in self.rests.items() if name not in copies},
            maps={name: held for name, held in self.maps.items() if name not in copies},
            intercepts={name: held for name, held in self.intercepts.items() if name not in mirrored},
        )

    def orders(self, structure: Structure) -> dict[int, tuple[int, ...]]:
        """atom -> its kept indices in the order in which they are written, for `axes.flat_order`.

        Raises:
            UsageError: an unknown value, a dimension that has no order of its own, or not exactly the units kept.
        """
        masks, found = self.masks(structure), {}
        for name, order in self.order.items():
            layout = structure.layouts.get(name, ((),))[-1]
            atom = layout[0][0] if len(layout) == 1 and len(layout[0]) == 1 else None
            if not isinstance(atom, int) or not all(
                in_whole_terms(x, atom) for layouts in structure.layouts.values() for x in layouts
            ):
                raise UsageError(f"{name}: the last axis of this value is not one whose units can be put in order")
            kept = np.flatnonzero(masks[atom].kept) if atom in masks else np.arange(structure.sizes[atom])
            if not np.array_equal(np.sort(order), kept):
                raise UsageError(f"{name}: its order names {len(order)} units, not each of the {len(kept)} kept once")
            found[atom] = order
        return found

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write `plan.json`, and `plan.safetensors` beside it where there are refit weights. Returns the files."""
        path = Path(path)
        tensors = {"weight": self.weights, "intercept": self.intercepts, "rest": self.rests, "map": self.maps}
        told = self.to_json() | {"tensors_sha256": write_tensors(path, tensors)}
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return [path, tensors_beside(path)] if told["tensors"] else [path]

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors (of maps, the branches' names); `tensors` says how many there are beside it."""
        return {
            "schema_version": SCHEMA,
            "digest": self.digest,
            "keep": {k: list(v) for k, v in self.keep.items()},
            "drop": list(self.drop),
            "maps": list(self.maps),
            "sparsity": dict(self.sparsity),
            "order": {k: list(v) for k, v in self.order.items()},
            "tiles": {k: [list(astuple(tile)) for tile in v] for k, v in self.tiles.items()},
            "tensors": len(self.weights) + len(self.intercepts) + len(self.rests) + len(self.maps),
            "notes": dict(self.notes),
            **({"files": dict(self.files)} if self.files else {}),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan and its tensors.

        Raises:
            InputError: not a plan, or its tensors are missing or another plan's.
        """
        path = Path(path)
        data = read_object(path, "a plan")
        version = data.get("schema_version")
        if type(version) is not int or version < 1:
            raise InputError(f"{path}: not a plan: schema_version is {version!r:.40}")
        if version > SCHEMA:
            raise InputError(f"{path}: written by a newer version (schema {version}); update onnxprune")
        held: Written = built(Written, data, f"{path}: not a plan: plan")
        kinds = tensors_of(path, held)
        return cls(
            held.digest,
            held.keep,
            held.drop,
            kinds["weight"],
            kinds["intercept"],
            kinds["rest"],
            kinds["map"],
            held.sparsity,
            held.notes,
            held.order,
            {k: tuple(Tile(*tile) for tile in v) for k, v in held.tiles.items()},
            held.files,
        )


_UNITS = {"GMAC": ("flops", 1e9), "MMAC": ("flops", 1e6), "GFLOP": ("flops", 0.5e9), "MFLOP": ("flops", 0.5e6),
          "M": ("params", 1e6), "K": ("params", 1e3), "B": ("params", 1e9),
          "KB": ("size", 1e3), "MB": ("size", 1e6), "GB": ("size", 1e9), "MS": ("latency", 1.0)}  # fmt: skip
_SPELT = {
    "flops": ("GMAC", "MMAC", "GFLOP", "MFLOP"), "params": ("M", "K", "B"), "size": ("MB", "KB", "GB"),
    "latency": ("ms",),
}  # fmt: skip
"""The units of each kind of budget, as they are written."""


@dataclass(frozen=True)
class Budget:
    """What the result may cost: `kind` is flops, params, size or latency.

    Attributes:
        value: a fraction of the original (relative), or MACs, parameters, bytes, milliseconds.
    """

    kind: str
    value: float
    relative: bool = True

    @classmethod
    def parse(cls, kind: str, text: str | float) -> Budget:
        """Read "0.6", "60%", "6GMAC", "12GFLOP", "30M", "25MB" or "8ms".

        Raises:
            UsageError: not a number, out of range, or a unit of another kind of budget.
        """
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?\d+)?)\s*(%|[A-Za-z]*)\s*", str(text))
        if not found:
            raise UsageError(
                f"--{kind} {text}: not a budget; "
                "give the fraction to keep (0.6 or 60%) or an amount (6GMAC, 30M, 25MB, 8ms)"
            )
        number, unit = float(found[1]), found[2]
        if unit in ("", "%"):
            value = number / 100 if unit else number
            if not 0 < value < 1:
                shown = f"; {number:g}% is {number / 100:g}" if not unit and 1 < number < 100 else ""
                amount = f"; an amount has its unit: {number:g}{_SPELT[kind][0]}" if not unit and number > 1 else ""
                raise UsageError(f"--{kind} {text}: the fraction to keep lies between 0 and 1{shown}{amount}")
            return cls(kind, value)
        known = _UNITS.get(unit.upper().removesuffix("S") if unit.upper() not in ("MS",) else "MS")
        if known is None or known[0] != kind:
            units = ", ".join(_SPELT[kind])
            other = f": --{known[0]} {text} asks for that" if known is not None else ""
            raise UsageError(f"--{kind} {text}: {unit} is not a unit of {kind} ({units}){other}")
        if number <= 0:
            raise UsageError(f"--{kind} {text}: nothing would be left")
        if not isfinite(number * known[1]):
            raise UsageError(f"--{kind} {text}: no model costs as much")
        return cls(kind, number * known[1], relative=False)

    def limit(self, dense: float) -> float:
        """The most the result may cost, in the unit of `dense`, the original's cost."""
        return self.value * dense if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.value:.0%} of {self.kind}" if self.relative else f"{self.value:g} {self.kind}"


def selected(groups: Iterable[Group], kinds: Sequence[str]) -> Iterator[Group]:
    """The groups of the wanted kinds."""
    return (g for g in groups if g.kind in kinds)
