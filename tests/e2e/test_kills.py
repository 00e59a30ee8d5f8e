"""Commands that are killed at any file-system event while they replace an older output (`tests/kills.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import kills
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("command", kills.COMMANDS)
def test_a_kill_leaves_the_old_set_or_the_new_one(tmp_path: Path, command: str) -> None:
    program = [sys.executable, kills.__file__, str(tmp_path), command, "1"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not told["failures"]
    assert told["tried"] > 20 and 0 < told["old"] < told["tried"]
