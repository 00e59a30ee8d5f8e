"""Work that the count of FLOPs leaves out, and how large it is.

The tool counts what it knows: products at the top of the graph. What control flow runs depends on data, and an
operator of another domain may be anything; a share of the FLOPs says little where these take most of the time. ONNX
Runtime's own profile says how much that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.errors import OnnxPruneError
from onnxprune.graph import model as models
from onnxprune.graph import ops, outputs, runtime
from onnxprune.graph.example_feeds import synthesize
from onnxprune.graph.model import Model
from onnxprune.graph.nested import bodies
from onnxprune.measure.operator_profile import Call, calls, counted

_PRODUCTS = frozenset(("CausalConvWithState", "DFT", "Det", "LinearAttention", "STFT"))
"""Operators of the default domain that run products which are not counted."""
_LEAST = 0.01
"""Share of the time from which an operator of an unknown kind is worth a word."""
_SAID = 4


@dataclass(frozen=True)
class Uncounted:
    """A node whose products are not in the FLOPs.

    Attributes:
        node, operator: its name and type, with the domain where it is not the default one.
        holds: for control flow, operator type -> how many of it its bodies hold, of those that run products.
        macs: multiply-accumulates that its bodies ran; None where the profile does not tell.
        share: of the dense model's time, by ONNX Runtime's profile without optimisations; None where it was not run.
    """

    node: str
    operator: str
    holds: Mapping[str, int]
    macs: int | None = None
    share: float | None = None

    def __str__(self) -> str:
        held = ", ".join(f"{count} {op}" for op, count in self.holds.items())
        share = "an unknown share" if self.share is None else f"{self.share:.0%}"
        return f"{self.operator} node {self.node}{f' ({held} inside)' if held else ''}: {share} of the time"


def find(dense: Model, bindings: Mapping[str, int], examples: Sequence[runtime.Feeds] = ()) -> tuple[Uncounted, ...]:
    """The nodes whose products are not counted, the largest first; the model is run only where there are any.

    Args:
        bindings, examples: the shape at which FLOPs are counted, and rows, as for `synthesize`.
    """
    candidates = {node.name or "": node for node in dense.graph if _candidate(node)}
    if not candidates:
        return ()
    profile = _profile(dense, bindings, examples)
    top = {node.name for node in dense.graph}
    total = sum(call.microseconds for call in profile if call.node in top)
    found = []
    for name, node in candidates.items():
        inside = {n.name: n for n in _inside(node)}
        share = sum(call.microseconds for call in profile if call.node == name) / total if total else None
        ran = [counted(call) for call in profile if call.node in inside]
        holds = Counter(n.op_type for n in inside.values() if _runs_products(n))
        if share is None or share >= _LEAST or holds:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            found.append(Uncounted(name, operator, dict(holds), sum(ran) if profile and holds else None, share))
    return tuple(sorted(found, key=lambda u: -1.0 if u.share is None else -u.share))


def said(found: Sequence[Uncounted]) -> tuple[str, ...]:
    """One warning for all, the largest named."""
    if not found:
        return ()
    shares = [u.share for u in found if u.share is not None]
    more = f"; and {len(found) - _SAID} more" if len(found) > _SAID else ""
    total = f", {sum(shares):.0%} of the dense model's time by ONNX Runtime's profile" if shares else ""
    named = "; ".join(str(u) for u in found[:_SAID])
    return (f"not counted{total}: {named}{more}. FLOPs, and what a budget keeps of them, are those of the rest",)


def _candidate(node: ir.Node) -> bool:
    inside = _inside(node)
    if ops.lookup(node) is not None:
        return node.domain == "" and node.op_type in _PRODUCTS
    if inside:
        return any(_runs_products(n) for n in inside)
    return _runs_products(node)


def _runs_products(node: ir.Node) -> bool:
    """Whether a node runs products, or may: an operator of a domain that nothing is known of."""
    operator = ops.lookup(node)
    if operator is not None:
        return operator.macs is not None or (node.domain == "" and node.op_type in _PRODUCTS)
    return node.domain not in ("", "ai.onnx") or node.op_type in _PRODUCTS


def _inside(node: ir.Node) -> list[ir.Node]:
    """The nodes of the bodies of a node, and of theirs."""
    return [inner for graph in bodies(node) for inner in graph.all_nodes()]


def _profile(dense: Model, bindings: Mapping[str, int], examples: Sequence[runtime.Feeds]) -> tuple[Call, ...]:
    """The calls of one pass over the graph as it was read, whose nodes have names; none where it does not run."""
    try:
        feeds = synthesize(dense.inputs, dims=bindings, examples=examples)
        with outputs.scratch() as folder:
            file = models.save(dense.normal, folder / "profiled.onnx")[0]
            return calls(file, feeds)
    except OnnxPruneError:
        return ()
