"""What may be written where, and that sets are whole: by hand-made files, without any model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxprune.errors import UsageError
from onnxprune.graph import outputs
from onnxprune.graph.outputs import Inputs, lock, manifest


def put(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


def held(folder: Path) -> dict[str, str]:
    """Name -> text of all that can be opened, hidden folders left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.endswith(lock.SUFFIX) for part in inside.parts):
            found[inside.as_posix()] = path.read_text()
    return found


def write(target: Path, force: bool = False, **texts: str) -> list[Path]:
    with outputs.files(target, ["b", "c"], force=force) as out:
        put(out.folder, **texts)
        return out.commit()


def test_a_set_appears_at_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "a"
    with outputs.files(target, ["b"]) as out:
        put(out.folder, a="1", b="2")
        assert held(target.parent) == {}
        assert out.commit() == [target, target.with_name("b")]
    assert {p.name for p in target.parent.iterdir()} == {"a", "b"}
    assert not any(p.is_symlink() for p in target.parent.iterdir())
    with pytest.raises(RuntimeError, match="broken"), outputs.files(target, ["b"], force=True) as out:
        put(out.folder, a="half")
        raise RuntimeError("broken")
    assert held(target.parent) == {"a": "1", "b": "2"} and len(list(target.parent.iterdir())) == 2
    with pytest.raises(RuntimeError), outputs.files(tmp_path / "other" / "deep" / "a"):
        raise RuntimeError("nothing was written: the folders go too")
    assert not (tmp_path / "other").exists()


def test_every_file_of_a_set_is_asked_about(tmp_path: Path) -> None:
    put(tmp_path, b="mine")
    with pytest.raises(UsageError, match=r"b: exists already; --force"):
        write(tmp_path / "a", a="1")
    put(tmp_path, c="mine")
    with pytest.raises(UsageError, match=r"b: exists already \(with c\)"):
        write(tmp_path / "a", a="1")
    assert held(tmp_path) == {"b": "mine", "c": "mine"}
    assert write(tmp_path / "a", force=True, a="1", b="2") == [tmp_path / "a", tmp_path / "b"]
    assert held(tmp_path) == {"a": "1", "b": "2"}, "what the new set lacks goes with the old one"


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    with outputs.files(tmp_path / "a", ["b"]) as out:
        put(out.folder, a="1", b="2")
        put(tmp_path, b="came while the run was working")
        with pytest.raises(UsageError, match="exists already"):
            out.commit()
    assert held(tmp_path) == {"b": "came while the run was working"}


@pytest.mark.parametrize("way", ["itself", "dotted", "symlink", "hardlink", "folder link", "side"])
def test_an_input_is_never_written(tmp_path: Path, way: str) -> None:
    (tmp_path / "d").mkdir()
    source = tmp_path / "d" / "a"
    put(source.parent, a="the only copy")
    target, beside = source, []
    if way == "dotted":
        target = tmp_path / "d" / ".." / "d" / "a"
    elif way in ("symlink", "hardlink"):
        target = tmp_path / "other"
        target.symlink_to(source) if way == "symlink" else target.hardlink_to(source)
    elif way == "folder link":
        (tmp_path / "l").symlink_to("d", target_is_directory=True)
        target = tmp_path / "l" / "a"
    elif way == "side":
        target, beside = tmp_path / "d" / "new", ["a"]
    for force in (False, True):
        with (
            pytest.raises(UsageError, match=r"would overwrite the input|exists already"),
            outputs.files(target, beside, inputs=Inputs.of(str(source)), force=force),
        ):
            pass
    with pytest.raises(UsageError, match="overwrite the input"), outputs.files(target, beside, force=True) as out:
        out.protect(Inputs.of([source, None, "random"]))
    assert source.read_text() == "the only copy"


