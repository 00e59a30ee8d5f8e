"""Folders that are slow to make: made once, whatever asks for them, in however many processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder, whole: made in a place beside it unless it is there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix="making-"))
        try:
            make(making)
            with suppress(OSError):  # another process was faster: what it made is as good
                making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder
