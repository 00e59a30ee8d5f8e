"""The device kit: the script against a phone that is this machine, and what the import makes of its result."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnxprune
from onnxprune.cli.export import import_bench
from onnxprune.errors import DataError, UsageError
from onnxprune.export import export
from onnxprune.export.device import read_result

# adb's three verbs, on this machine: the device's folder is a real one.
ADB = """#!/bin/sh
verb=$1; shift
case $verb in
    push) cp "$1" "$2" ;;
    shell) case $1 in getprop) echo "a \\"quoted\\" $2" ;; *) sh -c "$*" ;; esac ;;
esac
"""
# The options of onnxruntime_perf_test that the script uses, and its lines; the latencies are measured.
PERF_TEST = """#!{python}
import sys, time
import numpy as np, onnxruntime as ort
arguments, dims = sys.argv[1:], {{}}
while "-f" in arguments:
    at = arguments.index("-f")
    name, _, size = arguments[at + 1].partition(":")
    dims[name] = int(size)
    del arguments[at:at + 2]
assert arguments[:3] == ["-I", "-m", "times"], arguments
runs, provider, model = int(arguments[4]), arguments[10], arguments[-1]
assert provider in ("cpu", "xnnpack"), arguments
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
types = {{"tensor(int64)": np.int64, "tensor(float)": np.float32}}
feeds = {{i.name: np.zeros([dims.get(d, d) for d in i.shape], types[i.type]) for i in session.get_inputs()}}
times = []
for _ in range(runs):
    start = time.perf_counter()
    session.run(None, feeds)
    times.append(time.perf_counter() - start)
print("Session creation time cost: 0.0125 s")
for name, value in (("Min", min(times)), ("Max", max(times)), *((f"P{{q}}", np.percentile(times, q)) for q in (50, 90, 95, 99))):
    print(f"{{name}} Latency: {{value:.9f}} s")
"""  # noqa: E501


@pytest.fixture(scope="module")
def kit(letters_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "android"
    shape = {"batch_size": 1, "sequence_length": 16}
    export(letters_bert, "android", folder, dense=letters_bert, bench=True, shape=shape)
    return folder / "bench"


def _program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _measure(kit: Path, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "ADB": str(_program(folder / "adb", ADB)),
        "PERF_TEST": str(_program(folder / "onnxruntime_perf_test", PERF_TEST.format(python=sys.executable))),
        "DEVICE_DIR": str(folder / "device"), "ROUNDS": "2", "RUNS": "3",
    }  # fmt: skip
    command = ["sh", str(kit / "run.sh")]
    return subprocess.run(
        command, env=os.environ | variables | settings, capture_output=True, text=True, check=False
    )  # fmt: skip


def test_a_phone_measures_and_the_import_reads(kit: Path, tmp_path: Path) -> None:
    done = _measure(kit, tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((kit / "result.json").read_text())
    assert told["device"]["model"] == "a quoted ro.product.model"
    rows, tables = read_result(kit / "result.json")
    assert [row.provider for row in rows] == ["CPUExecutionProvider", "XnnpackExecutionProvider"]
    for row in rows:
        assert row.runs == 2
        assert row.threads == 1
        assert row.shape["input_ids"] == (1, 16)
        assert 0 < row.dense_ms.min <= row.dense_ms.p50 <= row.dense_ms.p99
        low, high = row.speedup_interval
        assert low <= row.speedup <= high
        assert row.speedup == pytest.approx(row.dense_ms.p50 / row.pruned_ms.p50)
    assert [table.provider for table in tables] == [row.provider for row in rows]
    for table in tables:
        assert (table.threads, table.shape) == (1, {"batch_size": 1, "sequence_length": 16})
        assert table.whole is not None and table.whole.ms > 0
        assert {(e.kind, e.units, e.of) for e in table.entries} >= {
            ("model", 1, 1), ("uncut", 1, 1), ("heads", 1, 4), ("heads", 4, 4), ("neurons", 128, 128),
        }  # fmt: skip
        assert all(e.ms > 0 for e in table.entries)


def test_the_command_line_shows_it(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (kit / "result.json").exists():
        assert _measure(kit, tmp_path).returncode == 0
    import_bench(kit / "result.json", as_json=False, quiet=False)
    assert "128 of 128" in capsys.readouterr().out
    import_bench(kit / "result.json", as_json=True, quiet=False)
    told = json.loads(capsys.readouterr().out)
    assert [table["provider"] for table in told["tables"]] == ["CPUExecutionProvider", "XnnpackExecutionProvider"]
    assert len(told["latency"]) == 2


def test_a_recipe_is_no_table(kit: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    if not (kit / "result.json").exists():
        assert _measure(kit, tmp_path).returncode == 0
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"command: bench\nimport: {kit / 'result.json'}\ntable: r.yaml\n")
    before = recipe.read_bytes()
    code, _, err = run("run", recipe, "--force", "-q")
    assert code == 2 and "would overwrite the input" in err and recipe.read_bytes() == before


def test_a_search_goes_by_what_a_phone_measured(kit: Path, letters_bert: Path, tmp_path: Path) -> None:
    if not (kit / "result.json").exists():
        assert _measure(kit, tmp_path).returncode == 0
    table = tmp_path / "phone.json"
    import_bench(kit / "result.json", table, ("xnnpack",), as_json=False, quiet=True)
    with pytest.raises(UsageError, match="qnn"):
        import_bench(kit / "result.json", table, ("qnn",), as_json=False, quiet=True)
    shape = {"batch_size": 1, "sequence_length": 16}
    made = onnxprune.prune(
        letters_bert, latency=0.9, latency_table=str(table), shape=shape, method="magnitude", measure_latency=False
    )
    landing = made.report.landing
    assert landing is not None and landing.provider == "XnnpackExecutionProvider"
    assert landing.measured is None and "another machine" in made.report.warnings[-1]
    assert landing.predicted <= 0.9


def test_a_phone_without_the_program_is_said(kit: Path, tmp_path: Path) -> None:
    done = _measure(kit, tmp_path, PERF_TEST=str(_program(tmp_path / "broken", "#!/bin/sh\necho no such provider\n")))
    assert done.returncode != 0
    assert "no latencies" in done.stderr
    done = subprocess.run(
        ["sh", str(kit / "run.sh")], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode != 0
    assert "PERF_TEST" in done.stderr


@pytest.mark.parametrize("told", [[], {"format": 1}, {"format": 3, "threads": 1, "setup": {}, "runs": [{}]}, {
    "format": 2, "threads": 1, "setup": {"shapes": {}, "micro": {}}, "runs": [{"model": "model.ort"}],
}])  # fmt: skip
def test_another_file_is_refused(told: Any, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"result\.json"):
        read_result(file)
    with pytest.raises(DataError, match="absent"):
        read_result(tmp_path / "absent.json")