def test_files_of_a_folder_of_images_are_inputs(tmp_path: Path) -> None:
    put(tmp_path, cat="image")
    read = Inputs.of(tmp_path)
    with (
        pytest.raises(UsageError, match="overwrite the input"),
        outputs.files(tmp_path / "cat", inputs=read, force=True),
    ):
        pass
    with outputs.files(tmp_path / "dog", inputs=read):
        pass


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "b").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for target, says in (
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / "b", "is a folder"),
        (Path(), "a folder"),
        (tmp_path / "file" / "o.onnx", "file is a file, and no folder"),
        (tmp_path / "file" / "new" / "o.onnx", "file is a file, and no folder"),
        (tmp_path / "loop" / "o.onnx", "loop is a link that leads to no folder"),
        (tmp_path / "dangling" / "new" / "o.onnx", "dangling is a link that leads to no folder"),
    ):
        with pytest.raises(UsageError, match=says), outputs.files(target, force=True):
            pass
    with pytest.raises(UsageError, match="no regular file"):
        write(tmp_path / "a", force=True)
    with pytest.raises(UsageError, match="another file of the same output"), outputs.files(tmp_path / "x", ["x"]):
        pass


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    put(tmp_path, real="of somebody", b="old")
    (tmp_path / "a").symlink_to("real")
    write(tmp_path / "a", force=True, a="1", b="2")
    assert held(tmp_path) == {"a": "1", "b": "2", "real": "of somebody"} and not (tmp_path / "a").is_symlink()


# ---- two runs


def test_the_second_of_two_runs_is_told(tmp_path: Path) -> None:
    with outputs.files(tmp_path / "a", ["b"]) as first:
        for target in ("a", "b"):
            with pytest.raises(UsageError, match=r"this run writes it already"), outputs.files(tmp_path / target):
                pass
        with outputs.files(tmp_path / "z", ["y"]) as other:
            put(other.folder, z="1")
            other.commit()
        put(first.folder, a="1")
        first.commit()
    assert held(tmp_path) == {"a": "1", "z": "1"}


def test_a_run_of_another_process_is_named(tmp_path: Path) -> None:
    with outputs.files(tmp_path / "a"):
        lock_file = tmp_path / f".a{lock.SUFFIX}" / "lock"
        lock_file.write_text(json.dumps({"pid": 12345, "host": "far", "names": ["a"]}))
        with pytest.raises(UsageError, match="process 12345 on far is writing it"), outputs.files(tmp_path / "a"):
            pass


@pytest.mark.parametrize("content", ["", "{", '{"pid": 999999999, "names": ["a"]}'])
def test_a_stale_lock_is_recognised_and_said(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    left = tmp_path / f".a{lock.SUFFIX}"
    (left / "new").mkdir(parents=True)
    put(left, lock=content)
    put(left / "new", a="half")
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "z", a="1")
    assert "a: an earlier run was killed" in caplog.text
    assert held(tmp_path) == {"a": "1"} and not left.exists()


def test_a_folder_of_others_under_our_name_stays(tmp_path: Path) -> None:
    left = tmp_path / f".a{lock.SUFFIX}"
    left.mkdir()
    put(left, thesis="ten years")
    with pytest.raises(UsageError, match="in the way"):
        write(tmp_path / "a", a="1")
    assert (left / "thesis").read_text() == "ten years"


# ---- folders


def fill(place: Path, force: bool = False, **texts: str) -> list[Path]:
    with outputs.folder(place, force=force) as out:
        put(out.folder, **texts)
        (out.folder / "sub").mkdir()
        put(out.folder / "sub", deep=texts.get("a", ""))
        manifest.write(out.folder)
        return out.commit()


def test_a_folder_is_made_and_replaced(tmp_path: Path) -> None:
    place = tmp_path / "x" / "web"
    files = fill(place, a="1", b="1")
    assert {f.name for f in files} == {"a", "b", "deep", "manifest.json"} and all(f.is_file() for f in files)
    with pytest.raises(UsageError, match="exists already"):
        fill(place, a="2")
    fill(place, force=True, a="2", c="2")
    found = held(place)
    found.pop("manifest.json")
    assert found == {"a": "2", "c": "2", "sub/deep": "2"}
    assert [p.name for p in place.parent.iterdir()] == ["web"]


