"""Every way a command can end: one line on stderr, and an exit code of the tree."""

from __future__ import annotations

import ast
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import perceptron
import pytest

import onnxprune
from onnxprune.cli.boundary import guarded
from onnxprune.errors import DataError, reading


def raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("rows.jsonl:3: not JSON"), 3, "rows.jsonl:3"),
        (OSError(errno.ENOSPC, "No space left on device", "out/o.onnx"), 6, "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "o.onnx"), 6, "o.onnx: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 3000), 6, "shorter name"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "o.onnx"), 6, "another name"),
        (MemoryError(), 4, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 4, "memory"),
        (RecursionError("maximum recursion depth exceeded"), 4, "too deeply"),
        (RuntimeError("Error while serializing: I/O error: No space left (os error 28)"), 6, "free some space"),
        (ValueError("embedded null byte"), 2, "null"),
        (KeyError("w1"), 1, "report it"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (UnicodeEncodeError("ascii", "→", 0, 1, "ordinal not in range"), 1, "ordinal"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == code
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told


def test_names_of_others_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    guarded(raising(DataError("tensor \x1b[2J\x07 is damaged")))
    assert "\x1b" not in capsys.readouterr().err


def test_developers_see_where_it_came_from(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["onnxprune", "inspect", "--traceback"])
    guarded(raising(KeyError("w1")))
    assert "Traceback" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return perceptron.write(tmp_path_factory.mktemp("boundary") / "modèle.onnx")


def told(*arguments: object, out: IO[bytes], env: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Exit code, and what stands on stderr."""
    program = [sys.executable, "-m", "onnxprune.cli", *map(str, arguments)]
    done = subprocess.run(program, check=False, stdout=out, stderr=subprocess.PIPE, env=env)
    return done.returncode, done.stderr


def test_a_locale_without_the_letters_of_a_name(model: Path, tmp_path: Path) -> None:
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    with (tmp_path / "out.txt").open("wb") as out:
        code, err = told(
            model, "-o", tmp_path / "o.onnx", "--flops", "0.6", "--no-latency", out=out, env={**os.environ, **plain}
        )
    assert code == 0, err
    assert (tmp_path / "o.report.html").stat().st_size
    assert json.loads((tmp_path / "o.report.json").read_text(encoding="utf-8"))["model"]["path"] == str(model)


def test_an_output_that_goes_away_or_is_full(model: Path) -> None:
    ends, writing = os.pipe()
    os.close(ends)
    with os.fdopen(writing, "wb") as closed:
        code, err = told("inspect", model, out=closed)
    assert code == 1 and err.startswith(b"onnxprune: standard output was closed") and err.count(b"\n") == 1, err
    if Path("/dev/full").exists():
        for further in ([], ["--json"], ["--json", "--traceback"]):
            with Path("/dev/full").open("wb") as full:
                code, err = told("inspect", model, *further, out=full)
            # Not that nothing was written, nor that space on some disk would help.
            assert code == 1 and err.startswith(b"onnxprune: standard output takes no more (No space"), err
            assert err.count(b"\n") == 1, err


def test_text_files_are_utf8_wherever_they_are_opened() -> None:
    """A call that leaves the encoding to the locale writes what another machine cannot read."""
    bare = []
    for file in Path(onnxprune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = node.func.attr
                if name in ("read_text", "write_text", "fdopen") and "encoding" not in {k.arg for k in node.keywords}:
                    bare.append(f"{file.name}:{node.lineno} {name}")
    assert not bare


def test_what_a_library_in_rust_gives_up_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Its exception is none to `except Exception`."""
    panic = type("PanicException", (BaseException,), {})

    def gives_up() -> None:
        raise panic("no entry found for key")

    assert guarded(gives_up) == 1
    assert "no entry found for key" in capsys.readouterr().err
    with pytest.raises(DataError, match="no entry found"), reading("t.json", DataError):
        gives_up()
    with pytest.raises(KeyboardInterrupt), reading("t.json", DataError):
        raise KeyboardInterrupt


def test_a_library_in_rust_shows_its_insides_to_developers_only(tmp_path: Path) -> None:
    """Where the environment asks for them, too: dozens of lines before the one that says what to do."""
    piece = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": piece, "pair": piece * 2, "special_tokens": {}}
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "post_processor": template, "model": model}))
    program = (
        "from onnxprune.cli.boundary import guarded; from tokenizers import Tokenizer; "
        "guarded(lambda: Tokenizer.from_file('tokenizer.json').encode('a'))"
    )
    for further, shown in ([], False), (["--traceback"], True):
        done = subprocess.run(
            [sys.executable, "-c", program, *further], check=False, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "RUST_BACKTRACE": "1"},
        )  # fmt: skip
        assert ("stack backtrace" in done.stderr) == shown, done.stderr
        assert "no entry found" in done.stderr.splitlines()[-1], done.stderr


def test_a_product_of_too_few_axes_is_a_damaged_file(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    model = perceptron.perceptron()
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    code, _, error = run("inspect", perceptron.write(tmp_path / "m.onnx", model))
    assert code in (0, 3, 4) and "a fault of" not in error, error


def test_closed_descriptors_are_no_fault_and_no_file_takes_their_place(model: Path, tmp_path: Path) -> None:
    """What a library prints would go into the first file that is opened."""
    program = [sys.executable, "-m", "onnxprune.cli", "inspect", str(model)]
    script = 'exec "$@" >&- 2>&- <&-'
    done = subprocess.run(["bash", "-c", script, "-", *program, "--json"], check=False)
    assert done.returncode == 0
    line = (
        "import os, sys; from onnxprune.cli.boundary import guarded; "
        f"guarded(lambda: (print('a'), open({str(tmp_path / 'file')!r}, 'wb').close(), "
        "sys.exit([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)] != ['/dev/null'] * 3)))"
    )
    if Path("/proc/self/fd").exists():
        assert subprocess.run(["bash", "-c", script, "-", sys.executable, "-c", line], check=False).returncode == 0


def test_a_working_folder_that_is_gone_is_told(model: Path, tmp_path: Path) -> None:
    """MKL loads its parts from there, and ended the process in the middle of a run."""
    (tmp_path / "gone").mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    program = [sys.executable, "-m", "onnxprune.cli", "inspect", str(model)]
    command = ["bash", "-c", script, "-", str(tmp_path / "gone"), *program]
    places = [str(Path(onnxprune.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    told = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}  # an empty one is the folder that is gone
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=told)
    assert done.returncode == 2 and done.stderr.startswith("onnxprune: the folder that this runs in is no longer there")
