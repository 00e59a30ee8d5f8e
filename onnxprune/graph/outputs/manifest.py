"""Which files of a folder are ours: the manifest in it says so, by name and digest."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"


def digest(file: Path) -> str:
    """SHA-256 in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def listing(folder: Path) -> list[dict[str, Any]]:
    """Every file below a folder with its size and digest, the manifest itself left out."""
    return [
        {"path": f.relative_to(folder).as_posix(), "bytes": f.stat().st_size, "sha256": digest(f)}
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f != folder / MANIFEST
    ]


def write(folder: Path, **told: Any) -> Path:
    """Write the manifest of a folder that is complete.

    Args:
        told: what it says besides.
    """
    file = folder / MANIFEST
    text = json.dumps(
        {"format": 1, "made_by": f"onnxprune {version_of('onnxprune')}", **told, "files": listing(folder)}, indent=1
    )
    file.write_text(text + "\n", encoding="utf-8")
    return file


def version_of(package: str) -> str:
    """Of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def owned(folder: Path) -> dict[str, str] | None:
    """Path -> digest of what the manifest in a folder lists; None where there is no manifest of ours."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not str(told["made_by"]).startswith("onnxprune "):
            return None
        listed = {str(entry["path"]): str(entry["sha256"]) for entry in told["files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return listed if all(_below(name) for name in listed) else None


def _below(name: str) -> bool:
    """Whether a path stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
