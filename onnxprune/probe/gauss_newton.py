"""Random vectors whose covariance is the Gauss–Newton matrix of an output's divergence.

To second order every divergence is a quadratic form, ½ ∂zᵀ G ∂z; with E vvᵀ = G it is ½ E (vᵀ∂z)², and vᵀ∂z for all
units takes one reverse pass. Class scores: G = (diag p − ppᵀ) / T² at temperature T, the KL's. Rows and positions have
independent signs, so that one pass serves all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.data import Batch
from onnxprune.probe.divergence import Kind, Measure
from onnxprune.probe.forward import Rows


def output_probes(
    rows: Rows, batch: Batch, values: Mapping[str, Any], probes: int, temperature: float, generator: Any
) -> Iterator[tuple[float, list[tuple[Any, Any]]]]:
    """(share, [(output, vector v)]) such that Σ share · E(Σ vᵀ∂z)² is ∂zᵀ(Gauss–Newton)∂z, row by row."""
    for measure in rows.divergence.measures:
        z = values[measure.output]
        if not z.requires_grad:
            continue
        for share, v in _roots(measure, z.detach().float(), probes, temperature, generator):
            yield share, [(z, (v * _positions(batch, v, measure)).to(z.dtype))]


def _roots(measure: Measure, z: Any, probes: int, temperature: float, generator: Any) -> Iterator[tuple[float, Any]]:
    """Vectors of z's shape: exact columns of the root where there are few classes, else random combinations."""
    import torch

    if measure.kind is Kind.KL:
        p = torch.softmax(z.movedim(measure.axis, -1) / temperature, -1)
        if p.shape[-1] - 1 <= probes:
            for column in _categorical_root(p):
                sign = signs((*p.shape[:-1], 1), generator, z)
                yield 1.0, (column * sign / temperature).movedim(-1, measure.axis)
            return
        for _ in range(probes):
            r = signs(p.shape, generator, z)
            v = p.sqrt() * r - p * (p.sqrt() * r).sum(-1, keepdim=True)
            yield 1.0 / probes, (v / temperature).movedim(-1, measure.axis)
        return
    for _ in range(probes):
        r = signs(z.shape, generator, z)
        if measure.kind is Kind.COSINE:
            norm = z.norm(dim=measure.axis, keepdim=True).clamp_min(1e-12)
            unit = z / norm
            v = (r - unit * (unit * r).sum(measure.axis, keepdim=True)) / norm
        elif measure.kind is Kind.BERNOULLI_KL:
            yes = torch.sigmoid(z / temperature)
            v = r * (yes * (1 - yes)).sqrt() / temperature
        elif measure.kind is Kind.PROBABILITY_KL:
            v = r / z.clamp_min(1e-12).sqrt()
        else:
            v = r * (2.0 / (measure.scale * (z.shape[-1] if z.dim() > 1 else 1))) ** 0.5
        yield 1.0 / probes, v


def _categorical_root(p: Any) -> Iterator[Any]:
    """Columns of the Cholesky factor of diag p − ppᵀ (Tanabe & Sagae 1992): one fewer than there are classes."""
    import torch

    left = torch.ones_like(p[..., 0])
    for j in range(p.shape[-1] - 1):
        rest = (left - p[..., j]).clamp_min(1e-12)
        column = -p * (p[..., j] / (left * rest)).sqrt()[..., None]
        column[..., :j] = 0
        column[..., j] = (p[..., j] * rest / left).sqrt()
        yield column
        left = rest


def _positions(batch: Batch, v: Any, measure: Measure) -> Any:
    """A factor that makes the sum of a row's independent positions their mean, padding left out."""
    import torch

    rest = [n for i, n in enumerate(v.shape) if i > 0 and i != measure.axis % v.dim()] if v.dim() > 1 else []
    if measure.kind in (Kind.BERNOULLI_KL,):
        rest = list(v.shape[1:])
    if not rest:
        return 1.0
    if batch.real is not None and v.dim() > 1 and tuple(batch.real.shape) == tuple(v.shape[:2]):
        real = torch.from_numpy(batch.real).to(v.device, v.dtype)
        weight = (real / real.sum(1, keepdim=True).clamp_min(1)).sqrt()
        return weight.reshape(*weight.shape, *(1,) * (v.dim() - 2)) / float(np.prod(rest[1:])) ** 0.5
    return 1.0 / float(np.prod(rest)) ** 0.5


def signs(shape: Sequence[int], generator: Any, like: Any) -> Any:
    """Independent ±1 with equal chances, on the device of `like`."""
    import torch

    return (torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1).to(like.device, torch.float32)
