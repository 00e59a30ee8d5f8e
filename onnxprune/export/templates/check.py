"""Compares the models of this folder with their samples, on the provider that is named.

    python check.py [--ep OpenVINOExecutionProvider] [--model model.onnx]

Needs onnxruntime and numpy. Ends with 1 where an output is further off than samples.json allows.
"""

import argparse
import base64
import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else ONNX Runtime tells its makers what it opens

import onnxruntime as ort  # noqa: E402


def array(told):
    return np.frombuffer(base64.b64decode(told["data"]), told["type"]).reshape(told["shape"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ep", default="CPUExecutionProvider")
    parser.add_argument("--model", help="one model only")
    asked = parser.parse_args()
    folder = Path(__file__).resolve().parent
    told = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    good = True
    for name, samples in told["models"].items():
        if asked.model not in (None, name):
            continue
        session = ort.InferenceSession(str(folder / name), providers=[asked.ep])
        used = session.get_providers()[0]
        worst = 0.0
        for sample in samples:
            feeds = {key: array(value) for key, value in sample["feeds"].items()}
            outputs = [o.name for o in session.get_outputs()]
            for key, found in zip(outputs, session.run(outputs, feeds)):
                should = array(sample["expected"][key])
                worst = max(worst, float(np.abs(found - should).max() / (np.abs(should).max() or 1)))
        ok = worst <= told["tolerance"][name] and used == asked.ep
        good &= ok
        print(f"{'ok  ' if ok else 'FAIL'} {name} on {used}: off by {worst:.1e} of the outputs' scale")
    sys.exit(not good)


if __name__ == "__main__":
    main()
