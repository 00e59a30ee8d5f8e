"""How much residual modules write: mean norms of what a unit, or a whole branch, adds to the stream it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.data import Batch
from onnxprune.errors import UnsupportedError
from onnxprune.graph.plan import Structure
from onnxprune.graph.structure.linear_layers import find_linears
from onnxprune.graph.structure.reading_matrices import Matrix
from onnxprune.graph.structure.sites import Site
from onnxprune.probe.forward import Rows
from onnxprune.probe.interpreter import Usage
from onnxprune.probe.trajectory import boundaries

POWER_VECTORS = 4
POWER_STEPS = 100
POWER_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Flow:
    """Mean norms over tokens, padding left out.

    Attributes:
        write: [units] E‖W_uᵀx_u‖, what each unit writes; one entry, E‖f(x)‖, for a branch.
        stream: E‖x‖ of what the branch is added to; of all that the site's readers write, where there is no branch.
    """

    write: np.ndarray
    stream: float

    @property
    def relative(self) -> np.ndarray:
        """The function norm: what is written, relative to the stream. [units]"""
        return self.write / max(self.stream, 1e-30)


def flows(rows: Rows, sites: Sequence[Site], structure: Structure, *, spectral: bool = False) -> dict[str, Flow]:
    """Norms of every unit's and every branch's writes, in one pass (two if spectral).

    Args:
        spectral: with each linear map's weight divided by its largest singular value (Lin et al. 2020), every branch
            still reading the dense model's own stream.

    Returns:
        group or branch id -> Flow.
    """
    import torch

    interpreter = rows.interpreter
    axes = {b.branch: b.axis for b in boundaries(interpreter.graph, structure)}
    scaled = spectral_weights(rows, structure, sites) if spectral else {}
    totals = _Totals()
    for batch in rows.batches:
        with torch.no_grad():
            skips = list(dict.fromkeys(b.skip for b in structure.branches if b.skip not in batch.feeds))
            bound = {**batch.feeds, **interpreter.run(batch.feeds, outputs=skips)} if spectral else batch.feeds
            wanted = list(dict.fromkeys([*skips, *(b.value for b in structure.branches), *_written(sites)]))
            read: dict[Usage, Any] = {}
            edit = {u: _keep(u, read) for u in (m.usage for s in sites for m in _told(s))}
            found = interpreter.run(bound, outputs=[n for n in wanted if n not in bound], weights=scaled, edit=edit)
            found = {**{name: interpreter.place(value) for name, value in bound.items()}, **found}
            if any(x is None for x in found.values()):
                raise UnsupportedError(
                    "branches behind an If that not every row takes are not measured: choose another method than snip"
                )
            for branch in structure.branches:
                totals.add(branch.id, _norms(found[branch.value], axes[branch.id], batch)[None])
                totals.add("stream of " + branch.id, _norms(found[branch.skip], axes[branch.id], batch)[None])
            for site in sites:
                told = _told(site)
                parts = [_unit_squares(m, read, scaled, interpreter, batch, site.group.size) for m in told]
                whole = [_real(m.written(found[m.output]), batch).float().square().sum(-1) for m in told]
                # Readers of one value share its tokens; of others (a strided convolution) only the first is taken.
                same = [i for i, part in enumerate(parts) if part.shape == parts[0].shape]
                totals.add(site.id, sum(parts[i] for i in same).sqrt())
                totals.add("stream of " + site.id, sum(whole[i] for i in same).sqrt()[None])
    result = {b.id: Flow(totals.mean(b.id), float(totals.mean("stream of " + b.id)[0])) for b in structure.branches}
    for site in sites:
        own = f"stream of {site.group.branch or site.id}"
        result[site.id] = Flow(totals.mean(site.id), float(totals.mean(own)[0]))
    return result


def spectral_weights(rows: Rows, structure: Structure, sites: Sequence[Site]) -> dict[str, Any]:
    """Weights of linear maps inside branches, divided by their largest singular values."""
    graph = rows.interpreter.graph
    names = {x.weight: x.matrix for x in find_linears(graph, structure) if x.inside is not None}
    names |= {m.reader.weight or "": m for s in sites if s.group.branch for m in s.matrices}
    found = {}
    for name, matrix in names.items():
        weight = rows.interpreter.weight(name)
        found[name] = weight / largest_singular_value(matrix.weight(weight.float().cpu().numpy()))
    return found


def largest_singular_value(weight: np.ndarray, seed: int = 0) -> float:
    """σ₁ of a matrix [n, m] by power iteration on WᵀW, of a few vectors at once: one alone that begins beside the first
    singular vector stands still at the second for a while, as if it had arrived."""
    count = min(POWER_VECTORS, *weight.shape)
    vectors = np.linalg.qr(np.random.default_rng(seed).standard_normal((weight.shape[1], count)))[0]
    sigma = 0.0
    for _ in range(POWER_STEPS):
        image = weight @ vectors
        before, sigma = sigma, float(np.linalg.norm(image, 2))
        if sigma == 0.0:
            return 1.0  # a zero matrix: nothing to divide
        vectors = np.linalg.qr(weight.T @ image)[0]
        if abs(sigma - before) <= POWER_TOLERANCE * sigma:
            break
    return sigma


class _Totals:
    """Sums over tokens by name."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, values: Any) -> None:
        """values [entries, tokens]"""
        self.sums[name] = self.sums.get(name, 0) + values.double().sum(-1)
        self.counts[name] = self.counts.get(name, 0) + values.shape[-1]

    def mean(self, name: str) -> np.ndarray:
        return np.asarray((self.sums[name] / max(self.counts[name], 1)).cpu().numpy())


