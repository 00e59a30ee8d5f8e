"""What ONNX Runtime itself says it computed: operator calls with their shapes, and the MACs that follow from them.

This is the independent count that the tool's own cost model is checked against: it sees only shapes that a running
session reports, with graph optimization and weight prepacking off, so that node types are the graph's own and weights
keep their shapes.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from onnxprune.errors import UnsupportedError
from onnxprune.graph import outputs, runtime

Shape = tuple[int, ...]
_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Call:
    """One execution of one node.

    Attributes:
        op: operator type.
        node: node name (may be empty).
        provider: where it ran.
        inputs, outputs: shapes of the tensors that were there; absent optional ones are left out.
        microseconds: time in the kernel, profiling overhead included: no measure of latency.
    """

    op: str
    node: str
    provider: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    microseconds: int


def by_operator(
    model: str | os.PathLike[str] | bytes, feeds: runtime.Feeds, *, threads: int = 1, passes: int = 15
) -> dict[str, tuple[int, float]]:
    """Operator type, fused as it normally runs -> (calls, milliseconds in its kernels) of one forward pass on the CPU.

    Medians over passes, the first two left out. Profiling costs time of its own at every node.
    """
    with outputs.scratch() as folder:
        opened = runtime.session(model, threads=threads, profile=folder / "run")
        try:
            for _ in range(passes + 2):
                runtime.run(opened, feeds)
        finally:
            written = opened.end_profiling()
        events = json.loads(Path(written).read_text(encoding="utf-8"))
    found = [_call(e) for e in events if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)]
    each = len(found) // (passes + 2)
    counts = Counter(call.op for call in found[-each:])
    totals = [Counter[str]() for _ in range(passes)]
    for place, call in enumerate(found[-each * passes :]):
        totals[place // each][call.op] += call.microseconds
    return {op: (count, median(t[op] for t in totals) / 1000) for op, count in counts.items()}


def calls(
    model: str | os.PathLike[str] | bytes, feeds: runtime.Feeds, *, optimization: str = "none"
) -> tuple[Call, ...]:
    """The node executions of one forward pass on the CPU, in order (bodies of loops once per turn).

    Args:
        model: a file or a serialised model.
        feeds: one batch.
        optimization: `none` for the graph's own nodes; `all` for the fused ones that normally run.

    Raises:
        DataError, ModelError: as `runtime.run`.
    """
    with outputs.scratch() as folder:
        opened = runtime.session(
            model,
            optimization=optimization,
            profile=folder / "run",
            config={"session.disable_prepacking": "1"},
        )
        try:
            runtime.run(opened, feeds)
        finally:
            written = opened.end_profiling()
        events = json.loads(Path(written).read_text(encoding="utf-8"))
    return tuple(_call(e) for e in events if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX))


def profiled_macs(
    model: str | os.PathLike[str] | bytes, feeds: runtime.Feeds, *, equations: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Multiply-accumulates of one forward pass by operator type, from the shapes that ONNX Runtime reports.

    Counted: MatMul and Gemm in all their fused and quantized forms, convolutions, Einsum, recurrences, and attention
    operators (their two products over the full query × key rectangle, causal or not; fused projections included).

    Args:
        model: a file or a serialised model.
        feeds: one batch.
        equations: Einsum equations by node name (the profile does not hold attributes).

    Raises:
        UnsupportedError: an Einsum whose equation is not given.
    """
    totals: Counter[str] = Counter()
    for call in calls(model, feeds):
        if call.op == "Einsum":
            totals["Einsum"] += _einsum(call, equations or {})
        elif count := _COUNTS.get(call.op):
            totals[call.op] += count(call.inputs, call.outputs)
    return dict(totals)


def counted(call: Call) -> int:
    """Multiply-accumulates of one call; 0 for what runs no products, and for an Einsum, whose equation is not there."""
    count = _COUNTS.get(call.op)
    return count(call.inputs, call.outputs) if count is not None else 0


def _call(event: Mapping[str, object]) -> Call:
    args = event["args"]
    assert isinstance(args, Mapping)
    shapes = [
        tuple(tuple(shape) for typed in args.get(key, ()) for shape in typed.values())
        for key in ("input_type_shape", "output_type_shape")
    ]
    name = str(event["name"])
    micros = event["dur"]
    assert isinstance(micros, int)
    return Call(args["op_name"], name.removesuffix(_SUFFIX), args.get("provider", ""), shapes[0], shapes[1], micros)


