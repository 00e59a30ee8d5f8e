"""What stands beside the models: README, report and manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onnxprune.export.base import Artefact, Exported, Target, Workshop


def write_report(exported: Exported) -> Path:
    """`report.json`: everything that was measured."""
    told = asdict(exported)
    told["folder"] = "."
    file = exported.folder / "report.json"
    file.write_text(json.dumps(_plain(told), indent=1) + "\n", encoding="utf-8")
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return value.name
    return value.item() if hasattr(value, "item") else value


def write_readme(target: Target, shop: Workshop, artefacts: Sequence[Artefact]) -> Path:
    """What is in the folder and the few lines that load it."""
    rows = "\n".join(
        f"| `{a.file}` | {a.purpose} | {a.scheme or 'fp32'} | "
        f"{', '.join(f'{k}={v}' for k, v in a.fixed.items()) or 'free'} | {a.bytes / 1e6:.1f} MB |"
        for a in artefacts
    )
    others = {
        "preprocess.json": "how a text or an image becomes the inputs, what the outputs mean",
        "samples.json": "inputs with the outputs they should give: run them once on the device",
        "report.json": "what was measured when this was made",
        "manifest.json": "every file with its size and SHA-256",
    }
    if (shop.folder / "tokenizer.json").exists():
        others = {"tokenizer.json": "the tokenizer, with its configuration beside it", **others}
    listed = "\n".join(f"- `{name}`: {what}" for name, what in others.items())
    text = f"""# {target.summary}

| model | for | numbers | shapes | size |
| --- | --- | --- | --- | --- |
{rows}

{listed}

{target.guide(shop, artefacts).strip()}
"""
    file = shop.folder / "README.md"
    file.write_text(text, encoding="utf-8")
    return file


def write_manifest(exported: Exported) -> Path:
    """`manifest.json`: every file with its size and hash; the models first."""
    folder = exported.folder
    told = {
        "format": 1,
        "target": exported.target,
        "made_by": f"onnxprune {_version('onnxprune')}, onnxruntime {_version('onnxruntime')}",
        "models": [
            {"file": a.file, "for": a.purpose, "numbers": a.scheme or "fp32", "fixed": dict(a.fixed)}
            for a in exported.artefacts
        ],
        "files": [
            {"path": f.relative_to(folder).as_posix(), "bytes": f.stat().st_size, "sha256": digest(f)}
            for f in sorted(folder.rglob("*"))
            if f.is_file() and f.name != "manifest.json"
        ],
    }
    file = folder / "manifest.json"
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return file


def digest(file: Path) -> str:
    """SHA-256 in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
