"""Products of large matrices in single precision, by the library that takes all of the processor.

Torch hands them to MKL, which on other makers' processors than Intel's keeps to registers of 256 bits. oneDNN, which
comes along with torch, takes those of 512 where there are some: on a recent EPYC 240 instead of 105 GFLOP/s at one
thread. Everything else stays as torch has it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

LEAST = 2**20
"""Multiplications from which on a product is worth the call."""
FEWEST = 8
"""Rows, columns and terms below which there is nothing to share a register with."""

SIZES, FINEST = 8, 16
"""Numbers of rows between one power of two and the next that products are filled up to; what they are multiples of."""

_by_torch: ContextVar[bool] = ContextVar("by_torch", default=False)


@contextmanager
def by_torch() -> Iterator[None]:
    """Products are torch's own inside, as its transformations (`torch.func.vmap`) want them."""
    token = _by_torch.set(True)
    try:
        yield
    finally:
        _by_torch.reset(token)


def matmul(a: Any, b: Any) -> Any:
    """`torch.matmul`: of a [..., m, k] and b [..., k, n]; can be differentiated once."""
    import torch

    call = _call()
    if call is None or not _large(a, b):
        return torch.matmul(a, b)
    rows = a.reshape(-1, a.shape[-1])
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        found = _differentiable()(rows, b)
    else:
        found = call(rows, b)
    return found.reshape(*a.shape[:-1], b.shape[-1])


def linear(a: Any, b: Any, bias: Any) -> Any:
    """a [..., k] times b [k, n], and a bias [n]."""
    import torch

    call = _call()
    wants = torch.is_grad_enabled() and any(x.requires_grad for x in (a, b, bias))
    if call is None or wants or not _large(a, b) or bias.dtype != b.dtype:
        return matmul(a, b) + bias
    return call(a.reshape(-1, a.shape[-1]), b, bias).reshape(*a.shape[:-1], b.shape[-1])


def add_product(into: Any, a: Any, b: Any, *, by: float = 1.0) -> None:
    """`into` += `by` · ab in place. into [m, n], a [m, k], b [k, n]."""
    call = _call()
    if call is None or not _large(a, b) or into.dtype != a.dtype:
        into.addmm_(a, b, alpha=by)
    else:
        # Strips of second moments have any number of columns, and each number would be a shape of its own.
        into.add_(call(a, b, None, _up(b.shape[1])), alpha=by)


def _large(a: Any, b: Any) -> bool:
    """Whether it is a product of a matrix that another library may take, and that is worth it."""
    import torch

    if b.ndim != 2 or a.ndim < 2 or a.dtype != torch.float32 or b.dtype != torch.float32:
        return False
    if _by_torch.get() or a.device.type != "cpu" or b.device.type != "cpu":
        return False
    terms, columns = b.shape
    rows = a.numel() // max(terms, 1)
    return bool(min(rows, terms, columns) >= FEWEST and rows * terms * columns >= LEAST and a.shape[-1] == terms)


@cache
def _call() -> Callable[..., Any] | None:
    """call(a [m, k], b [k, n], bias [n] or None, columns) by oneDNN; None where it is not there, or would gain nothing.

    Where `columns` is more than n, b is filled up to it with zeros.
    """
    import torch

    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not there or torch.backends.cpu.get_cpu_capability() != "AVX512" or _of_intel():
        return None
    try:
        own = torch.ops.mkldnn._linear_pointwise  # torch's own compiler calls it; it has no public name

        def call(a: Any, b: Any, bias: Any = None, columns: int = 0) -> Any:
            terms = a.shape[1] if a.is_contiguous() else _up(a.shape[1], SIZES // 2)  # tokens, of second moments
            columns = max(columns, b.shape[1])
            found = own(_dense(a, _up(len(a)), terms), _dense(b, terms, columns).mT, bias, "none", [], "")
            return found[: len(a), : b.shape[1]]

        left, right = torch.linspace(-1, 1, 96).reshape(8, 12), torch.linspace(-2, 1, 120).reshape(12, 10)
        same = all(
            torch.allclose(call(a, b), a @ b, atol=1e-5) for a, b in ((left, right), (left.T, left), (right.T, right))
        )
        return call if same else None
    except (AttributeError, RuntimeError, TypeError):  # another release of torch may have it otherwise
        return None


def _up(count: int, parts: int = SIZES) -> int:
    """The next size of which there are few: oneDNN keeps half a megabyte, and more, for every shape that it has met."""
    step = max((1 << (count - 1).bit_length()) // (2 * parts), FINEST)
    return -(-count // step) * step


def _dense(matrix: Any, rows: int, columns: int) -> Any:
    """A matrix filled up with zeros, and without gaps, either way around: those with some are read number by number."""
    if matrix.shape == (rows, columns) and (matrix.is_contiguous() or matrix.mT.is_contiguous()):
        return matrix
    turned = matrix.stride(0) == 1
    found = matrix.new_empty(columns, rows).mT if turned else matrix.new_empty(rows, columns)
    height, width = matrix.shape
    found[:height, :width] = matrix
    found[height:] = 0.0
    found[:height, width:] = 0.0
    return found


def _of_intel() -> bool:
    """Whether the processor is one of which MKL takes all."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")[:4096]
    except OSError:
        told = platform.processor()
    return "Intel" in told


@cache
def _differentiable() -> Callable[[Any, Any], Any]:
    """The product of two matrices, whose gradients are two more."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Any, b: Any) -> Any:
            ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)
            call = _call()
            assert call is not None
            return call(a, b)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Any) -> Any:
            a, b = ctx.saved_tensors
            return None if b is None else matmul(slope, b.mT), None if a is None else matmul(a.mT, slope)

    found: Callable[[Any, Any], Any] = Product.apply
    return found
