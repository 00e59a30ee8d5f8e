"""Latency tables and what is made of them, on clocks of our own: no test here judges a real time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxprune.errors import BudgetError, DataError
from onnxprune.graph.plan import Group
from onnxprune.graph.structure.sites import Site
from onnxprune.measure.tables import fast_widths, timing_script
from onnxprune.measure.tables.landing import landed
from onnxprune.measure.tables.table import Curve, Entry, LatencyTable, load, save

points = st.dictionaries(st.integers(1, 64), st.floats(0.01, 100), min_size=1).map(lambda known: {0: 0.005, **known})


# -- curves ------------------------------------------------------------------------------------------------------


@given(points)
def test_a_curve_never_falls_with_more_units(known: dict[int, float]) -> None:
    curve = Curve(known)
    everywhere = curve.at(range(max(known) + 1))
    assert (np.diff(everywhere) >= 0).all()
    assert curve.at(0) == 0
    for units, ms in known.items():
        assert curve.at(units) <= ms  # no width is said to take longer than it did


@given(points, st.sets(st.integers(0, 64), min_size=1))
def test_what_is_offered_takes_less_than_all_that_is_wider(known: dict[int, float], asked: set[int]) -> None:
    counts = sorted(asked)
    curve = Curve(known)
    worth = curve.offered(counts)
    assert worth[-1]
    assert (np.diff(curve.at(np.array(counts)[worth])) > 0).all()


@given(st.integers(2, 15), st.floats(1.0, 5.0))
def test_a_planted_slow_width_is_not_offered(slow: int, factor: float) -> None:
    known = {16 * k: 0.1 + 0.05 * k for k in range(1, 17)} | {0: 0.1}
    known[16 * slow] = known[16 * (slow + 1)] * factor
    counts = sorted(known)
    left = [c for c, worth in zip(counts, Curve(known).offered(counts), strict=True) if worth]
    assert left == [c for c in counts if c != 16 * slow]


def test_what_calling_a_model_takes_is_not_the_modules() -> None:
    curve = Curve({0: 0.2, 8: 0.5, 16: 0.15})
    assert curve.at([0, 8, 16]).tolist() == [0, 0, 0]
    assert Curve({0: 0.2, 8: 0.5, 16: 0.7}).at([4, 8, 12, 16]) == pytest.approx([0.15, 0.3, 0.4, 0.5])


# -- files -------------------------------------------------------------------------------------------------------


def table(whole: float = 10.0, **modules: float) -> LatencyTable:
    entries = [Entry("whole", "model", 1, 1, whole, 0.1)]
    entries += [Entry(name, "neurons", 8 * i, 64, ms, 0.01) for i, (name, ms) in enumerate(modules.items())]
    return LatencyTable("CPUExecutionProvider", 1, {"batch_size": 1}, "a machine", "a runtime", tuple(entries))


def test_tables_to_files_and_back(tmp_path: Path) -> None:
    held = [table(a=1.0, b=2.0), table(12.0)]
    save(held, tmp_path / "table.json")
    assert load(tmp_path / "table.json") == held


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "tables": []}', '{"format": 1, "tables": [{}]}',
                                  '{"format": 1, "tables": [{"entries": []}]}'])  # fmt: skip
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(DataError, match=r"table\.json"):
        load(tmp_path / "table.json")
    with pytest.raises(DataError, match="absent"):
        load(tmp_path / "absent.json")


def test_tables_of_one_model_merge_in_one_tables_time() -> None:
    merged = table(10.0, a=1.0).merged(table(20.0, a=3.0, b=4.0))
    assert {name: e.ms for name, e in merged.by_signature.items()} == {"whole": 10.0, "a": 1.0, "b": 2.0}
    alone = table(10.0, a=1.0)
    assert alone.merged(LatencyTable("CPU", 1, {}, "", "", (Entry("b", "neurons", 8, 8, 1.0, 0.0),))) == alone


# -- measuring ---------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only while a model runs."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def model(self, name: str, times: list[float]) -> timing_script.Run:
        given: Iterator[float] = (times[i % len(times)] for i in range(10**6))

        def run() -> None:
            self.log.append(name)
            self.now += round(next(given) * 1e6)

        return run


def test_every_round_runs_every_model_once_in_another_order() -> None:
    clock = Clock()
    runs = [clock.model(name, [ms]) for name, ms in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    times = timing_script.interleaved(runs, lambda: clock.now, rounds=20, warmup=2)
    assert times == pytest.approx(np.tile([[1.0], [2.0], [3.0]], 20))
    rounds = ["".join(clock.log[6 + 3 * i : 9 + 3 * i]) for i in range(20)]
    assert {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert len(set(rounds)) > 3


@given(st.floats(0.1, 50), st.lists(st.integers(0, 24), max_size=12, unique=True), st.floats(1, 100))
def test_disturbed_rounds_do_not_count(ms: float, disturbed: list[int], factor: float) -> None:
    times = np.full((1, 25), ms)
    times[0, disturbed] *= factor
    value, error = timing_script.summary(times)
    assert value[0] == pytest.approx(ms)
    assert error[0] >= 0


def test_models_that_do_not_fit_at_once_are_scaled_by_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes twice as long from the second chunk on: a machine that got warm."""
    monkeypatch.setattr(timing_script, "CHUNK", 10)
    clock = Clock()
    slow = {"chunk": 0.5}
    opened: list[str] = []

    def open_model(entry: Mapping[str, Any]) -> timing_script.Run:
        name = str(entry["kind"])
        opened.append(name)
        slow["chunk"] *= 2 if name == "whole" else 1
        return clock.model(name, [{"whole": 8.0, "a": 1.0, "b": 2.0, "c": 3.0}[name] * slow["chunk"]])

    entries = [{"kind": name, "bytes": 6} for name in ("whole", "a", "b", "c")]
    calls: list[tuple[int, int]] = []
    found = timing_script.timed(entries, open_model, lambda: clock.now, 5, lambda done, of: calls.append((done, of)))
    assert opened == ["whole", "a", "whole", "b", "whole", "c"]
    assert {row["kind"]: row["ms"] for row in found} == pytest.approx({"whole": 8.0, "a": 1.0, "b": 2.0, "c": 3.0})
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_values_for_inputs_are_what_their_ports_say() -> None:
    ports: list[dict[str, Any]] = [
        {"name": "ids", "dtype": "int64", "shape": [2, 5], "low": 3, "high": 4},
        {"name": "mask", "dtype": "bool", "shape": [4], "low": 1, "high": 1},
        {"name": "x", "dtype": "float16", "shape": [100], "low": None, "high": None},
    ]
    made = timing_script.drawn(ports)
    assert made["ids"].dtype == np.int64 and made["ids"].shape == (2, 5)
    assert set(made["ids"].ravel()) == {3, 4}
    assert made["mask"].all() and made["mask"].dtype == np.bool_
    assert made["x"].dtype == np.float16 and 0.5 < made["x"].std() < 2


