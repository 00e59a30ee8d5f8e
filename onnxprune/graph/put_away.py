"""Arrays that are done with for now, and lie in files where memory does not hold them all."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from onnxprune.errors import LimitError
from onnxprune.graph import outputs


class Store:
    """Arrays that are done with for now: the first of them stay in memory, the others go to files that are mapped
    when they are read.

    The files lie in a folder for temporary files, and go with the store.

    Args:
        limit: bytes that stay in memory, at any one time.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit
        self._folder: outputs.Lasting | None = None
        self._count = 0

    def keep(self, array: np.ndarray) -> Callable[[], np.ndarray]:
        """Put an array away; what is returned gives it back."""
        if array.nbytes <= self.left:
            self._hold([array])
            return lambda: array
        if self._folder is None:
            self._folder = outputs.Lasting()
        self._count += 1
        folder, file = self._folder, self._folder.path / f"{self._count}.npy"
        free = shutil.disk_usage(folder.path).free
        if free < 2 * array.nbytes:
            raise LimitError(
                f"{folder.path}: {free / 1e9:.1f} GB are free there, too few for what memory does not hold of "
                "second moments and weights; make room, name another folder in TMPDIR, or give --max-memory more"
            )
        np.save(file, array)

        def read() -> np.ndarray:
            assert folder is not None  # it lives as long as what is in it is asked for
            return np.asarray(np.load(file, mmap_mode="c"))

        return read

    def kept(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Arrays by name, put away where memory does not hold them."""
        if sum(a.nbytes for a in arrays.values()) <= self.left:
            self._hold(arrays.values())
            return arrays
        return Arrays({name: self.keep(array) for name, array in arrays.items()})

    def _hold(self, arrays: Iterable[np.ndarray]) -> None:
        """Count arrays among those in memory until nobody has them any more."""
        for array in arrays:
            self.left -= array.nbytes
            weakref.finalize(array, _let_go, weakref.ref(self), array.nbytes).atexit = False


def _let_go(store: weakref.ref[Store], nbytes: int) -> None:
    held = store()
    if held is not None:
        held.left += nbytes


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name, each read when it is asked for, and let go with what is read.

    Args:
        read: name -> what gives the array.
    """

    def __init__(self, read: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._read = dict(read)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, name: object) -> bool:
        return name in self._read

    def __reduce__(self) -> tuple[type, tuple[dict[str, np.ndarray]]]:
        return dict, ({name: np.array(array) for name, array in self.items()},)  # another process sees no files of this


def over(*given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The arrays of several, later ones in the place of earlier; what lies in files stays there."""
    if not any(isinstance(arrays, Arrays) for arrays in given):
        return {name: array for arrays in given for name, array in arrays.items()}
    read: dict[str, Callable[[], np.ndarray]] = {}
    for arrays in given:
        read.update(arrays._read if isinstance(arrays, Arrays) else {n: _there(a) for n, a in arrays.items()})
    return Arrays(read)


def _there(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array
