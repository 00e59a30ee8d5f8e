"""Gradients of the outputs: what tokens and gates are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.errors import UnsupportedError
from onnxprune.graph.plan import Structure
from onnxprune.graph.structure.reading_matrices import Matrix
from onnxprune.graph.structure.sites import Site
from onnxprune.probe import threads
from onnxprune.probe.divergence import Kind
from onnxprune.probe.forward import Rows, real_tokens
from onnxprune.probe.interpreter import Usage

AT_ONCE = 2
"""The most batches whose activations are all held, for their gradients."""


def sensitivities(
    rows: Rows, matrices: Sequence[Matrix], usages: Mapping[str, Sequence[Usage]], seed: int = 0, probes: int = 1
) -> dict[str, list[Any]]:
    """How much the outputs feel an error that a matrix writes at a token: E‖∂(rᵀz)/∂y_t‖², r drawn so that its
    covariance is the Gauss–Newton matrix of the divergence (KL: diag p − ppᵀ; 1 − cos: the tangent plane).

    In a model that reads one token at the end, this is what singles that token out in the last block.

    Args:
        usages: value name -> where it is read (gates.Gates.usages).
        probes: random directions per row.

    Returns:
        reader node -> per batch, [tokens], mean 1 over all tokens, 1 where a gradient is not finite; only of matrices
        whose rows are told by what they write, and that the outputs depend on in a way that can be differentiated.
    """
    import torch

    once = rows.interpreter.schedule.once
    matrices = [m for m in matrices if m.states is None and usages.get(m.output) and once(m.node)]
    wanted = rows.divergence.outputs

    def of(i: int) -> dict[str, Any] | None:
        """[tokens] of a batch, by reader node."""
        batch, generator = rows.batches[i], torch.Generator().manual_seed(seed + i)
        real = real_tokens(batch)
        taps: dict[str, Any] = {}
        edit = {usage: _shifted(m.output, taps) for m in matrices for usage in usages[m.output]}
        outputs = rows.interpreter.run(batch.feeds, outputs=wanted, edit=edit)
        total: dict[str, Any] = {}
        for _ in range(probes):
            loss = sum(
                _projected(torch, outputs[m.output] / m.temperature, m.kind, generator)
                for m in rows.divergence.measures
            )
            if not getattr(loss, "requires_grad", False):
                return None  # nothing reaches the outputs but through nodes that torch does not compute
            reached = [m for m in matrices if m.output in taps]  # others lead to outputs that do not count
            gradients = torch.autograd.grad(
                loss, [taps[m.output] for m in reached], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for matrix, gradient in zip(reached, gradients, strict=True):
                written = matrix.written(gradient, real)
                if written is not None:
                    squared = written.float().square().sum(-1)  # of half precision the square is nothing
                    total[matrix.reader.node] = total.get(matrix.reader.node, 0) + squared
        return total

    first = of(0)
    if first is None:
        return {}
    parts_of = [first, *threads.each(rows.interpreter, len(rows.batches) - 1, lambda i: of(i + 1), AT_ONCE)]
    by_node = {m.reader.node: [t[m.reader.node] for t in parts_of if t and m.reader.node in t] for m in matrices}
    found = {node: parts for node, parts in by_node.items() if parts}
    for node, parts in list(found.items()):
        every = torch.cat(parts)
        finite = every[every.isfinite()]
        if not len(finite):  # the slope of a root at zero, say: nothing can be told of any token
            del found[node]
            continue
        mean = finite.mean().clamp_min(1e-30)
        found[node] = [torch.where(part.isfinite(), part / mean, 1.0) for part in parts]
    return found


def _shifted(name: str, taps: dict[str, Any]) -> Callable[[Any], Any]:
    """A hook that adds a zero which can be differentiated by, the same one at every reader of a value."""

    def edit(x: Any) -> Any:
        if name not in taps:
            taps[name] = x.detach().new_zeros(x.shape).requires_grad_()
        return x + taps[name]

    return edit


def _projected(torch: Any, z: Any, kind: Kind, generator: Any) -> Any:
    """rᵀz with r of the divergence's Gauss–Newton covariance, summed over rows."""
    sign = (torch.randint(0, 2, z.shape, generator=generator) * 2 - 1).to(z.device, z.dtype)
    if kind == Kind.KL and z.shape[-1] == 2:
        # diag p − ppᵀ has one direction only, so that nothing needs to be drawn.
        root = torch.softmax(z.detach(), -1).prod(-1).sqrt()
        return (root * (z[..., 0] - z[..., 1])).sum()
    if kind == Kind.KL:
        root = torch.softmax(z.detach(), -1).sqrt()
        return (z * (root * sign - root.square() * (root * sign).sum(-1, keepdim=True))).sum()
    if kind == Kind.COSINE:
        unit = torch.nn.functional.normalize(z.detach(), dim=-1)
        sign = sign - (sign * unit).sum(-1, keepdim=True) * unit
    return (z * sign).sum() / max(z[0].numel(), 1) ** 0.5


