"""What `bench` measures besides Python's own latency: other runtimes, simulated devices, operators."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper, parser, save

from onnxprune.cli.main import cli
from onnxprune.errors import CheckError, UsageError
from onnxprune.graph import runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.measure import bench as benchmark
from onnxprune.measure import latency, node, operator_profile
from onnxprune.report import bench
from onnxprune.report.terminal import console_for

ROOT = Path(__file__).resolve().parents[2]
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, seq, 8] x) => (float[batch, seq, 8] y)
{ h = MatMul(x, up) r = Relu(h) y = MatMul(r, down) }"""


def model(file: Path, width: int) -> Path:
    graph = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in (("up", (8, width)), ("down", (width, 8))):
        graph.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    save(graph, file)
    return file


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return model(tmp_path / "dense.onnx", 32), model(tmp_path / "small.onnx", 16)


def test_every_combination_is_measured(pair: tuple[Path, Path]) -> None:
    found = benchmark.measure(*pair, batch=[1, 3], sequence=[5], threads=[1, 2], runs=latency.RUNS)
    assert [(r.batch, r.threads) for r in found.latency] == [(1, 1), (3, 1), (1, 2), (3, 2)]
    assert all(r.coverage.complete and r.runs == latency.RUNS for r in found.latency)
    assert not found.placement and not found.operators


def test_time_by_operator(pair: tuple[Path, Path]) -> None:
    found = benchmark.measure(*pair, batch=[2], sequence=[5, 7], runs=latency.RUNS, profile=True)
    assert {(r.op, r.dense[0], r.pruned[0]) for r in found.operators} == {("MatMul", 2, 2), ("Relu", 1, 1)}
    assert {r.shape["x"] for r in found.operators} == {(2, 5, 8), (2, 7, 8)}
    assert all(ms >= 0 for r in found.operators for _, ms in (r.dense, r.pruned))
    console = console_for()
    with console.capture() as said:
        bench.print_benchmark(found, console)
    assert said.get().count("Time by operator") == 2 and "MatMul" in said.get()
    with pytest.raises(UsageError, match="--profile"):
        benchmark.measure(*pair, providers=["node"], batch=[1], sequence=[5], profile=True, runs=0)


def test_operators_of_a_pass_are_counted_once(pair: tuple[Path, Path]) -> None:
    feeds = {"x": np.zeros((1, 5, 8), np.float32)}
    assert {op: count for op, (count, _) in operator_profile.by_operator(pair[0], feeds, passes=3).items()} == {
        "MatMul": 2,
        "Relu": 1,
    }


def test_simulated_devices_are_placed_and_compared_but_not_timed(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "simulated", lambda provider: True)
    monkeypatch.setattr(latency, "bench", lambda *a, **k: pytest.fail("a simulated device was timed"))
    found = benchmark.measure(*pair, batch=[2], sequence=[5])
    (row,) = found.placement
    assert not found.latency
    assert row.coverage.complete and row.dense_coverage.complete
    assert row.difference == row.dense_difference == 0
    console = console_for()
    with console.capture() as said:
        bench.print_benchmark(found, console)
    assert "times mean nothing" in said.get() and "2 × 5 × 8" in said.get()


def test_the_qnn_simulator(pair: tuple[Path, Path]) -> None:
    pytest.importorskip("onnxruntime_qnn")
    (row,) = benchmark.measure(*pair, providers=["qnn"], batch=[1], sequence=[16]).placement
    assert row.coverage.complete and row.coverage.partitions == 1
    assert row.difference < 1e-2


def test_distances_are_relative() -> None:
    assert benchmark._apart(np.array([2.0, 4.0]), np.array([1.0, 4.0])) == 0.25


@pytest.mark.parametrize("name", list(node.PACKAGES))
def test_javascript(name: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    try:
        node._node()
        node._module(node.PACKAGES[name])
    except UsageError as missing:
        pytest.skip(str(missing))
    feeds = synthesize(latency.graph_inputs(pair[0]), batch=2, sequence=5)
    timed = node.time(name, *pair, feeds, runs=6, warmup=1)
    assert timed.walls.shape == timed.cpus.shape == (2, 6) and (timed.walls > 0).all()
    for file, outputs in zip(pair, timed.outputs, strict=True):
        expected = runtime.run(runtime.session(file), feeds)["y"]
        np.testing.assert_allclose(outputs["y"].reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    (row,) = benchmark.measure(*pair, providers=[name], batch=[1], sequence=[5], runs=8).latency
    assert row.provider == node.PACKAGES[name] and row.runs == 8
    broken = pair[0].with_name("broken.onnx")
    graph = parser.parse_model(TEXT)
    graph.graph.node[1].CopyFrom(helper.make_node("Nothing", ["h"], ["r"], domain="nowhere"))
    save(graph, broken)
    with pytest.raises(CheckError, match=node.PACKAGES[name]):
        node.time(name, broken, pair[1], feeds, runs=1)


def test_javascript_that_is_not_there(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node._module.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NODE_PATH", "")
    monkeypatch.setattr(node, "_folders", lambda: iter([tmp_path / "node_modules"]))
    with pytest.raises(UsageError, match="npm install onnxruntime-node"):
        node.time("node", *pair, {})
    node._module.cache_clear()
    package = tmp_path / "node_modules" / "onnxruntime-node" / "dist"
    package.mkdir(parents=True)
    (package / "index.js").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"nodejs\.org"):
        node.time("node", *pair, {})
    node._module.cache_clear()


def test_the_command(pair: tuple[Path, Path]) -> None:
    said = CliRunner().invoke(
        cli, ["bench", *map(str, pair), "--seq", "5,6", "--threads", "1", "--runs", "35", "--profile", "--json"]
    )
    assert said.exit_code == 0, said.output
    told = json.loads(said.output)
    assert [row["shape"]["x"] for row in told["latency"]] == [[1, 5, 8], [1, 6, 8]]
    assert {row["op"] for row in told["operators"]} == {"MatMul", "Relu"} and told["placement"] == []
