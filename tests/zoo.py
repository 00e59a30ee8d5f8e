"""A zoo of real exports: tiny configurations with random weights, straight from transformers and its exporters.

`build("bert", "dynamo", "sdpa")` gives a `ZooModel`: the written graph, feeds for it, the torch module it came from and
what that module answers. A family is one entry of `zoo_families.FAMILIES`; every exporter and attention implementation
comes with it.

The weights are drawn anew at a scale where every unit matters (transformers' initialisers leave attention near uniform,
biases zero and norms one), so that a cut that is right only for zero biases is caught. `Plant` zeroes the columns that
read some heads and neurons *in the torch module, before export*: those units are dead whatever the exporter makes of
them.

An export takes seconds, so it is cached on disk under a key of everything that decides it.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from made_once import made_once
from zoo_families import (
    ATTENTIONS,
    BROKEN,
    DIMENSIONS,
    FAMILIES,
    HEAD_DIM,
    OPSETS,
    ORDINARY_TOKENS,
    VOCABULARY,
    Attention,
    Exporter,
    Family,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "HEAD_DIM",
    "Attention",
    "Exporter",
    "Feeds",
    "Plant",
    "Planted",
    "ZooModel",
    "build",
    "config_of",
    "variants",
]

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Plant:
    """Shares of the heads and neurons of every layer to kill before export."""

    heads: float = 0.5
    neurons: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Planted:
    """What `Plant` killed: dead indices by the name of the torch module that reads them."""

    heads: Mapping[str, tuple[int, ...]]
    neurons: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ZooModel:
    """One export on disk.

    Attributes:
        path: the written graph; its external data, if any, lies beside it.
        inputs: the graph's input names, in its order.
        feeds: an example, batch axis first (2 rows).
        planted: the dead units, by reader; empty unless asked for.
    """

    family: str
    exporter: Exporter
    attention: Attention
    opset: int
    seed: int
    plant: Plant | None
    path: Path
    inputs: tuple[str, ...]
    planted: Planted

    @property
    def feeds(self) -> Feeds:
        return self.sample()

    def sample(self, batch: int = 2, tokens: int | None = None, seed: int = 0) -> Feeds:
        """Draws feeds: ordinary tokens without padding, or normal values; `tokens` replaces the example's length."""
        return _feeds(FAMILIES[self.family], self.inputs, batch, tokens, seed)

    @functools.cached_property
    def torch_module(self) -> torch.nn.Module:
        """The module that was exported, made again from its seed: takes the inputs in order, returns the one output."""
        module, _ = _module(FAMILIES[self.family], self.attention, self.plant, self.seed)
        return _wrap(module, self.inputs)

    def expected(self, feeds: Feeds | None = None) -> np.ndarray:
        """What the torch module answers to `feeds` (the example's by default): the graph's first output."""
        import torch

        feeds = self.feeds if feeds is None else feeds
        with torch.no_grad():
            answer: np.ndarray = self.torch_module(*(torch.from_numpy(feeds[name]) for name in self.inputs)).numpy()
        return answer


def variants(families: tuple[str, ...] = tuple(FAMILIES)) -> Iterator[tuple[str, Exporter, Attention]]:
    """Every combination that exports: arguments for `build`, and for pytest.mark.parametrize."""
    for family in families:
        for exporter in OPSETS:
            for attention in ATTENTIONS[:1] if FAMILIES[family].eager_only else ATTENTIONS:
                if (family, exporter, attention) not in BROKEN:
                    yield family, exporter, attention


def build(
    family: str,
    exporter: Exporter = "torchscript",
    attention: Attention = "sdpa",
    opset: int | None = None,
    plant: Plant | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> ZooModel:
    """Exports a family, or finds the export in `cache` (by default the user's cache folder)."""
    spec = FAMILIES[family]
    if spec.eager_only:
        attention = "eager"
    opset = opset or OPSETS[exporter]
    root = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxprune" / "zoo"
    key = _key(repr(spec), exporter, attention, opset, plant, seed)
    folder = root / f"{family}-{exporter}-{attention}-{opset}-{key}"

    def make(place: Path) -> None:
        module, planted = _module(spec, attention, plant, seed)
        inputs = _export(spec, module, exporter, opset, place)
        (place / "zoo.json").write_text(json.dumps({"inputs": inputs, "planted": asdict(planted)}))

    made_once(folder, make)
    facts = json.loads((folder / "zoo.json").read_text())
    dead = {kind: {name: tuple(units) for name, units in readers.items()} for kind, readers in facts["planted"].items()}
    path, inputs = folder / "model.onnx", tuple(facts["inputs"])
    return ZooModel(family, exporter, attention, opset, seed, plant, path, inputs, Planted(**dead))


def _key(*facts: object) -> str:
    """A hash of everything that decides an export: the family and the request, this file, the exporters' versions."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "optimum-onnx", "onnxscript")]
    return hashlib.sha256(repr((facts, versions)).encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def _feeds(spec: Family, inputs: tuple[str, ...], batch: int, tokens: int | None, seed: int) -> Feeds:
    """Values for the graph's inputs; shapes are (batch, *example)."""
    if tokens and len(spec.example) != 1:
        raise ValueError(f"{spec.model} has no length to choose: its example is {spec.example}")
    rng = np.random.default_rng(seed)
    shape = (batch, *((tokens,) if tokens else spec.example))
    made: dict[str, np.ndarray] = {
        "input_ids": rng.integers(ORDINARY_TOKENS, VOCABULARY, shape, dtype=np.int64),
        "decoder_input_ids": rng.integers(ORDINARY_TOKENS, VOCABULARY, (batch, 5), dtype=np.int64),
        "attention_mask": np.ones(shape, np.int64),
        "position_ids": np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape).copy(),
        "input_features": rng.standard_normal(shape, dtype=np.float32),
        "pixel_values": rng.standard_normal(shape, dtype=np.float32),
        "input_values": rng.standard_normal(shape, dtype=np.float32),
    }
    return {name: made[name] for name in inputs}


