"""Trajectories: exact against linearised, against finite differences, and what counts as later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import ZooModel

from onnxprune import data
from onnxprune.graph import model as models
from onnxprune.graph.plan import Structure
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.sites import Site, find_sites
from onnxprune.probe import trajectory
from onnxprune.probe.forward import Rows
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.trajectory import (
    PICTURES,
    TOKENS,
    boundaries,
    exact,
    linearised,
    spread_rows,
    tokens_a_row,
    trajectories,
)

UNITS = ("heads", "neurons", "channels", "blocks")
Subject = tuple[Rows, list[Site], Structure]


def subject(path: Path, calibration: object, **options: object) -> Subject:
    model = models.load(path)
    structure = analyze(model)
    learn = data.read(calibration, model.inputs, outputs=model.outputs, folder=model.folder, **options)  # type: ignore[arg-type]
    sites = find_sites(model.graph, structure, UNITS)
    return Rows(Interpreter(model.graph), learn), sites, structure


def of_zoo(model: ZooModel, count: int = 12) -> Subject:
    return subject(model.path, [model.sample(1, seed=i) for i in range(count)])


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit", "resnet", "convnext", "swin"])
def test_boundaries_are_token_features_of_the_stream(zoo: Callable[..., ZooModel], family: str) -> None:
    rows, sites, structure = of_zoo(zoo(family, "torchscript", "eager"), 2)
    found = boundaries(rows.interpreter.graph, structure)
    assert len(found) == len(structure.branches) > 0
    values = rows.interpreter.run(rows.batches[0].feeds, outputs=[b.value for b in found])
    written = {s.group.branch: rows.interpreter.weight(s.matrices[0].reader.weight or "") for s in sites if s.branch}
    for boundary in found:
        features = boundary.features(values[boundary.value])
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
        if boundary.branch in written:
            assert features.shape[-1] in written[boundary.branch].shape


@pytest.mark.parametrize(("family", "kind"), [("bert", "neurons"), ("gpt2", "heads"), ("vit", "neurons")])
def test_linearised_is_the_trajectory_to_first_order(zoo: Callable[..., ZooModel], family: str, kind: str) -> None:
    """Gates moved by ε move L_MD, and the outputs' divergence, by ε² times what is linearised."""
    rows, sites, structure = of_zoo(zoo(family, "torchscript", "eager"), 4)
    site = next(s for s in sites if s.group.kind == kind)
    step = 0.03
    size = min(site.group.size, 12)
    measured = exact(rows, [site], structure, {site.id: (1.0 - step * np.eye(site.group.size))[:size]})[site.id]
    expected = linearised(rows, [site], structure, probes=400)[site.id]
    assert measured.manifold.min() > 0
    ratio = expected.manifold[:size] * step**2 / measured.manifold
    np.testing.assert_allclose(ratio, 1.0, atol=0.4)
    assert abs(ratio.mean() - 1.0) < 0.12
    ratio = expected.output[:size] * step**2 / measured.output
    np.testing.assert_allclose(ratio, 1.0, atol=0.4)
    assert abs(ratio.mean() - 1.0) < 0.12


def test_a_trajectory_by_hand(zoo: Callable[..., ZooModel]) -> None:
    """Batches of different sizes: a mean over rows, of pairs of tokens and of outputs at the temperature."""
    model = zoo("bert", "torchscript", "eager")
    rows, sites, structure = subject(model.path, [model.sample(1, tokens=4 + i % 2, seed=i) for i in range(5)])
    site = next(s for s in sites if s.group.kind == "heads")
    gate = np.eye(site.group.size)[:1]
    measured = exact(rows, [site], structure, {site.id: gate}, temperature=4.0)[site.id]
    graph, run = rows.interpreter.graph, rows.interpreter.run
    ends = trajectory.later(graph, boundaries(graph, structure), structure, site)
    assert len(ends) == 3 and len(rows.batches) == 2
    manifold = output = 0.0
    for batch in rows.batches:
        names = ["logits", *(e.value for e in ends)]
        dense = run(batch.feeds, outputs=names)
        moved = run(batch.feeds, outputs=names, edit=trajectory.gate_edit(site, torch.from_numpy(gate[0])))
        for end in ends:
            f, g = (torch.nn.functional.normalize(x[end.value].flatten(0, 1).double(), dim=-1) for x in (dense, moved))
            manifold += len(batch) * float((f @ f.T - g @ g.T).square().mean())
        p, q = ((x["logits"].double() / 4.0).log_softmax(-1) for x in (dense, moved))
        output += float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
    np.testing.assert_allclose(measured.manifold, [manifold / 5], rtol=1e-3)
    np.testing.assert_allclose(measured.output, [output / 5], rtol=1e-4)


