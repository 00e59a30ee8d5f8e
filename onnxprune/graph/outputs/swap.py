"""A set of files takes its names at one instant, and a journal tells the next run what a dead one left.

Renaming replaces one file at a time, so that a set of several would be old in part and new in part for a moment, and
for ever if the process dies then. So each name becomes a link through one directory link, `current`, first: to the old
file while `current` means `old`, then, by one rename, to the new one. After that the new files take the links' places.
Whoever opens a name finds the old set or the new one, never some of each; a name that one of them lacks is a link to
nothing while that one counts.

    .NAME.onnxprune/   new/…  old/… (hard links)  links/…  current -> old | new   journal.json   lock
    NAME -> .NAME.onnxprune/current/NAME

A set of one file is renamed. Where there are no links (FAT, Windows without the right to make them), the journal alone
says that the new files are complete, and whoever finds it renames what is left.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError

FORMAT = 1


@dataclass(frozen=True)
class Change:
    """One name of a set.

    Attributes:
        name: relative to the set's folder, with `/`.
        new: whether the new set has it.
        old: what stood there: None for nothing, a link's text, or the stamp of a file.
    """

    name: str
    new: bool
    old: str | tuple[int, int] | None

    @classmethod
    def of(cls, base: Path, name: str, new: bool) -> Change:
        path = base / name
        if path.is_symlink():
            return cls(name, new, os.fspath(path.readlink()))
        return cls(name, new, _stamp(path) if path.exists() else None)


def swap(folder: Path, names: Iterable[str]) -> None:
    """Give the files of `folder/new` their names beside `folder`, and take away those of `names` that are not there.

    Raises:
        UsageError: a link on the way to a name leads elsewhere; nothing is begun.
        OSError: the old set stands as it was, or, without links, the next run finishes what was begun.
    """
    base, new = folder.parent, folder / "new"
    made = {f.relative_to(new).as_posix() for f in new.rglob("*") if not f.is_dir()}
    changes = [Change.of(base, name, name in made) for name in sorted(made | set(names))]
    changes = [c for c in changes if c.new or c.old is not None]
    for change in changes:
        _refuse_links(base, change.name)
    sync_tree(new)
    if len(changes) == 1 and changes[0].new:
        (only,) = changes
        _folder_for(base, only.name)
        (new / only.name).replace(base / only.name)
        sync(base)
        return
    linked = _old_kept(folder, changes)
    _write_journal(folder, changes, linked)
    try:
        if linked:
            _through_links(folder, changes)
    finally:
        recover(folder)


def recover(folder: Path) -> bool | None:
    """Bring what a run began to an end: the new set if it counted already, else the old one.

    Returns:
        Whether the new set stands; None where nothing was begun, or the journal is none that `swap` wrote.
    """
    try:
        told = json.loads((folder / "journal.json").read_text(encoding="utf-8"))
        changes = [_change(c) for c in told["changes"]]
        linked, folders = bool(told["linked"]), [str(name) for name in told["folders"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not all(_stays(folder, name) for name in (*(c.name for c in changes), *folders)):
        return None
    if not linked:
        _redo(folder, changes)
    elif _counts(folder):
        _finish(folder, changes)
    else:
        _undo(folder, changes, folders)
        sync(folder.parent)
        return False
    sync(folder.parent)
    return True


def _stays(folder: Path, name: str) -> bool:
    """Whether a name of a journal, which may have come with a model that others made, is one below the set's folder,
    and what it stands for one below `new` and `old`."""
    path = Path(name)
    if not path.parts or path.is_absolute() or path.drive or ".." in path.parts:
        return False
    within = [place / above for place in (folder.parent, folder / "new", folder / "old") for above in path.parents]
    return not any(place.is_symlink() for place in within if place != folder.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's names; folders cannot be synced everywhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # a disk that is full, or failing: found here rather than after the swap
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """The same of all that is below a folder."""
    for entry in folder.rglob("*"):
        if not entry.is_symlink():
            sync(entry)
    sync(folder)
    sync(folder.parent)


def _old_kept(folder: Path, changes: Sequence[Change]) -> bool:
    """Second names for the old files; whether this file system has what the swap needs."""
    base, old = folder.parent, folder / "old"
    if os.name != "posix":  # elsewhere links want rights, and renaming one does not replace another
        return False
    try:
        old.mkdir()
        for change in changes:
            if change.old is None:
                continue
            place = old / change.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(change.old, str):
                place.symlink_to((base / change.name).resolve())
            else:
                place.hardlink_to(base / change.name)
        (folder / "current").symlink_to("old", target_is_directory=True)
    except (OSError, NotImplementedError):
        return False
    sync_tree(old)
    return True


def _write_journal(folder: Path, changes: Sequence[Change], linked: bool) -> None:
    base = folder.parent
    missing = {p for c in changes for p in Path(c.name).parents if c.new and not (base / p).exists()}
    told = {
        "format": FORMAT,
        "linked": linked,
        "folders": sorted((p.as_posix() for p in missing), key=len),
        "changes": [{"name": c.name, "new": c.new, "old": c.old} for c in changes],
    }
    part = folder / "journal.json.part"
    part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    sync(part)
    part.replace(folder / "journal.json")
    sync(folder)


def _through_links(folder: Path, changes: Sequence[Change]) -> None:
    """Every name a link to the old file, then, at one instant, to the new one."""
    base, links = folder.parent, folder / "links"
    links.mkdir()
    (links / folder.name).symlink_to("..", target_is_directory=True)  # they lead to the same from here
    # Names that only the new set has are links to nothing until it counts: as shortly as can be.
    for change in sorted(changes, key=lambda c: c.old is None):
        _folder_for(base, change.name)
        link = links / change.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(_text(folder, change.name))
        link.replace(base / change.name)
    for place in {(base / change.name).parent for change in changes}:
        sync(place)
    following = folder / "current.next"
    following.symlink_to("new", target_is_directory=True)
    following.replace(folder / "current")
    sync(folder)


def _counts(folder: Path) -> bool:
    """Whether the new set does."""
    current = folder / "current"
    return current.is_symlink() and os.fspath(current.readlink()) == "new"


def _finish(folder: Path, changes: Sequence[Change]) -> None:
    """New files in the links' places. A name that is no link of ours any more holds what came after: it stays."""
    base = folder.parent
    for change in sorted(changes, key=lambda c: c.new):
        if _is_ours(folder, change.name):
            if change.new:
                (folder / "new" / change.name).replace(base / change.name)
            else:
                (base / change.name).unlink()
    for change in changes:
        _drop_empty(base, change.name)


