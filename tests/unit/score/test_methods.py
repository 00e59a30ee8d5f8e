"""The scores' own arithmetic, on numbers small enough to follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from zoo import ZooModel

from onnxprune import data
from onnxprune.errors import UsageError
from onnxprune.graph import model as models
from onnxprune.graph.plan import Group, Plan
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.sites import Site, find_sites
from onnxprune.probe.branch_norms import flows, largest_singular_value
from onnxprune.probe.forward import Rows
from onnxprune.probe.gate_gradients import gate_gradients
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.second_moments import Gram
from onnxprune.probe.weight_gradients import STEP_ROWS, seen_through, weight_gradients, weight_scores
from onnxprune.refit.solvers.schedule import cubic
from onnxprune.score import METHODS, Fisher, Mixture, Seven, collect, dynamic, near_identity, seven_dyn
from onnxprune.score.base import Statistics
from onnxprune.score.fisher import Rearranged, rearrange
from onnxprune.score.mixture import parse
from onnxprune.score.platon import Uncertainty
from onnxprune.score.seven import Sensitivity, steps
from onnxprune.score.taylor import Connections

seeds = st.integers(0, 2**32 - 1)


def subject(model: ZooModel, count: int = 32):  # type: ignore[no-untyped-def]
    loaded = models.load(model.path)
    structure = analyze(loaded)
    learn = data.read([model.sample(1, seed=i) for i in range(count)], loaded.inputs, outputs=loaded.outputs)
    interpreter = Interpreter(loaded.graph)
    units = ("heads", "neurons", "channels", "blocks")
    return Rows(interpreter, learn), find_sites(loaded.graph, structure, units), structure


# -- SEVEN ---------------------------------------------------------------------------------------------------------


def test_seven_follows_the_formula() -> None:
    weight, gradients = 2.0, [1.0, -3.0, 0.5]
    sensitivity = Sensitivity(0.8, 0.6)
    m = v = total = 0.0
    for t, g in enumerate(gradients, 1):
        sensitivity.add(np.array(weight), np.array(g))
        m, v = 0.8 * m + 0.2 * abs(g), 0.6 * v + 0.4 * g * g
        total += abs(weight * g * (m / (1 - 0.8**t)) / np.sqrt(v / (1 - 0.6**t)))
    assert sensitivity.score == pytest.approx(total)


def test_seven_prefers_what_is_steady() -> None:
    """Of gradients with the same mean size, the noisy ones count for less; the signed variant also sees their signs."""
    random = np.random.default_rng(0)
    steady = np.ones(400)
    bursts = np.where(random.random(400) < 0.05, 20.0, 0.0)
    flipping = random.choice([-1.0, 1.0], 400)

    def score(signed: bool) -> np.ndarray:
        sensitivity = Sensitivity(signed=signed)
        for g in np.stack([steady, bursts, flipping], axis=1):
            sensitivity.add(1.0, g)
        return np.asarray(sensitivity.score)

    assert score(False)[0] > score(False)[1]
    assert score(False)[0] == pytest.approx(score(False)[2])
    assert score(True)[0] > 2 * score(True)[2]


def test_steps_are_means_over_every_sample_once() -> None:
    for samples in (3, STEP_ROWS, STEP_ROWS + 1, 5 * STEP_ROWS - 1):
        gradients = np.random.default_rng(samples).standard_normal((samples, 4))
        found = steps(gradients)
        assert len(found) == max(1, round(samples / STEP_ROWS))
        np.testing.assert_allclose(found[0], gradients[: STEP_ROWS if len(found) > 1 else None].mean(0))


def test_platon_is_zero_without_uncertainty() -> None:
    sure, unsure = Uncertainty(), Uncertainty()
    for t in range(20):
        sure.add(1.0, np.array(1.0))
        unsure.add(1.0, np.array(2.0 * (t % 2)))
    assert sure.score == 0
    assert unsure.score > 0


@pytest.mark.parametrize("samples", [2, 3, 8, STEP_ROWS + 1, 5 * STEP_ROWS])
def test_platon_has_uncertainty_from_few_rows(samples: int) -> None:
    """One mini-batch would leave every score at zero, and the order to chance."""
    gradients = np.random.default_rng(samples).standard_normal((samples, 4))
    assert len(steps(gradients, at_least=2)) >= 2
    np.testing.assert_allclose(np.concatenate(steps(gradients, at_least=2)).size, 4 * len(steps(gradients, at_least=2)))
    site = Site(Group("n", "neurons", 0, 0, (4,), (), ()), (), None)
    found = METHODS["platon"](site, Statistics(lambda name: np.zeros(0), gate_grad={"n": gradients})).scores
    assert min(found) > 0


def test_connection_sensitivity_is_of_the_summed_gradient() -> None:
    found = Connections()
    for g in (1.0, -1.0, 0.25):
        found.add(np.array(-2.0), np.array(g))
    assert found.score == pytest.approx(0.5)


def test_weight_gradients_are_finite_differences(zoo: Callable[..., ZooModel]) -> None:
    """On labels; the sum over steps is the gradient of the loss over all rows."""
    model = zoo("bert", "torchscript", "eager")
    loaded = models.load(model.path)
    structure = analyze(loaded)
    rows = [{**model.sample(1, seed=i), "label": i % 2} for i in range(8)]
    learn = data.read(rows, loaded.inputs, outputs=loaded.outputs)
    interpreter = Interpreter(loaded.graph)
    fit = Rows(interpreter, learn)
    assert learn.labels is not None
    name = find_sites(loaded.graph, structure)[1].matrices[0].reader.weight or ""
    seen = [g[name][1] for g in weight_gradients(fit, [name])]
    assert len(seen) == 2, "one step has no variance"
    found = sum(g * 8 / len(seen) for g in seen)
    output = fit.divergence.outputs[0]

    def loss(moved: float) -> float:
        weight = interpreter.weight(name).double().clone()
        weight[3, 5] += moved
        total = 0.0
        for batch in fit.batches:
            z = interpreter.run(batch.feeds, outputs=[output], weights={name: weight.float()})[output].double()
            labels = [int(learn.examples[i].label) for i in batch.index]
            total -= float(z.log_softmax(-1)[range(len(labels)), labels].sum())
        return total

    slope = (loss(0.02) - loss(-0.02)) / 0.04
    assert float(found[3, 5]) == pytest.approx(slope, rel=0.05, abs=2e-4)


def test_gate_scores_are_sums_of_weight_gradients(zoo: Callable[..., ZooModel]) -> None:
    """∂L/∂gate = Σ w·∂L/∂w over the unit's rows; on labels, where no draw can differ."""
    model = zoo("bert", "torchscript", "eager")
    loaded = models.load(model.path)
    structure = analyze(loaded)
    rows = [{**model.sample(1, seed=i), "label": i % 2} for i in range(8)]
    fit = Rows(Interpreter(loaded.graph), data.read(rows, loaded.inputs, outputs=loaded.outputs))
    site = find_sites(loaded.graph, structure)[1]
    (matrix,) = site.matrices
    gates = gate_gradients(fit, [site], structure)[site.id].sum(0)
    name = matrix.reader.weight or ""
    seen = [s[name] for s in weight_gradients(fit, [name])]
    total = sum((w * g * 8 / len(seen)).numpy() for w, g in seen)
    np.testing.assert_allclose(matrix.weight(np.asarray(total)).sum(1), gates[matrix.units], rtol=1e-3, atol=1e-6)
    scores = weight_scores(fit, [name], Connections)[name]
    assert scores.shape == total.shape and (scores >= 0).all()


