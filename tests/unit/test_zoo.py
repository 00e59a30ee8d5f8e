"""The zoo itself: what ONNX Runtime computes from an export is what torch computes, and what was planted is dead."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import zoo as exports
from zoo import Attention, Exporter, Plant, ZooModel
from zoo_families import EVERYDAY

Build = Callable[..., ZooModel]
QUICK = [variant for variant in exports.variants(EVERYDAY) if variant[1] == "torchscript" and variant[2] == "eager"]
DYNAMO: list[tuple[str, Exporter, Attention]] = [("bert", "dynamo", "sdpa")]
REST = [variant for variant in exports.variants() if variant not in QUICK + DYNAMO]


def names(variant: object) -> str:
    return "-".join(variant) if isinstance(variant, tuple) else str(variant)


def disagreement(model: ZooModel, feeds: exports.Feeds) -> float:
    """The largest difference between ONNX Runtime and torch, relative to the output's scale."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    got = onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    wanted = model.expected(feeds)
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def check(model: ZooModel) -> None:
    """The example, and another batch (and length, where there is one): the dynamic axes are dynamic."""
    assert disagreement(model, model.feeds) < 1e-4
    other = {"input_ids": 11, "input_values": 600}.get(model.inputs[0])
    assert disagreement(model, model.sample(batch=3, tokens=other, seed=1)) < 1e-4


@pytest.mark.parametrize("variant", QUICK + DYNAMO, ids=names)
def test_an_export_computes_what_torch_does(zoo: Build, variant: tuple[str, Exporter, Attention]) -> None:
    check(zoo(*variant))


@pytest.mark.slow
@pytest.mark.parametrize("variant", REST, ids=names)
def test_every_other_export_computes_what_torch_does(zoo: Build, variant: tuple[str, Exporter, Attention]) -> None:
    check(zoo(*variant))


@pytest.mark.slow
def test_opset_23_keeps_attention_whole(zoo: Build) -> None:
    model = zoo("bert", "dynamo", "sdpa", opset=23)
    check(model)
    operators = [node.op_type for node in onnx.load(model.path, load_external_data=False).graph.node]
    assert operators.count("Attention") == 2


PLANTED = [
    pytest.param(family, marks=() if family in EVERYDAY else pytest.mark.slow) for family in sorted(exports.FAMILIES)
]


@pytest.mark.parametrize("family", PLANTED)
def test_planted_units_are_dead_and_the_others_live(zoo: Build, family: str) -> None:
    model = zoo(family, "torchscript", "eager", plant=Plant(heads=0.5, neurons=0.25, seed=3))
    feeds = {name: torch.from_numpy(array) for name, array in model.feeds.items()}
    module = model.torch_module
    dead = {
        **{name: _columns(units, exports.HEAD_DIM) for name, units in model.planted.heads.items()},
        **{name: _columns(units, 1) for name, units in model.planted.neurons.items()},
    }
    before = module(*feeds.values()).detach()
    with _disturbed(module, dead):
        assert torch.equal(before, module(*feeds.values()).detach())
    for name, columns in dead.items():
        with _disturbed(module, {name: columns}, others=True):
            assert not torch.allclose(before, module(*feeds.values()).detach(), rtol=1e-4)


def test_planted_shares_and_groups(zoo: Build) -> None:
    planted = zoo("llama", "torchscript", "eager", plant=Plant(heads=0.5, neurons=0.25, seed=1)).planted
    assert len(planted.heads) == len(planted.neurons) == 2
    for heads in planted.heads.values():
        assert [sum(head // 2 == group for head in heads) for group in (0, 1)] == [1, 1]
    assert {len(neurons) for neurons in planted.neurons.values()} == {12}
    assert len(set(planted.neurons.values())) == 2, "layers are planted alike: a test could not tell them apart"


def test_biases_and_norms_are_not_at_their_initial_values(zoo: Build) -> None:
    module = zoo("bert", "torchscript", "eager").torch_module
    for name, parameter in module.named_parameters():
        if name.endswith(("bias", "LayerNorm.weight")) and parameter.numel() > 8:
            assert parameter.std() > 0.05, name


def test_an_export_is_kept_and_told_apart_by_its_plant(zoo: Build) -> None:
    plain = zoo("bert", "torchscript", "eager")
    written = plain.path.stat().st_mtime_ns
    assert zoo("bert", "torchscript", "eager").path == plain.path
    assert plain.path.stat().st_mtime_ns == written
    assert zoo("bert", "torchscript", "eager", plant=Plant()).path != plain.path


def _columns(units: tuple[int, ...], width: int) -> list[int]:
    return [unit * width + offset for unit in units for offset in range(width)]


class _disturbed:
    """Adds a constant to the named modules' inputs, at the given features (or at all `others`)."""

    def __init__(self, module: torch.nn.Module, features: dict[str, list[int]], others: bool = False) -> None:
        self.module, self.features, self.others = module, features, others

    def __enter__(self) -> None:
        parts = dict(self.module.named_modules())
        self.hooks = [
            parts[f"model.{name}"].register_forward_pre_hook(self._hook(columns))
            for name, columns in self.features.items()
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _hook(self, columns: list[int]) -> Callable[[torch.nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
        def disturb(reader: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            axis = 1 if isinstance(reader, torch.nn.Conv2d) else -1
            noise = torch.zeros(inputs[0].shape[axis])
            noise[columns] = 1
            if self.others:
                noise = 1 - noise
            shape = [1] * inputs[0].ndim
            shape[axis] = -1
            return (inputs[0] + noise.reshape(shape),)

        return disturb
