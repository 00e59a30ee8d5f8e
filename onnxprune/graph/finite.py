"""Numbers that are none: NaN and infinity where a model cannot mean them.

A comparison with NaN is never true and never false, so a model that gives NaN would pass every check; and what went
wrong lies in its weights, not in the row that happened to be scored. Infinity is something else: masks are made of it,
in constants that are added to scores and in scores that come out, so it is refused where it can only be a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.graph import ops

if TYPE_CHECKING:
    import onnx_ir as ir

_BLOCK = 1 << 22
"""Numbers that are looked at in one go."""
_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization")
"""Operators whose constants are weights though they run no products."""


def check_weights(graph: ir.Graph) -> None:
    """Refuse weights that are not finite.

    NaN is refused in every floating-point initializer of more than one number; infinity in those that products and
    normalisations read, where no mask stands.

    Raises:
        ModelError: names the initializer, where it is read, and how many of its numbers are affected.
    """
    graphs = {id(g): g for g in (graph, *(n.graph for n in graph.all_nodes())) if g is not None}
    for name, value in (item for g in graphs.values() for item in g.initializers.items()):
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.itemsize < 1 or tensor.size < 1:
            continue
        readers = [(node, index) for node, index in value.uses()]
        weight = any(_is_weight(node) for node, _ in readers)
        if tensor.size < 2 and not weight:
            continue
        nans, infinities, first = _count(tensor)
        if not nans and not (infinities and weight):
            continue
        where = f", read by node {readers[0][0].name} ({readers[0][0].op_type})" if readers else ""
        what = " and ".join(f"{count} {word}" for count, word in ((nans, "NaN"), (infinities, "infinite")) if count)
        place = np.unravel_index(first, tensor.shape.numpy()) if tensor.shape.rank() else ()
        raise ModelError(
            f"the weight {name} {list(tensor.shape.numpy())}{where} holds {what} among {tensor.size} numbers, first "
            f"at {[int(i) for i in place]}: the file is damaged, or its training diverged or overflowed. Export the "
            "model again from weights that are finite."
        )


def _is_weight(node: ir.Node) -> bool:
    operator = ops.lookup(node)
    return node.op_type in _NORMS or (operator is not None and operator.macs is not None)


def _count(tensor: ir.TensorProtocol) -> tuple[int, int, int]:
    """(NaNs, infinities, position of the first of either) of a tensor, block by block."""
    nans, infinities, first, start = 0, 0, -1, 0
    for found in _blocks(tensor):
        block = found if found.dtype.kind == "f" else found.astype(np.float32)  # bfloat16 and the 8-bit types
        bad = ~np.isfinite(block)
        if bad.any():
            missing = int(np.isnan(block).sum())
            nans, infinities = nans + missing, infinities + int(bad.sum()) - missing
            first = start + int(np.argmax(bad)) if first < 0 else first
        start += block.size
    return nans, infinities, first


def _blocks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    """A tensor's numbers in order; those beside the model are read from their file, so that none of them stay."""
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor):
        kind = np.dtype(tensor.dtype.numpy()).newbyteorder("<")
        with Path(tensor.path).open("rb") as file:
            file.seek(tensor.offset or 0)
            for start in range(0, tensor.size, _BLOCK):
                yield np.frombuffer(file.read(min(_BLOCK, tensor.size - start) * kind.itemsize), kind)
        return
    flat = np.ravel(tensor.numpy())
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def unusable(values: Any) -> str | None:
    """What makes an output impossible to compare: NaN anywhere, or no finite number at all; None for usable ones."""
    array = np.asarray(values)
    if array.dtype.kind not in "fV" or not array.size:
        return None
    array = array.astype(np.float32) if array.dtype.kind == "V" else array
    nans = int(np.isnan(array).sum())
    if nans:
        return "NaN alone" if nans == array.size else f"{nans} NaN among {array.size} numbers"
    return None if np.isfinite(array).any() else "no finite number"


def require(
    outputs: Mapping[str, Any],
    whose: str,
    where: Sequence[str] = (),
    error: Callable[[str], OnnxPruneError] = ModelError,
) -> None:
    """Refuse outputs that nothing can be compared with.

    Args:
        outputs: by name, [rows, …] each.
        whose: what gave them, as the message begins: "the dense model".
        where: what each row is called, for the message.
        error: what is raised.

    Raises:
        ModelError: or what `error` makes; names output and row.
    """
    for name, values in outputs.items():
        why = unusable(values)
        if why is None:
            continue
        array = np.asarray(values)
        row = ""
        if array.ndim and len(where) == len(array):
            bad = [said for said, one in zip(where, array, strict=True) if unusable(one) is not None]
            row = f" on {bad[0]}" + (f" and {len(bad) - 1} more rows" if len(bad) > 1 else "")
        raise error(f"{whose} gives {why} in output {name}{row}: there is nothing to score, compare or check by")


def first_unusable(values: Mapping[str, Any], order: Iterable[ir.Node]) -> ir.Node | None:
    """The first node whose outputs nothing can be compared with.

    Args:
        values: every value of the graph on some row, by name; what is missing is passed over.
        order: the graph's nodes.
    """
    made = ((node, values.get(v.name or "")) for node in order for v in node.outputs)
    return next((node for node, held in made if held is not None and unusable(held) is not None), None)