def _unit_squares(
    matrix: Matrix, read: Mapping[Usage, Any], scaled: Mapping[str, Any], interpreter: Any, batch: Batch, size: int
) -> Any:
    """‖W_uᵀx_u‖² of every unit and token. [units, tokens]"""
    import torch

    name = matrix.reader.weight or ""
    weight = scaled[name] if name in scaled else interpreter.weight(name)
    w = torch.from_numpy(np.ascontiguousarray(matrix.weight(weight.float().cpu().numpy()))).to(weight.device)
    x = _real(matrix.rows(read[matrix.reader.node, matrix.reader.input]), batch).float()
    found = torch.zeros((size, len(x)), device=x.device)
    units, counts = np.unique(matrix.units[matrix.units >= 0], return_counts=True)
    if counts.max(initial=1) == 1:  # one row each: the norm is a product
        rows = np.flatnonzero(matrix.units >= 0)
        found[torch.from_numpy(matrix.units[rows])] = (x[:, rows].square() * w[rows].square().sum(1)).T
        return found
    for unit in units.tolist():
        rows = np.flatnonzero(matrix.units == unit)
        gram = w[rows] @ w[rows].T
        found[unit] = ((x[:, rows] @ gram) * x[:, rows]).sum(-1).clamp_min(0)
    return found


def _norms(x: Any, axis: int, batch: Batch) -> Any:
    return _real(x.movedim(axis, -1).reshape(-1, x.shape[axis]), batch).float().norm(dim=-1)


def _real(flat: Any, batch: Batch) -> Any:
    """The rows [tokens, n] of real tokens."""
    import torch

    if batch.real is None or batch.real.size != flat.shape[0]:
        return flat
    return flat[torch.from_numpy(batch.real.reshape(-1)).to(flat.device)]


def _written(sites: Sequence[Site]) -> list[str]:
    return [m.output for s in sites for m in _told(s)]


def _told(site: Site) -> list[Matrix]:
    """The matrices of a site of which it is known what they write for each row that they read.

    Raises:
        UnsupportedError: there are none.
    """
    found = [m for m in site.matrices if m.refits and m.node.outputs[0].name]
    if not found:
        readers = ", ".join(f"{m.node.op_type} {m.reader.node}" for m in site.matrices)
        raise UnsupportedError(
            f"{site.id}: what its units write cannot be told row by row behind {readers}; choose another method "
            "(--method obs, fisher or magnitude), or leave it out with --exclude"
        )
    return found


def _keep(usage: Usage, read: dict[Usage, Any]) -> Callable[[Any], Any]:
    def edit(x: Any) -> Any:
        read[usage] = x
        return x

    return edit
