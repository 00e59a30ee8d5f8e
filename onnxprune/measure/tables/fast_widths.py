"""Widths that execution providers run fast: the multiples that `--round-to auto` means without a measured table."""

from __future__ import annotations

from onnxprune.graph.structure.sites import Site

Steps = tuple[tuple[int, int], ...]

_DEFAULT: Steps = ((512, 32), (128, 16), (64, 8))

FAST: dict[str, Steps] = {
    # AVX-512 kernels compute 32 output features at once, others 16 (N = 33 takes what 48 does); int8 kernels 16.
    "CPUExecutionProvider": _DEFAULT,
    "OpenVINOExecutionProvider": _DEFAULT,
    "XnnpackExecutionProvider": ((128, 16), (64, 8)),
    # Tensor cores: 64 is better than 8, the least that half precision takes.
    "CUDAExecutionProvider": ((1024, 64), (256, 16), (64, 8)),
    "TensorrtExecutionProvider": ((1024, 64), (256, 16), (64, 8)),
    "NvTensorRTRTXExecutionProvider": ((1024, 64), (256, 16), (64, 8)),
    # Vector units of NPUs: 32 channels, whatever is left over is padded.
    "QNNExecutionProvider": ((64, 32),),
    "CoreMLExecutionProvider": ((64, 32),),
}
"""Provider -> (from this many units on, multiples of this), widest first; narrower groups lose single units."""

_HEAD_DIMS = {
    "CPUExecutionProvider": 4,
    # Flash attention takes multiples of 8.
    "CUDAExecutionProvider": 8,
    "TensorrtExecutionProvider": 8,
    "NvTensorRTRTXExecutionProvider": 8,
}


def step(site: Site, provider: str, round_to: int | None) -> int:
    """A site's widths are multiples of this many units: as asked, or what a provider runs fast; heads are whole.

    Args:
        provider: full name.
        round_to: as asked; None for what runs fast.
    """
    group = site.group
    if site.rows > 1 and group.kind == "heads":
        return site.rows
    if site.rows > 1:
        each = round_to or _HEAD_DIMS.get(provider, 1)
        return site.rows * max(min(each, group.shape[-1]), 1)
    if round_to is not None:
        return 1 if group.kind == "heads" else min(round_to, group.size)
    if group.kind in ("heads", "query_heads"):
        return 1
    return next((multiple for least, multiple in FAST.get(provider, _DEFAULT) if group.size >= least), 1)


def measured(site: Site, provider: str, round_to: int | None, most: int = 48) -> list[int]:
    """The numbers of units at which a module is timed: none, all, and its widths, every second … of many."""
    each, size = step(site, provider, round_to), site.group.size
    stride = each * -(-size // (each * most))
    return sorted({0, *range(stride, size, stride), size})