# -- fisher --------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seeds, st.integers(1, 7))
def test_rearranging_never_costs_and_mostly_finds_the_best(seed: int, count: int) -> None:
    gradients = np.random.default_rng(seed).standard_normal((30, 8)) * np.arange(1, 9)
    fisher = gradients.T @ gradients
    order = np.argsort(np.diagonal(fisher), kind="stable")

    def form(units: tuple[int, ...] | list[int]) -> float:
        return float(fisher[np.ix_(units, units)].sum())

    gone = rearrange(fisher, order.tolist(), count)
    assert len(set(gone)) == count
    assert form(gone) <= form(order[:count].tolist()) + 1e-9
    best = min(form(c) for c in combinations(range(8), count))
    assert form(gone) >= best - 1e-9


def test_rearranging_keeps_one_of_two_that_stand_in_for_each_other() -> None:
    """Two units with equal gradients are cheap alone and dear together."""
    gradients = np.array([[1.0, 1.0, 1.2], [1.0, 1.0, -1.2]])
    order = (2, 1, 0)
    fisher = gradients.T @ gradients / 2
    assert set(rearrange(fisher, order[::-1], 2)) != {0, 1}


def test_what_goes_back_is_what_lowers_the_form_most_not_what_is_largest() -> None:
    """A unit on its own counts once in 1ᵀF1; one of three alike counts with both others, twice each."""
    form = np.full((4, 4), 2.9)
    form[0] = form[:, 0] = 0.0
    form[np.diag_indices(4)] = [10.0, 3.0, 2.99, 2.98]
    assert sorted(rearrange(form, [0, 1, 2, 3], 3)) == [0, 2, 3]


