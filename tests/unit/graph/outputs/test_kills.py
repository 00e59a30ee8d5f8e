"""A process that dies, or fails, at any file-system event leaves the old set or the new one, and the next run tidies.

Death is played by an audit hook: from the n-th event on, nothing that would change a file succeeds, clean-up included.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.graph.outputs.test_output_set import fill, held, put, write

from onnxprune.errors import UsageError
from onnxprune.graph import outputs
from onnxprune.graph.outputs import interrupts, lock, output_set, single_file, swap

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


class Dead(BaseException):
    """The process is gone."""


class Watch:
    """Counts events; at the n-th it raises, once or from then on."""

    def __init__(self) -> None:
        self.stop()

    def stop(self) -> None:
        self.on, self.count, self.at = False, 0, 0
        self.error: BaseException = Dead()

    def start(self, at: int, error: BaseException | None = None) -> None:
        self.on, self.count, self.at, self.error = True, 0, at, error or Dead()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        changes = event in EVENTS or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes:
            self.tick()

    def tick(self) -> None:
        if self.on:
            self.count += 1
            if self.count == self.at or (self.count > self.at > 0 and isinstance(self.error, Dead)):
                raise self.error


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    def fsync(descriptor: int) -> None:  # what is played is the death of a process, not of the machine
        WATCH.tick()

    monkeypatch.setattr(os, "fsync", fsync)
    yield WATCH
    WATCH.stop()


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of locks: a process that dies closes its own."""
    found: list[int] = []
    locked = lock.locked

    def noted(descriptor: int) -> bool:
        found.append(descriptor)
        return locked(descriptor)

    monkeypatch.setattr(lock, "locked", noted)
    return found


