"""The damage table: levels stacked into one batch give what each gives alone, also where a branch leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import random_graphs
import torch
import zoo as exports
from graphs import written

from onnxprune.data import Dataset, Example, read
from onnxprune.graph.model import Model, load
from onnxprune.graph.plan import Plan, Ranking
from onnxprune.graph.structure.analyze import analyze
from onnxprune.graph.structure.sites import Site, find_sites
from onnxprune.probe import second_moments
from onnxprune.probe.batched_states import Copies
from onnxprune.probe.forward import Evaluator, Rows, grams
from onnxprune.probe.gates import Gates
from onnxprune.probe.interpreter import Interpreter
from onnxprune.probe.second_moments import Gram
from onnxprune.search import damage_table as damage
from onnxprune.search.damage_table import Refitter, TableWalk, _row, bends, damage_table, spread


def test_a_site_that_has_no_level_left_costs_what_the_rest_does(tmp_path: Path) -> None:
    """A stage may leave a site as few units as it can do with: there is nothing to measure then."""
    model = load(random_graphs.saved(random_graphs.build("mlp", 0), tmp_path / "mlp.onnx"))
    structure = analyze(model)
    interpreter = Interpreter(model.graph)
    rows = Rows(interpreter, read([{"x": row[None]} for row in random_graphs.sample("mlp", 4)], model.inputs))
    sites = find_sites(model.graph, structure)
    rankings = {s.id: Ranking(s.id, tuple(range(s.group.size))) for s in sites}
    levels = {s.id: [s.group.size] for s in sites}
    refitter = Refitter(lambda name: interpreter.weight(name).numpy(), {}, rankings)
    walk = TableWalk(Evaluator(rows), Gates(structure, interpreter), Plan(model.digest), rankings, refitter)
    found = dict(damage_table(walk, sites, levels))
    assert found.keys() == levels.keys()
    assert all(row.damage.tolist() == [0.0] for row in found.values())


@pytest.mark.parametrize("name", ["bert-torchscript-sdpa", "swin-torchscript-sdpa", "gpt2-torchscript-eager"])
def test_stacked_levels_are_the_levels(
    name: str, zoo: Callable[..., exports.ZooModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = zoo(*name.split("-"))
    examples = [Example({k: v[:1] for k, v in built.sample(seed=i).items()}) for i in range(6)]
    stacked_is_alone(load(built.path), examples, monkeypatch)


LOOKED_UP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,T,6] x, int64[N,T] mask, float[6,12] up, float[12,6] down, float[6,3] out) => (float[N,T,3] y) {
  zero = Constant<value_int = 0>()
  one = Constant<value_int = 1>()
  all = Constant<value_ints = [-1]>()
  last = Constant<value_ints = [-1]>()
  s = Shape(x)
  n = Gather(s, zero)
  t = Gather(s, one)
  h = MatMul(x, up)
  a = Relu(h)
  o = MatMul(a, down)
  r = Range(zero, n, one)
  c = Range(zero, t, one)
  column = Unsqueeze(r, last)
  start = Mul(column, t)
  at = Add(start, c)
  flat = Reshape(mask, all)
  got = Gather(flat, at)
  weight = Cast<to = 1>(got)
  w = Unsqueeze(weight, last)
  p = Mul(o, w)
  m = Tanh(p)
  y = MatMul(m, out)
}
"""


