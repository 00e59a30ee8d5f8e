"""Temporary files, and what the dead left of them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxprune.errors import explained
from onnxprune.graph import outputs
from onnxprune.graph.outputs import lock, temporary


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._tidied.discard(str(tmp_path))
    return tmp_path


def test_it_goes_with_its_block(place: Path) -> None:
    with outputs.scratch() as one, outputs.scratch() as other:
        assert one != other and not list(one.iterdir()) and one.is_relative_to(place)
        (one / "a").write_text("x")
    with pytest.raises(RuntimeError), outputs.scratch():
        raise RuntimeError
    assert not list(place.iterdir())


def test_temporary_files_of_libraries_go_there_too(place: Path) -> None:
    with outputs.everything() as folder:
        assert Path(tempfile.mkdtemp()).parent == folder
    assert tempfile.gettempdir() == str(place) and not list(place.iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(place: Path) -> None:
    program = (
        "import os, time\nfrom onnxprune.graph import outputs\n"
        "with outputs.scratch() as f:\n (f / 'big').write_text('x')\n print('made', flush=True)\n time.sleep(60)\n"
    )
    environment = os.environ | {"TMPDIR": str(place)}
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) for _ in range(2)
    ]
    try:
        for process in running:
            assert process.stdout is not None and process.stdout.readline().strip() == b"made"
        before = set(place.iterdir())
        assert len(before) == 2
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        mine = place / "onnxprune-results"
        mine.mkdir()
        (mine / "thesis").write_text("ten years")
        (place / "onnxprune-link").symlink_to(mine, target_is_directory=True)
        with outputs.scratch():
            pass
        left = set(place.iterdir()) - {mine, place / "onnxprune-link"}
        assert len(left) == 1 and left < before and (next(iter(left)) / "files" / "big").exists()
        assert (mine / "thesis").exists()
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_an_empty_folder_goes_when_it_is_old(place: Path) -> None:
    for name, age in (("onnxprune-new", 10), ("onnxprune-old", 10_000)):
        (place / name).mkdir()
        os.utime(place / name, (place.stat().st_mtime - age,) * 2)
    with outputs.scratch():
        pass
    assert [p.name for p in place.iterdir()] == ["onnxprune-new"]


@pytest.mark.parametrize("free", [0, 10**12])
def test_a_full_disk_is_named(place: Path, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where temporary files go, or else that of the output, which is told further out."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(OSError, match="No space") as caught, outputs.scratch() as folder:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert ("TMPDIR" in str(explained(caught.value))) == (str(folder) in str(explained(caught.value))) == (not free)


def test_one_that_is_taken_for_a_dead_ones_is_made_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making a folder and locking it another process may find it unlocked, and remove it."""
    locked = lock.locked
    calls: list[int] = []

    def raced(descriptor: int) -> bool:
        if not calls:
            calls.append(1)
            for folder in place.iterdir():
                temporary._remove_left(folder)
        return locked(descriptor)

    monkeypatch.setattr(lock, "locked", raced)
    with outputs.scratch() as folder:
        (folder / "a").write_text("x")
        assert len(list(place.iterdir())) == 1
    assert calls and not list(place.iterdir())
