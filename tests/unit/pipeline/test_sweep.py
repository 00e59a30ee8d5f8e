"""A plan is the same wherever it was made, in whatever order; what a store holds is not made again."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import perceptron
import pytest
import worker_tasks

from onnxprune.errors import UsageError
from onnxprune.graph import memory
from onnxprune.graph import model as models
from onnxprune.graph.plan import Plan
from onnxprune.graph.put_away import Arrays
from onnxprune.measure import calls, equivalence, file_validity
from onnxprune.pipeline import job, proof, remote, written
from onnxprune.pipeline.sweep import Series, series_of, sweep
from onnxprune.pipeline.verbs import prune
from onnxprune.search import workers as engines
from onnxprune.search.plan_store import Filed

Outcome = tuple[int, str, str]
METHODS, BUDGETS = ("obs", "wanda"), (0.8, 0.5)
OPTIONS = {"round_to": 1, "variants": 0.0}

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:joblib.externals.loky"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    perceptron.write(folder / "model.onnx")
    perceptron.write_rows(folder / "rows.jsonl", 40)
    return folder


def swept(place: Path, out: Path | None, **more: Any) -> list[Any]:
    return sweep(
        place / "model.onnx", BUDGETS, out, calibration=place / "rows.jsonl", methods=METHODS, options=OPTIONS,
        **{"measure": False, **more},
    )  # fmt: skip


@pytest.fixture(scope="module")
def here(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sweep in this process writes."""
    folder = tmp_path_factory.mktemp("here")
    swept(place, folder)
    return folder


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {k: v.const_value.numpy() for k, v in model.graph.initializers.items() if v.const_value is not None}