def test_rows_of_a_mask_that_is_looked_up_go_with_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporters write mask[row, position] as a place in a mask laid flat: nothing ties its rows to the others."""
    random = np.random.default_rng(0)
    model = load(written(tmp_path, LOOKED_UP, {"up": (6, 12), "down": (12, 6), "out": (6, 3)}))
    made = [
        Example({"x": random.standard_normal((1, 5, 6)).astype(np.float32), "mask": random.integers(0, 2, (1, 5))})
        for _ in range(6)
    ]
    stacked_is_alone(model, made, monkeypatch)


def stacked_is_alone(model: Model, examples: Sequence[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    structure = analyze(model)
    interpreter = Interpreter(model.graph)
    gates = Gates(structure, interpreter)
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
        walk = TableWalk(Evaluator(rows), gates, Plan(model.digest), rankings, refitter)
        found = dict(damage_table(walk, sites, levels))
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


def test_a_weight_that_two_uses_share_is_left_alone() -> None:
    """What one use would make of it is wrong for the other."""
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(64, 4)) @ random.normal(size=(4, 4)))
    gram = {usage: Gram() for usage in (("a", 0), ("b", 0))}
    for found in gram.values():
        found.add(x)

    def matrix(node: str, name: str) -> SimpleNamespace:
        reader = SimpleNamespace(node=node, input=0, weight=name)
        return SimpleNamespace(
            reader=reader, usage=(node, 0), units=np.arange(4), refits=True, weight=lambda a: a, restore=lambda a, _: a
        )

    def refitted(*names: str) -> set[str]:
        matrices = tuple(matrix(node, name) for node, name in zip("ab", names, strict=True))
        site = SimpleNamespace(id="s", group=SimpleNamespace(size=4), matrices=matrices)
        return set(Refitter(lambda _: np.ones((4, 2)), gram)(cast(Site, site), [0, 1, 3]))

    assert refitted("w", "v") == {"w", "v"}
    assert refitted("w", "w") == set()


@pytest.mark.parametrize("tokens", [300, 20], ids=["moments", "tokens"])
def test_what_a_site_is_refit_to_depends_on_no_other_site(tokens: int) -> None:
    """Heads and their dimensions read one matrix: workers come to them in orders of their own."""
    random = np.random.default_rng(0)
    gram = {("out", 0): Gram()}
    gram["out", 0].add(torch.from_numpy(random.normal(size=(tokens, 32)) @ random.normal(size=(32, 32))))
    weight = random.normal(size=(32, 16)).astype(np.float32)

    def site(name: str, units: np.ndarray) -> Site:
        reader = SimpleNamespace(node="out", input=0, weight="w")
        matrix = SimpleNamespace(
            reader=reader, usage=("out", 0), units=units, refits=True, weight=lambda a: a, restore=lambda a, _: a
        )
        return cast(Site, SimpleNamespace(id=name, group=SimpleNamespace(size=units.max() + 1), matrices=(matrix,)))

    sites = [site("heads", np.arange(32) // 8), site("dims", np.arange(32))]
    rankings = {s.id: Ranking(s.id, tuple(random.permutation(s.group.size).tolist())) for s in sites}
    kept = [rankings["heads"].keep(2), rankings["dims"].keep(13)]
    found = []
    for order in ((0, 1), (1, 0)):
        refitter = Refitter(lambda _: weight, gram, rankings)
        made = {i: refitter(sites[i], kept[i])["w"] for i in order}
        found.append([made[0], made[1]])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


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


# -- curves --------------------------------------------------------------------------------------------------------


def test_between_levels_a_curve_never_rises_with_more_units_kept() -> None:
    """Noise may say that fewer units do less harm: whoever believed it would cut for nothing."""
    counts, damages = spread([0, 4, 8, 16], np.array([0.9, 0.2, 0.5, -0.1]), 4)
    np.testing.assert_array_equal(counts, [0, 4, 8, 12, 16])
    np.testing.assert_allclose(damages, [0.9, 0.2, 0.2, 0.1, 0.0])
    random = np.random.default_rng(0)
    for _ in range(20):
        levels = np.sort(random.choice(64, 7, replace=False))
        _, damages = spread(levels.tolist(), random.normal(size=7), 3)
        assert (np.diff(damages) <= 0).all() and damages.min() >= 0


def test_a_curve_is_a_straight_line_between_what_was_measured() -> None:
    counts, damages = spread([1, 5, 6, 10], np.array([8.0, 4.0, 3.0, 0.0]), 2)
    np.testing.assert_array_equal(counts, [1, 3, 5, 6, 7, 9, 10])  # what was measured stays, on the grid or not
    np.testing.assert_allclose(damages, [8.0, 6.0, 4.0, 3.0, 2.25, 0.75, 0.0])


@pytest.mark.parametrize("power", [0.8, 1.0, 1.6])
def test_between_levels_a_curve_has_the_shape_of_what_the_scores_lose(power: float) -> None:
    """Four levels of a curve that is a power of the lost scores tell all of it; dead units cost nothing."""
    scores = np.concatenate([np.zeros(8), 1.1 ** np.arange(56)])
    ranking = Ranking("m", tuple(range(63, -1, -1)), tuple(scores.tolist()))
    lost = np.array([scores[: 64 - kept].sum() for kept in range(65)])
    counts = [4, 16, 36, 64]
    found, damages = spread(counts, 3.0 * lost[counts] ** power, 4, ranking)
    expected = 3.0 * lost[found] ** power
    np.testing.assert_allclose(damages[found <= 36], expected[found <= 36])
    np.testing.assert_allclose(damages, expected, atol=1e-2 * expected.max())
    assert (np.diff(damages) <= 0).all() and damages[found == 56] == 0
    line = spread(counts, 3.0 * lost[counts] ** power, 4)[1]
    assert np.abs(line - expected).max() > 20 * np.abs(damages - expected).max()
    noisy = spread([0, *counts], np.array([2.0, 1.0, -0.1, 0.2, 0.0]), 4, ranking)[1]
    assert (np.diff(noisy[1:]) <= 1e-12).all() and noisy.min() >= 0


def test_nothing_kept_stands_for_itself() -> None:
    """A branch that is gone leaves a constant behind, which may be better than few units: no line leads there."""
    counts, damages = spread([0, 8, 16], np.array([5.0, 1.0, 0.0]), 4)
    np.testing.assert_array_equal(counts, [0, 8, 12, 16])
    np.testing.assert_allclose(damages, [5.0, 1.0, 0.5, 0.0])


def planted(living: int, size: int) -> tuple[Ranking, Callable[[Sequence[int]], np.ndarray], list[int]]:
    """A site of which some units live: its curve, and what was asked of it."""
    asked: list[int] = []

    def measured(counts: Sequence[int]) -> np.ndarray:
        asked.extend(counts)
        return np.array([((living - k) / living) ** 2 if k < living else 0.0 for k in counts])

    return Ranking("m", tuple(range(size)), tuple([1.0] * living + [0.0] * (size - living))), measured, asked


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize(("living", "size"), [(20, 64), (37, 64), (250, 1024), (700, 1024), (1000, 1024)])
def test_where_the_last_dead_unit_is_gone_is_a_level(living: int, size: int, step: int) -> None:
    """With scores that say it, and with scores that do not: by bisection then, where the curve turns steep."""
    ranking, measured, asked = planted(living, size)
    given = sorted({max(step, round(size * s / step) * step) for s in np.linspace(0, 1, 13)[1:] ** 1.6} | {size})
    knee = -(-living // step) * step
    row = _row(given, measured, step, ranking)
    assert knee in row.levels and set(given) <= set(row.levels)
    assert row.damage[row.levels.index(knee)] == 0
    assert sorted(asked) == list(row.levels), "every level is measured once"
    asked.clear()
    blind = _row(given, measured, step, Ranking("m", ranking.order, ()))
    assert sorted(asked) == list(blind.levels) and len(asked) < len(given) + 2 * np.log2(size)
    counts, fine = spread(blind.levels, blind.damage, step)
    assert np.abs(fine - np.array([max(living - k, 0) / living for k in counts]) ** 2).max() < 0.02


def test_a_curve_bends_where_it_turns_steep() -> None:
    """Between the two intervals of which the first is more than eight times as steep, and nowhere else."""
    assert bends([8, 32, 64], [1.0, 0.0, 0.0], 4) == [20]
    assert bends([8, 32, 64], [1.0, 0.0, 0.0], 16) == [16]
    assert bends([8, 12, 64], [1.0, 0.0, 0.0], 4) == []  # no level lies between
    assert bends([0, 8, 64], [1.0, 0.0, 0.0], 4) == []  # nothing kept is no part of the curve
    assert bends([8, 32, 64, 96], [1.0, 0.5, 5e-4, 0.0], 4) == [48]
    assert bends([8, 32, 64, 96], [1.0, 5e-7, 4e-7, 4e-7], 4) == [20]  # the fall to the next is worth no bend
    assert bends([10, 20, 30], [0.85, 0.05, -0.05], 1) == [15]  # noise below nothing is nothing
    assert bends([10, 20, 30], [0.85, 0.1, 0.0], 1) == []


def test_where_nothing_is_needed_a_bend_is_sought_even_if_the_scores_tell_the_curve() -> None:
    """Between levels that cost something the scores know the shape; where the damage ends they may be wrong."""
    assert bends([8, 32, 64, 96], [1.0, 0.5, 5e-3, 0.0], 4, steep=128.0) == []
    assert bends([8, 32, 64, 96], [1.0, 0.5, 3e-7, 0.0], 4, steep=128.0) == [48]


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize(("scored", "living"), [(20, 33), (33, 33), (22, 48)])
def test_units_that_were_silent_where_they_were_scored_are_found_where_they_speak(
    scored: int, living: int, step: int
) -> None:
    """A few levels are given, and all lie where the scores say that something is lost."""
    _, measured, _ = planted(living, 56)
    ranking = Ranking("m", tuple(range(56)), tuple([1.0] * scored + [0.0] * (56 - scored)))
    row = _row([step, 8, 56], measured, step, ranking)
    knee = -(-living // step) * step
    assert knee in row.levels and row.damage[row.levels.index(knee)] == 0
    assert not any(damage > 0 for k, damage in zip(row.levels, row.damage, strict=True) if k >= living)


def test_outputs_that_are_no_number_cost_more_than_any_other() -> None:
    """The cosine of a vector of which nothing is left is 0/0: so few units are out of the question, more are not."""
    ranking = Ranking("m", tuple(range(16)), ())

    def measured(counts: Sequence[int]) -> np.ndarray:
        return np.array([np.nan if count < 3 else 1.0 - count / 16 for count in counts])

    row = _row([1, 2, 4, 8, 16], measured, 1, ranking)
    known = dict(zip(row.levels, row.damage.tolist(), strict=True))
    assert {k for k, d in known.items() if d >= 1e3} == {1, 2}
    assert 3 in known and known[4] == 0.75, "where it ends is measured"
    fine, values = spread(row.levels, row.damage, 1)
    assert np.isfinite(values).all() and values[fine == 3] < 1
    silent = _row([1, 8, 16], lambda counts: np.array([np.nan if c < 16 else 0.0 for c in counts]), 1, ranking)
    assert np.isnan(silent.damage[:-1]).all(), "where nothing can be measured, it is said"
