"""Plans and budgets as data: what they accept, refuse, and say in a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import InputError, UsageError
from onnxprune.graph import plan_file
from onnxprune.graph.plan import Branch, Budget, Group, Plan, Ranking, Reader, Structure

READER = Reader("node", 0, 2, "w", 0)


def structure(shape: tuple[int, ...] = (4,)) -> Structure:
    context = tuple(range(len(shape) - 1))
    group = Group("heads.0", "heads", 0, len(shape) - 1, shape, context, (READER,))
    branch = Branch("ffn.0", "ffn", 0, "add", 1, "z", "x", ("node",), READER, ("heads.0",))
    return Structure("abc", shape, {}, (group,), (branch,), ())


def test_masks_say_what_stays() -> None:
    (mask,) = Plan("abc", {"heads.0": (0, 3)}).masks(structure()).values()
    np.testing.assert_array_equal(mask.kept, [True, False, False, True])
    assert Plan("abc").masks(structure()) == {}


def test_every_context_keeps_as_many() -> None:
    masks = Plan("abc", {"heads.0": (0, 5)}).masks(structure((2, 3)))
    np.testing.assert_array_equal(masks[1].kept, [[True, False, False], [False, False, True]])
    assert masks[1].context == (0,)
    with pytest.raises(UsageError, match=r"must keep the same number; found \[1, 2\]"):
        Plan("abc", {"heads.0": (0, 4, 5)}).masks(structure((2, 3)))


@pytest.mark.parametrize("units", [(), (4,), (-1,), (0, 0, 1)])
def test_units_that_are_not_there(units: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"heads\.0"):
        Plan("abc", {"heads.0": units}).masks(structure())


def test_groups_that_are_not_there() -> None:
    with pytest.raises(UsageError, match=r"heads\.7: the model has no such group"):
        Plan("abc", {"heads.7": (0,)}).masks(structure())
    with pytest.raises(UsageError, match="no such residual branch"):
        structure().branch("heads.0")
    with pytest.raises(UsageError, match="no such group"):
        structure().group("ffn.0")


def test_a_plan_is_what_it_was_after_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plan = Plan(
        "abc",
        {"heads.0": (0, 3)},
        ("ffn.0",),
        {"a/b": rng.standard_normal((3, 2)).astype(np.float32)},
        {"v": rng.standard_normal(3)},
        {"ffn.0": np.zeros((1, 1, 3), np.float32)},
        {"ffn.0": rng.standard_normal((4, 3)).astype(np.float32)},
        {"a/b": "2:4"},
        {"budget": "60%"},
    )
    assert [f.name for f in plan.save(tmp_path / "plan.json")] == ["plan.json", "plan.safetensors"]
    found = Plan.load(tmp_path / "plan.json")
    assert (found.digest, found.keep, found.drop, found.notes) == (plan.digest, plan.keep, plan.drop, plan.notes)
    assert found.sparsity == plan.sparsity
    for before, after in (
        (plan.weights, found.weights),
        (plan.intercepts, found.intercepts),
        (plan.rests, found.rests),
        (plan.maps, found.maps),
    ):
        assert before.keys() == after.keys()
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array, strict=True)


def test_a_plan_without_tensors_is_one_file(tmp_path: Path) -> None:
    assert [f.name for f in Plan("abc").save(tmp_path / "plan.json")] == ["plan.json"]
    assert Plan.load(tmp_path / "plan.json") == Plan("abc")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 99}, "newer version"),
        ({"keep": [1, 2]}, "not a plan"),
        ({"digest": None, "keep": None}, "not a plan"),
        ({"tensors": 3}, "safetensors"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, change: Mapping[str, object], says: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**Plan("abc").to_json(), **change}))
    with pytest.raises(InputError, match=says):
        Plan.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '"plan"'])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"plan\.json: not a plan"):
        Plan.load(path)


def test_a_ranking_keeps_the_best_in_index_order() -> None:
    assert Ranking("g", (3, 0, 2, 1)).keep(3) == (0, 2, 3)


def test_structures_go_to_files_and_back() -> None:
    before = structure((2, 3))
    assert Structure.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize(
    ("kind", "text", "value", "relative"),
    [
        ("flops", "0.6", 0.6, True),
        ("flops", 0.6, 0.6, True),
        ("flops", "60%", 0.6, True),
        ("flops", " 60 % ", 0.6, True),
        ("flops", "6GMAC", 6e9, False),
        ("flops", "6gmacs", 6e9, False),
        ("flops", "12GFLOP", 6e9, False),
        ("flops", "12GFLOPs", 6e9, False),
        ("flops", "80MFLOP", 4e7, False),
        ("params", "30M", 3e7, False),
        ("params", "1.5B", 1.5e9, False),
        ("size", "25MB", 2.5e7, False),
        ("size", "900KB", 9e5, False),
    ],
)
def test_budgets(kind: str, text: str, value: float, relative: bool) -> None:
    budget = Budget.parse(kind, text)
    assert (budget.kind, budget.relative) == (kind, relative)
    assert budget.value == pytest.approx(value)
    assert budget.limit(1e10) == pytest.approx(value * 1e10 if relative else value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("flops", t)
        for t in ("0", "1", "1.2", "120%", "-0.5", "abc", "", "0.6x", "25MB", "nan", "0GMAC", "1e-400", "1e400GMAC")
    ]
    + [("size", "6GMAC"), ("params", "25MB"), ("params", "3KB")],
)
def test_what_is_no_budget(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"--{kind}"):
        Budget.parse(kind, text)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("flops", "60", "60% is 0.6; an amount has its unit: 60GMAC"),
        ("latency", "250", "between 0 and 1; an amount has its unit: 250ms"),
        ("flops", "5ms", "ms is not a unit of flops (GMAC, MMAC, GFLOP, MFLOP): --latency 5ms asks for that"),
        ("size", "3KIB", "KIB is not a unit of size (MB, KB, GB)"),
    ],
)
def test_what_may_have_been_meant_by_a_budget(kind: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        Budget.parse(kind, text)


def test_tensors_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    """One after another, without a second copy of all of them."""
    from safetensors.numpy import save

    rng = np.random.default_rng(0)
    tensors = {
        "weight": {
            "b": rng.standard_normal((2, 3)).astype(np.float32),
            "a": rng.standard_normal((3, 2)).T.astype("f4"),
        },
        "intercept": {'é"x': rng.standard_normal(3)},
        "rest": {"r": np.ones((), np.float32)},
        "map": {"0": np.zeros((0, 2), np.float16), "1": np.ones(3, np.float16)},
    }
    plan_file.write_tensors(tmp_path / "p.json", tensors)
    named = {f"{kind}/{name}": np.array(t, order="C") for kind, held in tensors.items() for name, t in held.items()}
    assert (tmp_path / "p.safetensors").read_bytes() == save(named)
    found = plan_file.read_tensors(tmp_path / "p.safetensors")
    for kind, held in tensors.items():
        assert all(np.array_equal(found[kind][name], array) for name, array in held.items())
