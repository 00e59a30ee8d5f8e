"""Feature trajectories: how far hidden features and outputs move when a unit goes.

The features are those at the block boundaries, the sums of the residual stream. OPTIN (Khaki & Plataniotis, ICLR 2024,
arXiv 2403.17921) compares their manifolds, M = F̂F̂ᵀ over unit-norm token features, before and after a unit is gated off:
L_MD = Σ_z ‖M_z − M'_z‖²_F over the boundaries z behind the unit, and the outputs by KL at a temperature.

`exact` gates units one by one and runs only what follows them, many copies at once. `linearised` gets all units from a
few reverse passes: with independent signs R_z, s = Σ_z ⟨R_z, M_z⟩ has E[(∂s)²] = Σ_z ‖∂M_z‖²_F in any direction, and
outputs are probed by vectors whose covariance is the Gauss–Newton matrix of their divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Batch
from onnxprune.errors import UnsupportedError
from onnxprune.graph import large_products
from onnxprune.graph.plan import Structure
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.divergence import Kind
from onnxprune.probe.forward import Rows
from onnxprune.probe.gate_gradients import apart, by_sample
from onnxprune.probe.gates import along
from onnxprune.probe.gauss_newton import output_probes, signs
from onnxprune.probe.interpreter import Interpreter, Usage

TOKENS = 768
"""The most tokens whose features are compared with one another."""

LINEARISED_TOKENS = 8 * TOKENS
EXACT_TOKENS = TOKENS
"""The most tokens read in all by either way."""

PICTURES = 64
"""Rows without tokens of their own (pictures, sounds) whose features count for `TOKENS`: each has dozens."""

COPIES_TOKENS = 4096
"""The most tokens, over all gated copies, that run at once."""

FEW = 64
"""A site with at most this many units is evaluated exactly; heads, as a rule."""

TEMPERATURE = 4.0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What moves when each unit of a group, or a branch (one entry), goes.

    Attributes:
        manifold: [units] L_MD per pair of tokens: Σ over later boundaries of the mean square of M − M'.
        output: [units] divergence of the outputs per row, class scores at the temperature.
    """

    manifold: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class Boundary:
    """A sum of the residual stream: the value's name, the axis of its features, and the branch that ends there."""

    value: str
    axis: int
    branch: str

    def features(self, x: Any, tokens: Any = None) -> Any:
        """[tokens, features] of unit norm; `tokens` picks some."""
        import torch

        flat = x.movedim(self.axis, -1).reshape(-1, x.shape[self.axis]).float()
        return torch.nn.functional.normalize(flat if tokens is None else flat[tokens], dim=-1)

    def slope(self, x: Any, tokens: Any, signs: Any) -> Any:
        """∂/∂x of ⟨signs, F̂F̂ᵀ⟩ / tokens, in the shape of x."""
        moved = x.detach().movedim(self.axis, -1)
        flat = moved.reshape(-1, moved.shape[-1]).float()
        norm = flat[tokens].norm(dim=-1, keepdim=True).clamp_min(1e-12)
        unit = flat[tokens] / norm
        pull = (signs + signs.T) @ unit / len(tokens)
        found = flat.new_zeros(flat.shape)
        found[tokens] = (pull - unit * (unit * pull).sum(-1, keepdim=True)) / norm
        return found.reshape(moved.shape).movedim(-1, self.axis).to(x.dtype)


def boundaries(graph: ir.Graph, structure: Structure) -> tuple[Boundary, ...]:
    """Where residual branches are added to the stream, in graph order."""
    nodes = {n.name: n for n in graph}
    found = []
    for branch in structure.branches:
        value = nodes[branch.add].outputs[0]
        rank = len(value.shape) if value.shape is not None else 0
        convolved = any(
            nodes[n].op_type == "Conv" and len(nodes[n].inputs[1].shape or ()) == rank  # type: ignore[union-attr]
            for n in branch.nodes
        )
        found.append(Boundary(value.name or "", 1 if convolved else rank - 1, branch.id))
    order = {n.name: i for i, n in enumerate(graph)}
    places = {b.id: order[b.add] for b in structure.branches}
    return tuple(sorted(found, key=lambda b: places[b.branch]))


def _everywhere(interpreter: Interpreter, structure: Structure) -> tuple[Boundary, ...]:
    """The boundaries that every row goes through, once."""
    graph, adds = interpreter.graph, {b.id: b.add for b in structure.branches}
    there = {n.name for n in graph if interpreter.schedule.once(n)}
    return tuple(b for b in boundaries(graph, structure) if adds[b.branch] in there)


