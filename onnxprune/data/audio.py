"""Audio rows as waveforms or features, prepared the way the model's preprocessor_config.json says."""

from __future__ import annotations

import io
import re
import struct
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.data.filled_inputs import RATE, RATES, maker_of
from onnxprune.data.model_info import Graph, Job, Part, Spec, describe
from onnxprune.data.optional_packages import package
from onnxprune.data.outside import within
from onnxprune.data.preprocess import flag, numbers
from onnxprune.data.sources import Row
from onnxprune.errors import DataError, reading, said

Array = NDArray[Any]
MOST_PADDED = 1 << 24
"""Samples that a sound is filled up to: a quarter of an hour at 16 kHz."""
MOST_FEATURES = 1 << 16
"""Features, and samples of a frame."""
MOST_SAMPLES = 1 << 28
"""Of a sound: four hours and a half at 16 kHz. A few kilobytes of a lossless format can hold more."""


def audio_input(graph: Graph) -> Spec | None:
    """The input that takes the sound: `input_values`, `input_features`, or the only float input that is no state."""
    for name in ("input_values", "input_features"):
        if name in graph.by_role:
            return graph.by_role[name]
    floats = [s for s in graph.inputs if np.dtype(s.dtype).kind not in "iubO" and len(s.shape) in (2, 3)]
    floats = [s for s in floats if s.name not in graph.inside and maker_of(s.name) is None]
    return floats[0] if len(floats) == 1 else None


def rate_input(graph: Graph) -> Spec | None:
    """The input that takes the number of samples a second."""
    return next((s for s in graph.inputs if maker_of(s.name) == RATES and np.dtype(s.dtype).kind in "iu"), None)


def encode_audio(rows: Sequence[Row], job: Job) -> list[list[Part]]:
    """{"audio"}: one part a row: the waveform (rank 2 or [batch, 1, samples]), or the extractor's features."""
    spec = audio_input(job.graph)
    if spec is None:
        raise DataError(
            f"audio rows need one audio input; the graph takes {job.graph.listing}: give rows of its own inputs"
        )
    config = job.files.json("preprocessor_config.json")
    told = rate_input(job.graph)
    rate = config.get("sampling_rate") or (_own_rate(rows[0], job) if told is not None else None) or RATE
    if type(rate) is not int or rate < 1:
        raise DataError(f"preprocessor_config.json: sampling_rate is {rate!r:.40}: copy the file again from the model")
    if not config:
        job.say(f"audio: taken as it is at {RATE} Hz (no preprocessor_config.json beside the model)")
    extractor = _extractor(spec, job) if len(spec.shape) == 3 and spec.shape[1] != 1 else None
    with reading("preprocessor_config.json", DataError):
        normalize = flag(config, "do_normalize", False)
    parts = []
    for row in rows:
        samples = _at_rate(row, rate, outside=job.allow_outside)
        if extractor is not None:
            features = extractor(samples, sampling_rate=rate, return_tensors="np")
            parts.append([Part({spec.name: np.asarray(features[spec.name]).astype(spec.dtype)})])
            continue
        if normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        samples = _fixed(samples, spec, job)
        feeds = {spec.name: samples.reshape(1, *([1] * (len(spec.shape) - 2)), -1).astype(spec.dtype)}
        if told is not None:
            one = [1] * len(told.shape)
            feeds[told.name] = np.full(one, rate, told.dtype)
        parts.append([Part(feeds)])
    return parts


def _own_rate(row: Row, job: Job) -> int | None:
    """Samples a second of a row's sound, where a graph that takes the rate takes several."""
    value = row.fields.get("audio")
    if isinstance(value, Mapping):
        return value.get("sampling_rate")
    if isinstance(value, str | Path):
        path = within(value, row.folder, row.source, allowed=job.allow_outside)
        return _decode(path.read_bytes(), f"{row.source}: {path}")[1]
    return None