def test_copies_at_once_are_copies_one_by_one(zoo: Callable[..., ZooModel], monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("bert", "gpt2", "resnet"):
        rows, sites, structure = of_zoo(zoo(family, "torchscript", "eager"), 4)
        site = sites[0]
        states = {site.id: 1.0 - np.eye(site.group.size)[:5]}
        together = exact(rows, [site], structure, states)[site.id]
        monkeypatch.setattr(trajectory, "COPIES_TOKENS", 1)
        alone = exact(rows, [site], structure, states)[site.id]
        monkeypatch.undo()
        np.testing.assert_allclose(together.manifold, alone.manifold, rtol=1e-3)
        np.testing.assert_allclose(together.output, alone.output, rtol=1e-2, atol=1e-7)


def test_only_later_boundaries_count(zoo: Callable[..., ZooModel]) -> None:
    rows, sites, structure = of_zoo(zoo("vit", "torchscript", "eager"), 4)
    found = trajectories(rows, sites, structure)
    last = [s for s in sites if s.group.kind == "neurons"][-1]
    assert not found[last.id].manifold.any(), "behind the last block there is none"
    assert found[last.id].output.min() > 0
    for site in sites:
        assert site.id == last.id or found[site.id].manifold.min() > 0
        assert site.branch is None or found[site.branch.id].output.shape == (1,)


def test_whole_branch_is_all_its_units(zoo: Callable[..., ZooModel]) -> None:
    rows, sites, structure = of_zoo(zoo("bert", "torchscript", "eager"), 4)
    site = sites[0]
    found = trajectories(rows, [site], structure)
    assert site.branch is not None
    alone = exact(rows, [site], structure, {site.id: np.zeros((1, site.group.size))})[site.id]
    np.testing.assert_allclose(found[site.branch.id].manifold, alone.manifold, rtol=1e-4)
    assert found[site.branch.id].manifold[0] > found[site.id].manifold.min()


def test_sample_is_whole_batches_within_its_budget(zoo: Callable[..., ZooModel]) -> None:
    model = zoo("bert", "torchscript", "eager")
    rows, _, _ = subject(model.path, [model.sample(1, tokens=4 + i % 30, seed=i) for i in range(120)])
    for budget in (TOKENS, 2 * TOKENS, 10**6):
        picked = spread_rows(rows, budget)
        tokens = [b.feeds["input_ids"].size for b in picked.batches]
        assert 0 < sum(tokens) <= budget + max(tokens) and max(tokens) <= TOKENS
    assert len(picked.dataset) == 120


def test_a_picture_counts_for_its_positions(zoo: Callable[..., ZooModel]) -> None:
    """Each has dozens of features to compare: of hundreds of pictures, some are as many tokens as are asked for."""
    rows, _, structure = of_zoo(zoo("resnet", "torchscript", "eager"), 200)
    each = tokens_a_row(rows, structure)
    assert 1 < each <= TOKENS // PICTURES
    assert len(spread_rows(rows, TOKENS).dataset) == 200
    assert len(spread_rows(rows, TOKENS, each).dataset) <= TOKENS // each + 64 < 200
    texts, _, structure = subject(
        zoo("bert", "torchscript", "eager").path,
        [zoo("bert", "torchscript", "eager").sample(1, tokens=9, seed=i) for i in range(3)],
    )
    assert tokens_a_row(texts, structure) == 1


def test_linearised_ranks_as_exact_on_a_real_model(sst2_folder: Path, assets: Path) -> None:
    calibration = assets / "data" / "sst2" / "calibration.jsonl"
    rows, sites, structure = subject(sst2_folder, calibration, limit=160)
    site = next(s for s in sites if s.id == "neurons.2")
    units = np.random.default_rng(0).choice(site.group.size, 40, replace=False)
    states = np.ones((len(units), site.group.size))
    states[np.arange(len(units)), units] = 0.0
    measured = exact(spread_rows(rows, TOKENS), [site], structure, {site.id: states})[site.id]
    expected = linearised(spread_rows(rows, 4 * TOKENS), [site], structure, probes=4)[site.id]
    assert rank_correlation(measured.manifold, expected.manifold[units]) > 0.9
    assert rank_correlation(measured.output, expected.output[units]) > 0.9


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; values without ties."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])