def test_full_fisher_recipe_differs_from_its_diagonal_only_in_sets(zoo: Callable[..., ZooModel]) -> None:
    rows, sites, structure = subject(zoo("bert", "torchscript", "eager"))
    site = next(s for s in sites if s.group.kind == "neurons")
    statistics = collect(METHODS["fisher"], rows, [site], structure, lambda n: rows.interpreter.weight(n).numpy())
    full, plain = Fisher()(site, statistics), Fisher(rearrange=False)(site, statistics)
    assert full.order == plain.order
    gradients = statistics.gate_grad[site.id]
    for count in (1, site.group.size // 2, site.group.size - 1, site.group.size):
        sets = [np.setdiff1d(np.arange(site.group.size), r.keep(count)) for r in (full, plain)]
        assert len(full.keep(count)) == count
        costs = [np.square(gradients[:, gone].sum(1)).sum() for gone in sets]
        assert costs[0] <= costs[1] + 1e-12
    turned = replace(full, order=full.order[::-1])
    assert len(turned.keep(1)) == 1 and turned is not full
    assert isinstance(full, Rearranged)
    flat = replace(full, fisher=np.diag(np.array(full.scores)))
    assert flat.keep(3) == plain.keep(3), "without cross terms it is the order itself, whatever was kept before"


# -- Wanda ---------------------------------------------------------------------------------------------------------


def test_wanda_is_a_unit_s_weights_times_the_norm_of_what_it_gives(zoo: Callable[..., ZooModel]) -> None:
    """Σ |W_ij| ‖x_i‖₂ over the rows of a unit: a head has several."""
    rows, sites, _ = subject(zoo("bert", "torchscript", "eager"), 1)
    site = next(s for s in sites if s.group.kind == "heads")
    (matrix,) = site.matrices
    tokens = np.random.default_rng(0).standard_normal((5, len(matrix.units))).astype(np.float32)
    gram = Gram()
    gram.add(torch.from_numpy(tokens))
    weight = matrix.weight(rows.interpreter.weight(matrix.reader.weight or "").numpy())
    every = np.abs(weight).sum(1) * np.linalg.norm(tokens, axis=0)
    found = METHODS["wanda"](
        site, Statistics(lambda n: rows.interpreter.weight(n).numpy(), gram={matrix.usage: gram})
    ).scores
    wanted = [every[matrix.units == unit].sum() for unit in range(site.group.size)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert len(every) > site.group.size


# -- SNIP ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seeds, st.integers(1, 12), st.integers(1, 12))
@example(2402, 6, 7)  # one vector alone stands still at the second singular value
def test_power_iteration_finds_the_largest_singular_value(seed: int, n: int, m: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((n, m))
    assert largest_singular_value(weight) == pytest.approx(np.linalg.norm(weight, 2), rel=0.02)


def test_zero_matrix_is_not_divided_by_zero() -> None:
    assert largest_singular_value(np.zeros((3, 2))) == 1.0


@pytest.mark.parametrize("family", ["bert", "gpt2", "resnet"])
def test_flow_is_the_norm_of_the_write(zoo: Callable[..., ZooModel], family: str) -> None:
    """Independently: gate every other unit off, and look at what the branch then gives beyond its empty value."""
    rows, sites, structure = subject(zoo(family, "torchscript", "eager"), 4)
    site = next(s for s in sites if s.branch is not None)
    branch = structure.branch(site.branch.id)
    found = flows(rows, sites, structure)
    gates = Gates(structure, rows.interpreter)
    axis = 1 if family == "resnet" else -1

    def value(units: tuple[int, ...] | None) -> list[np.ndarray]:
        plan = Plan(structure.digest, {site.id: units} if units else {})
        gated = gates.gated(plan if units is not None else Plan(structure.digest, drop=(branch.id,)))
        runs = (
            rows.interpreter.run(b.feeds, outputs=[branch.value], weights=gated.weights, edit=gated.edit)
            for b in rows.batches
        )
        return [found[branch.value].numpy() for found in runs]

    empty = value(None) if family != "resnet" else None
    if empty is not None:
        for unit in (0, site.group.size - 1):
            norms = [np.linalg.norm(a - b, axis=axis).ravel() for a, b in zip(value((unit,)), empty, strict=True)]
            assert found[site.id].write[unit] == pytest.approx(np.concatenate(norms).mean(), rel=1e-3)
    whole = np.concatenate([np.linalg.norm(a, axis=axis).ravel() for a in value(())])
    assert found[branch.id].write[0] == pytest.approx(whole.mean(), rel=1e-4)


def test_spectral_flow_divides_every_map_of_the_branch(zoo: Callable[..., ZooModel]) -> None:
    """Scaling a branch's last matrix changes its norm, and not its spectral one."""
    rows, sites, structure = subject(zoo("bert", "torchscript", "eager"), 4)
    site = next(s for s in sites if s.group.kind == "neurons" and s.branch is not None)
    plain, spectral = flows(rows, [site], structure), flows(rows, [site], structure, spectral=True)
    name = site.matrices[0].reader.weight or ""
    rows.interpreter._held.put(name, rows.interpreter.weight(name) * 3)
    louder, same = flows(rows, [site], structure), flows(rows, [site], structure, spectral=True)
    np.testing.assert_allclose(louder[site.id].write, 3 * plain[site.id].write, rtol=1e-4)
    np.testing.assert_allclose(same[site.id].write, spectral[site.id].write, rtol=1e-3)


def test_near_identity_takes_branches_below_the_threshold(zoo: Callable[..., ZooModel]) -> None:
    rows, sites, structure = subject(zoo("vit", "torchscript", "eager"), 4)
    found = flows(rows, sites, structure)
    norms = sorted((float(found[b.id].relative[0]), b.id) for b in structure.branches)
    assert near_identity(found, structure, (norms[1][0] + norms[2][0]) / 2) == (norms[0][1], norms[1][1])
    assert near_identity(found, structure, 0.0) == ()
    turned = {name: replace(flow, write=flow.stream**2 / flow.write) for name, flow in found.items()}
    assert near_identity(turned, structure, np.inf) == tuple(name for _, name in reversed(norms)), "the least first"


# -- dynamic, mixtures ---------------------------------------------------------------------------------------------


def test_dynamic_orders_every_unit_and_its_scores_agree(zoo: Callable[..., ZooModel]) -> None:
    rows, sites, structure = subject(zoo("bert", "torchscript", "eager"))
    found = dynamic(rows, sites, Gates(structure, rows.interpreter), 0.5, count=3)
    for site in sites:
        ranking = found[site.id]
        assert sorted(ranking.order) == list(range(site.group.size))
        along = np.array(ranking.scores)[list(ranking.order)]
        assert (np.diff(along) <= 1e-12).all()


def test_dynamic_goes_down_by_the_schedule(zoo: Callable[..., ZooModel], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sites, structure = subject(zoo("bert", "torchscript", "eager"), 4)
    sites = [s for s in sites if s.group.kind == "neurons"]
    left = []

    def scores(rows: Rows, sites: list[Site], gates: Gates, alive: dict[str, np.ndarray], *more: object) -> object:
        left.append(sum(int(a.sum()) for a in alive.values()))
        return {s.id: np.arange(s.group.size) for s in sites}

    monkeypatch.setattr(seven_dyn, "_scores", scores)
    dynamic(rows, sites, Gates(structure, rows.interpreter), 0.25, count=4)
    total = sum(s.group.size for s in sites)
    assert left == [total, *(round(cubic(step, 4, 0.25) * total) for step in range(3))]
    assert len(set(left)) > 2


def test_a_refit_that_changes_nothing_changes_no_dynamic_order(zoo: Callable[..., ZooModel]) -> None:
    """What the plan it begins with has refit already is not undone."""
    rows, sites, structure = subject(zoo("bert", "torchscript", "eager"), 8)
    sites = [s for s in sites if s.group.kind == "neurons"]
    gates = Gates(structure, rows.interpreter)
    names = [m.reader.weight or "" for s in sites for m in s.matrices]
    moved = {n: rows.interpreter.weight(n).numpy()[::-1].copy() for n in names}
    base = Plan(structure.digest, weights=moved)
    bare, refit, other = (
        dynamic(rows, sites, gates, 0.5, base=b, count=2, refit=how)
        for b, how in ((base, None), (base, lambda site, units: {}), (None, None))
    )
    for site in sites:
        assert refit[site.id] == bare[site.id]
        assert other[site.id].order != bare[site.id].order


def test_rows_seen_through_a_plan_are_the_gated_model(zoo: Callable[..., ZooModel]) -> None:
    rows, sites, structure = subject(zoo("bert", "torchscript", "eager"), 4)
    gates = Gates(structure, rows.interpreter)
    gated = gates.gated(Plan(structure.digest, {sites[0].id: (1,)}))
    feeds, output = rows.batches[0].feeds, rows.divergence.outputs[0]
    expected = rows.interpreter.run(feeds, weights=gated.weights, edit=gated.edit)[output]
    np.testing.assert_array_equal(seen_through(rows, gated).interpreter.run(feeds)[output], expected)
    gone = gate_gradients(seen_through(rows, gated), sites, structure)[sites[0].id]
    assert not np.delete(gone, 1, axis=1).any() and gone[:, 1].any()


def test_mixture_sums_scores_of_unit_mean(zoo: Callable[..., ZooModel]) -> None:
    rows, sites, structure = subject(zoo("bert", "torchscript", "eager"))
    mixed = parse("wanda+0.5*magnitude", METHODS)
    assert mixed.needs == {"gram"}
    statistics = collect(mixed, rows, sites, structure, lambda n: rows.interpreter.weight(n).numpy())
    parts = [np.array(METHODS[m](sites[0], statistics).scores) for m in ("wanda", "magnitude")]
    expected = parts[0] / parts[0].mean() + 0.5 * parts[1] / parts[1].mean()
    np.testing.assert_allclose(mixed(sites[0], statistics).scores, expected)
    assert parse("optin", METHODS) is METHODS["optin"]
    for text in ("nonsense", "optin+", "-1*optin", "x*optin", "seven-weights+connection"):
        with pytest.raises(UsageError):
            parse(text, METHODS)
    assert isinstance(parse("seven-weights+wanda", METHODS), Mixture)


def test_options_change_what_seven_needs() -> None:
    assert Seven().needs == {"gate_grad"}
    assert Seven(weights=True).needs == {"weight_score"}