def _undo(folder: Path, changes: Sequence[Change], folders: Sequence[str]) -> None:
    """Old files in the links' places."""
    base = folder.parent
    for change in changes:
        if not _is_ours(folder, change.name):
            continue
        if isinstance(change.old, str):
            link = folder / "link"
            link.unlink(missing_ok=True)
            link.symlink_to(change.old)
            link.replace(base / change.name)
        elif change.old is not None:
            (folder / "old" / change.name).replace(base / change.name)
        else:
            (base / change.name).unlink()
    for name in reversed(folders):
        if (base / name).is_dir() and not any((base / name).iterdir()):
            (base / name).rmdir()


def _redo(folder: Path, changes: Sequence[Change]) -> None:
    """Without links: rename what is not renamed yet, over nothing but what stood there."""
    base = folder.parent
    for change in changes:
        place = base / change.name
        if Change.of(base, change.name, change.new).old not in (change.old, None):
            continue
        if not change.new:
            place.unlink(missing_ok=True)
        elif (folder / "new" / change.name).exists():
            _folder_for(base, change.name)
            (folder / "new" / change.name).replace(place)


def _text(folder: Path, name: str) -> str:
    """What the link in a name's place says, relative to where it stands."""
    return "../" * name.count("/") + f"{folder.name}/current/{name}"


def _is_ours(folder: Path, name: str) -> bool:
    place = folder.parent / name
    return place.is_symlink() and os.fspath(place.readlink()) == _text(folder, name)


def _refuse_links(base: Path, name: str) -> None:
    """Refuse a name on the way to which a link would lead out of the set's folder.

    Raises:
        UsageError: names the link.
    """
    for parent in reversed(Path(name).parents[:-1]):
        if (base / parent).is_symlink():
            raise UsageError(f"{base / parent}: is a link, which would lead what is written elsewhere; remove it")


def _folder_for(base: Path, name: str) -> None:
    """Make the folder that a name is in.

    Raises:
        UsageError: see `_refuse_links`.
    """
    _refuse_links(base, name)
    for parent in reversed(Path(name).parents[:-1]):
        (base / parent).mkdir(exist_ok=True)


def _drop_empty(base: Path, name: str) -> None:
    """Remove the folders that only held files of the set."""
    for parent in Path(name).parents[:-1]:
        if (base / parent).is_dir() and not any((base / parent).iterdir()):
            (base / parent).rmdir()


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _change(told: Mapping[str, Any]) -> Change:
    old = told["old"]
    return Change(str(told["name"]), bool(told["new"]), tuple(old) if isinstance(old, list) else old)
