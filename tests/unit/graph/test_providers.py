"""Providers by name: known or not, in the installed build or in a package that is named."""

from __future__ import annotations

import onnxruntime
import pytest

from onnxprune.errors import UsageError
from onnxprune.graph import providers
from onnxprune.graph.providers import SHORT_NAMES, resolve_providers, short_name


def test_names_short_long_and_listed() -> None:
    assert resolve_providers("cpu") == ("CPUExecutionProvider",)
    assert resolve_providers("CPUExecutionProvider, CPU") == ("CPUExecutionProvider",)
    assert resolve_providers(["cpu"]) == ("CPUExecutionProvider",)
    assert short_name("CPUExecutionProvider") == "cpu"
    assert short_name("SomeExecutionProvider") == "SomeExecutionProvider"


@pytest.mark.parametrize("name", ["gpu", "", "CPUExecution"])
def test_unknown_provider_lists_the_known(name: str) -> None:
    with pytest.raises(UsageError, match=r"cuda.*openvino"):
        resolve_providers(name)


def test_no_provider_at_all() -> None:
    with pytest.raises(UsageError, match="no execution provider"):
        resolve_providers([])


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("cuda", "onnxruntime-gpu"),
        ("tensorrt", "onnxruntime-gpu"),
        ("openvino", "onnxruntime-openvino"),
        ("qnn", "onnxruntime-qnn"),
        ("xnnpack", "Android and iOS"),
        ("nnapi", "Android and iOS"),
        ("dml", "onnxruntime-directml"),
    ],
)
def test_a_missing_provider_names_its_package(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(providers, "_PLUGINS", {})
    with pytest.raises(UsageError, match=package):
        resolve_providers(name)


@pytest.mark.parametrize(("name", "loads"), [("cuda", 1), ("tensorrt", 1), ("cpu", 0)])
def test_the_libraries_of_cuda_are_loaded_from_their_packages(
    name: str, loads: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime finds only those of the system by itself; what it says of them is none of our output."""
    calls: list[None] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(SHORT_NAMES.values()))

    def preload() -> None:
        calls.append(None)
        print("a library is missing")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    providers._load_cuda.cache_clear()
    for _ in range(2):
        resolve_providers(name)
    providers._load_cuda.cache_clear()
    assert len(calls) == loads
    assert not capsys.readouterr().out
