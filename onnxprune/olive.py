"""A pass for Olive's workflows (olive-ai 0.13): pruning as one step of a configuration.

Olive finds passes by a package configuration, which names a module for each; `package_config` is Olive's own with this
pass added.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.pipeline import verbs

_BUDGETS = ("flops", "params", "size", "latency", "max_drop")
_TOLD = {
    **dict.fromkeys(_BUDGETS, "Budget, as for onnxprune.prune; exactly one."),
    "calibration": "Rows to learn from: a file or a folder.",
    "evaluation": "Rows for the report; without them some calibration rows are set aside.",
}


def package_config() -> dict[str, Any]:
    """Olive's package configuration with the pass `OnnxPrune` in it.

        import olive
        from onnxprune.olive import package_config

        config = {
            "input_model": {"type": "OnnxModel", "model_path": "model.onnx"},
            "passes": {"small": {"type": "OnnxPrune", "flops": 0.6, "calibration": "rows.jsonl"}},
            "output_dir": "small",
        }
        olive.run(config, package_config=package_config())

    For the command line it is a file: `json.dump(package_config(), open("package.json", "w"))`, and `olive run --config
    config.json --package-config package.json`.
    """
    from olive.package_config import OlivePackageConfig

    told: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    told["passes"]["OnnxPrune"] = {
        "module_path": "onnxprune.olive.OnnxPrune",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_optional",
    }
    return told


def __getattr__(name: str) -> Any:
    """`OnnxPrune`, which is made when Olive asks for it: without Olive there is no such class."""
    if name != "OnnxPrune":
        raise AttributeError(f"module onnxprune.olive has no attribute {name}")
    return _pass()


@functools.cache
def _pass() -> type:
    from olive.model import ONNXModelHandler
    from olive.model.utils import resolve_onnx_path
    from olive.passes import Pass
    from olive.passes.pass_config import PassConfigParam

    class OnnxPrune(Pass):  # type: ignore[misc]
        """Prunes an ONNX model to a budget, without retraining."""

        @classmethod
        def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
            named = {
                name: PassConfigParam(
                    type_=float | str if name in _BUDGETS else str, default_value=None, description=said
                )
                for name, said in _TOLD.items()
            }
            further = "Further keyword arguments of onnxprune.prune: method, units, metric, columns, …"
            return {**named, "options": PassConfigParam(type_=dict, default_value=None, description=further)}

        def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
            told = {name: value for name in _TOLD if (value := getattr(config, name)) is not None}
            options = {"measure_latency": False, **(config.options or {})}
            if both := sorted(told.keys() & options.keys()):
                raise UsageError(f"{both[0]} is given twice, beside options and among them")
            provider = self.accelerator_spec.execution_provider
            if provider is not None:
                options.setdefault("providers", (str(getattr(provider, "value", provider)),))
            source = Path(model.model_path)
            target = Path(resolve_onnx_path(output_model_path, source.name))
            result = verbs.prune(source, target, force=True, **told, **options)
            beside = [str(file) for file in result.files if file.suffix in (".json", ".html", ".safetensors")]
            known = dict(model.model_attributes or {})
            known["additional_files"] = sorted({*known.get("additional_files", []), *beside})
            return ONNXModelHandler(model_path=str(target.parent), onnx_file_name=target.name, model_attributes=known)

    return OnnxPrune
