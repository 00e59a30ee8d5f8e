"""A cache: one file that is replaced at once, and never in the place of somebody else's."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from onnxprune.graph.outputs import interrupts, lock

logger = logging.getLogger(__name__)

_PART = f"{lock.SUFFIX}-part"


def write_cache(path: Path, text: str, ours: Callable[[str], bool]) -> bool:
    """Replace a cache, or make it; whether that was done.

    What stands in its place stays if it is not a cache: a run goes without one then, and says so once.

    Args:
        ours: whether a text is one that an earlier run wrote.
    """
    try:
        there = path.is_symlink() or path.exists()
        if there and not (path.is_file() and ours(path.read_text(encoding="utf-8"))):  # a pipe is never read to its end
            logger.warning("%s: is not from an earlier run and stays as it is; nothing is kept for the next one", path)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent)
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s: what is measured is not kept for the next run (%s)", path, error)
        return False
    part = Path(name)
    try:
        lock.locked(descriptor)  # says that this part has a living writer
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            ordinary_mode(part)
            part.replace(path)
    except OSError as error:
        logger.warning("%s: what is measured is not kept for the next run (%s)", path, error)
        return False
    finally:
        part.unlink(missing_ok=True)
    interrupts.kept(path)
    return True


def tidy(base: Path) -> None:
    """Remove the parts that dead writers left in a folder."""
    for part in base.glob(f".*{_PART}"):
        try:
            descriptor = os.open(part, os.O_RDWR)
        except OSError:
            continue
        if lock.locked(descriptor):
            part.unlink(missing_ok=True)
        os.close(descriptor)


def ordinary_mode(file: Path) -> None:
    """The permissions of any new file, for one that was made for its writer alone."""
    mask = os.umask(0o022)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