@pytest.mark.parametrize("where", ["foreign", "link", "none"])
def test_a_folder_that_is_not_ours_stays(tmp_path: Path, where: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    put(docs, mine="x")
    if where == "link":
        (tmp_path / "l").symlink_to("docs", target_is_directory=True)
    if where == "foreign":
        put(docs, **{"manifest.json": json.dumps({"made_by": "somebody", "files": [{"path": "mine", "sha256": "0"}]})})
    before = held(docs)
    with pytest.raises(UsageError, match="that says they are from an earlier run"):
        fill(tmp_path / ("l" if where == "link" else "docs"), force=True, a="1")
    assert held(docs) == before and {p.name for p in docs.iterdir()} == set(before)
    with pytest.raises(UsageError, match="is a file"):
        fill(docs / "mine", force=True, a="1")


def test_files_of_others_in_our_folder_stay(tmp_path: Path) -> None:
    place = tmp_path / "web"
    fill(place, a="1", b="1")
    put(place, notes="mine")
    fill(place, force=True, a="2")
    assert held(place)["notes"] == "mine" and held(place)["a"] == "2" and "b" not in held(place)
    with pytest.raises(UsageError, match="notes is not from an earlier run"):
        fill(place, force=True, a="3", notes="3")
    put(place, a="edited")
    with pytest.raises(UsageError, match="a was changed since"):
        fill(place, force=True, a="3")
    assert held(place)["notes"] == "mine" and held(place)["a"] == "edited"


def test_a_manifest_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    place = tmp_path / "web"
    fill(place, a="1")
    put(tmp_path, victim="x")
    told = json.loads((place / "manifest.json").read_text())
    told["files"].append({"path": "../victim", "sha256": outputs.digest(tmp_path / "victim")})
    put(place, **{"manifest.json": json.dumps(told)})
    with pytest.raises(UsageError, match="that says they are from an earlier run"):
        fill(place, force=True, a="2")
    assert (tmp_path / "victim").read_text() == "x"


def test_a_link_in_our_folder_leads_nothing_out_of_it(tmp_path: Path) -> None:
    place = tmp_path / "web"
    place.mkdir()
    (tmp_path / "outside").mkdir()
    fill(place, a="1")
    for file in (place / "sub").iterdir():
        file.unlink()
    (place / "sub").rmdir()
    (place / "sub").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(UsageError, match=r"is a link|not from an earlier run"):
        fill(place, force=True, a="2")
    assert held(place)["a"] == "1" and not list((tmp_path / "outside").iterdir())


def test_an_input_inside_the_folder_stays(tmp_path: Path) -> None:
    place = tmp_path / "web"
    fill(place, a="1")
    read = Inputs.of(place / "a")
    with pytest.raises(UsageError, match="overwrite the input"), outputs.folder(place, inputs=read, force=True):
        pass


def test_what_is_found_to_be_read_on_the_way_is_an_input_too(tmp_path: Path) -> None:
    put(tmp_path, b="an image", other="x")
    (tmp_path / "link").symlink_to("b")
    for named in ("b", "link"):
        with (
            pytest.raises(UsageError, match="b: the output would overwrite"),
            outputs.files(tmp_path / "a", ["b"], force=True),
        ):
            outputs.reading(tmp_path / "other")
            outputs.reading(tmp_path / named)
    with outputs.files(tmp_path / "a", force=True) as out:
        outputs.reading(tmp_path / "b")
        put(out.folder, a="1", b="a companion that was not announced")
        with pytest.raises(UsageError, match="b: the output would overwrite"):
            out.commit()
    outputs.reading(tmp_path / "b")  # and no set is open any more
    place = tmp_path / "web"
    fill(place, a="1")
    with pytest.raises(UsageError, match="a: the output would"), outputs.folder(place, force=True):
        outputs.reading(place / "a")
    assert held(tmp_path)["b"] == "an image" and held(place)["a"] == "1"


# ---- caches


def test_a_cache_is_replaced_only_over_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours: Callable[[str], bool] = lambda text: text.startswith("cache")  # noqa: E731
    file = tmp_path / "x.json"
    assert outputs.write_cache(file, "cache 1", ours) and outputs.write_cache(file, "cache 2", ours)
    assert file.read_text() == "cache 2" and file.stat().st_mode & 0o044
    file.write_text("exam scores")
    assert not outputs.write_cache(file, "cache 3", ours)
    assert file.read_text() == "exam scores" and "stays as it is" in caplog.text
    file.unlink()
    for make in (Path.mkdir, os.mkfifo):  # a pipe is not waited for
        make(file)
        assert not outputs.write_cache(file, "cache 3", ours)
        if file.is_dir():
            file.rmdir()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such files")
@pytest.mark.parametrize("place", ["/dev/o.onnx", "/dev/stdout", "/proc/self/fd/1", "/sys/o.onnx", "link/o.onnx"])
def test_nothing_is_written_where_the_system_shows_devices(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write there: --force would replace /dev/stdout, a link, for all programs."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("/dev")
    for opened in (outputs.files, outputs.folder):
        with pytest.raises(UsageError, match="devices"), opened(Path(place), force=True):
            pass


@pytest.mark.skipif(os.name != "posix", reason="names are text there")
def test_a_name_that_libraries_cannot_open_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not UTF-8"), outputs.files(tmp_path / "a\udcff.onnx"):
        pass
    assert not list(tmp_path.iterdir())