def trajectories(
    rows: Rows,
    sites: Sequence[Site],
    structure: Structure,
    *,
    probes: int = 2,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> dict[str, Trajectory]:
    """Trajectories of every unit and of every branch that a site can drop.

    Where units are few (heads), and for branches, exact on up to `EXACT_TOKENS`; linearised for the thousands.

    Returns:
        group or branch id -> Trajectory.
    """
    many = [s for s in sites if s.group.size > FEW]
    few = [s for s in sites if s.group.size <= FEW]
    each = tokens_a_row(rows, structure)
    spread = apart(spread_rows(rows, LINEARISED_TOKENS, each), many, structure)
    found = linearised(spread, many, structure, probes, temperature, seed) if many else {}
    states = {s.id: np.ones((0, s.group.size)) for s in many} | {s.id: 1.0 - np.eye(s.group.size) for s in few}
    for site in sites:
        if site.branch is not None:
            states[site.id] = np.vstack([states[site.id], np.zeros(site.group.size)])
    measured = exact(spread_rows(rows, EXACT_TOKENS, each), sites, structure, states, temperature, seed)
    for site in few:
        whole, size = measured[site.id], site.group.size
        found[site.id] = Trajectory(whole.manifold[:size], whole.output[:size])
    for site in sites:
        if site.branch is not None:
            found[site.branch.id] = Trajectory(measured[site.id].manifold[-1:], measured[site.id].output[-1:])
    return found


def tokens_a_row(rows: Rows, structure: Structure) -> int:
    """What a row that tells no tokens counts for: the most positions of its features, as far as `PICTURES` want it."""
    ends, batch = _everywhere(rows.interpreter, structure), rows.batches[0]
    if not ends or any(example.tokens > 1 for example in rows.dataset.examples):
        return 1
    with rows.interpreter.engine.forward():
        found = rows.interpreter.run(batch.feeds, outputs=[b.value for b in ends])
    positions: int = max(found[b.value].numel() // found[b.value].shape[b.axis] for b in ends) // len(batch)
    return max(min(positions, TOKENS // PICTURES), 1)


def spread_rows(rows: Rows, tokens: int, each: int = 1) -> Rows:
    """Whole batches of at most `TOKENS` tokens, evenly over the lengths there are, `tokens` in all (one at least).

    Args:
        each: what a row counts for at least.
    """
    batches = list(rows.dataset.batches(max_rows=64, max_tokens=TOKENS))
    sizes = [len(b) * max(rows.dataset.examples[b.index[0]].tokens, each) for b in batches]
    share = min(1.0, tokens / max(sum(sizes), 1))
    picked: list[int] = []
    spent = due = 0.0
    # From a half: the first batch comes when half of its share of the budget is due, the last one likewise.
    for batch, size in sorted(zip(batches, sizes, strict=True), key=lambda pair: -pair[1]):
        due += share * size
        if spent + size / 2 <= due or not picked:
            picked += batch.index.tolist()
            spent += size
    return Rows(rows.interpreter, rows.dataset.subset(sorted(picked)), TOKENS, rows.divergence)


# -- exact ---------------------------------------------------------------------------------------------------------


def exact(
    rows: Rows,
    sites: Sequence[Site],
    structure: Structure,
    states: Mapping[str, np.ndarray],
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> dict[str, Trajectory]:
    """Trajectories of gated states, each site alone, by running what follows the site.

    Args:
        states: group id -> [states, units], the gates: 1 where a unit stays, 0 where it goes.

    Returns:
        group id -> Trajectory with one entry per state.
    """
    import torch

    graph, wanted = rows.interpreter.graph, rows.divergence.outputs
    ends = {s.id: later(graph, _everywhere(rows.interpreter, structure), structure, s) for s in sites}
    cuts = {
        s.id: rows.interpreter.schedule.live_before(s.stop, [*wanted, *(b.value for b in ends[s.id])]) for s in sites
    }
    everything = {b.value: b for found in ends.values() for b in found}
    sums = {s.id: np.zeros((2, len(states[s.id]))) for s in sites}
    generator = torch.Generator().manual_seed(seed)
    for i, batch in enumerate(rows.batches):
        names = list(dict.fromkeys([*everything, *(n for cut in cuts.values() for n in cut if n not in batch.feeds)]))
        with torch.no_grad():
            known = {**batch.feeds, **rows.interpreter.run(batch.feeds, outputs=names)}
            tokens = {v: _tokens(batch, known[v], b, generator) for v, b in everything.items()}
            dense = {v: b.features(known[v], tokens[v]) for v, b in everything.items()}
            dense = {v: f @ f.T for v, f in dense.items()}
            for site in sites:
                measure = _Distance(rows, i, ends[site.id], tokens, dense, temperature)
                start = {n: known[n] for n in cuts[site.id]}
                gates = torch.from_numpy(states[site.id].astype(np.float32)).to(rows.interpreter.device)
                found = _copies(partial(_gated, site, start, measure), gates, _size(batch))
                sums[site.id] += found.double().cpu().numpy().T * [[len(batch)], [1.0]]
    count = max(len(rows.dataset), 1)
    return {name: Trajectory(both[0] / count, both[1] / count) for name, both in sums.items()}


def later(graph: ir.Graph, found: Sequence[Boundary], structure: Structure, site: Site) -> tuple[Boundary, ...]:
    """The boundaries behind a site, but for the one where its own branch ends: it moves by the unit's write alone."""
    position = {n.name: i for i, n in enumerate(graph)}
    own = structure.branch(site.group.branch) if site.group.branch else None
    start = position[own.add] if own is not None else position[site.stop] - 1
    behind = _descendants(graph, site.stop)
    adds = {b.id: b.add for b in structure.branches}
    return tuple(b for b in found if adds[b.branch] in behind and position[adds[b.branch]] > start)


def gate_edit(site: Site, gate: Any) -> dict[Usage, Callable[[Any], Any]]:
    """The hooks that multiply what a site's readers read by its units' gates [units]."""
    return {(m.reader.node, m.reader.input): _gate(m.along, m.reader.axis, gate) for m in site.matrices}


def _gate(units: np.ndarray, axis: int, gate: Any) -> Callable[[Any], Any]:
    import torch

    index = torch.from_numpy(np.maximum(units, 0)).to(gate.device)
    owned = torch.from_numpy(units >= 0).to(gate.device)

    def edit(x: Any) -> Any:
        rows = torch.where(owned, gate[index], torch.ones((), device=gate.device))
        return x * along(rows, axis, x)

    return edit


@dataclass(frozen=True, eq=False)
class _Distance:
    """How far a gated copy of one batch's suffix is from the dense run: (manifold, summed output divergence)."""

    rows: Rows
    batch: int
    ends: tuple[Boundary, ...]
    tokens: Mapping[str, Any]
    dense: Mapping[str, Any]
    temperature: float

    def __call__(self, start: Mapping[str, Any], edit: Mapping[Usage, Callable[[Any], Any]]) -> Any:
        import torch

        divergence, device = self.rows.divergence, self.rows.interpreter.device
        names = list(dict.fromkeys([*divergence.outputs, *(b.value for b in self.ends)]))
        found = self.rows.interpreter.run(start, outputs=names, edit=edit)
        found |= self.rows.by_row(self.rows.batches[self.batch], {n: found[n] for n in divergence.outputs})
        manifold = torch.zeros((), device=device)
        for end in self.ends:
            features = end.features(found[end.value], self.tokens[end.value])
            manifold = manifold + (features @ features.T - self.dense[end.value]).square().mean()
        real = self.rows.batches[self.batch].real
        mask = None if real is None else torch.from_numpy(real)
        output = torch.zeros((), device=device)
        for measure in divergence.measures:
            warm = self.temperature if measure.kind in (Kind.KL, Kind.BERNOULLI_KL) else 1.0
            teacher, student = self.rows.outputs[self.batch][measure.output], found[measure.output]
            # In double precision: a KL below 1e-7 is all rounding in single.
            output = output + measure(teacher.double() / warm, student.double() / warm, mask).sum()
        return torch.stack([manifold, output])


def _gated(site: Site, start: Mapping[str, Any], measure: _Distance, gate: Any) -> Any:
    return measure(start, gate_edit(site, gate))


def _copies(run: Callable[[Any], Any], gates: Any, tokens: int) -> Any:
    """run(gates[i]) for every i, [states, 2], as many at once as memory should hold."""
    import torch

    if not len(gates):
        return torch.zeros((0, 2))
    size = max(1, COPIES_TOKENS // max(tokens, 1))
    if size > 1:
        try:
            with large_products.by_torch():
                return torch.func.vmap(run, chunk_size=size)(gates)
        except (UnsupportedError, RuntimeError):  # an operator that cannot be vectorised over copies
            pass
    return torch.stack([run(g) for g in gates])


# -- linearised ----------------------------------------------------------------------------------------------------


def linearised(
    rows: Rows,
    sites: Sequence[Site],
    structure: Structure,
    probes: int = 2,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> dict[str, Trajectory]:
    """Trajectories of all units to first order in their gates, from `probes` + a few reverse passes per batch.

    Returns:
        group id -> Trajectory; unbiased estimates of Σ_z ‖∂M_z/∂gate‖² and ½ E ∂zᵀ(Gauss–Newton)∂z.
    """
    import torch

    ends = _everywhere(rows.interpreter, structure)
    usages = {(m.reader.node, m.reader.input): (s, m) for s in sites for m in s.matrices}
    sums = {s.id: np.zeros((2, s.group.size)) for s in sites}
    generator = torch.Generator().manual_seed(seed)
    names = list(dict.fromkeys([*rows.divergence.outputs, *(b.value for b in ends)]))
    for batch in rows.batches:
        taps: dict[Usage, Any] = {}
        values = rows.interpreter.run(batch.feeds, outputs=names, edit={u: _tap(u, taps) for u in usages})
        moving = {b.branch: b for b in ends if values[b.value].requires_grad}

        def moved(
            gradients: Mapping[Usage, Any], batch: Batch = batch, taps: dict[Usage, Any] = taps
        ) -> dict[str, np.ndarray]:
            found = {s.id: np.zeros((len(batch), s.group.size)) for s in sites}
            for usage, gradient in gradients.items():
                site, matrix = usages[usage]
                product = (taps[usage].detach() * gradient).movedim(matrix.reader.axis, -1)
                per_row = by_sample(product, matrix, structure, len(batch)).double().cpu().numpy()
                owner = matrix.along
                np.add.at(found[site.id].T, owner[owner >= 0], per_row[:, owner >= 0].T)
            return found

        picked = {b.branch: _tokens(batch, values[b.value], b, generator) for b in moving.values()}
        for _ in range(probes if moving else 0):
            slopes = {
                name: b.slope(
                    values[b.value], picked[name], signs((len(picked[name]),) * 2, generator, values[b.value])
                )
                for name, b in moving.items()
            }
            gradients = _pull(taps, [(values[b.value], slopes[n]) for n, b in moving.items()])
            for name, b in moving.items():  # a unit's own boundary does not count
                own = {u: taps[u] for u, (s, _) in usages.items() if s.group.branch == name and u in gradients}
                for usage, gradient in _pull(own, [(values[b.value], slopes[name])]).items():
                    gradients[usage] = gradients[usage] - gradient
            for name, change in moved(gradients).items():
                sums[name][0] += np.square(change.sum(0)) * (len(batch) / probes)
        for share, cotangents in output_probes(rows, batch, values, probes, temperature, generator):
            for name, change in moved(_pull(taps, cotangents)).items():
                sums[name][1] += 0.5 * share * np.square(change).sum(0)
    count = max(len(rows.dataset), 1)
    return {name: Trajectory(both[0] / count, both[1] / count) for name, both in sums.items()}


def _pull(taps: Mapping[Usage, Any], sources: Sequence[tuple[Any, Any]]) -> dict[Usage, Any]:
    """Gradients at the taps that the sources (value, cotangent) depend on."""
    import torch

    if not taps or not sources:
        return {}
    outputs, cotangents = zip(*sources, strict=True)
    found: Sequence[Any] = torch.autograd.grad(
        outputs, list(taps.values()), cotangents, retain_graph=True, allow_unused=True
    )
    return {u: g for u, g in zip(taps, found, strict=True) if g is not None}


def _tap(usage: Usage, taps: dict[Usage, Any]) -> Callable[[Any], Any]:
    def edit(x: Any) -> Any:
        # A view, so that each of several readers of one value has a gradient of its own.
        taps[usage] = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        return taps[usage]

    return edit


def _tokens(batch: Batch, x: Any, boundary: Boundary, generator: Any) -> Any:
    """At most TOKENS indices of real tokens, drawn at random."""
    import torch

    count = x.numel() // x.shape[boundary.axis]
    index = torch.arange(count)
    if batch.real is not None and batch.real.size == count:
        index = index[torch.from_numpy(batch.real.reshape(-1))]
    if len(index) > TOKENS:
        index = index[torch.randperm(len(index), generator=generator)[:TOKENS]].sort().values
    return index.to(x.device)


def _size(batch: Batch) -> int:
    return len(batch) * max((a.shape[1] for a in batch.feeds.values() if a.ndim == 2), default=1)


def _descendants(graph: ir.Graph, start: str) -> set[str]:
    """Names of the nodes that depend on a node."""
    reached: set[Any] = set()
    found: set[str] = set()
    for node in graph:
        if node.name == start or any(v in reached for v in node.inputs if v is not None):
            reached.update(node.outputs)
            found.add(node.name or "")
    return found - {start}
