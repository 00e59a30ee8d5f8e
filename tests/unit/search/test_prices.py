"""Prices of widths: what changing one site costs is counted around it alone, and is exactly what the whole says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from graphs import written
from zoo import ZooModel

from onnxprune.graph.model import load
from onnxprune.graph.plan import Group, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.sites import find_sites
from onnxprune.measure.cost import Costs, default_bindings
from onnxprune.search.prices import MAPPED, Prices, _interpolated, _spread

Build = Callable[..., ZooModel]
Weights = dict[str, tuple[int, ...]]

CONVOLUTIONS = """
<ir_version: 10, opset_import: ["" : 20]>
chain (float[N, 3, 8, 8] x, float[12, 3, 3, 3] a, float[10, 12, 3, 3] b, float[14, 10, 3, 3] c, float[14, 5] d)
        => (float[N, 5] y) {
    h0 = Conv<pads = [1, 1, 1, 1]>(x, a)
    r0 = Relu(h0)
    h1 = Conv<pads = [1, 1, 1, 1]>(r0, b)
    r1 = Relu(h1)
    h2 = Conv<pads = [1, 1, 1, 1]>(r1, c)
    p = GlobalAveragePool(h2)
    f = Flatten(p)
    y = MatMul(f, d)
}
"""
CONVOLUTION_WEIGHTS: Weights = {"a": (12, 3, 3, 3), "b": (10, 12, 3, 3), "c": (14, 10, 3, 3), "d": (14, 5)}

PERCEPTRON = """
<ir_version: 10, opset_import: ["" : 20]>
mlp (float[N, 6] x, float[6, 16] a, float[16, 20] b, float[20, 12] c, float[12, 3] d) => (float[N, 3] y) {
    h0 = MatMul(x, a)
    r0 = Relu(h0)
    h1 = MatMul(r0, b)
    r1 = Relu(h1)
    h2 = MatMul(r1, c)
    r2 = Relu(h2)
    y = MatMul(r2, d)
}
"""
PERCEPTRON_WEIGHTS: Weights = {"a": (6, 16), "b": (16, 20), "c": (20, 12), "d": (12, 3)}

TIED = """
<ir_version: 10, opset_import: ["" : 20]>
tied (float[N, 6] x, float[6, 16] a, float[16, 16] b, float[16, 12] c, float[12, 12] e, float[12, 3] d)
        => (float[N, 3] y) {
    h0 = MatMul(x, a)
    r0 = Relu(h0)
    h1 = MatMul(r0, b)
    s = Add(r0, h1)
    r1 = Relu(s)
    h2 = MatMul(r1, c)
    r2 = Relu(h2)
    h3 = MatMul(r2, e)
    r3 = Relu(h3)
    h4 = MatMul(r3, e)
    r4 = Relu(h4)
    y = MatMul(r4, d)
}
"""
TIED_WEIGHTS: Weights = {"a": (6, 16), "b": (16, 16), "c": (16, 12), "e": (12, 12), "d": (12, 3)}
"""A width that is both sides of one product (its square counts), and one that a weight read twice shows twice."""


def prices(path: Path, kind: str, first: Plan | None = None) -> Prices:
    model = load(path)
    structure = analyze(model)
    sites = find_sites(model.graph, structure, ("heads", "neurons", "channels", "blocks"))
    bindings = default_bindings(model, {"sequence_length": 8, "decoder_sequence_length": 5})
    return Prices(Costs(model, structure, bindings), kind, sites, first or Plan(model.digest))


def some_counts(found: Prices, random: np.random.Generator) -> dict[str, int]:
    """Any number of units at every site, equally many of every row; where a branch may go, now and then nothing."""
    counts = {}
    for name, site in found.sites.items():
        counts[name] = site.rows * int(random.integers(1, site.group.shape[-1] + 1))
        if site.branch is not None and random.random() < 0.3:
            counts[name] = int(random.choice([0, MAPPED]))
    return counts


def exact(found: Prices, seeds: int = 2) -> None:
    """Every site's levels beside random counts of the others, against the whole counted anew."""
    assert found.sites
    for seed in range(seeds):
        counts = some_counts(found, np.random.default_rng(seed))
        for name, site in found.sites.items():
            wide = [site.rows * k for k in range(1, site.group.shape[-1] + 1)]
            levels = [MAPPED, 0, *wide] if site.branch is not None else wide
            expected = [found.costs.total(found.kind, found.plan({**counts, name: level})) for level in levels]
            np.testing.assert_array_equal(found.levels([name], counts, levels), expected)


CHAINS: dict[str, tuple[str, Weights]] = {
    "convolutions": (CONVOLUTIONS, CONVOLUTION_WEIGHTS),
    "perceptron": (PERCEPTRON, PERCEPTRON_WEIGHTS),
    "tied": (TIED, TIED_WEIGHTS),
}


@pytest.mark.parametrize("kind", ["flops", "params", "size"])
@pytest.mark.parametrize("name", CHAINS)
def test_levels_of_a_chain_are_totals(name: str, kind: str, tmp_path: Path) -> None:
    found = prices(written(tmp_path, *CHAINS[name]), kind)
    assert found.coupled
    exact(found)