# -- landing -----------------------------------------------------------------------------------------------------


def searched(
    factor: float, limit: float, *, spread: float = 0.001, least: float = 0.0
) -> tuple[float, int, list[float]]:
    """A search whose choices cost what they may, on a machine that takes `factor` of what the table says."""
    asked: list[float] = []

    def choose(budget: float) -> float:
        asked.append(budget)
        if budget < least:
            raise BudgetError("nothing is that cheap", closest=least)
        return budget

    def time(choice: float) -> tuple[float, tuple[float, float]]:
        taken = choice * factor
        return taken, (taken * (1 - spread), taken * (1 + spread))

    choice, tried = landed(choose, float, time, limit)
    return choice * factor, tried, asked


@given(st.floats(0.6, 1.6), st.floats(0.1, 0.9))
def test_a_miss_is_corrected_once(factor: float, limit: float) -> None:
    assume(abs(abs(factor - 1) - 0.02) > 1e-9)  # there the last digit decides
    taken, tried, asked = searched(factor, limit)
    assert taken == pytest.approx(limit, rel=0.021)
    assert tried == (abs(factor - 1) > 0.02)
    assert asked[0] == limit and len(asked) == 1 + tried


def test_what_may_be_on_target_is_left_alone() -> None:
    assert searched(1.1, 0.5, spread=0.15)[1] == 0
    assert searched(1.1, 0.5, spread=0.05)[1] == 1


