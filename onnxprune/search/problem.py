"""What is fixed while plans are made for one model: its rows and who decides by them, its sites, costs and gates."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from onnxprune.data import Dataset
from onnxprune.errors import NothingToPruneError
from onnxprune.graph import memory
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.put_away import Store, over
from onnxprune.graph.quantised import nearest
from onnxprune.graph.structure.bases import rotatable
from onnxprune.graph.structure.sites import Site, find_sites, meet
from onnxprune.graph.structure.twins import leading
from onnxprune.measure.batch_sizes import ACTIVATIONS, tokens_at_once, tokens_side_by_side, tokens_to_measure
from onnxprune.measure.cost import Costs
from onnxprune.measure.tables.fast_widths import step
from onnxprune.probe.forward import Rows, Weights
from onnxprune.probe.gate_gradients import sensitivities
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter, Usage
from onnxprune.probe.second_moments import Gram
from onnxprune.probe.short_graph import brief
from onnxprune.score import METHODS
from onnxprune.score.mixture import parse
from onnxprune.score.rotation import Rotated, rotated
from onnxprune.search.defaults import device_of, method_of, settled, why_nothing
from onnxprune.search.doubtful_rows import doubtful
from onnxprune.search.first_look import FirstLook, lying
from onnxprune.search.latency_budget import costs_for, provider_of
from onnxprune.search.options import Options
from onnxprune.search.prices import Prices
from onnxprune.search.progress import Clock, Progress, quiet
from onnxprune.search.reach import judged, reached
from onnxprune.search.row_split import Split
from onnxprune.search.score_cache import key_of
from onnxprune.search.store import Store as LastingStore

logger = logging.getLogger(__name__)

GRADIENTS = frozenset({"gate_grad", "weight_score"})
"""What a method may need (score.base.Statistics) that takes gradients: all weights are held until it is there."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What the rows say of the dense model before any method asks; it can be sent to where a problem is made again.

    Attributes:
        rotated: the bases of dimensions within heads.
        moments: `Problem.moments`, as far as they have been taken.
        weighed: "fit", "held" or "mending" -> how much each token of these rows matters.
        mending: `Problem.mending`, where it is no other rows' and refits are made.
    """

    rotated: Rotated
    moments: Mapping[Usage, Gram]
    weighed: Mapping[str, Weights | None]
    mending: Dataset | None = None


class Problem:
    """A model, its rows and what is asked of it.

    Args:
        calibration: rows to learn from, split by seed into those regressed on and those that decide; None for none.
        bindings: symbol -> size, where costs are counted.

    Attributes:
        model, structure: what is learned from and measured: of several graphs those that no other leads.
        whole: all of it, whose cost counts.
        led: the structure of `model`; `structure` is without what no output reads.
        sites: where plans may cut.
        method: what orders the units ("auto" is decided).
        fit, given, held, table, select: the parts of the rows (`row_split.Split`), where there are any.
        first: what every plan begins with.
        look: what of all this a store keeps.
        rotated: the bases in which dimensions within heads are counted.
        moments: of what the matrices of the dense model read, once they have been collected; no method changes them.
        refits: where refit weights are, in files as far as memory does not hold them.
    """

    def __init__(
        self,
        model: Model,
        structure: Structure,
        options: Options,
        calibration: Dataset | None,
        bindings: Mapping[str, int],
        clock: Clock | None = None,
        progress: Progress | None = None,
        seen: Seen | None = None,
        store: LastingStore | None = None,
    ) -> None:
        self.whole = model, structure
        model, self.led = leading(model, structure)
        structure = self.led
        options = settled(options, structure, lambda: Costs(*self.whole, bindings))
        self.model, self.structure, self.options = model, structure, options
        self.progress = progress or quiet
        self.clock = clock or Clock(progress=self.progress)
        sites = find_sites(model.graph, structure, options.units, options.include, options.exclude)
        self.interpreter = Interpreter(model.graph, device_of(options.device))
        if calibration is not None:
            sites = reached(self.interpreter, calibration, sites, none=options.sparsity is not None)
        self.sites = [s for s in sites if s.matrices or calibration is not None]  # the others are ordered by data alone
        self.costs = costs_for(*self.whole, options, bindings, self.sites, self.clock, self.progress)
        if not self.sites and options.sparsity is None:
            raise NothingToPruneError(why_nothing(structure, options))
        self.method = method_of(options, calibration)
        if memory.stated() and parse(self.method, METHODS).needs & GRADIENTS:
            weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
            what = f"--method {self.method} takes gradients, which hold all weights and activations: scoring"
            memory.require(2 * weights + min(ACTIVATIONS, memory.limit() / 4), what)
        short, self.structure = brief(model, structure, self.interpreter)
        self.gates = Gates(self.structure, self.interpreter)
        self.calibration = calibration
        self.first = Plan(model.digest)
        self.rotated = Rotated()
        self.moments: dict[Usage, Gram] = {}
        self.refits = Store(memory.small_share())
        self._weighed: dict[str, Weights | None] = {}
        self._mending: list[Rows] = []
        if calibration is not None:
            sizes = (
                tokens_at_once(self.costs, memory=options.max_memory),
                tokens_to_measure(self.costs, len(self.sites)),
                tokens_side_by_side(self.costs, memory=options.max_memory),
            )
            split = Split.of(self.interpreter, calibration, options, *sizes, short)
            self.fit, self.held, self.table, self.select = split.fit, split.held, split.table, split.select
            self.sites = judged(self.interpreter, self.table.wanted, self.sites, none=options.sparsity is not None)
            self.given = split.given
        self.look = self._look(store)
        if seen is not None:
            self._weighed.update(seen.weighed)
            self.moments.update(seen.moments)
            if seen.mending is not None:
                self._mending.append(replace(self.fit, dataset=seen.mending, given=self.fit.divergence))
        self._rotate(None if seen is None else seen.rotated)
        self.moments.update(self.look.moments([m.usage for s in self.sites for m in s.matrices]))

    def _look(self, store: LastingStore | None) -> FirstLook:
        """Where what is seen of the rows is kept; nowhere what is on a GPU, and nothing of no rows."""
        if store is None or self.calibration is None or self.interpreter.device != "cpu":
            return FirstLook(None, "")
        told = f"{self.key('')}{lying(self.fit, self.held)}"  # no method changes what is seen
        return FirstLook(store, hashlib.sha256(told.encode()).hexdigest())

    def key(self, method: str) -> str:
        """The digest of all that what is measured by a method depends on."""
        return key_of(self.model.digest, method, self.options, self.calibration, version("onnxprune"))

    @property
    def prices(self) -> Prices:
        """What numbers of units cost, in the budget's unit, beginning with `first`."""
        known = self.__dict__.get("_prices")
        kind = self.options.budget.kind
        if known is None or known.first is not self.first or known.kind != kind:
            known = self.__dict__["_prices"] = Prices(self.costs, kind, self.sites, self.first)
        return known

    @property
    def token_weights(self) -> Weights | None:
        """How much each token of the fit rows matters to the outputs, mixed with an equal share for all."""
        return self._token_weights("fit", self.fit) if self.calibration is not None else None

    @property
    def mending(self) -> Rows:
        """The rows that refits after a cut are regressed on, the same by every method."""
        if not self._mending:
            self._mending.append(doubtful(self.fit, self.given, self.options.seed))
        return self._mending[0]

    @property
    def mending_weights(self) -> Weights | None:
        """The same of these rows."""
        return self.token_weights if self.mending is self.fit else self._token_weights("mending", self.mending)

    @property
    def held_weights(self) -> Weights | None:
        """The same of the rows that choose how strong refits are."""
        return self._token_weights("held", self.held)

    def _token_weights(self, name: str, rows: Rows) -> Weights | None:
        if name not in self._weighed:
            known = self.look.weighed(name)
            self._weighed[name] = known[0] if known is not None else self._weights_of_tokens(rows)
            if known is None:
                self.look.keep_weighed(name, self._weighed[name])
        return self._weighed[name]

    def _weights_of_tokens(self, rows: Rows) -> Weights | None:
        share = self.options.token_weight
        read = [m for s in self.sites for m in s.matrices]
        if not share or not read:
            return None
        if self.interpreter.streams:
            logger.info("tokens count alike: what they weigh takes gradients, which need all weights in memory at once")
            return None
        found = sensitivities(rows, read, self.gates.usages, self.options.seed)
        return {node: [share * w + (1 - share) for w in parts] for node, parts in found.items()}

    def seen(self) -> Seen:
        """What another problem with the same rows need not look at again."""
        if self.calibration is not None:
            self._weighed["fit"], self._weighed["held"] = self.token_weights, self.held_weights
        mending = None
        if self.calibration is not None and self.options.compensate and self.mending is not self.fit:
            mending, self._weighed["mending"] = self.mending.dataset, self.mending_weights
        return Seen(self.rotated, self.moments, self._weighed, mending)

    def _rotate(self, known: Rotated | None = None) -> None:
        """Write heads whose dimensions may go in the bases in which the last of them matter least.

        From here on the interpreter holds the model in these bases: it computes the same.

        Args:
            known: what came of it elsewhere.
        """
        inner = [s for s in self.sites if s.group.kind == "head_dims"]
        graph, told = self.whole[0].graph, self.whole[1]
        if graph is not self.model.graph:  # further graphs hold the same weights
            inner = [s for s in inner if rotatable(graph, told, told.group(s.id))]
        if inner and self.interpreter.streams:
            logger.info("heads keep their bases: rotating them takes all weights in memory at once")
        elif inner and self.calibration is not None:
            known = known or self.look.rotated()
            if known is not None:
                self.rotated = known
            else:
                with self.clock.stage("rotate"):
                    read = [m for s in self.sites for m in s.matrices]
                    found = rotated(self.fit, inner, self.structure, self.weight, self.token_weights, read)
                for name, array in found.weights.items():  # what is stored in half precision holds these
                    found.weights[name] = nearest(self.model.graph.initializers[name].const_value, array)
                self.look.keep_rotated(found)
                self.moments.update(found.moments)
                self.rotated = replace(found, moments={})  # they are let go here when they are done with
            self.interpreter.replace(self.rotated.weights)
        for group, why in self.rotated.held.items():
            logger.info("%s keeps its basis: %s", group, why)
        self.sites = [s for s in self.sites if s.id in self.rotated.rankings or self._as_it_is(s)]

    def _as_it_is(self, site: Site) -> bool:
        """Whether a site's units may go as the model has them, in no basis but its own."""
        inner = site.group.kind == "head_dims"
        return not inner or (
            "head_dims" in self.options.units
            and (bool(site.matrices) or meet(self.interpreter.graph, self.structure, site.group))
        )

    def based(self, plan: Plan) -> Plan:
        """A plan that says in which bases its units are counted."""
        return replace(plan, weights=over(self.rotated.weights, plan.weights)) if self.rotated.weights else plan

    def weight(self, name: str) -> np.ndarray:
        """A dense weight, in the basis that it is pruned in."""
        if name in self.rotated.weights:
            return self.rotated.weights[name]
        tensor = self.model.graph.initializers[name].const_value
        assert tensor is not None
        return np.asarray(tensor.numpy())

    def step(self, site: Site) -> int:
        """How many units of a site go at a time."""
        found = step(site, provider_of(self.options), self.options.round_to)
        return max(found, 2) if site.group.kind == "hidden" else found  # a norm cannot do without one channel alone

    def begun(self) -> list[Site]:
        """The sites of the model it begins with."""
        return [s for s in self.sites if s.group.branch not in self.first.drop]

    def share(self) -> float:
        """What the budget keeps."""
        dense = self.costs.total(self.options.budget.kind)
        return self.options.budget.limit(dense) / dense

    def completed(self, plan: Plan) -> Plan:
        """A plan that says what its dropped branches leave behind."""
        if not plan.drop:
            return plan
        return self.gates.complete(plan, self._any_feeds())

    def _any_feeds(self) -> Mapping[str, Any]:
        if self.calibration is not None:
            return self.fit.batches[0].feeds
        return synthesize(self.model.inputs, dims=self.costs.bindings)
