"""Attributes of nodes that end the libraries, not with an error.

onnx's shape inference, and ONNX Runtime with it, counts with them before anything has looked at them, and reaches
beside its memory or does not come back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxprune.errors import ModelError, one_line

MOST_DIMENSIONS = 64
"""Of a tensor: what numpy takes."""
_AXES = frozenset(
    ("axis", "axes", "batch_axis", "batch_dims", "perm", "scan_input_axes", "scan_output_axes", "time_axis")
)
"""Attributes that name dimensions, whatever the operator."""
_BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


def check(node: Any, file: Path) -> None:
    """Refuse a NodeProto whose attributes cannot be meant.

    Raises:
        ModelError: names it.
    """
    if node.domain not in ("", "ai.onnx"):
        return
    for said in _wrong(node):
        where = f"{one_line(node.name or next(iter(node.output), ''), 80)} ({one_line(node.op_type, 40)})"
        raise ModelError(f"{file}: node {where}: {said}: the file is damaged")


def _wrong(node: Any) -> Iterator[str]:
    given = {a.name: a for a in node.attribute if not a.ref_attr_name}
    for name in _AXES & given.keys():
        numbers = [*given[name].ints, given[name].i]
        if max(map(abs, numbers)) > MOST_DIMENSIONS:
            yield f"{name} {max(numbers, key=abs)} is no dimension of a tensor"
    if node.op_type == "GatherND" and "batch_dims" in given and given["batch_dims"].i < 0:
        yield f"batch_dims {given['batch_dims'].i} is below zero"
    if node.op_type == "Split" and "num_outputs" in given and given["num_outputs"].i != len(node.output):
        yield f"num_outputs {given['num_outputs'].i}, where it has {len(node.output)}"
    if node.op_type in _BODIES:
        yield from _wrong_bodies(node, given)
    if node.op_type == "Einsum" and "equation" in given:
        text = given["equation"].s.decode("utf-8", "replace")
        left, _, right = text.replace(" ", "").partition("->")
        terms = left.split(",")
        if len(terms) != len(node.input) or not all(_TERM.fullmatch(term) for term in (*terms, right)):
            yield f"{one_line(text, 60)} is no equation of its {len(node.input)} inputs"


def _wrong_bodies(node: Any, given: Mapping[str, Any]) -> Iterator[str]:
    """Control flow whose bodies take and give another number of values than it hands them and hands on."""
    scans = given["num_scan_inputs"].i if "num_scan_inputs" in given else 0
    if node.op_type == "Scan" and not 1 <= scans <= len(node.input):
        yield f"num_scan_inputs {scans}, where it has {len(node.input)} inputs"
    for name in _BODIES[node.op_type]:
        if name not in given or not given[name].HasField("g"):
            yield f"it has no {name}"
            continue
        takes, gives = len(given[name].g.input), len(given[name].g.output) - (node.op_type == "Loop")
        # Scan has had the lengths of its sequences in front, and bodies may give what no output is named for.
        fed = {"If": (0,), "Loop": (len(node.input),), "Scan": (len(node.input), len(node.input) - 1)}[node.op_type]
        if takes not in fed:
            yield f"its {name} takes {takes} values, where it hands it {fed[0]}"
        if gives < len(node.output):
            yield f"its {name} gives {max(gives, 0)} values, where it has {len(node.output)} outputs"
