"""What else people do to an export before they prune it: each form writes another file with the same meaning.

A form is a function from a file to a file. `FORMS` names them as the support table does; a form that needs a package
that is not installed is left out of `available`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from zoo import ZooModel, config_of

Form = Callable[[Path, Path], None]
"""form(source, target): the target is a file that does not exist yet."""

HEADS, WIDTH = 4, 32
"""Of the families that the fusing forms are tried on; the fusers want to be told."""


def session(source: Path, target: Path, *, level: str) -> None:
    """The graph that an InferenceSession runs, as it writes it itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def fused(source: Path, target: Path, *, kind: str = "bert", level: int = 1, half: bool = False) -> None:
    """onnxruntime.transformers.optimizer, as its command line runs it."""
    from onnxruntime.transformers.optimizer import optimize_model

    with _quiet():
        found = optimize_model(str(source), kind, HEADS, WIDTH, opt_level=level, use_gpu=False)
        if half:
            found.convert_float_to_float16(keep_io_types=True)
        found.save_model_to_file(str(target))


def halved(source: Path, target: Path, *, blocked: tuple[str, ...] | None = None, keep_io: bool = False) -> None:
    """onnxruntime.transformers.float16: all in fp16, or all but the `blocked` operators."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        listed = None if blocked is None else list(blocked)
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=keep_io, op_block_list=listed), target)


def slimmed(source: Path, target: Path) -> None:
    """The onnxslim package."""
    import onnxslim

    with _quiet():
        onnxslim.slim(str(source), str(target))


def rewritten(source: Path, target: Path) -> None:
    """onnxscript's optimiser and its fusions for ONNX Runtime."""
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    with _quiet():
        model, _ = optimize_for_ort(ir.load(source))
        ir.save(model, target)


def optimum(source: Path, target: Path, *, level: str) -> None:
    """`optimum-cli export onnx --optimize LEVEL`: its configuration, on a folder with the model's own config.json."""
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer

    with tempfile.TemporaryDirectory() as made, _quiet():
        optimizer = ORTOptimizer([source], _config(source))
        optimizer.optimize(getattr(AutoOptimizationConfig, level)(for_gpu=level == "O4"), made, file_suffix="")
        shutil.copy(Path(made) / source.name, target)


def _config(source: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source.parent)


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the libraries' chatter and their own warnings."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


TASKS: dict[str, dict[str, str]] = {
    "bert": {
        "feature-extraction": "BertModel",
        "fill-mask": "BertForMaskedLM",
        "text-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
        "multiple-choice": "BertForMultipleChoice",
    },
    "vit": {"image-classification": "ViTForImageClassification", "feature-extraction": "ViTModel"},
    "segformer": {"semantic-segmentation": "SegformerForSemanticSegmentation"},
    "wav2vec2": {
        "audio-classification": "Wav2Vec2ForSequenceClassification",
        "automatic-speech-recognition": "Wav2Vec2ForCTC",
        "audio-frame-classification": "Wav2Vec2ForAudioFrameClassification",
    },
    "gpt2": {"text-generation": "GPT2LMHeadModel", "feature-extraction": "GPT2Model"},
    "bart": {"text2text-generation": "BartForConditionalGeneration", "feature-extraction": "BartModel"},
}
"""Tasks of optimum's exporter: the transformers class behind each, by family."""


def export_task(family: str, task: str, folder: Path) -> tuple[Path, ...]:
    """`optimum-cli export onnx --task TASK` of a family's configuration; returns the graphs it writes."""
    import torch
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model

    kind = getattr(transformers, TASKS[family][task])
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(0)
        module = kind(config_of(family)).eval()
        onnx_export_from_model(module, folder, task=task, do_validation=False)
    return tuple(sorted(folder.glob("*.onnx")))


def feeds_of(path: Path, example: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Feeds for any graph of a task: ordinary tokens, masks of ones, normal values of the example's sizes."""
    import onnxruntime

    rng = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    found: dict[str, np.ndarray] = {}
    for value in onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).get_inputs():
        past = value.name.startswith("past")
        shape = [d if isinstance(d, int) else _size(d, past=past) for d in value.shape]
        if value.type == "tensor(float)" and len(shape) == len(example) + 1 and not past and len(example) != 2:
            shape = [2, *example]
        if value.type == "tensor(float)":
            found[value.name] = rng.standard_normal(shape, dtype=np.float32)
        elif "mask" in value.name or value.type == "tensor(bool)":
            found[value.name] = np.ones(shape, bool if value.type == "tensor(bool)" else np.int64)
        else:
            high = 2 if "type" in value.name else shape[-1] if "position" in value.name else 100
            found[value.name] = rng.integers(0, high, shape, dtype=np.int64)
    return found


def _size(symbol: str, *, past: bool) -> int:
    if "batch" in symbol:
        return 2
    if past:
        return 3
    if "num_choices" in symbol:
        return 2
    if "past" in symbol and "sequence" in symbol:
        return 10  # the past and the present
    return {"sequence_length": 7, "height": 32, "width": 32, "num_channels": 3}.get(symbol, 7)


FORMS: dict[str, Form] = {
    **{
        f"session {level.lower()}": partial(session, level=f"ORT_ENABLE_{level}")
        for level in ("BASIC", "EXTENDED", "ALL")
    },
    **{f"transformers.optimizer, level {level}": partial(fused, level=level) for level in (0, 1, 2)},
    "transformers.optimizer, fp16": partial(fused, level=1, half=True),
    **{f"optimum {level}": partial(optimum, level=level) for level in ("O1", "O2", "O3", "O4")},
    "float16": halved,
    "float16, io kept": partial(halved, keep_io=True),
    "float16, norms and softmax kept": partial(
        halved, blocked=("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt", "Erf")
    ),
    "onnxslim": slimmed,
    "onnxscript ort_fusions": rewritten,
}
_PACKAGES = {"onnxslim": "onnxslim"}


def make(form: str, model: ZooModel, target: Path) -> None:
    """Write a form of a model, which ONNX Runtime must open; external data are taken into the file first."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "model.onnx"
        onnx.save(onnx.load(model.path), whole)
        config_of(model.family).save_pretrained(folder)
        FORMS[form](whole, target)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])


def available() -> list[str]:
    """The forms that the installed packages can make."""
    return [name for name in FORMS if name not in _PACKAGES or importlib.util.find_spec(_PACKAGES[name])]
