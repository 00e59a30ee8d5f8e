"""Layers are called what their nodes are called."""

from __future__ import annotations

import pytest

from onnxprune.report.names import by_name, layer_names
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


def test_rows_of_a_map_are_layers_by_name_where_kinds_are_counted_apart() -> None:
    """A decoder of two layers, each with two attentions and one FFN, behind an encoder of one."""
    told = {
        "heads": ["enc//layers.0/attn", "dec//m/layers.0/self", "dec//m/layers.0/cross", "dec//m/layers.1/self"],
        "neurons": ["enc//layers.0/fc2", "dec//m/layers.0/fc2", "dec//m/layers.1/fc2"],
    }
    held = [
        Units(f"{kind}.{i}", kind, i, 4, 4, name=f"{scope}/MatMul")
        for kind, scopes in told.items()
        for i, scope in enumerate(scopes)
    ]
    rows = by_name(held)
    assert [(unit.id, unit.layer) for unit in rows] == [
        ("heads.0", 0), ("heads.1", 1), ("heads.2", 1), ("heads.3", 2), ("neurons.0", 0), ("neurons.1", 1),
        ("neurons.2", 2),
    ]  # fmt: skip
    assert layer_names(rows) == {0: "enc/layers.0", 1: "m/layers.0", 2: "m/layers.1"}


@pytest.mark.parametrize("names", [("/a/l.0/x/M", "/a/l.0/y/M", "/a/l.1/x/M"), ("M_1", "M_2", "M_3"), ("", "", "")])
def test_rows_stay_where_numbers_agree_or_names_do_not_tell(names: tuple[str, str, str]) -> None:
    held = [*units(0, *names[:2]), *units(1, names[2])]
    assert by_name(held) is held
