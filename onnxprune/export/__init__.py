"""From a pruned model to a folder that an app developer drops in. One file a target; all on one protocol.

export("small.onnx", "web", "site", quantize="int8", calibration="rows.jsonl", evaluation="dev.jsonl")
"""

from __future__ import annotations

from onnxprune.export.base import Artefact, Exported, Target
from onnxprune.export.run import export
from onnxprune.export.targets.registry import TARGETS

__all__ = ["TARGETS", "Artefact", "Exported", "Target", "export"]
