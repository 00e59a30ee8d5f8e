"""Quantised weights: what they hold, how they are cut, and how other numbers are rounded to them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import UnsupportedError
from onnxprune.graph.quantised import Form, Names, Parts, Quantised


def held(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, block: int = 0, kind: str = "INT8"
) -> Quantised:
    dtype = ir.DataType[kind]
    tensor = ir.Tensor(codes.astype(dtype.numpy()), dtype=dtype, name="codes")
    points = None if zero is None else zero.astype(dtype.numpy())
    parts = Parts(tensor, scale.astype(np.float32), points, block, 0)
    return Quantised(parts, Form("DequantizeLinear", Names()), ir.DataType.FLOAT, "w")


CODES = np.random.default_rng(0).integers(-127, 128, (16, 6))


def test_a_cut_takes_scales_with_it() -> None:
    weight = held(CODES, np.arange(1, 7).reshape(1, 6))
    taken = weight.take([(np.array([5, 2]), 1), (np.array([0, 3]), 0)], "w")
    np.testing.assert_array_equal(taken.numpy(), weight.numpy()[[0, 3]][:, [5, 2]])
    assert taken.parts.scale.shape == (1, 2)


def test_blocks_keep_as_many_each() -> None:
    weight = held(CODES, np.arange(1, 25).reshape(4, 6), block=4)
    taken = weight.take([(np.array([0, 3, 4, 5, 8, 10, 13, 15]), 0)], "w")
    np.testing.assert_array_equal(taken.numpy(), weight.numpy()[[0, 3, 4, 5, 8, 10, 13, 15]])
    assert taken.parts.block == 2
    np.testing.assert_array_equal(weight.take([(np.arange(4, 12), 0)], "w").numpy(), weight.numpy()[4:12])
    with pytest.raises(UnsupportedError, match="blocks of 4"):
        weight.take([(np.array([0, 4, 5, 6]), 0)], "w")


@pytest.mark.parametrize("kind", ["INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (16, 1)])
@pytest.mark.parametrize("growth", [0.3, 1.0, 3.7])
def test_rounding_is_near_and_final(kind: str, shape: tuple[int, int], growth: float) -> None:
    """Numbers move by half a step at most, and those that were rounded stay what they are."""
    rng = np.random.default_rng(1)
    zero = np.full(shape, 7) if kind.startswith("U") else None
    scale = rng.uniform(0.5, 2, shape)
    weight = held(np.full((16, 6), 1), scale, zero, kind=kind)
    numbers = (rng.normal(size=(16, 6)) * growth * 20).astype(np.float32)
    rounded = weight.rounded(numbers)
    again = weight.rounded(rounded.numpy())
    np.testing.assert_allclose(again.numpy(), rounded.numpy(), rtol=1e-5)
    steps = np.broadcast_to(rounded.parts.scale, numbers.shape)
    relative = np.abs(numbers) * 0.07 if kind.startswith("FLOAT") else 0
    assert (np.abs(rounded.numpy() - numbers) <= 0.51 * steps + relative).all()


def test_what_fits_stays_on_its_scales() -> None:
    weight = held(CODES, np.full((1, 6), 0.5))
    rounded = weight.rounded(weight.numpy() * 0.9)
    np.testing.assert_array_equal(rounded.parts.scale, weight.parts.scale)


def test_a_positive_factor_leaves_codes_alone() -> None:
    weight = held(CODES, np.full((1, 6), 0.5))
    np.testing.assert_array_equal(weight.times(1.5).parts.codes.numpy(), weight.parts.codes.numpy())
    np.testing.assert_allclose(weight.times(1.5).numpy(), weight.numpy() * 1.5, rtol=1e-6)
