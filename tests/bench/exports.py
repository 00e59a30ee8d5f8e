"""Every target, one command each: seconds, sizes, agreement with the model, accuracy, partitions before and after.

    python tests/bench/exports.py small.onnx --dense model.onnx --calib calibration.jsonl --eval dev.jsonl

`--quantize` names what is tried at each target besides the plain form; the web export of int8 says how large the
download is against the dense model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGETS = ("android", "ios", "web", "qnn", "server")
HEADER = (
    "| target | numbers | seconds | file | MB | of dense | off by | accuracy | placement | partitions |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def exported(
    target: str, scheme: str | None, options: argparse.Namespace, folder: Path
) -> tuple[dict[str, Any], float]:
    """(the export's report, seconds of the whole command)."""
    command = [
        sys.executable, "-m", "onnxprune.cli.main", "export", str(options.model), "--target", target, "-o",
        str(folder / f"{target}-{scheme or 'plain'}"), "--dense", str(options.dense), "--json",
    ]  # fmt: skip
    for flag, value in (("--calib", options.calib), ("--eval", options.eval), ("--quantize", scheme)):
        command += [flag, str(value)] if value else []
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{target} {scheme}: exit {done.returncode}\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report, spent


def lines(target: str, scheme: str | None, report: dict[str, Any], seconds: float) -> list[str]:
    found = []
    parts = "; ".join(f"{u['provider']} {u['stage']}: {u['partitions']}" for u in report.get("usability", ()))
    for file in report["artefacts"]:
        evidence, off = file.get("evidence"), file.get("agreement")
        held = "" if evidence is None else f"{100 * evidence['accuracy']['pruned']:.2f}"
        share = f"{file['bytes'] / report['dense_bytes']:.0%}" if report["dense_bytes"] else ""
        found.append(
            f"| {target} | {file['scheme'] or scheme or 'fp32'} | {seconds:.0f} | {file['file']} | "
            f"{file['bytes'] / 1e6:.1f} | {share} | {off['max_rel'] if off else float('nan'):.1e} | {held} | "
            f"{file['placement']} | {parts} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Export to every target, and say what came of it.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--quantize", nargs="*", default=["fp16", "int8"], help="schemes beside the target's own form")
    options = parser.parse_args()
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for target in options.targets:
            for scheme in (None, *options.quantize):
                for line in lines(target, scheme, *exported(target, scheme, options, Path(folder))):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
