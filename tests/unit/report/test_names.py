"""Layers are called what their nodes are called."""

from __future__ import annotations

import pytest

from onnxprune.report.names import layer_names
from onnxprune.report.schema import Units


def units(layer: int, *names: str) -> list[Units]:
    return [Units(f"u{layer}.{i}", "heads", layer, 4, 4, name=name) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (
            [
                *units(0, "/vit/encoder/layer.0/attention/MatMul", "/vit/encoder/layer.0/Add"),
                *units(1, "/vit/encoder/layer.1/attention/MatMul", "/vit/encoder/layer.1/output/dense/Gemm"),
            ],
            {0: "layer.0", 1: "layer.1"},
        ),
        (
            [*units(0, "/a/stem/Conv", "/a/head/x/MatMul"), *units(1, "/a/body/Conv", "/a/head/y/MatMul")],
            {0: "stem", 1: "body"},
        ),
        ([*units(0, "/enc/layer.0/ffn/MatMul")], {0: "ffn"}),
        (
            [
                *units(0, "/m/encoder/pos/MatMul", "/m/encoder/x/Conv"),
                *units(1, "/m/encoder/deep/layers.1/MatMul"),
                *units(2, "/head/MatMul"),
            ],
            {0: "m/encoder", 1: "deep/layers.1", 2: "head"},
        ),
        ([*units(0, "MatMul_3"), *units(1, "MatMul_9")], {}),
        ([*units(0, "")], {}),
        ([], {}),
    ],
)
def test_scopes_without_what_all_share(held: list[Units], named: dict[int, str]) -> None:
    assert layer_names(held) == named
