"""Contractions: where atoms disappear. Their multiply-accumulates are what a FLOPs budget counts."""

from __future__ import annotations

import math
from typing import Any

from onnxprune.graph import large_products
from onnxprune.graph.ops.base import Constraints, Sizes, attribute, opaque, register, tie_broadcast


def _matmul_axes(node: Any, c: Constraints) -> None:
    a, b = node.inputs
    (result,) = node.outputs
    rank_a, rank_b = len(c.sizes(a)), len(c.sizes(b))
    inner_b = max(rank_b - 2, 0)
    c.same(c.dims(a)[-1], c.dims(b)[inner_b])
    c.reads(node, 0, rank_a - 1)
    c.reads(node, 1, inner_b)
    out = list(c.dims(result))
    if rank_b > 1:
        c.same(c.dims(b)[-1], out.pop())
    if rank_a > 1:
        c.same(c.dims(a)[-2], out.pop())
    for value, rank in ((a, rank_a), (b, rank_b)):
        for back in range(1, rank - 1):
            _tie(c, value, rank - 2 - back, out[-back], c.sizes(result)[len(out) - back])


def _tie(c: Constraints, value: Any, axis: int, target: Any, size: int) -> None:
    if c.sizes(value)[axis] == size:
        c.same(c.dims(value)[axis], target)


def _matmul_macs(node: Any, s: Sizes) -> int:
    return math.prod(s.shape(node.outputs[0])) * s.shape(node.inputs[0])[-1]


def _matmul(torch: Any, node: Any, a: Any, b: Any) -> Any:
    return large_products.matmul(a, b)


register({"MatMul": _matmul}, axes=_matmul_axes, macs=_matmul_macs)


def gemm(torch: Any, node: Any, a: Any, b: Any, c: Any = None) -> Any:
    """alpha · A B + beta · C, A and B transposed as the node says."""
    a = a.transpose(-1, -2) if attribute(node, "transA", 0) else a
    b = b.transpose(-1, -2) if attribute(node, "transB", 0) else b
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    result = large_products.matmul(a, b)
    result = result if alpha == 1.0 else result * alpha
    return result if c is None else result + (c if beta == 1.0 else c * beta)


def gemm_axes(node: Any, c: Constraints) -> None:
    """As a MatMul's, of matrices."""
    a, b = node.inputs[:2]
    (result,) = node.outputs
    inner_a = 0 if attribute(node, "transA", 0) else 1
    inner_b = 1 if attribute(node, "transB", 0) else 0
    c.same(c.dims(a)[inner_a], c.dims(b)[inner_b])
    c.reads(node, 0, inner_a)
    c.reads(node, 1, inner_b)
    c.same(c.dims(a)[1 - inner_a], c.dims(result)[0])
    c.same(c.dims(b)[1 - inner_b], c.dims(result)[1])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        tie_broadcast(c, node.inputs[2], result)


def gemm_macs(node: Any, s: Sizes) -> int:
    """Every output element reads the inner axis."""
    return math.prod(s.shape(node.outputs[0])) * s.shape(node.inputs[0])[0 if attribute(node, "transA", 0) else 1]


register({"Gemm": gemm}, axes=gemm_axes, macs=gemm_macs)


def equation(node: Any, ranks: list[int]) -> tuple[list[str], str]:
    """An Einsum's terms, as `terms_of`."""
    return terms_of(attribute(node, "equation"), ranks)


def terms_of(text: str, ranks: list[int]) -> tuple[list[str], str]:
    """Terms of an equation and its result, one letter per axis; the ellipsis is written out in capitals of its own."""
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    wide = max(
        (rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True) if "..." in t), default=0
    )
    letters = [chr(0x391 + i) for i in range(wide)]
    spread = [
        t.replace("...", "".join(letters[wide - (rank - len(t.replace("...", ""))) :])) if "..." in t else t
        for t, rank in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        seen = "".join(spread)
        right = "".join(letters) + "".join(sorted(x for x in set(seen) - set(letters) if seen.count(x) == 1))
    return spread, right.replace("...", "".join(letters))


def _einsum_axes(node: Any, c: Constraints) -> None:
    terms, result = equation(node, [len(c.sizes(v)) for v in node.inputs])
    if any(len(set(term)) != len(term) for term in terms):  # a diagonal
        opaque(node, c)
        return
    sizes: dict[str, tuple[int, Any]] = {}
    for value, term in [*zip(node.inputs, terms, strict=True), (node.outputs[0], result)]:
        for axis, letter in enumerate(term):
            size, dim = c.sizes(value)[axis], c.dims(value)[axis]
            if letter in sizes and sizes[letter][0] == size:
                c.same(sizes[letter][1], dim)
            elif letter not in sizes or sizes[letter][0] == 1:
                sizes[letter] = (size, dim)
    for index, term in enumerate(terms):
        for axis, letter in enumerate(term):
            if letter not in result:
                c.reads(node, index, axis)


def _einsum_macs(node: Any, s: Sizes) -> int:
    """Of two operands all that both range over; of more, pair by pair as runtimes go, each summed as soon as nothing
    behind it asks for an axis. A pair of which nothing is summed only scales, as a Mul does, which costs nothing."""
    terms, result = equation(node, [len(s.shape(v)) for v in node.inputs])
    sizes: dict[str, int] = {}
    for value, term in zip(node.inputs, terms, strict=True):
        for letter, size in zip(term, s.shape(value), strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    total, held = 0, set(terms[0])
    for place, term in enumerate(terms[1:], 1):
        both = held | set(term)
        asked = set(result).union(*terms[place + 1 :])
        scales = len(terms) > 2 and both <= asked and (both == held or both == set(term))
        total += 0 if scales else math.prod(sizes[letter] for letter in both)
        held = both & asked
    return total if len(terms) > 1 else math.prod(sizes.values())


register(
    {"Einsum": lambda torch, node, *xs: torch.einsum(attribute(node, "equation").replace(" ", ""), *xs)},
    axes=_einsum_axes,
    macs=_einsum_macs,
)