def _product(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """MatMul: every output element is a sum over the last axis of the first operand."""
    return math.prod(outputs[0]) * inputs[0][-1]


def _fused_product(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """FusedMatMul: the first operand may be transposed, so its inner size is what its last two axes hold besides M."""
    rows = outputs[0][-2] if len(outputs[0]) > 1 else 1
    return math.prod(outputs[0]) * (math.prod(inputs[0][-2:]) // max(rows, 1))


def _gemm(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """Gemm: M·K elements of A, transposed or not, each meet N columns."""
    return math.prod(inputs[0]) * outputs[0][-1]


def _conv(weight: int) -> Callable[[tuple[Shape, ...], tuple[Shape, ...]], int]:
    """Convolution with weights [M, C/group, *kernel] at an input position: each output meets one filter."""
    return lambda inputs, outputs: math.prod(outputs[0]) * math.prod(inputs[weight][1:])


def _conv_transpose(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """Transposed convolution, weights [C, M/group, *kernel]: each input element meets one filter."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _attention(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """The two products of attention: |Q| · keys and |output| · keys, for every layout of the attention operators.

    Recognised by shape: packed projection weights [in, q + k + v] (com.microsoft Attention), or queries, keys and
    values of rank 3 [B, S, H·D] or 4 [B, H, S, D]; the CPU has no kernel for other packings. Keys of the past are seen
    in the present key, where that is an output.
    """
    query, out = inputs[0], outputs[0]
    if len(inputs[1]) == 2:
        return _packed_weights(query, inputs[1], outputs)
    keys = outputs[1][-2] if len(outputs) > 2 else inputs[1][-2]
    return (math.prod(query) + math.prod(out)) * keys


def _packed_weights(tokens: Shape, weights: Shape, outputs: tuple[Shape, ...]) -> int:
    batch, rows, _ = tokens
    keys = outputs[1][-2] if len(outputs) > 1 else rows
    value = outputs[0][-1]
    query = (weights[1] - value) // 2
    return batch * rows * (math.prod(weights) + (query + value) * keys)


def _grouped_attention(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """GroupQueryAttention: one head size for all, so both products have the size of the output times the keys."""
    keys = outputs[1][-2] if len(outputs) > 1 else inputs[1][-2]
    return 2 * math.prod(outputs[0]) * keys


def _recurrence(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """LSTM, GRU and RNN: every step of every row meets the weights of its inputs and of its state."""
    return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))


def _einsum(call: Call, equations: Mapping[str, str]) -> int:
    if call.node not in equations:
        raise UnsupportedError(f"Einsum node {call.node!r}: its MACs need its equation, which profiles do not hold")
    terms = equations[call.node].replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, call.inputs, strict=True):
        front, dots, back = term.partition("...")
        hidden = len(shape) - len(front) - len(back) if dots else 0
        # Broadcast axes are aligned from the right, so they are numbered from there.
        labels = [*front, *(f"…{hidden - i}" for i in range(hidden)), *back]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    return math.prod(sizes.values())


_COUNTS: dict[str, Callable[[tuple[Shape, ...], tuple[Shape, ...]], int]] = {
    "MatMul": _product,
    "MatMulInteger": _product,
    "MatMulIntegerToFloat": _product,
    "DynamicQuantizeMatMul": _product,
    "QLinearMatMul": _product,
    "MatMulNBits": _product,
    "MatMulBnb4": _product,
    "FusedMatMul": _fused_product,
    "TransposeMatMul": _fused_product,
    "FusedMatMulActivation": _fused_product,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "GemmFastGelu": _product,
    "Conv": _conv(1),
    "DeformConv": _conv(1),
    "FusedConv": _conv(1),
    "NhwcFusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Attention": _attention,
    "QAttention": _attention,
    "MultiHeadAttention": _attention,
    "DecoderMaskedMultiHeadAttention": _attention,
    "GroupQueryAttention": _grouped_attention,
    "LSTM": _recurrence,
    "GRU": _recurrence,
    "RNN": _recurrence,
}
