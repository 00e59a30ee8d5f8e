"""What operators on numbers were in the file, where they stand for ones on integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.graph.quantised import Quantised


@dataclass(frozen=True)
class Note:
    """What an operator on numbers was in the file, at the node that stands for it.

    Attributes:
        operator, domain: its type.
        name: of its node; other names of the file's, by role, are in `names`.
        attributes: those that the node on numbers does not have.
    """

    operator: str
    domain: str = ""
    name: str = ""
    names: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def dynamic(self) -> bool:
        """Whether what it reads is rounded to 8 bits at run time, by its own range."""
        return "rounding" in self.names or self.operator in ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM")

    @property
    def rounds(self) -> bool:
        """Whether what it reads or gives is rounded to 8 bits, at run time or beforehand."""
        return self.operator not in ("MatMulNBits", "Gather", "GatherBlockQuantized")


_NOTED = "onnxprune.quantised"


def noted(node: ir.Node, note: Note | None = None) -> Note | None:
    """What a node was in the file; with a note, what it is from now on said to have been."""
    if note is not None:
        node.meta[_NOTED] = note
    found: Note | None = node.meta.get(_NOTED)
    return found


def is_quantised(graph: ir.Graph) -> bool:
    """Whether a graph that was loaded has quantised weights, or operators that stand for ones on integers.

    Weights that are stored in half precision are not: they are computed with as any others.
    """
    held = (v.const_value for v in graph.initializers.values())
    weights = any(isinstance(tensor, Quantised) and not tensor.parts.half for tensor in held)
    return weights or any(noted(n) is not None for n in graph)


def forget(node: ir.Node) -> None:
    """Let a node be what it is, whatever it was in the file."""
    node.meta.pop(_NOTED, None)
