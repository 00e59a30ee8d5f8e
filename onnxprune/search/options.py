"""What a user asks for: the options of a run, checked once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from onnxprune.errors import UsageError, near, unexpected
from onnxprune.graph.dimensions import require_sizes
from onnxprune.graph.plan import Budget
from onnxprune.refit.solvers import SOLVERS
from onnxprune.refit.solvers.patterns import parse as parse_pattern
from onnxprune.score import METHODS
from onnxprune.score.mixture import parse
from onnxprune.score.seven import ALPHA
from onnxprune.search.allocate import ALLOCATIONS

UNITS = ("heads", "neurons", "blocks", "channels", "query_heads", "head_dims", "head_ranks", "hidden")

MASKS = ("seven", "seven-dyn", "platon")
"""Scores of single weights that `--solver` may name: they choose the mask, least squares the weights."""


MOST_THREADS = 1024
"""Past some ten thousand the libraries below crash instead of saying no."""


@dataclass(frozen=True)
class Options:
    """Everything that decides what a plan looks like; with the data, a run can be repeated from it.

    Attributes:
        budget: what the result may cost.
        method: one of score.METHODS, or "auto": obs with calibration rows, magnitude without.
        search: "table" (measured damage and a knapsack) or "rank" (the papers' search over scores).
        units: kinds of units that may go; "auto" for what the graph is made of (defaults.settled).
        compensate: mend the surviving weights.
        round_to: widths are multiples of this; None for what runs fast.
        uniform: every layer alike.
        include, exclude: globs over group ids and node names.
        shape: sizes of the graph's symbolic dimensions where FLOPs are counted; empty for batch 1 and the rows' mean.
        calls: of several graphs, how often each runs where FLOPs are counted, by file name; once where not named.
        rows: the most calibration rows read.
        device: where scoring runs, "auto", "cpu" or "cuda".
        seed: of every draw.
        threads: of scoring and comparing; 0 for all cores.
        token_weight: share of a token's weight, in refits after a cut, that its influence on the outputs decides.
        variants: rows to learn from made of the given texts (parts, and texts joined), as a share of them; 0 for none,
            and none to measure levels on either.
        temperature: of class scores, where a plan's divergence from the dense model is measured to choose by.
        swaps: measured level swaps after the knapsack.
        staged: pause on the way to a deep cut to score anew (search.schedule.stages).
        sparsity: pattern of zeros in the matrices of the residual branches that are left (solve.pattern.parse).
        solver: how the zeros are chosen: one of solve.SOLVERS or `MASKS`, or "auto": admm with calibration rows,
            magnitude without.
        finetune: steps of fine-tuning the sparse weights with their masks.
        tune: minutes in which all that is left learns from the dense model, once it is mended.
        alpha: SEVEN's decays α₁ and α₂ of the gradients' first and second moment.
        snip_threshold: residual branches whose relative function norm is below this leave before anything else.
        snip_spectral: take that norm, and the score of the method snip, with each weight divided by its largest
            singular value.
        keep_unread: compute positions that no output reads, too (`rewrite.drop_unread`). Budgets count them either way.
        provider: what a latency budget is about, and whose fast widths `round_to` means.
        latency_threads: of the sessions that are timed.
        max_memory: bytes that the process may hold (graph.memory): batches are planned by it, models of more than a
            quarter of it are read and run in parts, and what cannot fit is refused; None for what the machine has.
        latency_table: a file of speed.table, measured elsewhere; None to measure here where the budget is a latency.
    """

    budget: Budget
    method: str = "auto"
    search: str = "table"
    units: tuple[str, ...] = ("auto",)
    compensate: bool = True
    round_to: int | None = None
    uniform: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    shape: Mapping[str, int] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)
    rows: int = 512
    device: str = "auto"
    seed: int = 0
    threads: int = 0
    token_weight: float = 0.5
    variants: float = 1.0
    temperature: float = 4.0
    swaps: int = 4
    staged: bool = False
    sparsity: str | None = None
    solver: str = "auto"
    finetune: int = 0
    tune: float = 0.0
    alpha: tuple[float, float] = (ALPHA, ALPHA)
    snip_threshold: float | None = None
    snip_spectral: bool = False
    keep_unread: bool = False
    provider: str = "cpu"
    latency_threads: int = 1
    latency_table: str | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and self.method in SOLVERS and self.method not in METHODS:
            object.__setattr__(self, "solver", self.method)
            object.__setattr__(self, "method", "auto")
        if self.snip_spectral and self.method == "snip":
            object.__setattr__(self, "method", "snip-spectral")
        if self.method in SOLVERS and self.method not in METHODS:
            raise UsageError(f"--method {self.method} prunes to a pattern: name one, --sparsity 2:4")
        if self.method != "auto":
            parse(self.method, METHODS)
        if self.snip_threshold is not None and not self.snip_threshold > 0:
            raise UsageError(f"--snip-threshold {self.snip_threshold}: give a norm relative to the stream's, above 0")
        if not all(0 <= a < 1 for a in self.alpha):
            raise UsageError(f"--alpha {','.join(map(str, self.alpha))}: give numbers from 0 to below 1, as 0.8,0.8")
        self._check_sparsity()
        if self.search not in (*ALLOCATIONS, "rank"):
            known = (*ALLOCATIONS, "rank")
            raise UsageError(f"--search {self.search}: choose from {', '.join(known)}{near(self.search, known)}")
        self._check_units()
        if self.round_to is not None and self.round_to < 1:
            raise UsageError(f"--round-to {self.round_to}: give a positive number, or auto")
        if self.budget.kind not in ("flops", "params", "size", "latency"):
            raise UsageError(
                f"a budget of {self.budget.kind} is not known; give --flops, --params, --size or --latency"
            )
        if not 1 <= self.latency_threads <= MOST_THREADS:
            raise UsageError(f"--latency-threads {self.latency_threads}: give the number of threads to time with")
        if not 0 <= self.threads <= MOST_THREADS:
            raise UsageError(f"--threads {self.threads}: give a number up to {MOST_THREADS}, or 0 for all cores")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: give a number from 0 to {2**31 - 1}")
        require_sizes(self.shape, {})
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device {self.device}: choose from auto, cpu, cuda{near(self.device, ('cpu', 'cuda'))}")

    def _check_units(self) -> None:
        if self.units == ("auto",):
            return
        unknown = [u for u in self.units if u not in UNITS]
        if unknown or not set(self.units) - {"blocks"}:
            raise UsageError(
                f"--units {','.join(self.units)}: choose from {', '.join(UNITS)}, or auto alone; "
                f"blocks go with the others only{near(unknown[0], UNITS) if unknown else ''}"
            )
        if len(within := [u for u in self.units if u in ("heads", "query_heads")]) > 1:
            raise UsageError(f"--units {','.join(self.units)}: {' and '.join(within)} lie in each other; choose one")
        if "hidden" in self.units and len(self.units) > 1:
            raise UsageError(
                f"--units {','.join(self.units)}: the width of the stream is part of what all others cost; prune it "
                "alone, and its result again"
            )
        if "hidden" in self.units and self.budget.kind == "latency":
            raise UsageError("--units hidden: its time is that of the whole model, which no table holds; give --flops")

    def _check_sparsity(self) -> None:
        known = ("auto", *SOLVERS, *MASKS)
        if self.solver not in known:
            raise UsageError(f"--solver {self.solver}: choose from {', '.join(known)}{near(self.solver, known)}")
        if self.finetune < 0:
            raise UsageError(f"--finetune {self.finetune}: give a number of steps")
        if not 0 <= self.tune < float("inf"):
            raise UsageError(f"--tune {self.tune}: give a number of minutes")
        if self.tune and self.sparsity is not None:
            raise UsageError("--tune moves weights that --sparsity has made zero; zeros are tuned by --finetune")
        if self.sparsity is not None:
            parse_pattern(self.sparsity)
        elif self.finetune or self.solver != "auto":
            raise UsageError("--solver and --finetune are about sparse weights: name a pattern, --sparsity 2:4")

    @classmethod
    def of(cls, budget: Budget, options: Mapping[str, Any], also: Iterable[str] = ()) -> Options:
        """Options by name.

        Args:
            also: further names that the caller takes, for the message.

        Raises:
            TypeError: a name that is none of them, or a value of another kind.
        """
        cls.require(options, also)
        return cls(budget, **options)

    @classmethod
    def require(cls, options: Mapping[str, Any], also: Iterable[str] = ()) -> None:
        """Refuse names that are no options, saying which is near, and values of another kind.

        Raises:
            TypeError: names the option.
        """
        known = [f.name for f in fields(cls) if f.name != "budget"]
        for name in options:
            if name not in known:
                raise unexpected(name, [*known, *also])
        hints = get_type_hints(cls)
        for name, value in options.items():
            if not _fits(hints[name], value):
                kind = getattr(hints[name], "__name__", str(hints[name])).replace("collections.abc.", "")
                raise TypeError(f"{name}={value!r:.60} is of type {type(value).__name__}, where {kind} belongs")

    def to_json(self) -> dict[str, Any]:
        """As plain data, for the report's recipe."""
        return asdict(self)


def first_provider(providers: str | Sequence[str]) -> str:
    """Of several execution providers, "cpu,cuda" or a sequence, the one that a latency budget is about."""
    names = providers.split(",") if isinstance(providers, str) else providers
    return next(iter(names), "cpu")


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of an annotated kind; lists are as good as tuples, and NumPy's numbers as Python's."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(part, value) for part in parts)
    if hint is type(None) or value is None:
        return hint is type(None) and value is None
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(parts[0], one) for one in value)
    kinds: dict[Any, Any] = {int: Integral, float: Real, str: (str, os.PathLike), bool: (bool, np.bool_)}
    kind = kinds.get(hint, origin or hint)
    return isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
