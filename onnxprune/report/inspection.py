"""What `inspect` shows: units with their share of the cost, branches, and the reasons behind every pin."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from onnxprune.graph.dimensions import independent
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Group, Plan, Structure
from onnxprune.measure import uncounted
from onnxprune.measure.cost import Costs
from onnxprune.report import text
from onnxprune.report.terminal import console_for

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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
        "macs": total, "params": int(costs.total("params")), "shape": costs.bindings, "macs_by_op": costs.by_op(),
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
    console = console_for()
    shape = ", ".join(f"{k}={v}" for k, v in independent(found["shape"]).items())
    console.print(f"{found['model']}  opset {found['opset']}", style="bold", markup=False)
    console.print(
        f"{text.si(found['macs'], 'MAC')} at {shape or 'its fixed shape'}, {text.si(found['params'])} parameters, "
        f"{found['embeddings']['share']:.0%} of them in embedding tables\n",
        markup=False,
    )
    for warning in found["warnings"]:
        console.print(f"{warning}\n", style="yellow", markup=False)
    if found["groups"]:
        table = _table(console, "Units that can be cut")
        for name in ("kind", "layers", "units a layer", "share of the FLOPs", "first read by"):
            table.add_column(name, overflow="fold")
        by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for group in found["groups"]:
            by_kind[group["kind"]].append(group)
        for kind, members in by_kind.items():
            share = f"{found['kinds'][kind]:.1%}"
            table.add_row(kind, str(len(members)), _counts(members), share, escape(members[0]["node"]))
        console.print(table)
        console.print()
        if {"heads", "head_dims"} <= by_kind.keys():
            console.print("Heads and the dimensions within them have the same FLOPs: these shares do not add up.\n")
    if found["branches"]:
        share = f"{found['branches_share']:.1%}"
        console.print(f"{len(found['branches'])} residual branches can go as a whole ({share} of the FLOPs)\n")
    if not found["groups"] and not found["branches"]:
        console.print("Nothing in it can be cut; what is pinned, and why:\n", style="yellow")
    pins = sorted(found["pins"], key=lambda p: -p["size"] * p["count"])
    shown = pins if everything else pins[:_PINS]
    if shown:
        table = _table(console, "Pinned, and why")
        for name in ("size", "how many", "for example", "reasons"):
            table.add_column(name, overflow="fold")
        for pin in shown:
            table.add_row(str(pin["size"]), str(pin["count"]), escape(pin["where"]), escape("; ".join(pin["reasons"])))
        console.print(table)
        console.print()
    if len(shown) < len(pins):
        console.print(f"{len(pins) - len(shown)} more; --pins lists all\n")
    if found["groups"] or found["branches"]:
        command = f"onnxprune {shlex.quote(found['model'])} --flops 0.6 --calib ROWS"
        console.print("Next, with some hundred rows of the model's kind in place of ROWS:")
        console.print(f"    {command}", markup=False, soft_wrap=True)


_PINS = 8
"""Reasons that are shown unless all are asked for."""
_SIZES = 6
"""Numbers of units that are listed."""


def _table(console: Console, title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False,
        padding=(0, 2, 0, 0),
    )  # fmt: skip


def _counts(members: list[dict[str, Any]]) -> str:
    """ "96", "16, 24, 32", "16 to 1,280": how many units a group has."""
    sizes = sorted({m["units"] for m in members})
    return ", ".join(f"{size:,}" for size in sizes) if len(sizes) <= _SIZES else f"{sizes[0]:,} to {sizes[-1]:,}"
