"""Fourier transforms and their windows, for models that take sound."""

from __future__ import annotations

from typing import Any

from onnxprune.graph.ops.base import attribute, opaque, register
from onnxprune.graph.ops.elementwise import torch_dtype


def _complex(torch: Any, x: Any) -> Any:
    """A last axis of 1 (real) or 2 (real, imaginary) as complex numbers."""
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)


def _dft(torch: Any, node: Any, x: Any, length: Any = None, axis: Any = None) -> Any:
    if axis is not None:
        along = int(axis.reshape(()).item())
    else:
        along = attribute(node, "axis", 1 if (node.version or 20) < 20 else -2)
    along %= x.dim()
    count = None if length is None else int(length.reshape(()).item())
    inverse, half = attribute(node, "inverse", 0), attribute(node, "onesided", 0)
    z = _complex(torch, x)
    if inverse and half:
        return torch.fft.irfft(z, count, along).unsqueeze(-1).to(x.dtype)
    if inverse:
        y = torch.fft.ifft(z, count, along)
    else:
        y = torch.fft.fft(z, count, along)
        y = y.narrow(along, 0, y.shape[along] // 2 + 1) if half else y
    return torch.view_as_real(y.resolve_conj()).to(x.dtype)


def _stft(torch: Any, node: Any, signal: Any, step: Any, window: Any = None, length: Any = None) -> Any:
    count = int(length.reshape(()).item()) if length is not None else window.shape[0]
    signal = signal.unsqueeze(-1) if signal.dim() == 2 else signal
    frames = _complex(torch, signal).unfold(1, count, int(step.reshape(()).item()))
    frames = frames if window is None else frames * window
    y = torch.fft.fft(frames, dim=-1)
    y = y[..., : count // 2 + 1] if attribute(node, "onesided", 1) else y
    return torch.view_as_real(y).to(signal.dtype)


def _window(*weights: float) -> Any:
    """A sum of cosines."""

    def run(torch: Any, node: Any, size: Any) -> Any:
        count = int(size.reshape(()).item())
        steps = count if attribute(node, "periodic", 1) else count - 1
        angle = torch.arange(count, dtype=torch.float64) * (2 * torch.pi / steps)
        total = sum(weight * torch.cos(angle * i) for i, weight in enumerate(weights))
        return total.to(torch_dtype(torch, attribute(node, "output_datatype", 1)))

    return run


register(
    {
        "DFT": _dft, "STFT": _stft, "HannWindow": _window(0.5, -0.5), "HammingWindow": _window(25 / 46, -21 / 46),
        "BlackmanWindow": _window(0.42, -0.5, 0.08),
    },
    axes=opaque,
)  # fmt: skip
