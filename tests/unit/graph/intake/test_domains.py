"""The default domain has two names."""

from __future__ import annotations

from pathlib import Path

import onnx
from perceptron import perceptron

from onnxprune.graph import model as models


def test_the_default_domain_by_its_other_name(tmp_path: Path) -> None:
    proto = perceptron()
    version = proto.opset_import[0].version
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node[:3]:
        node.domain = "ai.onnx"
    onnx.save(proto, tmp_path / "m.onnx")
    dense = models.load(tmp_path / "m.onnx")
    assert dense.opset == version
    assert {node.domain for node in dense.graph} == {""}
