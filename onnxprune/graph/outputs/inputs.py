"""What a run reads, and therefore never writes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Inputs:
    """Files that a run reads.

    Attributes:
        files: each by any of its names: a link to one, or another hard link of it, is that file.
        folders: folders of which every file is read (images).
    """

    files: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()

    @classmethod
    def of(cls, *sources: Any) -> Inputs:
        """From paths, or lists of them; what is no path (None, `random`, rows in memory) counts nothing."""
        files: list[Path] = []
        folders: list[Path] = []
        for source in _flat(sources):
            path = Path(source)
            try:
                (folders if path.is_dir() else files).append(path)
            except OSError:  # a name that cannot be a file's
                continue
        return cls(tuple(files), tuple(folders))

    def __add__(self, other: Inputs) -> Inputs:
        return Inputs(self.files + other.files, self.folders + other.folders)

    def clash(self, output: Path) -> Path | None:
        """The input that writing `output` would destroy; None where there is none."""
        # Unlike `resolve`, `realpath` lets links in a circle be: who reads the file says what is wrong with it.
        real = Path(os.path.realpath(output))
        for file in self.files:
            if Path(os.path.realpath(file)) == real or (file.exists() and output.exists() and file.samefile(output)):
                return file
        # A new file in a folder of images harms none of them.
        return next((f for f in self.folders if output.exists() and real.is_relative_to(f.resolve())), None)


def _flat(sources: Iterable[Any]) -> Iterable[str | os.PathLike[str]]:
    for source in sources:
        if isinstance(source, str | os.PathLike):
            yield source
        elif isinstance(source, list | tuple | set | frozenset):
            yield from _flat(source)
