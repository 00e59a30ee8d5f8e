"""A run opens no connection: every command with sockets cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import perceptron

PROGRAM = """
import json, sys

def cut(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        raise AssertionError(f"the network: {event} {arguments}")

sys.addaudithook(cut)
from onnxprune.cli import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["onnxprune", *arguments]
    main()
"""


def test_every_command_works_without_a_network(tmp_path: Path) -> None:
    perceptron.write(tmp_path / "model.onnx")
    perceptron.write_rows(tmp_path / "rows.jsonl")
    quick = ["--no-latency", "--threads", "1", "-q"]
    commands = [
        ["inspect", "model.onnx"],
        ["prune", "model.onnx", "-o", "o.onnx", "--flops", "0.6", "--calib", "rows.jsonl", *quick],
        ["apply", "model.onnx", "o.plan.json", "-o", "again.onnx", "-q"],
        ["validate", "model.onnx", "o.onnx", "--eval", "rows.jsonl", "-q"],
        ["export", "o.onnx", "--target", "server", "-o", "shipped", "-q"],
    ]
    # Switches of the environment must not be what keeps libraries quiet. The hook sees the sockets of Python: a library
    # that tells its makers by its own keeps a file of who it is where temporary files go.
    (tmp_path / "tmp").mkdir()
    quiet = ("OFFLINE", "TELEMETRY", "CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD")
    free = {name: value for name, value in os.environ.items() if not any(word in name for word in quiet)}
    free["TMPDIR"] = str(tmp_path / "tmp")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], cwd=tmp_path, env=free, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "shipped" / "manifest.json").exists()
    assert not list((tmp_path / "tmp").iterdir())
