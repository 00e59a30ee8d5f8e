"""Fine-tuning sparse weights with their masks (SR-STE), distilled from the dense model; no labels are needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.graph.plan import Plan
from onnxprune.graph.structure.linear_layers import Linear
from onnxprune.probe.forward import Evaluator, Rows, real_tokens
from onnxprune.probe.gates import Gates
from onnxprune.refit.sparsify import Part, Patterns, parts_of, pattern_of

logger = logging.getLogger(__name__)

DECAY = 2e-4
"""λ of SR-STE: how fast what the mask hides is pulled to zero (Zhou et al., ICLR 2021)."""

REFRESH = 10
"""Steps of fine-tuning between two choices of the masks."""


def finetune(
    gates: Gates,
    rows: Rows,
    evaluator: Evaluator,
    plan: Plan,
    linears: Sequence[Linear],
    patterns: Patterns,
    steps: int,
    *,
    rate: float = 2e-5,
    decay: float = DECAY,
    seed: int = 0,
) -> Plan:
    """SR-STE (Zhou et al. 2021), distilled from the dense model: W ← W − γ(g(W̃) + λ · ¬mask ⊙ W), by Adam.

    W̃ = mask ⊙ W. Its gradient goes straight through to the hidden weights too, so that they may come back; the masks
    are chosen anew every `REFRESH` steps. No labels are needed. The plan that diverges least on the evaluator's rows,
    looked at with every choice of masks, is returned: never worse than the one given.
    """
    import torch

    todo = parts_of(gates, plan, linears)
    state = _Latent(gates, plan, todo, patterns)
    optimizer = torch.optim.Adam(list(state.weights.values()), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    best, value = plan, evaluator(gates.gated(plan))
    for step in range(steps):
        i = int(torch.randint(len(rows.batches), (1,), generator=generator))
        batch = rows.batches[i]
        shown = {n: w.detach().mul(state.masks[n]).requires_grad_() for n, w in state.weights.items()}
        gated = gates.gated(plan)
        weights = {**gated.weights, **{n: w * state.kept[n] for n, w in shown.items()}}
        found = rows.interpreter.run(batch.feeds, outputs=rows.divergence.outputs, weights=weights, edit=gated.edit)
        real = real_tokens(batch)
        found = rows.by_row(batch, found)
        rows.divergence(rows.outputs[i], found, real).mean().backward()
        for name, hidden in state.weights.items():
            slope = shown[name].grad if shown[name].grad is not None else torch.zeros_like(hidden)
            hidden.grad = slope + decay * hidden.detach() * ~state.masks[name]
        optimizer.step()
        if (step + 1) % REFRESH == 0 or step + 1 == steps:
            state.choose()
            masked = {n: gates.writable(n, w) for n, w in state.sparse().items()}
            candidate = replace(plan, weights={**plan.weights, **masked})
            if (now := evaluator(gates.gated(candidate))) < value:
                best, value = candidate, now
    logger.info("fine-tuning: divergence %.5f after %d steps", value, steps)
    return best


class _Latent:
    """Dense weights behind the sparse ones, with their masks; torch tensors in the weights' own shapes."""

    def __init__(self, gates: Gates, plan: Plan, parts: Sequence[Part], patterns: Patterns) -> None:
        import torch

        self.parts = {p.linear.weight: p for p in parts}
        self.patterns = patterns
        device = gates.interpreter.device
        arrays = {n: gates.weight(plan, n) for n, p in self.parts.items()}
        self.weights: dict[str, Any] = {
            n: torch.tensor(a, dtype=torch.float32, device=device) for n, a in arrays.items()
        }
        self.kept: dict[str, Any] = {
            n: torch.from_numpy(p.put(np.ones((len(p.rows), len(p.columns))), np.ones_like(arrays[n]))).to(device)
            for n, p in self.parts.items()
        }
        self.masks: dict[str, Any] = {}
        self.choose()

    def choose(self) -> None:
        """Masks for the weights as they are."""
        import torch

        for name, part in self.parts.items():
            array = self.weights[name].detach().cpu().numpy()
            pattern = pattern_of(self.patterns, part)
            worth = np.square(part.take(array), dtype=np.float64)
            mask = part.put(pattern.learn(worth).project(worth), np.ones_like(array))
            self.masks[name] = torch.from_numpy(mask).to(self.weights[name].device) > 0

    def sparse(self) -> dict[str, np.ndarray]:
        """The masked weights."""
        return {n: np.asarray((w.detach() * self.masks[n]).cpu().numpy()) for n, w in self.weights.items()}