class Shuffled:
    """Workers that are this process, and do their tasks in an order of their own."""

    count, cores = 3, 0

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.done: list[str] = []
        self.sent = 0

    def share(self, value: Any) -> Any:
        return value

    def run(
        self, function: Callable[..., Any], tasks: Sequence[Any], *shared: Any, tag: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        for i in self.random.permutation(len(tasks)):
            self.done.append(function.__name__)
            self.sent = max(self.sent, len(pickle.dumps(tasks[i])))
            yield int(i), function(tasks[i], *shared)


def same(first: Path, second: Path) -> None:
    """Both folders hold the same models and plans, bit for bit."""
    names = [{p.name for p in place.glob("*.onnx")} for place in (first, second)]
    assert names[0] == names[1]
    assert len(names[0]) == len(METHODS) * len(BUDGETS)
    for name in names[0]:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        plans = [Plan.load(place / name.replace(".onnx", ".plan.json")) for place in (first, second)]
        assert plans[0].keep == plans[1].keep
        for kind in ("weights", "intercepts", "rests"):
            held = [getattr(plan, kind) for plan in plans]
            assert held[0].keys() == held[1].keys()
            assert all(np.array_equal(held[0][k], held[1][k]) for k in held[0])


def test_what_a_budget_gave_is_in_files_while_others_are_planned(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "small_share", lambda: 0)
    for result in swept(place, tmp_path):
        assert result.graph is None and isinstance(result.plan.weights, Arrays)
        plan = Plan.load(result.files[0].with_suffix(".plan.json"))
        assert plan.weights.keys() == result.plan.weights.keys()
        assert all(np.array_equal(array, result.plan.weights[name]) for name, array in plan.weights.items())
        held = weights_of(models.read(result.files[0]))
        assert all(np.array_equal(array, held[name]) for name, array in weights_of(result.model).items())
    assert all(result.graph is not None for result in swept(place, None))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_arrival_changes_nothing(
    seed: int, place: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Shuffled(seed)
    monkeypatch.setattr(remote, "_place", None)
    monkeypatch.setattr(engines, "opened", lambda *asked: _open(made))
    swept(place, tmp_path, workers=1)
    same(here, tmp_path)
    assert made.done.count("row") == len(METHODS) * 2
    assert made.done.count("plan") == len(METHODS) * len(BUDGETS)
    assert made.sent < 600, "orders and tables go with every task"


def test_workers_read_the_model_while_who_asks_does(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time that they are told of rows, there is nothing left to read."""
    monkeypatch.setattr(remote, "_place", None)
    monkeypatch.setattr(remote, "_model", lambda *_: pytest.fail("the model is read again"))
    monkeypatch.setattr(engines, "opened", lambda *asked: _open(Shuffled(0)))
    swept(place, tmp_path, workers=1)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_that_opened_elsewhere_is_opened_here(
    elsewhere: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a worker's machine, its versions may differ from those that are here."""
    opened: list[Path] = []
    valid = file_validity.check_file

    def counted(file: Path, dense: Path) -> tuple[str, ...]:
        opened.append(file)
        return valid(file, dense)

    if elsewhere:
        monkeypatch.setattr(remote, "here", lambda: ("another machine",))
    monkeypatch.setattr(proof, "check_file", counted)
    monkeypatch.setattr(remote, "_place", None)
    monkeypatch.setattr(engines, "opened", lambda *asked: _open(Shuffled(0)))
    swept(place, tmp_path, workers=1)
    assert len(opened) == len(METHODS) * len(BUDGETS) * (1 + elsewhere)


@pytest.mark.parametrize("same_bytes", [True, False])
def test_what_a_worker_found_out_holds_for_the_same_bytes(
    same_bytes: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is checked where it was planned; another than that one is checked where it is named."""
    checks: list[str] = []
    check, plan = equivalence.check, remote.plan

    def counted(*given: Any) -> Any:
        checks.append(given[3].name)
        return check(*given)

    def planned(*given: Any) -> Any:
        found = plan(*given)
        assert isinstance(found, remote.Planned)
        return found if same_bytes else replace(found, written="of another file")

    made = Shuffled(0)
    monkeypatch.setattr(remote, "_place", None)
    monkeypatch.setattr(remote, "plan", planned)
    monkeypatch.setattr(proof, "check", counted)
    monkeypatch.setattr(engines, "opened", lambda *asked: _open(made))
    there = swept(place, tmp_path, workers=1)
    plans = len(METHODS) * len(BUDGETS)
    assert len(checks) == (plans if same_bytes else 2 * plans)
    for one, other in zip(swept(place, None), there, strict=True):
        assert one.report.equivalence == other.report.equivalence
        assert one.report.layers == other.report.layers
        assert one.report.drift == other.report.drift


@pytest.mark.parametrize(("seen", "timed"), [(True, False), (True, True), (False, False)])
def test_a_file_that_a_worker_wrote_is_taken_over(
    seen: bool, timed: bool, place: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it lies on the same disk; elsewhere the plan is carried out here."""
    made: list[Path] = []
    filed: list[bool] = []
    produce, plan = written.produce, remote.plan

    def planned(*given: Any) -> Any:
        found = plan(*given)
        assert isinstance(found, remote.Planned)
        filed.append(isinstance(found.plan, Filed))
        return found

    def counted(*given: Any, **options: Any) -> Any:
        made.append(given[4])
        return produce(*given, **options)

    monkeypatch.setattr(job, "produce", counted)
    monkeypatch.setattr(remote, "plan", planned)
    monkeypatch.setattr(remote, "_place", None)
    monkeypatch.setattr(engines, "opened", lambda *asked: _open(Shuffled(0)))
    if not seen:
        monkeypatch.setattr(remote._Place, "desk", lambda *_: None)
    monkeypatch.setattr(calls, "bench", lambda *_, **__: [])
    found = swept(place, tmp_path, workers=1, measure=timed)
    assert len(made) == (0 if seen else len(METHODS) * len(BUDGETS))
    assert filed == [seen] * len(METHODS) * len(BUDGETS), "tensors that lie here already went through an engine"
    same(here, tmp_path)
    for one, other in zip(swept(place, None), found, strict=True):
        assert weights_of(one.model).keys() == weights_of(other.model).keys()
        assert all(np.array_equal(array, weights_of(other.model)[k]) for k, array in weights_of(one.model).items())
        assert one.report.flops == other.report.flops
        assert one.report.params == other.report.params


class _open:
    def __init__(self, made: Any) -> None:
        self.made = made

    def __enter__(self) -> Any:
        return self.made

    def __exit__(self, *_: object) -> None:
        pass


def test_workers_that_do_not_see_the_model_are_sent_it(
    place: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Shuffled(0)
    elsewhere = remote._model
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(remote, "_place", None)

    def unseen(brief: Any, files: Any) -> Any:
        assert brief.model.name == "model.onnx"
        return elsewhere(replace(brief, model=Path("/nowhere/model.onnx")), files)

    monkeypatch.setattr(remote, "_model", unseen)
    monkeypatch.setattr(engines, "opened", lambda *asked: _open(made))
    swept(place, tmp_path / "out", workers=1)
    same(here, tmp_path / "out")


def test_processes_one_of_which_is_killed(
    place: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXPRUNE_TEST_DIED", str(tmp_path / "died"))
    monkeypatch.setattr(remote, "plan", worker_tasks.interrupted)
    swept(place, tmp_path / "out", workers=2)
    assert (tmp_path / "died").exists()
    same(here, tmp_path / "out")


def test_what_a_store_holds_is_not_made_again(place: Path, here: Path, tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    swept(place, tmp_path / "first", store=url)
    again = swept(place, tmp_path / "second", store=url)
    same(here, tmp_path / "second")
    assert not {"score", "table", "search", "compensate"} & again[0].report.seconds.keys()
    rows = [r for r in sorted((tmp_path / "store" / "scores").glob("*/row.*.json")) if "%20at%20" not in r.name]
    rows[0].write_text(rows[0].read_text()[:-9])  # half an object counts for nothing
    for file in (tmp_path / "store" / "plans").glob("*/plan.json"):
        file.unlink()
    third = swept(place, tmp_path / "third", store=url)
    same(here, tmp_path / "third")
    assert any("table" in result.report.seconds for result in third)  # of the method whose row it was


def test_a_single_plan_is_measured_by_workers_too(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common: dict[str, Any] = {"calibration": place / "rows.jsonl", "flops": 0.5, "measure_latency": False, **OPTIONS}
    prune(place / "model.onnx", tmp_path / "here.onnx", **common)
    made = Shuffled(0)
    monkeypatch.setattr(remote, "_place", None)
    monkeypatch.setattr(engines, "opened", lambda *asked: _open(made))
    prune(place / "model.onnx", tmp_path / "there" / "here.onnx", workers=2, **common)
    assert (tmp_path / "here.onnx").read_bytes() == (tmp_path / "there" / "here.onnx").read_bytes()
    assert set(made.done) == {"ready", "order", "row"}


def test_what_depends_on_this_machine_stays_here(place: Path) -> None:
    with pytest.raises(UsageError, match="leave out --workers"):
        sweep(place / "model.onnx", [0.6], kind="latency", calibration=place / "rows.jsonl", workers=1)


def test_the_names_of_series() -> None:
    assert series_of(["obs"], [0]) == [Series("obs", 0, "")]
    names = [one.name for one in series_of(["obs", "optin+0.5*seven", "obs"], [0, 1])]
    assert names == ["obs.seed-0", "optin+0.5-seven.seed-0", "obs.seed-1", "optin+0.5-seven.seed-1"]


def test_the_command_line_draws_a_curve_for_each(run: Callable[..., Outcome], place: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    args = [place / "model.onnx", "--flops", "0.8,0.6", "--method", "wanda,magnitude", "--seeds", "0,1"]
    args += ["--round-to", 1, "--calib", place / "rows.jsonl", "--no-latency", "--report", page, "-o", tmp_path / "out"]
    code, out, err = run("sweep", *args, "--json")
    assert code == 0, err
    told = [(r["recipe"]["method"], r["recipe"]["options"]["seed"]) for r in json.loads(out)]
    assert sorted(set(told)) == [("magnitude", 0), ("magnitude", 1), ("wanda", 0), ("wanda", 1)]
    assert "wanda seed 1" in page.read_text()
    assert len(list((tmp_path / "out").glob("model.*.seed-?.flops-0.6.onnx"))) == 4
    code, out, err = run("sweep", *args[:5], "--calib", place / "rows.jsonl", "--no-latency", "--round-to", 1)
    assert code == 0, err
    assert re.findall(r"^  (\d+% of flops, \w+ \(\d of 4\)):$", err, re.M) == [
        "80% of flops, wanda (1 of 4)", "60% of flops, wanda (2 of 4)",
        "80% of flops, magnitude (3 of 4)", "60% of flops, magnitude (4 of 4)",
    ]  # fmt: skip
    assert "magnitude" in out
