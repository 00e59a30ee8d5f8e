"""Sessions of real ONNX Runtime on small graphs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import perceptron
import pytest
from onnx import parser

from onnxprune.errors import CheckError, DataError, ModelError, UnsupportedError, UsageError
from onnxprune.graph import providers, runtime
from onnxprune.graph.providers import SHORT_NAMES

LINEAR = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, tokens, 4] x) => (float[batch, tokens, 4] y, float[batch, tokens, 4] z)
<float[4, 4] w = {2,0,0,0, 0,2,0,0, 0,0,2,0, 0,0,0,2}>
{ y = MatMul(x, w)  z = Relu(y) }
"""
X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "linear.onnx"
    onnx.save(parser.parse_model(LINEAR), path)
    return path


def test_a_provider_that_the_build_lists_but_that_does_not_load_is_an_error(
    linear: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(SHORT_NAMES.values()))
    with pytest.raises(UsageError, match="CUDAExecutionProvider"):
        runtime.session(linear, ["cuda"])


def test_a_broken_plugin_is_an_error(linear: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "broken.so"
    library.write_bytes(b"no library")
    (tmp_path / "onnxprune_broken_plugin.py").write_text(f"def get_library_path(): return {str(library)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(providers, "_PLUGINS", {"QNNExecutionProvider": "onnxprune_broken_plugin"})
    with pytest.raises(UsageError, match="onnxprune_broken_plugin of QNNExecutionProvider does not load"):
        runtime.session(linear, ["qnn"])


def test_run_computes_what_is_asked_and_drops_other_feeds(linear: Path) -> None:
    opened = runtime.session(linear)
    found = runtime.run(opened, {"x": X, "label": np.ones(2)}, ["z"])
    assert list(found) == ["z"]
    np.testing.assert_array_equal(found["z"], np.maximum(2 * X, 0))


def test_a_serialised_model_is_a_model() -> None:
    opened = runtime.session(parser.parse_model(LINEAR).SerializeToString())
    np.testing.assert_array_equal(runtime.run(opened, {"x": X})["y"], 2 * X)


def test_evaluate_keeps_batches_apart(linear: Path) -> None:
    class Batch:
        def __init__(self, x: np.ndarray) -> None:
            self.feeds = {"x": x}

    found = runtime.evaluate(runtime.session(linear), [Batch(X), {"x": X[:1, :2]}], ["y"])
    assert [a.shape for a in found["y"]] == [(2, 3, 4), (1, 2, 4)]
    np.testing.assert_array_equal(found["y"][1], 2 * X[:1, :2])


def test_threads_spinning_and_dims_reach_the_session(linear: Path) -> None:
    opened = runtime.session(linear, threads=2, spinning=True, dims={"tokens": 7}, optimization="basic")
    options = opened.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert opened.get_inputs()[0].shape == ["batch", 7, 4]
    quiet = runtime.session(linear).get_session_options()
    assert (quiet.intra_op_num_threads, quiet.inter_op_num_threads) == (1, 1)
    assert quiet.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert not quiet.enable_profiling


def test_optimization_level(linear: Path) -> None:
    with pytest.raises(UsageError, match="none, basic, extended, layout, all"):
        runtime.session(linear, optimization="O3")


def test_coverage_counts_the_nodes(linear: Path) -> None:
    counted = runtime.coverage(runtime.session(linear, optimization="none"))
    assert counted == runtime.Coverage("CPUExecutionProvider", nodes_on_provider=2, nodes=2, partitions=1)
    assert counted.complete
    assert not runtime.Coverage("CUDAExecutionProvider", 1, 2, None).complete


class _Recorded:
    """A session as far as `coverage` looks: what ONNX Runtime recorded about placement."""

    def __init__(self, provider: str, groups: list[tuple[str, int]]) -> None:
        self.provider, self.groups = provider, groups

    def get_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[object]:
        return [
            type("Group", (), {"ep_name": name, "get_nodes": lambda self, n=n: [None] * n})() for name, n in self.groups
        ]


@pytest.mark.parametrize(
    ("provider", "groups", "expected"),
    [
        ("QNNExecutionProvider", [("QNN", 40), ("CPU", 1), ("QNN", 20)], (60, 61, 2)),
        ("QNNExecutionProvider", [("CPU", 5)], (0, 5, 0)),
        ("CUDAExecutionProvider", [("CUDA", 1), ("CUDA", 1)], (2, 2, 1)),
        ("CUDAExecutionProvider", [("CUDA", 1), ("CPU", 1), ("CUDA", 1)], (2, 3, None)),
    ],
)
def test_partitions(provider: str, groups: list[tuple[str, int]], expected: tuple[int, int, int | None]) -> None:
    recorded = _Recorded(provider, [(f"{name}ExecutionProvider", n) for name, n in groups])
    counted = runtime.coverage(recorded)
    assert (counted.nodes_on_provider, counted.nodes, counted.partitions) == expected


def test_a_provider_that_takes_nothing_is_refused(linear: Path) -> None:
    recorded = _Recorded("QNNExecutionProvider", [("CPUExecutionProvider", 5)])
    with pytest.raises(CheckError, match=r"none of the 5 nodes of the dense model \(it takes fixed shapes only\)"):
        runtime.placed(recorded, "the dense model")
    assert runtime.placed(runtime.session(linear)).complete


def test_old_runtimes_cannot_tell_coverage() -> None:
    class Old:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    with pytest.raises(UnsupportedError, match="newer"):
        runtime.coverage(Old())


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx"):
        runtime.session(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        runtime.session(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="serialised"):
        runtime.session(b"hello")


def test_an_unknown_operator_is_unsupported(tmp_path: Path) -> None:
    graph = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (string[n] x) => (string[n] y) { y = Identity(x) }'
    )
    graph.graph.node[0].op_type = "Relu"  # no kernel takes strings
    onnx.save(graph, tmp_path / "m.onnx")
    with pytest.raises((ModelError, UnsupportedError), match="Relu"):
        runtime.session(tmp_path / "m.onnx")
    wide = '<ir_version: 8, opset_import: ["" : 17]> g (double[n] x) => (double[n] y) { y = Erf(x) }'
    onnx.save(parser.parse_model(wide), tmp_path / "wide.onnx")
    with pytest.raises(UnsupportedError, match="Erf"):
        runtime.session(tmp_path / "wide.onnx")


def test_what_has_no_kernel_in_bfloat16_is_computed_in_single_precision(tmp_path: Path) -> None:
    half = """<ir_version: 8, opset_import: ["" : 17]> g (bfloat16[n] x, bool c) => (float[n] y, bfloat16[n] z) {
        e = Erf (x)
        w = Constant <value = bfloat16[1] {16384}> ()
        z = If (c) <
            then_branch = a () => (bfloat16[n] p) { p = Mul (e, w) },
            else_branch = b () => (bfloat16[n] q) { q = Neg (e) }
        >
        h = Cast <to = 16> (z)
        y = Cast <to = 1> (h)
    }"""
    onnx.save(parser.parse_model(half), tmp_path / "half.onnx")
    opened = runtime.session(tmp_path / "half.onnx")
    assert runtime.in_single_precision(opened)
    x = np.linspace(-1, 1, 5).astype(ml_dtypes.bfloat16)
    found = runtime.run(opened, {"x": x, "c": np.array(True)})
    assert found["y"].dtype == found["z"].dtype == np.float32
    expected = 2 * np.array([math.erf(float(v)) for v in x])
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


def test_feeds_that_do_not_fit(linear: Path) -> None:
    opened = runtime.session(linear)
    with pytest.raises(DataError, match="input x"):
        runtime.run(opened, {"y": X})
    with pytest.raises(DataError, match="float"):
        runtime.run(opened, {"x": X.astype(np.int64)})
    with pytest.raises(DataError, match="x"):
        runtime.run(opened, {"x": X[0]})
    with pytest.raises(DataError, match="Got: 3 Expected: 4"):
        runtime.run(opened, {"x": X[..., :3]})


def test_operators_that_the_runtime_does_not_have_are_named_with_a_way_out(tmp_path: Path) -> None:
    """A detector that ends in a plugin of another runtime."""
    text = """
    <ir_version: 8, opset_import: ["" : 17, "trt.plugins" : 1]>
    g (float[batch, 4] x) => (float[batch, 4] y) { a = Relu(x) y = trt.plugins.EfficientNMS(a) }
    """
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(text), path)
    with pytest.raises(UnsupportedError, match=r"no operator trt\.plugins:EfficientNMS.*extract_model"):
        runtime.session(path)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there, whatever they say")
def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "\udcff"
    folder.mkdir()
    file = perceptron.write(folder / "m.onnx")
    with pytest.raises(ModelError, match=r"the name is not UTF-8, .* rename the file, or its folder"):
        runtime.session(file)