def gate_gradients(rows: Rows, sites: Sequence[Site], structure: Structure, seed: int = 0) -> dict[str, np.ndarray]:
    """Per-sample gradients of the loss with respect to every unit's gate (1 on the intact model).

    The loss is the cross-entropy with the row's label where it has one, else with a label drawn from the dense
    model's own distribution (the KL itself has no gradient on the intact model); other outputs are projected on a
    random direction, whose squared gradient has the Gauss–Newton matrix as its mean.

    Returns:
        group id -> [samples, units], samples in dataset order.
    """
    import torch

    rows = apart(rows, sites, structure)
    generator = torch.Generator().manual_seed(seed)
    found = {s.id: np.zeros((len(rows.dataset), s.group.size)) for s in sites}
    usages = [(s, m, m.usage) for s in sites for m in s.matrices]
    for batch in rows.batches:
        taps: dict[Usage, Any] = {}
        edit = {usage: _tap(usage, taps) for _, _, usage in usages}
        outputs = rows.interpreter.run(batch.feeds, outputs=rows.divergence.outputs, edit=edit)
        labels = [rows.dataset.examples[i].label for i in batch.index]
        loss = sum(
            sample_loss(torch, outputs[m.output], str(m.kind), labels, generator) for m in rows.divergence.measures
        )
        gradients = gradients_of(loss, [taps[u] for _, _, u in usages])
        for (site, matrix, usage), gradient in zip(usages, gradients, strict=True):
            if gradient is None:
                continue
            product = by_sample(
                (taps[usage].detach() * gradient).movedim(matrix.reader.axis, -1), matrix, structure, len(batch)
            )
            values = product.double().cpu().numpy()
            owner = matrix.along
            member = np.zeros((len(owner), site.group.size))
            member[np.flatnonzero(owner >= 0), owner[owner >= 0]] = 1.0
            found[site.id][batch.index] += values @ member
    return found


def gradients_of(loss: Any, sources: Sequence[Any]) -> Sequence[Any]:
    """∂loss/∂source, None for sources that it does not depend on.

    Raises:
        UnsupportedError: it depends on none of them in a way that torch can differentiate.
    """
    import torch

    if not getattr(loss, "requires_grad", False):
        raise UnsupportedError(
            "no gradient goes from the outputs to the units: nodes between them that this program leaves to ONNX "
            "Runtime (`onnxprune inspect` names them) cannot be differentiated. Choose a method that needs none: "
            "--method obs, wanda or magnitude"
        )
    found: Sequence[Any] = torch.autograd.grad(loss, list(sources), allow_unused=True)
    return found


def apart(rows: Rows, sites: Sequence[Site], structure: Structure) -> Rows:
    """The rows one by one where a batch cannot be told apart: where a unit is read by its own recurrence a gate is one
    for all rows, and behind operators that are not cut through nothing says which axis is theirs.
    """
    read = [m for s in sites for m in s.matrices]
    together = any(m.states is not None or row_axis(m, structure) is None for m in read)
    return replace(rows, max_rows=1, given=rows.divergence) if together else rows


def _tap(usage: Usage, taps: dict[Usage, Any]) -> Callable[[Any], Any]:
    def edit(x: Any) -> Any:
        # A view of its own: two readers of one value each want their own gradient.
        taps[usage] = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        return taps[usage]

    return edit


def sample_loss(torch: Any, z: Any, kind: str, labels: Sequence[Any], generator: Any) -> Any:
    """What a sample's gates are differentiated by: cross-entropy with its label or a drawn one, or a projection."""
    if kind == Kind.KL:
        logits = z.reshape(-1, z.shape[-1])
        drawn = torch.multinomial(torch.softmax(logits.detach().float(), -1).cpu(), 1, generator=generator)
        target = drawn.reshape(-1)
        if len(labels) == len(logits):
            for row, label in enumerate(labels):
                if isinstance(label, (int, np.integer)) and 0 <= label < z.shape[-1]:
                    target[row] = int(label)
        return torch.nn.functional.cross_entropy(logits, target.to(logits.device), reduction="sum")
    direction = torch.randn(z.shape, generator=generator).to(z.device)
    if kind == Kind.COSINE:
        direction = direction - (direction * z.detach()).sum(-1, keepdim=True) * z.detach()
    return (z * direction).sum() / z[0].numel() ** 0.5


def by_sample(product: Any, matrix: Matrix, structure: Structure, samples: int) -> Any:
    """[..., n] summed over everything but the samples and n; the batch is found by its atom, wherever it stands."""
    axis = row_axis(matrix, structure)
    if axis is not None:
        moved = product.movedim(axis, 0)
        return moved.reshape(samples, -1, moved.shape[-1]).sum(1)
    if samples != 1:
        raise UnsupportedError(f"{matrix.reader.node}: its samples cannot be told apart; give one row at a time")
    return product.reshape(1, -1, product.shape[-1]).sum(1)


def row_axis(matrix: Matrix, structure: Structure) -> int | None:
    """The axis of the rows in what a reader reads, with the axis that it reads moved last; None where nothing tells."""
    value = matrix.node.inputs[matrix.reader.input]
    layouts = list(structure.layouts[value.name or ""]) if value is not None else []
    layouts.append(layouts.pop(matrix.reader.axis))
    for axis, layout in enumerate(layouts[:-1]):
        if structure.batch is not None and len(layout) == 1 and layout[0] and layout[0][0] == structure.batch:
            return axis
    return None
