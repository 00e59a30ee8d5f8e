"""Models that no library here carries: ways to write attention, and a convolutional net with squeeze and excitation.

They stand beside transformers' classes in the zoo: a module with a `config_class` that takes the family's options.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class Config(SimpleNamespace):
    """Options as attributes, as transformers' configurations have them."""


class Attention(nn.Module):
    """Self-attention whose packed projection is taken apart in one of several ways.

    Args:
        way: "split", "slice", "gather" (queries, keys and values one after the other), "interleaved" (a head's own
            three side by side), "einsum" (projections of rank 3, no packing), or "sdpa" (as "split", and PyTorch's own
            scaled_dot_product_attention).
    """

    def __init__(self, width: int, heads: int, way: str) -> None:
        super().__init__()
        self.heads, self.way = heads, way
        if way == "einsum":
            self.qkv = nn.Parameter(torch.empty(3, width, heads, width // heads))
            self.bias = nn.Parameter(torch.zeros(3, heads, 1, width // heads))
        else:
            self.packed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.parts(x)
        if self.way == "sdpa":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            own: torch.Tensor = self.out(mixed.reshape(batch, length, width))
            return own
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) if self.way == "einsum" else q @ k.transpose(-1, -2)
        p = torch.softmax(scores * (width // self.heads) ** -0.5, -1)
        mixed = torch.einsum("bhqk,bhkd->bqhd", p, v) if self.way == "einsum" else (p @ v).transpose(1, 2)
        mixed_flat: torch.Tensor = self.out(mixed.reshape(batch, length, width))
        return mixed_flat

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys and values: (batch, heads, length, head width)."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        if self.way == "einsum":
            return [torch.einsum("blw,whd->bhld", x, self.qkv[i]) + self.bias[i] for i in range(3)]
        packed = self.packed(x)
        if self.way in ("split", "sdpa"):
            return [part.reshape(shape).transpose(1, 2) for part in packed.split(width, -1)]
        if self.way == "slice":
            return [packed[..., i * width : (i + 1) * width].reshape(shape).transpose(1, 2) for i in range(3)]
        if self.way == "gather":
            stacked = packed.reshape(batch, length, 3, *shape[2:]).permute(2, 0, 3, 1, 4)
            return [stacked[i] for i in range(3)]
        side_by_side = packed.reshape(batch, length, self.heads, 3 * (width // self.heads)).transpose(1, 2)
        return list(side_by_side.chunk(3, -1))


class Block(nn.Module):
    """Attention and an FFN, each on the norm of the stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        norm = getattr(nn, getattr(config, "norm", "LayerNorm"))
        self.before, self.between = norm(config.width), norm(config.width)
        self.attention = Attention(config.width, config.heads, config.way)
        self.up, self.down = nn.Linear(config.width, config.neurons), nn.Linear(config.neurons, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x))
        y: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.between(x))))
        return y


class PackedEncoder(nn.Module):
    """Token embeddings, blocks, a classifier of the first token."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.classifier = nn.LayerNorm(config.width), nn.Linear(config.width, 3)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        x = self.embeddings(input_ids)
        for block in self.blocks:
            x = block(x)
        return (self.classifier(self.norm(x)[:, 0]),)


class TorchEncoder(nn.Module):
    """torch.nn.TransformerEncoder, batch or sequence first."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        torch.backends.mha.set_fastpath_enabled(False)  # a kernel of its own, which neither hooks nor exporters see
        self.embeddings = nn.Embedding(config.vocabulary, config.width)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.neurons, dropout=0.1, batch_first=config.batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(config.width, 3)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        batch_first = self.encoder.layers[0].self_attn.batch_first
        x = self.embeddings(input_ids if batch_first else input_ids.transpose(0, 1))
        return (self.classifier(self.encoder(x).mean(1 if batch_first else 0)),)


class Excited(nn.Module):
    """Depthwise convolution between two pointwise ones, its channels weighed by squeeze and excitation."""

    def __init__(self, width: int, wide: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, wide // 4, 1), nn.ReLU(), nn.Conv2d(wide // 4, wide, 1)
        )
        self.project = nn.Conv2d(wide, width, 1, bias=False)
        self.norm, self.stride = nn.BatchNorm2d(width), stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        y = self.norm(self.project(y * nn.functional.hardsigmoid(self.squeeze(y))))
        added: torch.Tensor = x + y if self.stride == 1 else y
        return added


class MobileNetV3(nn.Module):
    """The blocks of MobileNetV3 (Howard et al. 2019), few and narrow."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, config.width, 3, 2, 1), nn.BatchNorm2d(config.width), nn.Hardswish())
        self.blocks = nn.Sequential(*(Excited(config.width, config.wide, s) for s in (1, 2, 1)))
        self.head = nn.Sequential(nn.Linear(config.width, config.neurons), nn.Hardswish(), nn.Linear(config.neurons, 3))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (self.head(self.blocks(self.stem(pixel_values)).mean((2, 3))),)
