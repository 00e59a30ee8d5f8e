"""Fewer bits: what is left after the cut, stored or computed in half precision or in 8-bit integers.

    fp16            weights in half precision; computed in single (a Cast that runtimes fold when they load)
    fp16-compute    all of it in half precision, for GPUs
    int8            the form the target runs best: int8-static or int8-dynamic
    int8-dynamic    weights and activations in 8 bits, activations' ranges found at run time; no rows needed
    int8-static     quantise/dequantise pairs with ranges from calibration rows
    int8-weights    weights in 8 bits, computed in single: the smallest file that costs least accuracy
    a16w8, a8w8     for Qualcomm's NPU: the whole graph in 16- or 8-bit activations and 8-bit weights

Embedding tables are stored row by row (8 bits and one scale a row) or in half precision in all of them.
"""

from __future__ import annotations

from onnxprune.export.precision.apply import SCHEMES, quantize
from onnxprune.export.precision.steps import Step, measure_steps

__all__ = ["SCHEMES", "Step", "measure_steps", "quantize"]