def _module(spec: Family, attention: Attention, plant: Plant | None, seed: int) -> tuple[torch.nn.Module, Planted]:
    """Makes the model with weights of its seed, and kills what `plant` asks for."""
    import torch
    import transformers
    import zoo_modules

    kind = getattr(zoo_modules, spec.model, None) or getattr(transformers, spec.model)
    config = _config(spec, kind)
    config._attn_implementation = attention
    config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: torch.nn.Module = kind(config).eval()
        _draw_weights(module)
    if plant is None:
        return module, Planted({}, {})
    rng = np.random.default_rng(plant.seed)
    heads = _kill(module, spec.heads, plant.heads, HEAD_DIM, spec.kv_groups, rng) if spec.heads else {}
    neurons = _kill(module, spec.neurons, plant.neurons, 1, 1, rng)
    if spec.beside is not None:
        for reader, units in neurons.items():
            with torch.no_grad():
                module.get_submodule(re.sub(*spec.beside, reader)).get_parameter("weight")[:, list(units)] = 0
    return module, Planted(heads, neurons)


def config_of(family: str) -> Any:
    """The configuration of a transformers family."""
    import transformers

    return _config(FAMILIES[family], getattr(transformers, FAMILIES[family].model))


def _config(spec: Family, kind: Any) -> Any:
    return kind.config_class(**copy.deepcopy(spec.options))  # some take their options apart


def _draw_weights(module: torch.nn.Module) -> None:
    """Draws every parameter anew: matrices at the scale that keeps variance, biases and norms away from 0 and 1."""
    import torch
    from transformers.pytorch_utils import Conv1D

    transposed = {id(part.weight) for part in module.modules() if isinstance(part, Conv1D)}
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.weight.abs().mean() < 0.5:
                part.weight.fill_(1)  # some models draw them around 0, and nothing of the input would be left
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                fan_in = len(parameter) if id(parameter) in transposed else parameter[0].numel()
                parameter.normal_(std=1 / math.sqrt(fan_in))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def _kill(
    module: torch.nn.Module, readers: str, share: float, width: int, groups: int, rng: np.random.Generator
) -> dict[str, tuple[int, ...]]:
    """Zeroes what the modules matching `readers` read of some units of `width` columns, equally many in each group."""
    import torch
    from transformers.pytorch_utils import Conv1D

    dead: dict[str, tuple[int, ...]] = {}
    for name, reader in module.named_modules():
        if not re.search(readers + "$", name):
            continue
        weight = reader.get_parameter("weight")
        columns = weight if isinstance(reader, Conv1D) else weight.transpose(0, 1)  # input features first
        units = columns.unflatten(0, (groups, -1, width))
        per_group = units.shape[1]
        chosen = [rng.permutation(per_group)[: round(share * per_group)] for _ in range(groups)]
        with torch.no_grad():
            for group, members in enumerate(chosen):
                units[group, members] = 0
        dead[name] = tuple(
            sorted(int(group * per_group + unit) for group, members in enumerate(chosen) for unit in members)
        )
    if not dead:
        raise ValueError(f"no module matches {readers!r}")
    return dead


def _wrap(module: torch.nn.Module, inputs: tuple[str, ...]) -> torch.nn.Module:
    """Gives the model positional inputs and one output."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = module(**dict(zip(inputs, tensors, strict=True)), return_dict=False)[0]
            return output

    return Wrapped().eval()


def _export(spec: Family, module: torch.nn.Module, exporter: Exporter, opset: int, folder: Path) -> tuple[str, ...]:
    """Writes `folder/model.onnx` and returns the graph's input names."""
    import torch

    path = folder / "model.onnx"
    if exporter == "torchscript" and spec.optimum:
        from optimum.exporters.onnx import onnx_export_from_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            onnx_export_from_model(module, folder, opset=opset, do_validation=False, **spec.optimum)
        return _graph_inputs(path)
    example = tuple(torch.from_numpy(array) for array in _feeds(spec, spec.inputs, 2, None, 0).values())
    axes = {name: {0: "batch_size", **DIMENSIONS.get(name, {})} for name in spec.inputs}
    names: dict[str, Any] = {"input_names": list(spec.inputs), "output_names": [spec.output], "opset_version": opset}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(_wrap(module, spec.inputs), example, path, dynamo=False, dynamic_axes=axes, **names)
        else:
            dims = {name: torch.export.Dim(name) for each in axes.values() for name in each.values()}
            shapes = {"tensors": tuple({axis: dims[name] for axis, name in each.items()} for each in axes.values())}
            torch.onnx.export(
                _wrap(module, spec.inputs), example, path, dynamo=True, dynamic_shapes=shapes, verbose=False, **names
            )
    return spec.inputs


def _graph_inputs(path: Path) -> tuple[str, ...]:
    """The input names of a written graph."""
    import onnx

    return tuple(value.name for value in onnx.load(path, load_external_data=False).graph.input)