def close(descriptors: list[int]) -> None:
    """What the system does for a process that is gone."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    descriptors.clear()


def flat(folder: Path, names: str, text: str) -> None:
    with outputs.files(folder / "a", ["b", "c"], force=True) as out:
        put(out.folder, **dict.fromkeys(names, text))
        out.commit()


def whole(folder: Path, names: str, text: str) -> None:
    fill(folder / "web", force=True, **dict.fromkeys(names, text))


def nothing(folder: Path) -> None:
    put(folder, mine="x")


def with_a_link(folder: Path) -> None:
    put(folder, mine="x")
    flat(folder, "bc", "old")
    (folder / "a").symlink_to("mine")


CASES: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "first set": (nothing, lambda f: flat(f, "abc", "new")),
    "same names": (lambda f: flat(f, "abc", "old"), lambda f: flat(f, "abc", "new")),
    "other names": (lambda f: flat(f, "ab", "old"), lambda f: flat(f, "ac", "new")),
    "one file": (lambda f: flat(f, "a", "old"), lambda f: flat(f, "a", "new")),
    "one of several": (lambda f: flat(f, "abc", "old"), lambda f: flat(f, "a", "new")),
    "over a link": (
        with_a_link,
        lambda f: flat(f, "abc", "new"),
    ),
    "first folder": (nothing, lambda f: whole(f, "ab", "new")),
    "folder": (lambda f: whole(f, "ab", "old"), lambda f: whole(f, "ac", "new")),
}


def tried(folder: Path, case: str) -> tuple[Path, dict[str, str], Callable[[Path], None]]:
    folder.mkdir()
    before, act = CASES[case]
    before(folder)
    return folder, held(folder), act


def after(tmp_path: Path, case: str) -> dict[str, str]:
    folder, _, act = tried(tmp_path / "after", case)
    act(folder)
    return held(folder)


def next_run(folder: Path, case: str) -> None:
    """Any that writes there."""
    if case == "folder" or (folder / "web").exists():
        whole(folder, "a", "next")
    else:
        with outputs.files(folder / "next", force=True) as out:
            put(out.folder, next="next")
            out.commit()


def leftovers(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if lock.SUFFIX in p.name or (p.is_symlink() and p.name != "a")]


EVERY = pytest.param(1, marks=pytest.mark.slow)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [5, EVERY])
def test_killed_at_any_event(tmp_path: Path, watch: Watch, descriptors: list[int], case: str, step: int) -> None:
    new, seen, at = after(tmp_path, case), set(), 0
    while True:
        at += step
        folder, old, act = tried(tmp_path / str(at), case)
        watch.start(at)
        try:
            act(folder)
            break
        except Dead:
            pass
        finally:
            watch.stop()
        close(descriptors)
        found = held(folder)
        assert found in (old, new), f"event {at}: neither the old set nor the new one: {found}"
        seen.add(found == new)
        if case == "same names":
            assert not [p for p in folder.rglob("*") if p.is_symlink() and not p.exists()], f"event {at}"
        if case == "folder":
            act(folder)
            assert held(folder) == new
        else:
            next_run(folder, case)
            kept = {n: t for n, t in held(folder).items() if n != "next"}
            assert kept == found or (folder / "web").exists(), f"event {at}: the next run changed what stood"
            act(folder)
            assert {n: t for n, t in held(folder).items() if n != "next"} == new
        assert not leftovers(folder), f"event {at}"
    assert at > 12 and seen == {False, True}, f"{at} events were tried"


@pytest.mark.parametrize("case", ["same names", "other names", "first set"])
@pytest.mark.parametrize("step", [3, EVERY])
def test_killed_where_there_are_no_links(
    tmp_path: Path, watch: Watch, descriptors: list[int], case: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refused)
    monkeypatch.setattr(Path, "hardlink_to", refused)
    new, at = after(tmp_path, case), 0
    while True:
        at += step
        folder, old, act = tried(tmp_path / str(at), case)
        watch.start(at)
        try:
            act(folder)
            break
        except Dead:
            pass
        finally:
            watch.stop()
        close(descriptors)
        next_run(folder, case)
        assert {n: t for n, t in held(folder).items() if n != "next"} in (old, new), f"event {at}"
        assert not leftovers(folder)
    assert at > 12


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize("step", [7, EVERY])
def test_failing_at_any_event(tmp_path: Path, watch: Watch, case: str, error: BaseException, step: int) -> None:
    """What can be tidied is tidied at once; else by the next run."""
    new, at, tries, clean = after(tmp_path, case), 0, 0, 0
    while True:
        at, tries = at + step, tries + 1
        folder, old, act = tried(tmp_path / str(at), case)
        watch.start(at, error)
        try:
            act(folder)
            if watch.count < at:
                break
        except (OSError, KeyboardInterrupt) as raised:
            assert raised is error
        finally:
            watch.stop()
        assert held(folder) in (old, new), f"event {at}: {held(folder)}"
        clean += not leftovers(folder)
        act(folder)
        assert held(folder) == new and not leftovers(folder), f"event {at}"
    assert clean >= tries // 2


def test_a_file_that_came_after_a_kill_stays(tmp_path: Path, watch: Watch, descriptors: list[int]) -> None:
    """Between a run's death and the next one the user put something in a name's place."""
    stages = set()
    for at in range(1, 80):
        folder, _, act = tried(tmp_path / str(at), "same names")
        watch.start(at)
        try:
            act(folder)
        except Dead:
            pass
        finally:
            watch.stop()
        close(descriptors)
        if (folder / "b").is_symlink():
            stages.add((folder / "b").read_text())
            (folder / "b").unlink()
            put(folder, b="came since")
            next_run(folder, "same names")
            assert held(folder)["b"] == "came since"
    assert stages == {"old", "new"}


def test_the_part_of_a_dead_cache_writer_goes(tmp_path: Path, watch: Watch, descriptors: list[int]) -> None:
    for at in range(1, 5):
        watch.start(at)
        with pytest.raises(Dead):
            outputs.write_cache(tmp_path / "x.json", "cache", lambda text: True)
        watch.stop()
        close(descriptors)
    single_file.tidy(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_begun_is_nothing_to_recover(tmp_path: Path) -> None:
    assert swap.recover(tmp_path) is None
    put(tmp_path, **{"journal.json": "{"})
    assert swap.recover(tmp_path) is None


def planted(model: Path, name: str, **told: object) -> Path:
    """A hidden folder that came with a model that others made, with a journal in it."""
    folder = model / f".{name}{lock.SUFFIX}"
    folder.mkdir(parents=True)
    (folder / "journal.json").write_text(json.dumps({"format": 1, "linked": False, "folders": [], **told}))
    return folder


@pytest.mark.parametrize("name", ["../../payload", "absolute", "sub/../../../payload"])
def test_a_journal_that_others_made_names_nothing_outside(tmp_path: Path, name: str) -> None:
    model = tmp_path / "home" / "model"
    name = str(tmp_path / "payload") if name == "absolute" else name
    (planted(model, "x", changes=[{"name": name, "new": True, "old": None}]) / "new" / "sub").mkdir(parents=True)
    (model / "sub").mkdir()
    put(model, payload="evil")
    output_set.tidy(model)
    assert not (tmp_path / "payload").exists() and not (model / ".x.onnxprune").exists()


@pytest.mark.parametrize("which", ["new", "new/sub", "old", "lock", "links"])
def test_links_that_others_planted_lead_nowhere(tmp_path: Path, which: str) -> None:
    home, model = tmp_path / "home", tmp_path / "model"
    home.mkdir()
    put(home, key="of the user")
    name = "sub/key" if "sub" in which else "key"
    folder = planted(model, "x", changes=[{"name": name, "new": True, "old": None}])
    (folder / which).parent.mkdir(exist_ok=True)
    (folder / which).symlink_to(home / "none" if which == "lock" else home, target_is_directory=which != "lock")
    output_set.tidy(model)
    assert held(home) == {"key": "of the user"} and not (model / name).exists()
    assert write(model / "y", y="1") == [model / "y"]


def test_a_link_on_the_way_to_a_name_is_refused_before_anything_is_begun(tmp_path: Path) -> None:
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "set"
    elsewhere.mkdir()
    place.mkdir()
    put(place, a="old")
    (place / "sub").symlink_to(elsewhere, target_is_directory=True)
    hidden = place / ".x.onnxprune"
    (hidden / "new" / "sub").mkdir(parents=True)
    put(hidden / "new", a="new")
    put(hidden / "new" / "sub", b="new")
    with pytest.raises(UsageError, match="sub: is a link, which would lead"):
        swap.swap(hidden, ["a"])
    assert (place / "a").read_text() == "old" and not list(elsewhere.iterdir())


@pytest.mark.parametrize("case", ["first set", "same names", "first folder", "folder"])
def test_told_to_end_at_any_event(tmp_path: Path, watch: Watch, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal, and another in the midst of tidying up: nothing stays, not even folders that were just being made."""
    new, at, told = after(tmp_path, case), 0, 0
    count = [0]

    def signalled() -> None:
        if watch.on:
            count[0] += 1
            if count[0] in (at, at + 2):
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(watch, "tick", signalled)
    while True:
        at, count[0] = at + 1, 0
        folder, old, act = tried(tmp_path / str(at), case)
        empty = {p for p in folder.rglob("*") if p.is_dir()}
        watch.start(at)
        try:
            with interrupts.heard():
                act(folder)
            if count[0] < at:
                break
        except interrupts.Interrupted:
            told += 1
        finally:
            watch.stop()
        assert held(folder) in (old, new), f"event {at}: {held(folder)}"
        assert not leftovers(folder), f"event {at}: {leftovers(folder)}"
        made = {p for p in folder.rglob("*") if p.is_dir() and not any(p.iterdir())}
        assert not made - empty, f"event {at}: {made - empty}"
    assert told > 12
