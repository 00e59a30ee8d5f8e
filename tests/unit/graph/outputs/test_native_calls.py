"""Told to end while a library computes: a true line, soon, and nothing half-made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune.graph.outputs import interrupts, native_calls

PROGRAM = """
import sys
from pathlib import Path
from onnxprune.cli.boundary import guarded
from onnxprune.graph.outputs import files, scratch, interrupts

def command():
    with scratch() as place, files(Path("out/o.onnx")) as out:
        (place / "t").write_text("t")
        (out.folder / "o.onnx").write_text("half")
        print("begun", flush=True)
        {call}

sys.exit(guarded(command))
"""
CALLS = {
    "a call that cannot be stopped": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "a section that is not left half-way": (
        "import hashlib\n"
        "        with interrupts.uninterrupted():\n"
        "            while not Path('go').exists(): hashlib.pbkdf2_hmac('sha256', b'', b'', 10**6)\n"
        "        out.commit(); import time; time.sleep(60)"
    ),
    "a session": (
        "import numpy as np\n"
        "        from onnx import helper as h\n"
        "        from onnxprune.graph import patience, runtime\n"
        "        nodes = [h.make_node('MatMul', [f'x{i}', 'x0'], [f'x{i + 1}']) for i in range(3000)]\n"
        "        ends = [h.make_tensor_value_info(n, 1, [1024, 1024]) for n in ('x0', 'x3000')]\n"
        "        graph = h.make_graph(nodes, 'g', ends[:1], ends[1:])\n"
        "        model = h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8)\n"
        "        session = runtime.session(model.SerializeToString())\n"
        "        patience.run(session, None, {'x0': np.ones((1024, 1024), np.float32)})"
    ),
}


@pytest.mark.skipif(os.name != "posix", reason="there the system wakes no thread with a signal")
@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_goes_on_does_not_keep_the_program(what: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{call}", CALLS[what])],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None and program.stderr is not None
        assert program.stdout.readline() == "begun\n"
        time.sleep(1.0)
        program.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        (tmp_path / "go").touch()
        started = time.monotonic()
        assert program.wait(timeout=30) == 128 + signal.SIGTERM
        taken, said = time.monotonic() - started, program.stderr.read()
    if what == "a section that is not left half-way":
        assert said == "interrupted; nothing was written\n"  # the section ended, and with it the program
    else:
        assert taken < 5 and said == "interrupted; nothing was written\n"
    assert not list((tmp_path / "tmp").glob("onnxprune*")) and not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="there the system wakes no thread with a signal")
def test_signals_that_tell_nobody_to_end_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers and children of the program that calls wake the thread as well."""
    ended: list[int] = []
    monkeypatch.setattr(native_calls, "SOON", 0.05)
    monkeypatch.setattr(native_calls, "AT_LAST", 0.1)
    monkeypatch.setattr(interrupts, "_end", lambda number, remove: ended.append(number))
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with interrupts.heard():
            signal.raise_signal(signal.SIGUSR1)
            time.sleep(0.4)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1] and not ended
