"""Execution providers: their names, the packages that carry them, and what each needs to be added to a session.

A new one is its name, its package, and its plugin where it is one, in the tables here.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from functools import cache
from typing import TYPE_CHECKING

from onnxprune.errors import UsageError, near

if TYPE_CHECKING:
    import onnxruntime as ort

CPU = "CPUExecutionProvider"

_MOBILE = "the onnxruntime packages for Android and iOS (it is in no Python package: deploy the file and time it there)"
_HOMES = {
    CPU: "onnxruntime",
    "CUDAExecutionProvider": "onnxruntime-gpu",
    "TensorrtExecutionProvider": "onnxruntime-gpu",
    "NvTensorRTRTXExecutionProvider": "onnxruntime-ep-nv-tensorrt-rtx",
    "OpenVINOExecutionProvider": "onnxruntime-openvino (or the plugin onnxruntime-ep-openvino beside onnxruntime)",
    "QNNExecutionProvider": "onnxruntime-qnn (a plugin beside onnxruntime)",
    "WebGpuExecutionProvider": "onnxruntime-ep-webgpu (a plugin beside onnxruntime), or onnxruntime-web",
    "WebNNExecutionProvider": "onnxruntime-web (npm)",
    "DmlExecutionProvider": "onnxruntime-directml",
    "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    "XnnpackExecutionProvider": _MOBILE,
    "NnapiExecutionProvider": _MOBILE,
    "CoreMLExecutionProvider": "onnxruntime for macOS, or " + _MOBILE,
}
"""The package that carries each provider."""

SHORT_NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "trt-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "webnn": "WebNNExecutionProvider",
    "dml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}

_PLUGINS = {
    "QNNExecutionProvider": "onnxruntime_qnn",
    "OpenVINOExecutionProvider": "onnxruntime_ep_openvino",
    "WebGpuExecutionProvider": "onnxruntime_ep_webgpu",
}
"""Providers that come as a plugin library, and the module that knows where it lies."""

_ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
"""Providers whose libraries come in packages of their own."""

_ON_DEVICES = frozenset(SHORT_NAMES.values()) - {CPU, "OpenVINOExecutionProvider", "XnnpackExecutionProvider"}

_SIMULATED = {"backend_type": "htp", "soc_model": "57"}
"""QNN on an x86 machine is Qualcomm's simulator; 57 is the first chip that it takes float graphs for."""
_ON_DEVICE = {"backend_type": "htp"}

FIXED_SHAPES = frozenset({"QNNExecutionProvider", "NnapiExecutionProvider"})
"""Providers that take fixed shapes only."""


def resolve_providers(names: str | Iterable[str]) -> tuple[str, ...]:
    """Full ONNX Runtime provider names, in the order given and without repetitions.

    Args:
        names: short names (`cpu`, `cuda`, `openvino`, …) or full ones; a string may hold several, comma-separated.

    Raises:
        UsageError: an unknown name, or a provider that the installed build lacks (names the package that has it).
    """
    import onnxruntime as ort

    asked = names.split(",") if isinstance(names, str) else list(names)
    known = {name.lower(): name for name in (*ort.get_all_providers(), *_HOMES)} | SHORT_NAMES
    resolved = []
    for name in (n.strip() for n in asked):
        full = known.get(name.lower())
        if full is None:
            raise UsageError(
                f"execution provider {name!r} is unknown; choose from {', '.join(SHORT_NAMES)}{near(name, SHORT_NAMES)}"
            )
        _require(full)
        resolved.append(full)
    if not resolved:
        raise UsageError("no execution provider is named; the usual one is cpu")
    return tuple(dict.fromkeys(resolved))


def simulated(provider: str) -> bool:
    """Whether a provider of this machine only imitates its device: placement and outputs count, times do not."""
    return provider == "QNNExecutionProvider" and platform.machine().lower() in ("x86_64", "amd64")


def on_processor(provider: str) -> bool:
    """Whether a provider's work is the processor's, so that processor time is its time, too."""
    return provider not in _ON_DEVICES or simulated(provider)


def short_name(provider: str) -> str:
    """`CPUExecutionProvider` -> `cpu`; a provider without a short name keeps its own."""
    return next((short for short, full in SHORT_NAMES.items() if full == provider), provider)


def _require(provider: str) -> None:
    """Register the plugin that carries a provider if need be; an error names the package where there is none."""
    import onnxruntime as ort

    if provider in ort.get_available_providers():
        if provider in _ON_CUDA:
            _load_cuda()
        return
    module = _PLUGINS.get(provider)
    if module and importlib.util.find_spec(module) and hasattr(ort, "register_execution_provider_library"):
        try:
            ort.register_execution_provider_library(provider, importlib.import_module(module).get_library_path())
        except Exception as error:
            raise UsageError(f"the plugin {module} of {provider} does not load: {message_of(error)}") from error
        if provider in {device.ep_name for device in ort.get_ep_devices()}:
            return
        raise UsageError(f"the plugin {module} finds no device for {provider} on this machine")
    home = _HOMES.get(provider, "another build of onnxruntime")
    raise UsageError(f"{provider} is not in the installed onnxruntime {ort.__version__}; it comes with {home}")


@cache
def _load_cuda() -> None:
    """Load CUDA's and cuDNN's libraries from the packages that pip brings them in, once.

    By itself ONNX Runtime finds only those of the system.
    """
    import onnxruntime as ort

    with redirect_stdout(io.StringIO()):  # what is missing is said when the provider does not load
        ort.preload_dlls()


def add_provider(options: ort.SessionOptions, provider: str, given: Mapping[str, str]) -> None:
    """Ask for a provider in a session's options, in its turn.

    Args:
        given: the provider's own options, over the defaults here.

    Raises:
        UsageError: the installed build does not take it.
    """
    import onnxruntime as ort

    defaults: dict[str, str] = {}
    if provider == "QNNExecutionProvider":
        defaults = _SIMULATED if simulated(provider) else _ON_DEVICE
    settings = defaults | {str(k): str(v) for k, v in given.items()}
    # Only a plugin's provider has devices of its own here; a built-in one of the same name is added by name.
    devices = [d for d in ort.get_ep_devices() if d.ep_name == provider] if provider in _PLUGINS else []
    try:
        if devices:
            options.add_provider_for_devices(devices[:1], settings)
        else:
            options.add_provider(provider, settings)
    except Exception as error:
        raise UsageError(f"{provider} does not load: {message_of(error)}") from error


def unloaded(provider: str) -> UsageError:
    """The error of a provider that the installed build lists, and that a session does without."""
    bring = f": pip install '{_HOMES[provider]}[cuda,cudnn]' brings libraries" if provider in _ON_CUDA else ""
    return UsageError(f"{provider} is installed but does not load (its libraries or its device are missing){bring}")


def message_of(error: Exception) -> str:
    """ONNX Runtime's message on one line, without the status prefix and the name of the file, which callers say."""
    line = " ".join(str(error).split()) or type(error).__name__
    return _PREFIX.sub("", line)[:300]


_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?")
