"""What `inspect` shows: units with their share of the cost, branches, and the reasons behind every pin."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from onnxprune.graph.model import Model
from onnxprune.graph.plan import Group, Plan, Structure
from onnxprune.measure import uncounted
from onnxprune.measure.cost import Costs


def survey(dense: Model, structure: Structure, costs: Costs) -> dict[str, Any]:
    """The analysis as plain data."""
    total = costs.macs()
    groups = [
        {
            "id": g.id, "kind": g.kind, "layer": g.layer, "units": g.size, "branch": g.branch, "node": g.name,
            "flops_share": costs.behind([g]) / total if total else 0.0,
        }
        for g in structure.groups
    ]  # fmt: skip
    by_kind: dict[str, list[Group]] = defaultdict(list)
    for group in structure.groups:
        by_kind[group.kind].append(group)
    kinds = {kind: costs.behind(members) / total if total else 0.0 for kind, members in by_kind.items()}
    branches = [
        {
            "id": b.id,
            "kind": b.kind,
            "nodes": len(b.nodes),
            "add": b.add,
            "flops_share": costs.branch_cost("flops", b.id) / total if total else 0.0,
        }
        for b in structure.branches
        if not any(b.id in found for found in structure.twins.values())
    ]
    every = Plan(structure.digest, drop=tuple(str(b["id"]) for b in branches))
    all_branches = (total - costs.macs(every)) / total if total and branches else 0.0
    pins = [{"size": p.size, "count": p.count, "where": p.where, "reasons": list(p.reasons)} for p in structure.pins]
    tables = embeddings(dense)
    left_out = uncounted.find(dense, costs.bindings)
    return {
        "embeddings": {"parameters": tables, "share": tables / costs.params() if costs.params() else 0.0},
        "model": str(dense.home), "files": [f.name for f in dense.files], "sha256": dense.digest, "opset": dense.opset,
        "macs": total, "params": costs.params(), "shape": costs.bindings, "macs_by_op": costs.by_op(),
        "groups": groups, "kinds": kinds, "branches": branches, "branches_share": all_branches, "pins": pins,
        "uncounted": [asdict(u) for u in left_out], "warnings": list(uncounted.said(left_out)),
    }  # fmt: skip


def embeddings(dense: Model) -> int:
    """Parameters in tables whose rows are looked up: what --vocab and fewer bits make smaller, and pruning does not."""
    found = {
        id(table): table.const_value.size
        for node in dense.graph
        if node.op_type == "Gather" and (table := node.inputs[0]) is not None and table.const_value is not None
        and table.dtype is not None and table.dtype.is_floating_point() and len(table.const_value.shape) > 1
    }  # fmt: skip
    return sum(found.values())


def print_survey(found: dict[str, Any], *, everything: bool = False) -> None:
    """Tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shape = ", ".join(f"{k}={v}" for k, v in found["shape"].items())
    console.print(f"[bold]{found['model']}[/bold]  opset {found['opset']}")
    console.print(
        f"{found['macs'] / 1e9:.3f} GMAC at {shape or 'its fixed shape'}, {found['params'] / 1e6:.2f} M parameters, "
        f"{found['embeddings']['share']:.0%} of them in embedding tables\n"
    )
    for warning in found["warnings"]:
        console.print(f"{warning}\n", style="yellow", markup=False)
    table = Table(title="Units that can be cut", title_justify="left")
    for name in ("kind", "layers", "units a layer", "share of the FLOPs", "first read by"):
        table.add_column(name)
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for group in found["groups"]:
        by_kind[group["kind"]].append(group)
    for kind, members in by_kind.items():
        sizes = sorted({m["units"] for m in members})
        share = f"{found['kinds'][kind]:.1%}"
        table.add_row(kind, str(len(members)), ", ".join(map(str, sizes[:6])), share, members[0]["node"])
    console.print(table)
    if found["branches"]:
        share = f"{found['branches_share']:.1%}"
        console.print(f"{len(found['branches'])} residual branches can go as a whole ({share} of the FLOPs)\n")
    pins = sorted(found["pins"], key=lambda p: -p["size"] * p["count"])
    table = Table(title="Pinned, and why", title_justify="left")
    for name in ("size", "how many", "for example", "reasons"):
        table.add_column(name, overflow="fold")
    for pin in pins if everything else pins[:8]:
        table.add_row(str(pin["size"]), str(pin["count"]), pin["where"], "; ".join(pin["reasons"]))
    console.print(table)
