"""8-bit arithmetic with ONNX Runtime's own quantiser: dynamic, static QDQ, and the form Qualcomm's NPU takes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.export.precision import storage
from onnxprune.graph import model as models
from onnxprune.graph import model_files, outputs, prepare, runtime

Feeds = Mapping[str, NDArray[Any]]
MATRICES = ("MatMul", "Gemm", "Conv", "Attention")
"""Operators whose 8-bit kernels pay; what lies between them stays in single precision on a CPU."""

REDUCED = True
"""Weights in 7 bits of 8: processors without VNNI add two products of 8 bits in 16, which overflow and are clipped. A
file cannot know where it will run, and clipping moves outputs by more than the rounding of a bit does."""


class Reader:
    """Rows as ONNX Runtime's quantiser asks for them: one after another, then None."""

    def __init__(self, rows: Sequence[Feeds]) -> None:
        self.rows, self.at = rows, 0

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next row's feeds."""
        self.at += 1
        return dict(self.rows[self.at - 1]) if self.at <= len(self.rows) else None

    def rewind(self) -> None:
        """Start again: some calibrators read the rows several times."""
        self.at = 0

    def __len__(self) -> int:
        return len(self.rows)


def dynamic(source: Path, target: Path) -> None:
    """Weights in 8 bits per output channel; activations quantised at run time, by their own range each time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul", "Attention"], per_channel=True, weight_type=QuantType.QInt8,
            reduce_range=REDUCED, extra_options={"MatMulConstBOnly": True},
            use_external_data_format=models.apart(model_files.size(source)),
        )  # fmt: skip


def static(source: Path, target: Path, rows: Sequence[Feeds]) -> None:
    """QDQ pairs around matrix products; activations' ranges are those seen on the rows.

    A product whose input is mostly small numbers and a few large ones would lose too much to 8 bits: it computes in
    single precision, from 8-bit weights.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with quiet():
        quantize_static(
            source, target, _reader(rows), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(MATRICES),
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=REDUCED,
            nodes_to_exclude=noisy(source, rows), calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True}, use_external_data_format=models.apart(model_files.size(source)),
        )  # fmt: skip
    model = models.read(target)
    if storage.store_bytes(prepare.stamp(model)):
        models.save(model, target)


NOISE = 5e-3
"""Share of an activation's energy that rounding to 8 bits may cost. On a 6-layer classifier cut to half its FLOPs,
leaving out the two products above it brings back 0.020 of the 0.023 nats that quantising all of them costs."""


def noisy(source: Path, rows: Sequence[Feeds], limit: float = NOISE) -> list[str]:
    """Matrix products whose activations 8 bits over their whole range hold badly, by name.

    The rounding's energy is a step's square over 12, where a step is the range seen on the rows over 255.
    """
    import onnx

    model = onnx.load(source)
    constants = {i.name for i in model.graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants:
            readers.setdefault(node.input[0], []).append(node.name)
    declared = {v.name for v in model.graph.output}
    fed = {v.name for v in model.graph.input}
    for name in readers:
        if name not in declared | fed:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    with outputs.scratch() as scratch:
        file = scratch / "watched.onnx"
        onnx.save(model, file, save_as_external_data=True, size_threshold=1024)
        session = runtime.session(file)
        watched = [name for name in readers if name not in fed]
        seen = {name: _Range() for name in watched}
        for feeds in rows:
            for name, value in runtime.run(session, feeds, watched).items():
                seen[name].add(value)
    return [node for name in watched if seen[name].noise > limit for node in readers[name]]


@dataclass
class _Range:
    """An activation's range, 0 included, and its energy."""

    low: float = 0.0
    high: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, value: NDArray[Any]) -> None:
        self.low, self.high = min(self.low, float(value.min())), max(self.high, float(value.max()))
        self.squares += float(np.square(value, dtype=np.float64).sum())
        self.count += value.size

    @property
    def noise(self) -> float:
        """The energy of rounding to 8 bits over the energy of what is rounded."""
        step = (self.high - self.low) / 255
        return step * step / 12 * self.count / self.squares if self.squares else 0.0


def npu(source: Path, target: Path, rows: Sequence[Feeds], *, activation_bits: int) -> None:
    """The whole graph as QDQ with 8-bit weights, as ONNX Runtime's QNN recipe asks for it.

    The chip has Gelu and no Erf, so that the four nodes exporters write become one first. Weights are unsigned: it
    takes no LayerNormalization whose scale is signed.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
    from onnxruntime.quantization.fusions import FusionGelu
    from onnxruntime.quantization.onnx_model import ONNXModel

    activation = {8: QuantType.QUInt8, 16: QuantType.QUInt16}[activation_bits]
    with quiet():
        whole = ONNXModel(onnx.load(source))
        if FusionGelu(whole).apply():
            whole.topological_sort()
        config = get_qnn_qdq_config(
            whole.model, _reader(rows), calibrate_method=CalibrationMethod.MinMax, activation_type=activation,
            weight_type=QuantType.QUInt8,
        )  # fmt: skip
        quantize(whole.model, target, config)


def _reader(rows: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Calibration(Reader, CalibrationDataReader):  # type: ignore[misc]
        """The quantiser insists on a subclass of its own class."""

    return Calibration(rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's tools print, log through the root logger, advise what was done, and make temporary files."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            outputs.everything(), warnings.catch_warnings(), np.errstate(all="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
