"""A folder that outlives every machine of a run: an object store, or any other file system that fsspec knows.

What is measured goes there piece by piece, as small objects that say what they count for and carry their own digest:
one that was written half, or by somebody else, counts for nothing. The only file that imports fsspec.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from onnxprune.errors import UsageError

logger = logging.getLogger(__name__)


class Store:
    """Named objects below a URL (`s3://bucket/runs`, `memory://runs`, or any other of fsspec).

    Args:
        url: a path without a scheme is a folder of this machine.

    Raises:
        UsageError: fsspec, or what it needs for the URL's kind, is not installed, nobody answers there, or a file is
            where the folder should be.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._said = False
        try:
            from fsspec.core import url_to_fs

            self._files, self._root = url_to_fs(url)
            self._files.invalidate_cache()
            file = next(filter(self._files.isfile, self._on_the_way()), None)
        except ImportError as error:
            raise UsageError(f"--store {url}: {error}; pip install 'onnxprune[store]'") from error
        except Exception as error:  # of whatever client is behind the URL
            raise UsageError(f"--store {url}: cannot be read ({type(error).__name__}: {error})") from error
        if file is not None:
            raise UsageError(f"--store {url}: {file} is a file; name a folder, which need not be there yet")

    def _on_the_way(self) -> list[str]:
        """Where no file may be: the folder itself, and on a machine's own disks all that it lies in."""
        if "file" not in self._files.protocol:
            return [self._root]
        place = Path(self._root)
        return [str(place), *map(str, place.parents)]

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none, or it cannot be read now."""
        try:
            return bytes(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:
            self._say("is measured anew", error)
            return None

    def below(self, folder: str) -> dict[str, bytes]:
        """Last part of the name -> bytes, of all objects directly below a folder."""
        try:
            self._files.invalidate_cache()
            listed = self._files.ls(self._path(folder), detail=True)
            paths = [one["name"] for one in listed if one["type"] == "file"]
            found: dict[str, Any] = self._files.cat(paths, on_error="omit") if paths else {}
        except FileNotFoundError:
            return {}
        except Exception as error:
            self._say("is measured anew", error)
            return {}
        return {unquote(path.rstrip("/").rpartition("/")[2]): bytes(held) for path, held in found.items()}

    def put(self, name: str, held: bytes) -> bool:
        """Write an object, in place of an older one; whether that was done. A run goes on without."""
        path = self._path(name)
        try:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, held)
        except Exception as error:
            self._say("is not kept", error)
            return False
        return True

    def _path(self, name: str) -> str:
        return "/".join([self._root.rstrip("/"), *(quote(part, safe="") for part in name.split("/"))])

    def _say(self, what: str, error: Exception) -> None:
        if not self._said:
            logger.warning("--store %s: what was measured %s (%s: %s)", self.url, what, type(error).__name__, error)
        self._said = True