def test_a_correction_that_cannot_be_reached_leaves_the_first_choice() -> None:
    taken, tried, asked = searched(1.25, 0.5, least=0.45)
    assert (taken, tried, len(asked)) == (0.625, 0, 2)


def test_a_correction_that_makes_it_worse_is_not_taken() -> None:
    times = iter([0.45, 0.9])
    choice, tried = landed(lambda budget: budget, float, lambda c: ((t := next(times)), (t, t)), 0.5)
    assert (choice, tried) == (0.5, 1)


# -- widths ------------------------------------------------------------------------------------------------------


def site(kind: str, *shape: int) -> Site:
    return Site(Group(f"{kind}.0", kind, 0, 0, shape, (1,) * (len(shape) - 1), ()), (), None)


@pytest.mark.parametrize(("held", "provider", "round_to", "expected"), [
    (site("neurons", 3072), "CPUExecutionProvider", None, 32),
    (site("neurons", 3072), "CUDAExecutionProvider", None, 64),
    (site("neurons", 128), "CPUExecutionProvider", None, 16),
    (site("neurons", 128), "QNNExecutionProvider", None, 32),
    (site("neurons", 40), "CPUExecutionProvider", None, 1),
    (site("neurons", 3072), "SomeNewExecutionProvider", None, 32),
    (site("neurons", 3072), "QNNExecutionProvider", 5, 5),
    (site("neurons", 3), "CPUExecutionProvider", 5, 3),
    (site("heads", 12), "QNNExecutionProvider", None, 1),
    (site("heads", 12), "QNNExecutionProvider", 4, 1),
    (site("head_dims", 12, 64), "CPUExecutionProvider", None, 48),
    (site("head_dims", 12, 64), "CUDAExecutionProvider", None, 96),
    (site("head_dims", 12, 64), "CUDAExecutionProvider", 2, 24),
])  # fmt: skip
def test_widths_that_run_fast(held: Site, provider: str, round_to: int | None, expected: int) -> None:
    assert fast_widths.step(held, provider, round_to) == expected


@given(st.integers(1, 5000), st.one_of(st.none(), st.integers(1, 100)))
def test_what_is_measured_is_none_all_and_widths_that_may_be_kept(size: int, round_to: int | None) -> None:
    held = site("neurons", size)
    found = fast_widths.measured(held, "CPUExecutionProvider", round_to)
    each = fast_widths.step(held, "CPUExecutionProvider", round_to)
    assert found[0] == 0 and found[-1] == size and len(found) <= 49
    assert all(units % each == 0 for units in found[:-1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 2**40}, "threads: 1099511627776, where 1 to 1024"),
        ({"threads": 0}, "threads: 0"),
        ({"shape": {"batch": 0}}, "a shape whose sizes are none"),
        ({"shape": {"batch": 2**62}}, "a shape whose sizes are none"),
        ({"entries": [{"units": -1}]}, "numbers of units"),
        ({"entries": [{"of": 2**40}]}, "numbers of units"),
    ],
)
def test_a_table_of_numbers_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    entry = {"signature": "s", "kind": "neurons", "units": 4, "of": 8, "ms": 1.0, "error": 0.1}
    told = {"provider": "cpu", "threads": 1, "shape": {"batch": 1}, "machine": "m", "runtime": "r", "entries": [entry]}
    LatencyTable.from_json(told)
    odd = [entry | change for change in changes.get("entries", [{}])]
    with pytest.raises(DataError, match=said):
        LatencyTable.from_json({**told, **changes, "entries": odd})
