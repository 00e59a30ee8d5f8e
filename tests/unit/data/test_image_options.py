"""Images prepared as is stated: presets, means, scales, layouts, and sizes that the graph leaves open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.data import read
from onnxprune.data.image_options import PRESETS, image_options
from onnxprune.errors import DataError, UsageError
from onnxprune.graph.model import InputSpec

pytest.importorskip("PIL.Image")
F32 = np.dtype(np.float32)
OPEN = InputSpec("x", F32, ("N", 3, "H", "W"))
RED = np.zeros((20, 40, 3), np.uint8)
RED[..., 0] = 255


def pixels(spec: InputSpec, image: np.ndarray = RED, **stated: Any) -> np.ndarray:
    return read([{"image": image}], [spec], **stated).examples[0].feeds[spec.name]


def test_means_scales_and_layouts_are_those_stated() -> None:
    fixed = InputSpec("x", F32, ("N", 3, 8, 8))
    assert pixels(fixed, mean=(0.5,), std=(0.25,))[0, :, 0, 0].tolist() == [2, -2, -2]
    assert pixels(fixed, scale="1")[0, :, 0, 0].tolist() == [255, 0, 0]
    assert pixels(fixed, layout="bgr")[0, :, 0, 0].tolist() == [0, 0, 1]
    # Means of pixels in 0..255 leave them there.
    assert pixels(fixed, mean=(100, 50, 50), std=(5, 5, 5))[0, :, 0, 0].tolist() == [31, -10, -10]


def test_a_size_is_the_graphs_or_the_one_stated_or_the_presets() -> None:
    assert pixels(OPEN, shape={"H": 16, "W": 24}).shape == (1, 3, 16, 24)
    assert pixels(OPEN, preset="torchvision").shape == (1, 3, 224, 224)
    assert pixels(InputSpec("x", F32, ("N", 3, 32, 32)), preset="ultralytics").shape == (1, 3, 32, 32)
    assert pixels(InputSpec("x", F32, ("N", "H", "W", 3)), preset="paddle", shape={"H": 8, "W": 9}).shape == (
        1,
        8,
        9,
        3,
    )
    unknown = InputSpec("x", F32, ("N", "a", "b", "c"))
    assert pixels(unknown, layout="nhwc", shape={"a": 8, "b": 9}).shape == (1, 8, 9, 3)
    with pytest.raises(DataError, match="--shape H=224,W=224"):
        pixels(OPEN)


def test_a_letterbox_shows_the_whole_picture_between_grey() -> None:
    found = pixels(OPEN, preset="ultralytics", shape={"H": 40, "W": 40})[0]
    np.testing.assert_allclose(found[:, 0, 0], 114 / 255, rtol=1e-6)
    np.testing.assert_allclose(found[:, 20, 20], [1, 0, 0])
    assert (found[0] == 1).any(1).sum() == 20


def test_a_crop_is_the_centre_of_a_larger_picture() -> None:
    wide = np.zeros((70, 140, 3), np.uint8)
    wide[:, 36:104] = 255  # more than the crop shows
    found = pixels(OPEN, wide, preset="torchvision", mean=(0,), std=(1,), shape={"H": 56, "W": 56})
    assert found.shape == (1, 3, 56, 56)
    assert (found == 1).all()


def test_paddles_channels_are_blue_first_with_means_as_they_stand() -> None:
    found = pixels(OPEN, preset="paddle", shape={"H": 8, "W": 8})[0, :, 0, 0]
    mean, std = (np.array(v) for v in (PRESETS["paddle"].mean, PRESETS["paddle"].std))
    np.testing.assert_allclose(found, (np.array([0, 0, 1]) - mean) / std, rtol=1e-6)


def test_what_is_done_is_said() -> None:
    rows = read([{"image": RED}], [OPEN], preset="torchvision", std=(0.5,))
    assert any("crop to 224 x 224" in line and "preset torchvision, std 0.5" in line for line in rows.description)


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"preset": "keras"}, "there are torchvision"),
        ({"mean": (1, 2)}, "one for each channel"),
        ({"std": (0.0,)}, "above 0"),
        ({"scale": "1/0"}, "a number such as 1/255"),
        ({"scale": -1.0}, "above 0"),
        ({"layout": "chw"}, "nchw or nhwc"),
        ({"layout": "rgb,bgr"}, "one of rgb and bgr"),
    ],
)
def test_what_has_no_meaning_is_refused(stated: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        image_options(**stated)


def test_means_must_fit_the_channels() -> None:
    with pytest.raises(UsageError, match="1 channels"):
        pixels(InputSpec("x", F32, ("N", 1, 8, 8)), preset="torchvision")


def test_random_rows_have_the_stated_sizes() -> None:
    rows = read("random", [OPEN], limit=2, shape={"H": 12, "W": 20})
    assert {e.feeds["x"].shape for e in rows.examples} == {(1, 3, 12, 20)}
