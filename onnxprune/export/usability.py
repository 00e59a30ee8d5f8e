"""What mobile providers make of a graph, by ONNX Runtime's own checker, and what would make them do better."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from onnxprune.export.precision.integer import quiet
from onnxprune.graph import outputs


@dataclass(frozen=True)
class Usability:
    """How a mobile provider would share a graph with the CPU.

    Attributes:
        stage: which form of the graph.
        provider: `NNAPI`, `CoreML MLProgram` or `CoreML NeuralNetwork`.
        nodes, supported: of the graph after basic optimizations, and those the provider takes.
        partitions: pieces it runs without going back to the CPU; 1 is best.
        missing: operators it lacks.
        open_shapes: nodes it refuses because a size is not known.
        verdict: `yes`, `maybe` or `no`: whether ONNX Runtime's checker would try it.
    """

    stage: str
    provider: str
    nodes: int
    supported: int
    partitions: int
    missing: tuple[str, ...]
    open_shapes: int
    verdict: str


_LISTS = {
    "NNAPI": "nnapi_supported_ops.md",
    "CoreML MLProgram": "coreml_supported_mlprogram_ops.md",
    "CoreML NeuralNetwork": "coreml_supported_neuralnetwork_ops.md",
}
PROVIDERS = tuple(_LISTS)


@cache
def supported_operators(provider: str) -> frozenset[str]:
    """Operators of the default domain that a provider takes, from the list that comes with ONNX Runtime."""
    import importlib.util

    package = importlib.util.find_spec("onnxruntime")
    assert package is not None and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "tools" / "mobile_helpers" / _LISTS[provider]
    return frozenset(re.findall(r"^\|ai\.onnx[:.](\w+)\|", file.read_text(encoding="utf-8"), re.MULTILINE))


def survey(file: Path, stage: str, providers: Sequence[str] = PROVIDERS) -> list[Usability]:
    """Coverage and partitions of a `.onnx` file for each provider, fixed shapes required."""
    with quiet(), outputs.scratch() as scratch:
        from onnxruntime.tools import onnx_model_utils

        # The providers see the graph after these optimizations; they are the ones an ORT-format file holds.
        optimized = scratch / "optimized.onnx"
        onnx_model_utils.optimize_model(file, optimized, use_external_initializers=True)
        shaped = onnx_model_utils.ModelProtoWithShapeInfo(optimized).model_with_shape_info
        return [_usability(_checks()[p](shaped), stage, p) for p in providers]


def _checks() -> dict[str, Callable[[Any], Any]]:
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    def core_ml(name: str) -> Callable[[Any], Any]:
        return lambda model: checker.check_coreml_partitions(model, True, _LISTS[name])

    return {
        "NNAPI": lambda model: checker.check_nnapi_partitions(model, True),
        "CoreML MLProgram": core_ml("CoreML MLProgram"),
        "CoreML NeuralNetwork": core_ml("CoreML NeuralNetwork"),
    }


def _usability(info: Any, stage: str, provider: str) -> Usability:
    return Usability(
        stage=stage,
        provider=provider,
        nodes=info.num_nodes,
        supported=info.num_supported_nodes,
        partitions=info.num_partitions,
        missing=tuple(sorted(op.removeprefix("ai.onnx:") for op in info.unsupported_ops)),
        open_shapes=info.nodes_unsupported_due_to_dynamic_input,
        verdict=info.suitability().name.lower(),
    )


def advice(stages: Sequence[Usability]) -> list[str]:
    """What helped, in numbers, and what is left to do."""
    said = []
    last_stage = stages[-1].stage if stages else ""
    for provider in dict.fromkeys(u.provider for u in stages):
        own = [u for u in stages if u.provider == provider]
        if own[-1].stage != last_stage:
            continue  # a form that the target does not ship
        for before, after in pairwise(own):
            gained = after.supported / after.nodes - before.supported / before.nodes
            if after.stage != before.stage and (gained > 0.005 or after.partitions != before.partitions):
                said.append(f"{provider}: {after.stage} took it from {_share(before)} to {_share(after)}")
        last = own[-1]
        if last.missing:
            said.append(f"{provider}: {', '.join(last.missing)} still run on the CPU")
        if last.open_shapes:
            said.append(f"{provider}: {last.open_shapes} nodes have sizes that are not fixed: give --shape")
    return said


def _share(u: Usability) -> str:
    count = f"{u.partitions} partition{'s' * (u.partitions != 1)}"
    return f"{u.supported}/{u.nodes} nodes in {count}"
