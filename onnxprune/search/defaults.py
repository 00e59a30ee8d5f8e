"""What options mean for one model and its rows: the method, the device, and why there may be nothing to prune."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.graph.plan import Structure
from onnxprune.graph.quantised import GIVE_FLOATS, ORDERED
from onnxprune.measure.cost import Costs
from onnxprune.probe.engine import has_torch, require_torch
from onnxprune.refit.solvers import patterns
from onnxprune.score import METHODS
from onnxprune.score.mixture import parse
from onnxprune.search.options import Options

UNITS = ("heads", "neurons", "blocks")
"""What goes by default; channels too where a graph is made of them, dimensions of heads where `_ranks`."""


def settled(options: Options, structure: Structure, costs: Callable[[], Costs] | None = None) -> Options:
    """The options with the kinds of units that "auto" means for a model.

    Channels are among them where there is no attention, where most of what can be cut is channels, and where most of
    what is computed hangs on them (convolutions that turn a transformer's tokens into a picture). A transformer with
    some convolutions in front keeps those.

    Args:
        costs: makes what counts the model's work; None where there is no shape to count at.
    """
    if options.units != ("auto",):
        return options
    kinds = Counter(group.kind for group in structure.groups)
    channels = kinds.pop("channels", 0)
    attends = any(kind in ("heads", "query_heads", "head_dims") for kind in kinds) or any(
        branch.kind == "attention" for branch in structure.branches
    )
    ranks = ("head_ranks",) if _ranks(options) else ()
    convolved = channels > 0 and (not attends or channels > kinds.total() or _most(structure, costs))
    return replace(options, units=(*UNITS, *ranks, "channels") if convolved else (*UNITS, *ranks))


def _most(structure: Structure, costs: Callable[[], Costs] | None) -> bool:
    """Whether more is computed behind channels than behind all else that can be cut."""
    if costs is None:
        return False
    counted = costs()
    channels, others = ([g for g in structure.groups if (g.kind == "channels") == own] for own in (True, False))
    return counted.behind(channels) > counted.behind(others)


def _ranks(options: Options) -> bool:
    """Whether dimensions of rotated heads are among what goes by default.

    Where the papers' methods are asked for, their units are; times of heads and of their dimensions do not add up; and
    what zeros are solved for after units went has been measured on whole heads alone.
    """
    known = options.method in ("auto", "obs") and options.search == "table"
    return known and options.budget.kind != "latency" and options.sparsity is None


def method_of(options: Options, calibration: Dataset | None) -> str:
    """The method that scores: with "auto", obs where there are calibration rows, magnitude where there are none."""
    if options.method == "auto":
        return "obs" if calibration is not None else "magnitude"
    if parse(options.method, METHODS).needs and calibration is None:
        raise UsageError(
            f"--method {options.method} needs calibration rows (--calib); magnitude is the one that needs none"
        )
    return options.method


def require_engine(options: Options, calibration: Any) -> None:
    """Refuse, before any work, what only torch computes, where it is not installed.

    Args:
        calibration: rows to learn from, in whatever form; None for none.

    Raises:
        UsageError: names what was asked for, and the extra that brings torch.
    """
    if calibration is not None:
        require_torch("learning from rows (--calib)")
    if options.sparsity is not None and isinstance(patterns.parse(options.sparsity), patterns.Tiles):
        require_torch("--sparsity tiles")
    if options.device == "cuda":
        require_torch("--device cuda")


def device_of(wanted: str) -> str:
    """Where scoring runs, "cpu" or "cuda"."""
    if not has_torch():
        return "cpu"
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError("--device cuda: this torch sees no CUDA device")
    if not available or wanted == "cpu":
        return "cpu"
    torch.backends.cudnn.allow_tf32 = False  # convolutions in single precision, as products are: plans as on the CPU
    return "cuda"


def why_nothing(structure: Structure, options: Options) -> str:
    """The message for a model in which no unit of the wanted kinds is free."""
    free = [g.id for g in structure.groups if g.kind in options.units]
    if free and (options.include or options.exclude):
        asked = [("--include", options.include), ("--exclude", options.exclude)]
        given = " and ".join(f"{name} {', '.join(said)}" for name, said in asked if said)
        return (
            f"nothing to prune: {given} let none of the {len(free)} free groups of units through. Patterns are globs "
            f"over names as `onnxprune inspect` lists them ({', '.join(free[:3])}, …) and over nodes"
        )
    other = sorted({g.kind for g in structure.groups} - set(options.units))
    hint = f" It has {', '.join(other)}: name them with --units." if other else ""
    found = {why for pin in structure.pins for why in pin.reasons}
    if "hidden" not in options.units and any(why.startswith("normalised by") for why in found):
        hint += " Widths that a norm reads go with --units hidden."
    reasons = sorted(found, key=lambda why: (not any(advice in why for advice in (GIVE_FLOATS, ORDERED)), why))
    reasons = reasons[:6]
    return (
        f"nothing to prune: no {', '.join(u for u in options.units if u != 'blocks')} are free to be cut.{hint} "
        f"What pins the dimensions: {'; '.join(reasons) or 'there are no matrices with a free dimension'}. "
        "`onnxprune inspect` lists them."
    )


def why_not_so_little(structure: Structure, options: Options, asked: float, least: float) -> str:
    """The message for a budget below what is left when all goes that may; both are shares of the dense model's cost."""
    other = sorted({group.kind for group in structure.groups} - set(options.units) - {"head_dims", "hidden"})
    more = (
        f"add {', '.join(other)}, which it has, too: --units {','.join((*options.units, *other))}"
        if other
        else "allow more kinds with --units"
    )
    return (
        f"--{options.budget.kind}: {asked:.3f} of the model cannot be reached; the units that may go leave at least "
        f"{math.ceil(least * 1000) / 1000:.3f} ({', '.join(options.units)}); raise the budget, or {more}"
    )
