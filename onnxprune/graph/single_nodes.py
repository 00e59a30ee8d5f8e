"""Nodes the tool does not know, computed by ONNX Runtime one at a time: control flow, operators of other domains.

They pin what they touch, and no gradient flows through them; the rest of the model can still be scored and cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UnsupportedError
from onnxprune.graph import runtime
from onnxprune.graph.nested import reads

_IR_VERSION = 10


class Foreign:
    """One node as a model of its own; takes and gives numpy arrays, in the order of `reads` and of its outputs."""

    def __init__(self, node: ir.Node, opsets: dict[str, int]) -> None:
        self.node = node
        self.opsets = opsets
        self._sessions: dict[tuple[str, ...], Any] = {}

    def __call__(self, *arrays: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
        names = [v.name or "" for v in reads(self.node) if v is not None]
        feeds = dict(zip(names, (a for a in arrays if a is not None), strict=True))
        found = runtime.run(self._session(feeds), feeds)
        return tuple(found.get(v.name or "") for v in self.node.outputs)

    def _session(self, feeds: dict[str, np.ndarray]) -> Any:
        import onnx

        key = tuple(str(a.dtype) for a in feeds.values())
        if key not in self._sessions:
            inputs = [
                onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
                for k, a in feeds.items()
            ]
            outputs = [onnx.helper.make_empty_tensor_value_info(v.name) for v in self.node.outputs if v.name]
            graph = onnx.helper.make_graph([ir.to_proto(self.node)], "node", inputs, outputs)
            versions = [onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
            model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=_IR_VERSION)
            try:
                self._sessions[key] = runtime.session(model.SerializeToString())
            except Exception as error:  # whatever keeps ONNX Runtime from it: the node cannot be computed
                described = f"{self.node.domain}::{self.node.op_type}" if self.node.domain else self.node.op_type
                raise UnsupportedError(
                    f"node {self.node.name} ({described}, opset {self.node.version}) is known neither here nor to "
                    f"ONNX Runtime: {error}"
                ) from error
        return self._sessions[key]
