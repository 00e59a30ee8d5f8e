"""Products by oneDNN are torch's own to the last digits, however their operands lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from onnxprune.graph import large_products

SHAPES = [(40, 96, 300), (301, 96, 64), (513, 130, 33), (1000, 40, 40), (96, 1000, 40), (9, 384, 384)]


@pytest.fixture(params=["here", "pretended"], autouse=True)
def call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that were handed on: to what there is on this machine, or to what stands in for it."""
    real, seen = large_products._call(), []
    if request.param == "here" and real is None:
        pytest.skip("torch's own products are as fast here, or there are no others")

    def handed(a: Any, b: Any, bias: Any = None, columns: int = 0) -> Any:
        seen.append((*a.shape, max(columns, b.shape[1])))
        if request.param == "here":
            assert real is not None
            return real(a, b, bias, columns)
        return a @ b if bias is None else a @ b + bias

    monkeypatch.setattr(large_products, "_call", lambda: handed)
    monkeypatch.setattr(large_products, "LEAST", 2**15)
    yield seen


def _ways(rows: int, columns: int) -> Iterator[torch.Tensor]:
    """A matrix as it may lie in memory: as it is, the other way around, and with gaps either way."""
    random = torch.Generator().manual_seed(rows * columns)
    whole = torch.randn((rows + 3, columns + 5), generator=random)
    yield whole[:rows, :columns].contiguous()
    yield whole[:rows, :columns].T.contiguous().T
    yield whole[2 : rows + 2, 3 : columns + 3]
    yield whole.T.contiguous()[3 : columns + 3, 2 : rows + 2].T


def _near(found: torch.Tensor, should: torch.Tensor) -> bool:
    assert found.shape == should.shape
    return bool((found - should).abs().max() <= 2e-6 * should.abs().max() * should.shape[-1] ** 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_torch(shape: tuple[int, int, int], call: list[tuple[int, ...]]) -> None:
    rows, terms, columns = shape
    bias = torch.linspace(-1, 1, columns)
    for a in _ways(rows, terms):
        for b in _ways(terms, columns):
            assert _near(large_products.matmul(a, b), a @ b)
            assert _near(large_products.matmul(a[None], b), a[None] @ b)
            assert _near(large_products.linear(a, b, bias), a @ b + bias)
            into, should = torch.ones(rows, columns + 2), torch.ones(rows, columns + 2)
            large_products.add_product(into[:, 1:-1], a, b, by=-0.5)
            should[:, 1:-1] -= 0.5 * (a @ b)
            assert _near(into, should)
    added = [(rows, terms, large_products._up(columns))]
    assert call == ([shape] * 3 + added) * 16


def test_gradients_are_those_of_torch(call: list[tuple[int, ...]]) -> None:
    a, b = (next(_ways(*shape)).requires_grad_() for shape in ((301, 96), (96, 64)))
    slope = torch.linspace(-1, 1, 301 * 64).reshape(1, 301, 64)
    own = torch.autograd.grad(a[None] @ b, [a, b], slope)
    found = torch.autograd.grad(large_products.matmul(a[None], b), [a, b], slope)
    assert all(_near(f, o) for f, o in zip(found, own, strict=True)) and len(call) == 3
    (alone,) = torch.autograd.grad(large_products.linear(a.detach(), b, torch.zeros(64)), [b], slope[0])
    assert _near(alone, own[1]) and len(call) == 5


def test_what_is_small_or_no_matrix_stays_with_torch(call: list[tuple[int, ...]]) -> None:
    cases: list[tuple[torch.Tensor, torch.Tensor]] = [
        (torch.ones(8, 8), torch.ones(8, 8)),
        (torch.ones(2, 4096), torch.ones(4096, 64)),
        (torch.ones(3, 50, 40), torch.ones(3, 40, 50)),
        (torch.ones(100, 100).double(), torch.ones(100, 100).double()),
        (torch.ones(4096), torch.ones(4096, 64)),
        (torch.ones(0, 64), torch.ones(64, 64)),
    ]
    for a, b in cases:
        assert torch.equal(large_products.matmul(a, b), a @ b)
    with large_products.by_torch():
        turned: Callable[..., torch.Tensor] = torch.func.vmap(large_products.matmul)
        assert turned(torch.ones(2, 64, 64), torch.ones(2, 64, 64)).shape == (2, 64, 64)
    assert not call


def test_rows_come_in_few_numbers() -> None:
    for parts in (4, 8):
        numbers = {large_products._up(count, parts) for count in range(1, 4097)}
        assert len(numbers) <= 6 * parts + 4 and max(numbers) == 4096
        assert all(count <= large_products._up(count, parts) < count * (1 + 1 / parts) + 16 for count in range(1, 4097))


def test_sums_of_any_width_have_few_shapes(call: list[tuple[int, ...]]) -> None:
    """oneDNN compiles for each, and what it compiles it keeps."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn((64, n), generator=random) for n in (32, 700))
    for columns in range(300, 700, 8):
        into, should = torch.ones(32, columns), torch.ones(32, columns)
        large_products.add_product(into, a.T, b[:, :columns])
        assert _near(into, should + a.T @ b[:, :columns])
    assert len(set(call)) <= 12
