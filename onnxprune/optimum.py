"""optimum's ONNX Runtime models, in and out: what a call of `prune` takes and gives is an `ORTModelFor…`.

optimum-onnx is imported when a model is handed over; who has one has it installed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from onnxprune.errors import UsageError
from onnxprune.graph import outputs
from onnxprune.pipeline import verbs

M = TypeVar("M")


def prune(model: M, output: str | os.PathLike[str] | None = None, /, *, tokenizer: Any = None, **options: Any) -> M:
    """Prune a loaded model; the one that is given stays as it is.

        from optimum.onnxruntime import ORTModelForSequenceClassification
        model = ORTModelForSequenceClassification.from_pretrained("folder")
        small = onnxprune.optimum.prune(model, flops=0.6, calibration="rows.jsonl")
        small.pruning_report.accuracy
        small.save_pretrained("small")

    Args:
        model: an `ORTModelFor…` of one graph, or of an encoder and its decoders.
        output: folder for the model, its report, its plan and the files beside it; None for a temporary one, which
            lives as long as the model does.
        tokenizer: for rows of text, where none lies beside the model: a tokenizer of transformers, or where it lies.
        options: of `onnxprune.prune`, a budget among them; providers are those of the model unless they are named.

    Returns:
        A model of the same class, with the configuration, providers and session options of the given one, and what was
        measured as its `pruning_report`.

    Raises:
        UsageError: it is no such model.
        OnnxPruneError: as `onnxprune.prune`.
    """
    parts = _parts(model)
    temporary = TemporaryDirectory(prefix="onnxprune-") if output is None else None
    folder = Path(temporary.name if temporary is not None else os.fspath(output or ""))
    with outputs.scratch() as scratch:
        source, beside = _source(model, parts, scratch)
        target = folder if source.is_dir() else folder / source.name
        named = _tokenizer(tokenizer, scratch) or beside
        options.setdefault("providers", tuple(parts[0].providers))
        result = verbs.prune(source, target, tokenizer=named, **options)
    pruned: Any = _loaded(model, parts, folder, temporary)
    if not (folder / "config.json").is_file():
        pruned.config.save_pretrained(folder)
    pruned.pruning_report = result.report
    made: M = pruned
    return made


def _parts(model: Any) -> Sequence[Any]:
    """The graphs of a model, each with its session.

    Raises:
        UsageError: it is no model of optimum's, or has graphs that are not one job.
    """
    parts = getattr(model, "parts", [model])
    if not all(hasattr(part, "session") and isinstance(getattr(part, "path", None), Path) for part in parts):
        raise UsageError(
            f"a {type(model).__name__} is no ORTModelFor… of optimum: load one with from_pretrained(…), or give "
            "onnxprune.prune the file or folder"
        )
    if len(parts) > 1 and not hasattr(model, "encoder"):
        raise UsageError(
            f"a {type(model).__name__} has graphs that are no encoder and its decoders: prune them one by one"
        )
    return list(parts)


def _source(model: Any, parts: Sequence[Any], scratch: Path) -> tuple[Path, Path | None]:
    """Where the model lies, and where its tokenizer does, if that is elsewhere: its own file or folder, or a copy where
    other graphs lie beside those that it uses.
    """
    files = {part.path for part in parts}
    home = parts[0].path.parent
    if len(files) == 1:
        return parts[0].path, None
    if files == set(home.glob("*.onnx")):
        return home, None
    model.save_pretrained(scratch / "dense")
    return scratch / "dense", home


def _tokenizer(given: Any, scratch: Path) -> Path | None:
    """A tokenizer as a path: what is handed over as an object is found where it came from, or saved."""
    if given is None or isinstance(given, str | os.PathLike):
        return None if given is None else Path(given)
    if not hasattr(given, "save_pretrained"):
        raise UsageError(f"tokenizer: a {type(given).__name__} is neither a path nor a tokenizer of transformers")
    home = Path(str(getattr(given, "name_or_path", "")))
    if (home / "tokenizer.json").is_file():
        return home
    given.save_pretrained(scratch / "tokenizer")
    return scratch / "tokenizer"


def _loaded(model: Any, parts: Sequence[Any], folder: Path, temporary: TemporaryDirectory[str] | None) -> Any:
    """The written files as a model of the same class."""
    first = parts[0]
    asked: dict[str, Any] = {
        "config": copy.deepcopy(model.config),
        "providers": list(first.providers),
        "provider_options": [first.provider_options[name] for name in first.providers],
        "session_options": first.session.get_session_options(),
        "use_io_binding": first.use_io_binding,
    }
    if temporary is not None:
        asked["model_save_dir"] = temporary
    if hasattr(model, "can_use_cache"):
        asked["generation_config"] = copy.deepcopy(model.generation_config)
        asked["use_cache"] = bool(model.can_use_cache)
    if len(parts) == 1:
        asked["file_name"] = first.path.name
    else:
        asked["use_merged"] = "merged" in model.decoder.path.name
    return type(model).from_pretrained(folder, **asked)