@pytest.mark.parametrize("kind", ["flops", "params"])
@pytest.mark.parametrize("family", ["resnet", "mobilenet-v3", "bert", "t5-encoder"])
def test_levels_of_a_residual_graph_are_totals(zoo: Build, family: str, kind: str) -> None:
    """Also of what several branches share, as T5 its position bias: it leaves with the last."""
    exact(prices(zoo(family, "torchscript", "eager").path, kind))


def test_nothing_is_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of levels differ from one allocation to the next, where more has been measured; what they cost does not."""
    found = prices(written(tmp_path, PERCEPTRON, PERCEPTRON_WEIGHTS), "flops")
    counts, counted = dict(found.whole), found.costs.part
    (name, *_) = found.sites
    before = found.levels([name], counts, [2, 4, 8])
    asked: list[Plan] = []

    def part(kind: str, groups: Sequence[Group], plan: Plan) -> float:
        asked.append(plan)
        return counted(kind, groups, plan)

    monkeypatch.setattr(found.costs, "part", part)
    after = found.levels([name], counts, [2, 4, 6, 8])
    np.testing.assert_array_equal(after[[0, 1, 3]], before)
    assert len(asked) == 1


def test_what_stands_in_for_a_branch_has_the_width_of_the_stream(zoo: Build) -> None:
    """Its map is the square of a width that no product inside the branch may show."""
    found = prices(zoo("resnet", "torchscript", "eager").path, "flops")
    counts = dict(found.whole)
    for name, site in found.sites.items():
        if site.branch is not None:
            counts[name] = MAPPED
    for name in found.sites:
        expected = [found.costs.total("flops", found.plan({**counts, name: k})) for k in (1, 2, 5)]
        np.testing.assert_array_equal(found.levels([name], counts, [1, 2, 5]), expected)


def test_of_a_transformer_prices_add_up(zoo: Build) -> None:
    found = prices(zoo("bert", "torchscript", "eager").path, "flops")
    assert not found.coupled
    counts = {n: s.rows * max(s.group.shape[-1] // 2, 1) for n, s in found.sites.items()}
    spared = sum(found.total(found.whole) - found.total({**found.whole, n: k}) for n, k in counts.items())
    assert found.total(counts) == found.total(found.whole) - spared


@pytest.mark.parametrize("family", ["bert", "t5-encoder"])
def test_a_layer_is_counted_once_at_a_width_whatever_the_others_are(
    zoo: Build, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What several share (T5's position bias) ties those alone that share it."""
    found = prices(zoo(family, "torchscript", "eager").path, "flops")
    random = np.random.default_rng(3)
    tried = [some_counts(found, random) for _ in range(12)]
    mixed = [{n: tried[int(random.integers(len(tried)))][n] for n in found.sites} for _ in range(12)]
    expected = [found.costs.total("flops", found.plan(counts)) for counts in (*tried, *mixed)]
    assert [found.total(counts) for counts in (*tried, *mixed)] == expected
    alone = [c for c in found._clusters if len(c) == 1]
    assert len(alone) >= len(found.sites) // 2
    counted, part = [], found.costs.part

    def watched(kind: str, groups: Sequence[Group], plan: Plan) -> float:
        counted.append(len(groups))
        return part(kind, groups, plan)

    monkeypatch.setattr(found.costs, "part", watched)
    fresh = {**tried[0], **{n: tried[1][n] for c in alone for n in c}}
    assert found.total(fresh) == found.costs.total("flops", found.plan(fresh))
    assert 1 not in counted


@pytest.mark.parametrize("name", CHAINS)
def test_several_sites_at_once(name: str, tmp_path: Path) -> None:
    """Sites that a uniform plan cuts alike, neighbours among them: their product is in the price."""
    found = prices(written(tmp_path, *CHAINS[name]), "flops")
    members = list(found.sites)[:2]
    counts = some_counts(found, np.random.default_rng(5))
    levels = list(range(1, 9))
    expected = [found.costs.total("flops", found.plan({**counts, **dict.fromkeys(members, k)})) for k in levels]
    np.testing.assert_array_equal(found.levels(members, counts, levels), expected)


def test_a_plan_to_begin_with_counts(zoo: Build) -> None:
    """Branches that left before are no sites any more, and their cost is gone from every price."""
    path = zoo("bert", "torchscript", "eager").path
    whole = prices(path, "flops")
    branch = next(s.branch.id for s in whole.sites.values() if s.branch is not None)
    left = prices(path, "flops", Plan(whole.first.digest, drop=(branch,)))
    assert set(left.sites) < set(whole.sites)
    assert left.total(left.whole) == whole.total(whole.whole) - whole.costs.branch_cost("flops", branch)
    exact(left, seeds=1)


def test_span_is_what_a_site_can_lose(tmp_path: Path) -> None:
    found = prices(written(tmp_path, *CHAINS["perceptron"]), "params")
    name, site = next(iter(found.sites.items()))
    # 6 inputs, 16 units, 20 outputs.
    assert (site.group.size, found.least(name)) == (16, found.total(found.whole) - 15 * 26)
    assert found.span(name) == 15 * 26


def test_a_polynomial_is_known_from_few_of_its_values() -> None:
    at = _spread(range(1, 100))
    assert (len(at), at[0], at[-1]) == (5, 1, 99)

    def quartic(x: int) -> float:
        return 3.0 - 2 * x + 5 * x**2 + x**3 + 2 * x**4

    everywhere = _interpolated(at, [quartic(x) for x in at], range(1, 100))
    np.testing.assert_allclose(everywhere, [quartic(x) for x in range(1, 100)])
