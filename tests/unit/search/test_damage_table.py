"""The damage table: levels stacked into one batch give what each gives alone, also where a branch leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import zoo as exports

from onnxprune.data import Dataset, Example
from onnxprune.graph.model import load
from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.sites import find_sites
from onnxprune.probe import second_moments
from onnxprune.probe.batched_states import Copies
from onnxprune.probe.forward import Evaluator, Rows, grams
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.second_moments import Gram
from onnxprune.search import damage_table as damage
from onnxprune.search.damage_table import Refitter, damage_table


@pytest.mark.parametrize("name", ["bert-torchscript-sdpa", "swin-torchscript-sdpa", "gpt2-torchscript-eager"])
def test_stacked_levels_are_the_levels(
    name: str, zoo: Callable[..., exports.ZooModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = zoo(*name.split("-"))
    model = load(built.path)
    structure = analyze(model)
    interpreter = Interpreter(model.graph)
    gates = Gates(structure, interpreter)
    examples = [Example({k: v[:1] for k, v in built.sample(seed=i).items()}) for i in range(6)]
    rows = Rows(interpreter, Dataset(tuple(examples), "tensors"))
    sites = find_sites(model.graph, structure)
    random = np.random.default_rng(0)
    rankings = {s.id: Ranking(s.id, tuple(int(u) for u in random.permutation(s.group.size))) for s in sites}

    def weight(key: str) -> np.ndarray:
        tensor = model.graph.initializers[key].const_value
        assert tensor is not None
        return np.asarray(tensor.numpy())

    gram = grams(rows, [m for s in sites for m in s.matrices])
    levels = {s.id: [0 if s.branch else 1, s.group.size // 2, s.group.size] for s in sites}

    def table() -> dict[str, np.ndarray]:
        refitter = Refitter(weight, gram, rankings)
        found = damage_table(Evaluator(rows), gates, Plan(model.digest), sites, rankings, levels, refitter)
        assert all(list(found[s.id].levels) == levels[s.id] for s in sites)
        return {key: row.damage for key, row in found.items()}

    stacked = table()
    monkeypatch.setattr(Copies, "_stacked", lambda self, batch, heads: None)
    alone = table()
    assert any(found[0] > 1e-6 for found in alone.values())
    for key, found in stacked.items():
        np.testing.assert_allclose(found, alone[key], rtol=1e-3, atol=1e-7)
    monkeypatch.setattr(damage, "FACTORS", 0)
    for key, found in table().items():
        np.testing.assert_array_equal(found, alone[key], "the table depends on what fits in memory")


def test_few_bytes_may_wait_in_a_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 8))), torch.linspace(0, 1, 64)
    waiting: list[int] = []

    def summed() -> Gram:
        gram = Gram()
        for part, share in zip(x.split(8), weight.split(8), strict=True):
            gram.add(part, share)
            waiting.append(len(gram._waiting))
        return gram

    expected = summed().matrix
    assert max(waiting) == 8
    waiting.clear()
    monkeypatch.setattr(second_moments, "WAITING", 16 * 8 * 4)
    np.testing.assert_allclose(summed().matrix, expected, rtol=1e-5)
    assert max(waiting) == 1
