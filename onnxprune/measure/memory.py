"""Memory: what a graph takes on rows of some size, what there is, and the refusal, with figures, of what cannot fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import LimitError, UsageError
from onnxprune.graph.dimensions import evaluate
from onnxprune.graph.model import Model
from onnxprune.graph.single_nodes import reads
from onnxprune.graph.values import dims

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Footprint:
    """Bytes of a forward pass, node by node, each value let go behind its last reader.

    Attributes:
        activations: the most that values take at one time.
        weights: all initializers.
        node: where the most is taken, for messages.
    """

    activations: int
    weights: int
    node: str


def parse(text: str) -> int:
    """Bytes of "8GB", "500MB" or a number of them.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE | re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UsageError(f"--max-memory {text}: give an amount such as 8GB or 500MB")
    return size


def available() -> int | None:
    """Bytes that this process can still have, by the machine and by its control group; None where nobody tells."""
    found = [size for size in (_machine(), _group()) if size is not None]
    return min(found, default=None)


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(told.split()[1]) * 1024
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _group() -> int | None:
    try:
        limit, used = (
            Path(f"/sys/fs/cgroup/memory.{n}").read_text(encoding="ascii").strip() for n in ("max", "current")
        )
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):  # no limit is the word "max"
        return None


def footprint(model: Model, sizes: Mapping[str, int]) -> Footprint:
    """What a forward pass takes.

    Args:
        sizes: of the graph's symbolic dimensions; a value that they do not size counts nothing.
    """
    order = list(model.graph)
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(order):
        for value in (*reads(node), *node.outputs):
            if value is not None:
                last[value] = i
    for value in model.graph.outputs:
        last[value] = len(order)
    held = {v: _bytes(v, sizes) for v in model.graph.inputs if not v.is_initializer()}
    now = sum(held.values())
    most, where = now, "the inputs"
    gone: dict[int, list[ir.Value]] = {}
    for value, i in last.items():
        gone.setdefault(i, []).append(value)
    for i, node in enumerate(order):
        for value in node.outputs:
            held[value] = _bytes(value, sizes)
            now += held[value]
        if now > most:
            most, where = now, f"node {node.name} ({node.op_type})"
        for value in gone.get(i, ()):
            now -= held.pop(value, 0)
    tensors = (v.const_value for v in model.graph.initializers.values())
    return Footprint(most, sum(t.nbytes for t in tensors if t is not None), where)


def _bytes(value: ir.Value, sizes: Mapping[str, int]) -> int:
    try:
        found = [0 if d is None else evaluate(d, sizes) for d in dims(value) or (0,)]
        bits = 8 if value.dtype is None or value.dtype == ir.DataType.STRING else value.dtype.bitwidth
    except (KeyError, ValueError, TypeError, ArithmeticError):
        return 0
    return max(math.prod(found), 0) * bits // 8


def require(model: Model, sizes: Mapping[str, int], most: int | None, where: str, *, weights: bool) -> None:
    """Refuse what cannot fit before anything is computed.

    Args:
        sizes: of the symbolic dimensions.
        most: bytes that may be taken (--max-memory); None for what there is.
        where: what has these sizes, for the message: "rows.jsonl:7".
        weights: whether all weights are in memory, too.

    Raises:
        LimitError: it takes more.
    """
    limit = available() if most is None else most
    found = footprint(model, sizes)
    total = found.activations + (found.weights if weights else 0)
    if limit is not None and total > limit:
        shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
        may = f"{_told(limit)} may be used (--max-memory)" if most is not None else f"{_told(limit)} are free"
        raise LimitError(
            f"{where}{f' ({shape})' if shape else ''} takes {_told(total)} of memory, {_told(found.activations)} of it "
            f"for values, most at {found.node}; {may}: shorten it with --max-length or --shape, or leave it out"
        )


def _told(size: int) -> str:
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u / 10), (1e3, "KB"))
    return f"{size / unit:.1f} {name}"
