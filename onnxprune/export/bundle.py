"""What stands beside the models: README, report and manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxprune.errors import one_line
from onnxprune.export.base import Artefact, Exported, Target, Workshop
from onnxprune.graph.outputs import manifest

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


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


def write_readme(
    target: Target, shop: Workshop, artefacts: Sequence[Artefact], graphs: Mapping[str, Mapping[str, Any]]
) -> Path:
    """What is in the folder and the few lines that load it.

    Args:
        shop: the first one.
        graphs: of several, which inputs come from which others.
    """
    own = [a for a in artefacts if shop.part is None or a.file.startswith(f"{shop.stem}.")]
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
{_hang_together(graphs)}
{target.guide(shop, own).strip()}
"""
    file = shop.folder / "README.md"
    file.write_text(text, encoding="utf-8")
    return file


def _hang_together(graphs: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of what one graph gives another; caches of all layers are a line."""
    if not graphs:
        return ""
    lines: dict[str, None] = {}
    for name, fed in graphs.items():
        for own, source in fed.items():
            cells = [_cell(c) for c in (_LAYER.sub("*", own), source["graph"], _LAYER.sub("*", source["output"]))]
            lines[f"| `{name}` | `{cells[0]}` | `{cells[2]}` of `{cells[1]}` |"] = None
    rows = "\n".join(lines)
    return f"""
These graphs are one model: what one gives, another takes (`preprocess.json` has it input by input). A graph that goes
on behind a cache is called a token at a time, and its own `present` is its next `past`.

| graph | takes | which is |
| --- | --- | --- |
{rows}
"""


def _cell(name: str) -> str:
    """A name of a graph within a table."""
    return one_line(name, 80).replace("`", "'").replace("|", "\\|")


def write_manifest(exported: Exported) -> Path:
    """`manifest.json`: every file with its size and hash; the models first."""
    models = [
        {"file": a.file, "for": a.purpose, "numbers": a.scheme or "fp32", "fixed": dict(a.fixed)}
        for a in exported.artefacts
    ]
    made_by = ", ".join(f"{package} {manifest.version_of(package)}" for package in ("onnxprune", "onnxruntime"))
    return manifest.write(exported.folder, made_by=made_by, target=exported.target, models=models)