def _fixed(samples: Array, spec: Spec, job: Job) -> Array:
    """Cut or filled up with silence to the length that the graph fixes, or that is stated.

    What is longer is cut around its loudest sample: recordings begin and end with silence.
    """
    dim = spec.shape[-1]
    length = dim if isinstance(dim, int) else job.shape.get(dim or "")
    if length is None:
        return samples
    by = "the graph fixes" if isinstance(dim, int) else "--shape states"
    job.say(f"audio: cut, or filled up with silence, to the {length} samples that {by}")
    start = min(max(int(np.argmax(np.abs(samples))) - length // 2, 0), max(len(samples) - length, 0))
    samples = samples[start:]
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _extractor(spec: Spec, job: Job) -> Any:
    path = job.files.find("preprocessor_config.json")
    if path is None:
        raise DataError(
            f"the graph takes audio features, {describe(spec)}: put preprocessor_config.json beside the model"
        )
    _require_bounded(job.files.load(path), path)
    transformers = package("transformers", f"{path}: audio features are made")
    try:
        return transformers.AutoFeatureExtractor.from_pretrained(
            str(path.parent), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever an extractor class makes of damaged or foreign files
        raise DataError(f"{path}: cannot be loaded: {error}: give rows of {spec.name}") from error


def _require_bounded(config: Mapping[str, Any], path: Path) -> None:
    """Refuse features of which one row takes gigabytes: every sound is filled up to a length that is told here.

    Raises:
        DataError: names the number.
    """
    for key, told in numbers(config):
        counted = re.search("chunk_length|n_samples|max_length|max_frames", key) is not None
        most = MOST_PADDED if counted else MOST_FEATURES if re.search("n_fft|size|bins|win|hop|frame", key) else None
        count = told * (config.get("sampling_rate") or RATE) if key == "chunk_length" else told
        if most is not None and count > most:
            raise DataError(f"{path}: {key} is {told:.10g}, which no row needs: copy the file again from the model")


def _at_rate(row: Row, rate: int, *, outside: bool) -> Array:
    """The row's samples as float32, in -1..1, mono.

    Raises:
        DataError: no such file, not audio, or at another rate.
    """
    value = row.need("audio")
    own: int | None = None
    if isinstance(value, Mapping):  # how the datasets library holds a sound
        own = value.get("sampling_rate")
        value = next((value[key] for key in ("array", "bytes", "path") if value.get(key) is not None), None)
    if isinstance(value, str | Path):
        path = within(value, row.folder, row.source, allowed=outside)
        samples, own = _decode(path.read_bytes(), f"{row.source}: {path}")
    elif isinstance(value, bytes):
        samples, own = _decode(value, row.source)
    else:
        try:
            samples = np.asarray(value, np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{row.source}: field 'audio' must be a path or samples, not {value!r:.60}") from error
    if own is not None and own != rate:
        raise DataError(
            f"{row.source}: the audio has {own} Hz and the model takes {rate}: convert it (ffmpeg -i IN -ar {rate} OUT)"
        )
    if samples.ndim != 1 or not len(samples):
        raise DataError(f"{row.source}: the audio has shape {list(samples.shape)}; one axis of samples is expected")
    return samples


def _decode(data: bytes, where: str) -> tuple[Array, int]:
    """Samples (mono) and rate: PCM by the standard library, all else by soundfile if it is installed."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            samples = _pcm(file.readframes(file.getnframes()), file.getsampwidth())
            return samples.reshape(-1, file.getnchannels()).mean(axis=1), file.getframerate()
    except (wave.Error, EOFError, ValueError, ZeroDivisionError, struct.error) as error:
        soundfile = package("soundfile", f"{where}: not PCM audio in a .wav file ({error}); other formats are read")
    try:
        told = soundfile.info(io.BytesIO(data))
        if told.frames * told.channels > MOST_SAMPLES:
            raise DataError(f"{where}: {told.frames:,} samples; {MOST_SAMPLES:,} are the most")
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes make them
        raise DataError(f"{where}: cannot be read as audio: {said(error)}") from error
    return samples.mean(axis=1), int(rate)


def _pcm(raw: bytes, width: int) -> Array:
    """float32 in -1..1 of little-endian PCM; 8 bits are unsigned."""
    if width == 1:
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        triples = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        padded = np.concatenate([np.zeros((len(triples), 1), np.uint8), triples], axis=1)
        return padded.reshape(-1).view("<i4").astype(np.float32) / 2**31
    return np.frombuffer(raw, f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))
