"""Files that belong together: asked about before any work, put together out of sight, and named all at once."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.graph.outputs import interrupts, lock, manifest, native_calls, single_file, swap
from onnxprune.graph.outputs.inputs import Inputs
from onnxprune.graph.outputs.temporary import scratch

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class OutputSet:
    """A set that is being written.

    Attributes:
        base: the folder that its names are in; None where the set gets no names.
        folder: where its files are put together.
        first: the name that the user gave.
        names: that it may have. Those that are there and not written anew go with the old set.
        inputs: what the run reads.
        force: whether an older set is replaced.
        said: what the user should know of it.
        noted: what else the run has read, by device and number: rows name thousands of files.
    """

    base: Path | None
    folder: Path
    first: str = ""
    names: tuple[str, ...] = ()
    inputs: Inputs = field(default_factory=Inputs)
    force: bool = False
    said: list[str] = field(default_factory=list)
    noted: dict[tuple[int, int], Path] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        """Where the first file will be."""
        return (self.base or self.folder) / self.first

    def protect(self, inputs: Inputs) -> None:
        """Count more files among what the run reads.

        Raises:
            UsageError: the set would overwrite one.
        """
        self.inputs += inputs
        if self.base is not None:
            _refuse_inputs(self.base, self.names, self.inputs)

    def note(self, file: Path) -> None:
        """Count a file, which is there, among what the run reads.

        Raises:
            UsageError: the set would overwrite it.
        """
        found = file.stat()
        self.noted[found.st_dev, found.st_ino] = file
        self._refuse_noted(self.names)

    def _refuse_noted(self, names: Iterable[str]) -> None:
        if self.base is None:
            return
        for name in names if self.noted else ():
            place = self.base / name
            if place.exists() and (clash := self.noted.get((place.stat().st_dev, place.stat().st_ino))) is not None:
                raise UsageError(
                    f"{place}: the output would overwrite {clash}, which the rows name; choose another name with -o"
                )

    def add(self, file: Path, name: str) -> None:
        """A copy of a file into the set."""
        shutil.copyfile(file, self.folder / name)

    def commit(self) -> list[Path]:
        """Give the files their names; where they now are, the first one first.

        Raises:
            UsageError: what was free when the run began is there now.
        """
        if self.base is None:
            return []
        made = sorted(f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*") if not f.is_dir())
        _refuse_inputs(self.base, made, self.inputs)
        self._refuse_noted(made)
        if not self.force:
            _refuse_existing(self.base, [name for name in made if name in self.names])
        with interrupts.uninterrupted():
            swap.swap(self.folder.parent, [*self.names, *made])
            files = [self.base / name for name in sorted(made, key=lambda name: (name != self.first, name))]
            interrupts.wrote(files)
        return files


@contextmanager
def files(
    target: Path, beside: Sequence[str] = (), *, inputs: Inputs | None = None, force: bool = False
) -> Iterator[OutputSet]:
    """A set of files in one folder, held against other runs until the block is left.

    Args:
        target: the file that the user named.
        beside: names of the others that the set may have.
        force: replace an older set.

    Raises:
        UsageError: a file is there and `force` is off (names all that are), is one that the run reads, or is written
            by another run at this moment.
    """
    if not target.name or target.is_dir():
        raise UsageError(f"{target}: is a folder; name a file in it, or end it with a slash for the usual name")
    _refuse_place(target)
    base, names, inputs = target.parent, (target.name, *beside), inputs or Inputs()
    if len(set(names)) < len(names):
        raise UsageError(f"{target}: another file of the same output has that name; choose another")
    refuse(target, beside, inputs=inputs, force=force)
    with (
        _held(base, base / f".{target.name}{lock.SUFFIX}", names) as place,
        _open(OutputSet(base, place, target.name, names, inputs, force)) as out,
    ):
        yield out


def refuse(target: Path, beside: Sequence[str] = (), *, inputs: Inputs, force: bool) -> None:
    """Refuse names that may not be written.

    Raises:
        UsageError: see `files`.
    """
    _refuse_place(target)
    base, names = target.parent, (target.name, *beside)
    _refuse_inputs(base, (target.name,), inputs)
    for name in names:
        if (base / name).exists() and not (base / name).is_file():
            raise UsageError(f"{base / name}: is no regular file, and is not replaced by one; choose another name")
    if not force:
        _refuse_existing(base, names)
    _refuse_inputs(base, names, inputs)


@contextmanager
def folder(place: Path, *, inputs: Inputs | None = None, force: bool = False) -> Iterator[OutputSet]:
    """A folder of files, which hold a `manifest.json` that lists them.

    Raises:
        UsageError: the folder holds something and `force` is off, or there is no manifest of ours in it, or a file of
            it was changed since; or another run writes it at this moment.
    """
    inputs = inputs or Inputs()
    _refuse_place(place)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{place}: is a file; name a folder with -o")
    real = place.resolve()
    if not real.exists():
        with (
            _held(real.parent, real.parent / f".{real.name}{lock.SUFFIX}", (real.name,)) as staging,
            _open(_NewFolder(place, staging, manifest.MANIFEST, (), inputs, force)) as out,
        ):
            yield out
        return
    tidy(real.parent, real.name)  # of the run that made the folder, if it died just then
    tidy(real)
    _replaceable(place, force=force)  # what is refused is not touched by as much as a lock
    with _held(real, real / lock.INSIDE, ()) as staging:
        names = _replaceable(place, force=force)
        _refuse_inputs(place, names, inputs)
        with _open(_OwnFolder(place, staging, manifest.MANIFEST, names, inputs, force)) as out:
            yield out


_opened: list[OutputSet] = []
"""The sets that this process is writing."""


@contextmanager
def _open(out: OutputSet) -> Iterator[OutputSet]:
    _opened.append(out)
    try:
        yield out
    finally:
        _opened.remove(out)


def reading(file: Path) -> None:
    """Count a file, which is there, among what the run reads: none of the sets that are being written may replace it.

    Raises:
        UsageError: one would.
    """
    for out in _opened:
        out.note(file)


@contextmanager
def unnamed(name: str) -> Iterator[OutputSet]:
    """A set that is made, looked at and thrown away."""
    with scratch() as place:
        yield OutputSet(None, place, name)


class _NewFolder(OutputSet):
    """A folder that is not there yet: one rename."""

    def commit(self) -> list[Path]:
        assert self.base is not None
        made = sorted(f.relative_to(self.folder) for f in self.folder.rglob("*") if f.is_file())
        swap.sync_tree(self.folder)
        with interrupts.uninterrupted():
            if self.base.exists() and any(self.base.iterdir()):
                raise UsageError(f"{self.base}: was made by something else meanwhile; choose another folder with -o")
            self.folder.replace(self.base.resolve())
            swap.sync(self.base.resolve().parent)
            interrupts.wrote([self.base])
        return [self.base / name for name in made]


class _OwnFolder(OutputSet):
    """A folder with an older set of ours, and perhaps with files of others, which stay."""

    def commit(self) -> list[Path]:
        assert self.base is not None
        made = {f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*") if not f.is_dir()}
        foreign = [name for name in sorted(made - set(self.names)) if _is_there(self.base / name)]
        if foreign:
            raise UsageError(
                f"{self.base}: {_listed(foreign)} is not from an earlier run and is not replaced; move it, or "
                "choose another folder with -o"
            )
        _refuse_inputs(self.base, sorted(made), self.inputs)
        self._refuse_noted(sorted(made))
        with interrupts.uninterrupted():
            swap.swap(self.folder.parent, [*self.names, *made])
            interrupts.wrote([self.base])
        return [self.base / name for name in sorted(made)]


@contextmanager
def _held(base: Path, hidden: Path, names: Sequence[str]) -> Iterator[Path]:
    """The place to put a set together, while its hidden folder is held; gone when the block is left.

    The folders that they are in are made where they are missing, and go again if nothing comes into them.
    """
    missing = [p for p in (base, *base.parents) if not p.exists()]
    held: lock.Lock | None = None
    try:
        with interrupts.uninterrupted():  # between making a folder and knowing of it nobody would take it away
            base.mkdir(parents=True, exist_ok=True)
            tidy(base)
            held = lock.acquire(hidden, names)
            native_calls.leave(held, partial(_give_up, held, missing))
        lock.refuse_shared(base, hidden, names)
        place = hidden / "new"
        place.mkdir()
        yield place
    except OSError as error:
        if error.filename is None:  # a full disk is told of no file
            error.filename = str(base.joinpath(*names[:1]))
        raise
    finally:
        with interrupts.uninterrupted():
            if held is not None:
                native_calls.left(held)
                _let_go(held)
            _take_back(missing)


def tidy(base: Path, name: str = "*") -> None:
    """Bring to an end what dead runs left in a folder, all or those that wrote one name, and say so."""
    with interrupts.uninterrupted():
        for held in lock.left_behind(base, name):
            done = _let_go(held)
            said = {
                None: "what it left half-made is removed",
                True: "its files, which were complete, are in place",
                False: "what it had begun to replace is as it was before",
            }[done]
            logger.warning("%s: an earlier run was killed before it was done; %s", held.about, said)
        single_file.tidy(base)


def _let_go(held: lock.Lock) -> bool | None:
    try:
        done = swap.recover(held.folder)
    except BaseException:
        held.release(remove=False)  # the journal stays for whoever can carry it out
        raise
    held.release()
    return done


def _give_up(held: lock.Lock, made: Sequence[Path]) -> None:
    _let_go(held)
    _take_back(made)


def _take_back(made: Sequence[Path]) -> None:
    """Remove the folders that were made for a set and hold nothing."""
    for path in made:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _refuse_place(target: Path) -> None:
    """Refuse a place that is no place for files, whoever may write there: /dev/stdout is a link that would be replaced.

    Raises:
        UsageError: it is where the system shows devices and processes, beneath a file, or has a name that libraries
            cannot open.
    """
    try:
        str(target).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{target}: the name is not UTF-8, which the libraries that open the file take names for; choose another"
        ) from None
    above = next((place for place in target.parents if place.is_symlink() or place.exists()), None)
    if above is not None and not above.is_dir():
        what = "a link that leads to no folder" if above.is_symlink() else "a file, and no folder"
        raise UsageError(f"{target}: {above} is {what}; choose another name with -o")
    parts = Path(os.path.realpath(target.parent)).parts[1:3]
    if os.name == "posix" and (parts[:1] in (("proc",), ("sys",)) or (parts[:1] == ("dev",) and parts[1:] != ("shm",))):
        raise UsageError(f"{target}: is where the system shows devices; name a file in a folder of yours with -o")


def _refuse_inputs(base: Path, names: Sequence[str], inputs: Inputs) -> None:
    for name in names:
        clash = inputs.clash(base / name)
        if clash is not None:
            said = "" if clash == base / name else f" {clash}"
            raise UsageError(f"{base / name}: the output would overwrite the input{said}; choose another name with -o")


def _refuse_existing(base: Path, names: Sequence[str]) -> None:
    there = [name for name in names if _is_there(base / name)]
    if there:
        others = f" (with {_listed(there[1:])})" if there[1:] else ""
        raise UsageError(f"{base / there[0]}: exists already{others}; --force replaces it, -o chooses another name")


def _replaceable(place: Path, *, force: bool) -> tuple[str, ...]:
    """The files of a folder that an earlier run wrote and nobody changed.

    Raises:
        UsageError: there is something, and it may not be replaced.
    """
    there = [entry for entry in place.iterdir() if not (entry.name.endswith(lock.SUFFIX) and lock.is_ours(entry))]
    if not there:
        return ()
    listed = manifest.owned(place)
    if listed is None:
        raise UsageError(
            f"{place}: exists already, and holds {_listed(sorted(e.name for e in there))} without a "
            f"{manifest.MANIFEST} that says they are from an earlier run: nothing of it is replaced; choose another "
            "folder"
        )
    if not force:
        raise UsageError(f"{place}: exists already; --force replaces it, or choose another folder")
    changed = _changed(place, listed)
    if changed:
        raise UsageError(
            f"{place}: {_listed(changed)} was changed since it was written, and is not replaced; move it, or choose "
            "another folder with -o"
        )
    return (manifest.MANIFEST, *(name for name in listed if _is_there(place / name)))


def _changed(place: Path, listed: Mapping[str, str]) -> list[str]:
    return [
        name
        for name, digest in sorted(listed.items())
        if _is_there(place / name) and not ((place / name).is_file() and manifest.digest(place / name) == digest)
    ]


def _is_there(path: Path) -> bool:
    """Whether a name is taken, be it by a link to nothing."""
    return path.is_symlink() or path.exists()


def _listed(names: Sequence[str], most: int = 6) -> str:
    told = ", ".join(names[:most])
    return told if len(names) <= most else f"{told} and {len(names) - most} more"
