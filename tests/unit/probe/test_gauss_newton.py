"""What random vectors say of an output is its divergence, to second order: of every kind, with padding or without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from onnxprune.data import Batch
from onnxprune.probe.divergence import Divergence, Kind, Measure
from onnxprune.probe.forward import Rows
from onnxprune.probe.gauss_newton import output_probes

STEP, DRAWS = 1e-3, 1500


def _scores(kind: Kind, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of a kind, and a small change of them that leaves them of that kind."""
    z, change = rng.normal(size=shape), STEP * rng.normal(size=shape)
    if kind is Kind.PROBABILITY_KL:
        z = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        change = change * z
        change -= change.mean(-1, keepdims=True)
    return z.astype(np.float32), change


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4)], ids=["a row", "tokens"])
@pytest.mark.parametrize("probes", [1, 4])  # of class scores, combinations or the exact root
@pytest.mark.parametrize("kind", Kind)
def test_vectors_measure_what_a_change_costs(kind: Kind, probes: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    z, change = _scores(kind, shape, rng)
    real = np.array([[True, True, False], [True] * 3]) if len(shape) == 3 else None
    measure = Measure("y", kind, scale=1.7)
    rows = cast(Rows, SimpleNamespace(divergence=Divergence((measure,))))
    batch = Batch({}, np.arange(2), real)
    values = {"y": torch.from_numpy(z).requires_grad_()}
    generator = torch.Generator().manual_seed(0)
    found = np.zeros(2)
    for _ in range(DRAWS):
        for share, parts in output_probes(rows, batch, values, probes, 1.0, generator):
            ((_, v),) = parts
            found += 0.5 * share * np.square((v.numpy() * change).reshape(2, -1).sum(1)) / DRAWS
    double: Any = torch.from_numpy
    expected = measure(double(z.astype(np.float64)), double(z + change), None if real is None else double(real))
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0.15)
