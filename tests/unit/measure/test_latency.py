"""The benchmark's bookkeeping, on a clock of our own; and that it runs on real sessions. No test judges real times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import parser

from onnxprune.errors import CheckError, UnsupportedError, UsageError
from onnxprune.graph import runtime
from onnxprune.graph.example_feeds import fitted, synthesize
from onnxprune.graph.model import InputSpec
from onnxprune.graph.providers import SHORT_NAMES
from onnxprune.measure import latency
from onnxprune.measure.latency import bench, graph_inputs
from onnxprune.report import text

MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (int64[batch_size, sequence_length] input_ids, float[batch_size, sequence_length] weights) => (float[b, s] y)
{ f = Cast <to = 1> (input_ids)  y = Mul(f, weights) }
"""


@pytest.fixture(scope="module")
def model() -> bytes:
    return bytes(parser.parse_model(MODEL).SerializeToString())


class Clock:
    """Time that passes only while a session runs."""

    def __init__(self) -> None:
        self.now = 0
        self.waited = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def process_time_ns(self) -> int:
        return 2 * (self.now - self.waited)


class Session:
    """A session that takes the milliseconds it is told, one after another, and then over again."""

    def __init__(self, name: str, clock: Clock, log: list[str], times: list[float], provider: str = "CPU") -> None:
        self.name, self.clock, self.log, self.times, self.provider = name, clock, log, times, provider
        self.calls = 0

    def run(self, outputs: Any, feeds: Any, options: Any = None) -> list[np.ndarray]:
        self.log.append(self.name)
        self.clock.now += round(self.times[self.calls % len(self.times)] * 1e6)
        self.calls += 1
        return []

    def get_inputs(self) -> list[Any]:
        return []

    def get_outputs(self) -> list[Any]:
        return []

    def get_providers(self) -> list[str]:
        return ["CPU"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [type("Group", (), {"ep_name": self.provider, "get_nodes": lambda self: [None] * 3})()]


def measure(dense: list[float], pruned: list[float], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    clock, log = Clock(), []  # type: tuple[Clock, list[str]]
    monkeypatch.setattr(latency, "time", clock)
    pair = latency._Pair(Session("d", clock, log, dense), Session("p", clock, log, pruned))
    feeds = {"x": np.zeros((4, 7))}
    walls, cpus = latency._timed([(pair, feeds, options.get("times", 1))], 40, options.get("warmup", 5))
    return latency.row("CPU", feeds, 1, walls, cpus, pair.coverage, 0), "".join(log)


def test_runs_are_interleaved_in_alternating_order(monkeypatch: pytest.MonkeyPatch) -> None:
    _, log = measure([2], [1], monkeypatch)
    assert log == "dp" * 5 + "dppd" * 20
    _, log = measure([2], [1], monkeypatch, warmup=0)
    assert log == "dp" + "dppd" * 20


def test_times_and_the_median_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = measure([2, 2, 2, 10], [1], monkeypatch, warmup=4)
    assert (row.dense_ms.min, row.dense_ms.p50, row.dense_ms.p90) == (2, 2, 10)
    assert row.dense_ms.cpu == 4
    assert row.pruned_ms.p99 == 1
    assert row.speedup == 2
    assert (row.batch, row.shape, row.threads, row.runs) == (4, {"x": (4, 7)}, 1, 40)
    assert row.coverage == runtime.Coverage("CPU", 3, 3, 1)


def test_what_is_called_often_counts_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    row, log = measure([2], [1], monkeypatch, times=3)
    assert (row.dense_ms.p50, row.pruned_ms.p50, row.dense_ms.cpu) == (6, 3, 12) and len(log) == 90


def test_the_interval_tells_noise_from_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(10, 1, 40).tolist()
    more = np.random.default_rng(1).normal(10, 1, 40).tolist()
    low, high = measure(noise, more, monkeypatch)[0].speedup_interval
    assert low < 1 < high
    low, high = measure([2 * t for t in noise], more, monkeypatch)[0].speedup_interval
    assert 1 < low < 2 < high < 2.2
    assert measure([2], [1], monkeypatch)[0].speedup_interval == (2, 2)


def test_a_machine_of_two_speeds_does_not_move_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    # Slow spells, each a few pairs long, that leave more than half of one model's times slow and fewer of the other's.
    slow = np.repeat(np.array([1, 0] * 10, dtype=bool), 2)
    dense, pruned = np.where(slow, 15.0, 10.0), np.where(slow, 7.5, 5.0)
    dense[[2, 6]], pruned[[0, 4]] = 15.1, 5.0  # within a pair the spell begins or ends
    assert np.median(dense) / np.median(pruned) > 2.1
    row, _ = measure(dense.tolist(), pruned.tolist(), monkeypatch, warmup=40)
    assert row.speedup == 2
    assert row.speedup_interval == (2, 2)


def test_what_a_device_computes_takes_no_processor_time() -> None:
    """The processor waits for a GPU, or sleeps: what it spends says nothing of the graph."""
    walls, cpus = np.array([[8.0] * 40, [4.0] * 40]), np.array([[1.0] * 40, [1.0] * 40])
    found = {}
    for provider in ("cpu", "cuda", "xnnpack"):
        name = SHORT_NAMES[provider]
        covered = runtime.Coverage(name, 1, 1, 1)
        found[provider] = latency.row(name, {}, 1, walls, cpus, (covered, covered), 0)
    assert {name: row.speedup for name, row in found.items()} == {"cpu": 1.0, "cuda": 2.0, "xnnpack": 1.0}


def test_a_speed_up_that_processor_time_denies_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs had the cores while the dense model ran."""
    dense = Session.run

    def interrupted(self: Session, outputs: Any, feeds: Any, options: Any = None) -> list[np.ndarray]:
        before = self.clock.now
        found = dense(self, outputs, feeds)
        self.clock.waited += round((self.clock.now - before) * (1 - 1 / 5)) if self.name == "d" else 0
        return found

    monkeypatch.setattr(Session, "run", interrupted)
    row, _ = measure([10], [1], monkeypatch)
    assert (row.clock, row.speedup, row.speedup_interval) == ("processor", 2, (2, 2))
    assert "10.00×" in row.said
    assert text.speedup(row) == "2.00× [2.00, 2.00] of processor time"
    monkeypatch.setattr(Session, "run", dense)
    row, _ = measure([10], [1], monkeypatch)
    assert (row.clock, row.speedup, row.said) == ("wall", 10, "")


def test_a_provider_that_takes_nothing_is_refused() -> None:
    clock = Clock()
    fine, none = Session("d", clock, [], [1]), Session("p", clock, [], [1], provider="Other")
    with pytest.raises(CheckError, match="none of the 3 nodes of the pruned model"):
        latency._Pair(fine, none)


def test_every_shape_on_real_sessions(model: bytes) -> None:
    calls: list[tuple[int, int]] = []
    rows = bench(model, model, batch=[1, 3], sequence=[5, 9], progress=lambda done, of: calls.append((done, of)))
    assert [row.shape["input_ids"] for row in rows] == [(1, 5), (1, 9), (3, 5), (3, 9)]
    assert calls[-1] == (4, 4)
    for row in rows:
        assert row.provider == "CPUExecutionProvider"
        assert row.coverage.complete
        assert 0 < row.pruned_ms.min <= row.pruned_ms.p50 <= row.pruned_ms.p90 <= row.pruned_ms.p99
        assert row.speedup_interval[0] <= row.speedup <= row.speedup_interval[1]


def test_sessions_are_quiet(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = runtime.session

    def recorded(*arguments: Any, **options: Any) -> Any:
        made.append(original(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(runtime, "session", recorded)
    bench(model, model, sequence=[4])
    options = [opened.get_session_options() for opened in made]
    assert all(not held.enable_profiling and held.intra_op_num_threads == 1 for held in options)
    assert all(held.get_session_config_entry("session.intra_op.allow_spinning") == "0" for held in options)


def test_requests_that_cannot_be_met(model: bytes) -> None:
    with pytest.raises(UsageError, match="at least 35"):
        bench(model, model, sequence=[4], runs=10)
    with pytest.raises(UsageError, match=r"\(sequence_length\) has no size.*--shape sequence_length=SIZE"):
        bench(model, model)
    other = parser.parse_model(MODEL.replace("weights", "scales")).SerializeToString()
    with pytest.raises(UsageError, match="different inputs"):
        bench(model, other, sequence=[4])
    fixed = MODEL.replace("batch_size, sequence_length", "2, 8")
    with pytest.raises(UsageError, match="fixes the batch of input_ids at 2; 3 cannot"):
        bench(parser.parse_model(fixed).SerializeToString(), model, batch=[3])


def test_graph_inputs(model: bytes) -> None:
    ids, weights = graph_inputs(model)
    assert ids == InputSpec("input_ids", np.dtype(np.int64), ("batch_size", "sequence_length"))
    assert weights.dtype == np.float32
    strings = '<ir_version: 8, opset_import: ["" : 17]> g (string[n] x) => (string[n] y) { y = Identity(x) }'
    with pytest.raises(UnsupportedError, match=r"input x is of type tensor\(string\)"):
        graph_inputs(parser.parse_model(strings).SerializeToString())


def spec(name: str, *shape: int | str | None, dtype: Any = np.int64) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def test_sizes_by_name_by_request_and_by_example() -> None:
    specs = [
        spec("input_ids", "batch_size", "sequence_length"),
        spec("attention_mask", "batch_size", "past_sequence_length + sequence_length"),
        spec("past_key_values.0.key", "batch_size", 2, "past_sequence_length", 8, dtype=np.float32),
        spec("pixel_values", "N", 3, "height", "width", dtype=np.float32),
        spec("other_ids", None, None),
        spec("free", "anything", "depth"),
    ]
    examples = [{"free": np.zeros((1, 4), np.int64)}, {"free": np.zeros((1, 7), np.int64)}]
    made = synthesize(specs, batch=3, sequence=5, dims={"height": 16, "width": 20}, examples=examples)
    assert {name: value.shape for name, value in made.items()} == {
        "input_ids": (3, 5),
        "attention_mask": (3, 5),
        "past_key_values.0.key": (3, 2, 0, 8),
        "pixel_values": (3, 3, 16, 20),
        "other_ids": (3, 5),
        "free": (3, 6),
    }
    longer = synthesize(specs[:3], batch=1, sequence=1, dims={"past_sequence_length": 10})
    assert longer["attention_mask"].shape == (1, 11)
    assert longer["past_key_values.0.key"].shape == (1, 2, 10, 8)


def test_dims_come_first_and_examples_give_the_mean() -> None:
    ids = spec("input_ids", "batch", "tokens")
    examples = [{"input_ids": np.zeros((1, n), np.int64)} for n in (4, 9)]
    assert synthesize([ids], examples=examples)["input_ids"].shape == (1, 6)
    assert synthesize([ids], sequence=3, examples=examples)["input_ids"].shape == (1, 3)
    assert synthesize([ids], batch=2, sequence=3, dims={"batch": 5, "tokens": 7})["input_ids"].shape == (5, 7)


def test_values_are_ones_a_model_accepts() -> None:
    specs = [
        spec(name, 2, 6, dtype=dtype)
        for name, dtype in (
            ("input_ids", np.int64),
            ("attention_mask", np.int64),
            ("pixel_mask", np.bool_),
            ("token_type_ids", np.int32),
            ("position_ids", np.int64),
            ("pixel_values", np.float16),
        )
    ] + [spec("causal_mask", 1, 1, 6, 6, dtype=np.float32)]
    made = synthesize(specs)
    assert {name: value.dtype for name, value in made.items()} == {s.name: s.dtype for s in specs}
    assert made["attention_mask"].all() and made["pixel_mask"].all()
    assert not made["token_type_ids"].any() and not made["causal_mask"].any()
    np.testing.assert_array_equal(made["position_ids"], [range(6)] * 2)
    assert set(np.unique(made["input_ids"])) <= set(range(32))
    assert made["pixel_values"].std() > 0.1


def test_made_up_rows_hold_as_many_of_every_token() -> None:
    """A classifier that reads at the one end token of each row wants one in every row."""
    made = synthesize([spec("input_ids", 4, 12)])["input_ids"]
    assert all(sorted(row) == list(range(12)) for row in made)
    assert len({tuple(row) for row in made}) == 4


def test_rows_are_the_examples_own_at_the_size_that_is_timed() -> None:
    ids, mask = spec("input_ids", "batch", "tokens"), spec("attention_mask", "batch", "tokens")
    rows = ([101, 7, 8, 9, 102], [101, 5, 102], [101, 102])
    examples = [{"input_ids": np.array([row]), "attention_mask": np.ones((1, len(row)), np.int64)} for row in rows]
    made = synthesize([ids, mask], batch=4, sequence=4, examples=examples)
    long, short = [101, 7, 8, 102], [101, 5, 5, 102]
    assert made["input_ids"].tolist() == [long, short, [101, 101, 102, 102], long]  # the nearest in length first
    assert made["attention_mask"].all()
    assert made["attention_mask"].shape == (4, 4)


def test_fitted_keeps_the_ends() -> None:
    row = np.array([[1, 2, 3, 4, 9]])
    assert fitted(row, (1, 3)).tolist() == [[1, 2, 9]]
    assert fitted(row, (1, 1)).tolist() == [[1]]
    assert fitted(row, (1, 8)).tolist() == [[1, 2, 3, 4, 2, 3, 4, 9]]
    assert fitted(row, (1, 0)).shape == (1, 0)
    assert fitted(row[:, :1], (2, 3)).tolist() == [[1, 1, 1]] * 2
