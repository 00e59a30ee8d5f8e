"""Kill the command line at its n-th file-system event, for every n: a program of its own, as the dying leave no trace.

    python tests/kills.py FOLDER COMMAND STEP

Everything is imported once; each case is a forked child that an audit hook kills with SIGKILL. What a kill leaves must
be the old set, byte for byte, or the new one, whole; and the next run must succeed, say what it found, and leave no
traces. Prints one JSON document: how many events there are, how many kills were tried, and what went wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}

ROWS = ["--calib", "in/rows.jsonl"]
QUICK = ["--no-latency", "--no-compensate", *ROWS]
RECIPE = "model: model.onnx\noutput: ../out/o.onnx\nflops: 0.5\ncalib: rows.jsonl\nquantize: int8\nno-latency: true\n"
COMMANDS: dict[str, tuple[list[list[str]], list[str]]] = {
    "prune": (
        [["prune", "bare/model.onnx", "-o", "out/o.onnx", "--flops", "0.8", *QUICK]],
        ["prune", "in/model.onnx", "-o", "out/o.onnx", "--flops", "0.5", "--no-latency", *ROWS],
    ),
    "quantize": (
        [["prune", "bare/model.onnx", "-o", "out/o.onnx", "--flops", "0.8", "--quantize", "int8", *QUICK]],
        ["run", "in/int8.yaml"],
    ),
    "sweep": (
        [
            [
                "sweep",
                "bare/model.onnx",
                "-o",
                "out",
                "--flops",
                "0.8,0.5",
                "--report",
                "out/c.html",
                "--seed",
                "1",
                *QUICK,
            ]
        ],
        ["sweep", "in/model.onnx", "-o", "out", "--flops", "0.8,0.5", "--report", "out/c.html", "--no-latency", *ROWS],
    ),
    "export": (
        [["export", "in/model.onnx", "--target", "server", "-o", "out/x", *ROWS]],
        ["export", "in/other.onnx", "--target", "server", "-o", "out/x", *ROWS],
    ),
    "web": (
        [["export", "in/model.onnx", "--target", "web", "-o", "out/x", "--quantize", "int8", *ROWS]],
        ["export", "in/other.onnx", "--target", "web", "-o", "out/x", "--quantize", "int8", *ROWS],
    ),
    "plan": (
        [["plan", "in/model.onnx", "-o", "out/p.json", "--flops", "0.8", *ROWS]],
        ["plan", "in/model.onnx", "-o", "out/p.json", "--flops", "0.5", *ROWS],
    ),
    "apply": (
        [
            ["plan", "in/model.onnx", "-o", "in/p.json", "--flops", "0.5", *ROWS],
            ["prune", "bare/model.onnx", "-o", "out/o.onnx", "--flops", "0.8", *QUICK],
        ],
        ["apply", "in/model.onnx", "in/p.json", "-o", "out/o.onnx"],
    ),
    "profile": (
        [["profile", "in/model.onnx", "--micro", "out/kit", "--units", "neurons"]],
        ["profile", "in/other.onnx", "--micro", "out/kit", "--units", "neurons"],
    ),
    "table": (
        [["profile", "in/model.onnx", "-o", "out/t.json", "--units", "neurons"]],
        ["profile", "in/other.onnx", "-o", "out/t.json", "--units", "neurons"],
    ),
}
"""Command -> (what makes the old set, what replaces it)."""


def inputs(folder: Path) -> None:
    """Two models of two residual blocks, rows, a recipe, a configuration; in `out`, the configuration of another model.

    In `bare`, the first model without a configuration: what it comes to stays beside that in `out`.
    """
    for name in ("in", "out", "bare"):
        (folder / name).mkdir(parents=True)
    for name, width in (("model", 16), ("other", 24)):
        onnx.save(mlp(width), folder / "in" / f"{name}.onnx")
    shutil.copy(folder / "in" / "model.onnx", folder / "bare")
    rows(folder / "in" / "rows.jsonl")
    (folder / "in" / "int8.yaml").write_text(RECIPE)
    (folder / "in" / "config.json").write_text('{"model": "ours"}')
    (folder / "out" / "config.json").write_text('{"model": "another"}')


def rows(file: Path) -> None:
    """Two dozen of them, for `mlp`."""
    rng = np.random.default_rng(0)
    made = [{"x": rng.standard_normal(8).round(3).tolist(), "label": int(rng.integers(3))} for _ in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))


def mlp(width: int) -> onnx.ModelProto:
    rng = np.random.default_rng(width)
    held, nodes, x = [], [], "x"

    def weight(name: str, *shape: int) -> str:
        held.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 3, name))
        return name

    for block in range(2):
        nodes += [
            helper.make_node("MatMul", [x, weight(f"a{block}", 8, width)], [f"h{block}"]),
            helper.make_node("Relu", [f"h{block}"], [f"r{block}"]),
            helper.make_node("MatMul", [f"r{block}", weight(f"b{block}", width, 8)], [f"m{block}"]),
            helper.make_node("Add", [x, f"m{block}"], [f"y{block}"]),
        ]
        x = f"y{block}"
    nodes.append(helper.make_node("Gemm", [x, weight("c", 8, 3), weight("d", 3)], ["logits"]))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 8), ("logits", 3))]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def warm(arguments: Sequence[str], folder: Path) -> None:
    """Run a command in this process, so that its children have all of it imported: most of a case's time."""
    from onnxprune.cli import main

    before, sys.argv = Path.cwd(), ["onnxprune", *arguments, "--quiet"]
    os.chdir(folder)
    try:
        main()
    except SystemExit as done:
        assert not done.code, arguments
    finally:
        os.chdir(before)


def run(arguments: Sequence[str], folder: Path, at: int = 0, log: Path | None = None) -> tuple[int, str]:
    """The command in a child; it dies at the `at`-th event (0: never). Its status (-9: killed), and what it said."""
    said = folder.parent / "said"
    child = os.fork()
    if not child:
        try:
            out = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(folder)
            sys.argv = ["onnxprune", *arguments, "--quiet"]
            from onnxprune.cli import main

            sys.addaudithook(killer(at, log))
            main()
            os._exit(0)
        except SystemExit as done:
            os._exit(done.code if isinstance(done.code, int) else 1)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text(errors="replace")


def killer(at: int, log: Path | None) -> Callable[[str, tuple[Any, ...]], None]:
    count = [0]
    events = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND) if log else None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event not in EVENTS and not (writes and not str(arguments[0]).startswith(("/dev", "/proc"))):
            return
        count[0] += 1
        if events is not None:
            os.write(events, f"{event} {arguments[:2]}\n".encode())
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def held(folder: Path) -> dict[str, str]:
    """Name -> digest of what is in `out`, by opening it; the hidden folder and the scores, a cache, apart."""
    found = {}
    for path in sorted((folder / "out").rglob("*")):
        name = path.relative_to(folder / "out").as_posix()
        if path.is_file() and ".onnxprune" not in name and not name.endswith(".scores.json"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def hidden(folder: Path) -> list[str]:
    return [p.name for p in (folder / "out").rglob("*") if ".onnxprune" in p.name or p.is_symlink()]


def whole(folder: Path, found: dict[str, str]) -> str:
    """What is wrong with a new set, by what its report, manifest or plan says of the other files; empty if nothing."""
    out = folder / "out"
    for name in found:
        told = json.loads((out / name).read_text()) if name.endswith(".json") else {}
        if name.endswith("report.json") and "files" in told:
            parts = {(Path(name).parent / n).as_posix(): digest for n, digest in told["files"].items()}
        elif name.endswith("manifest.json"):
            parts = {(Path(name).parent / e["path"]).as_posix(): e["sha256"] for e in told["files"]}
        elif told.get("tensors"):
            parts = {name.removesuffix("json") + "safetensors": told["tensors_sha256"]}
        else:
            continue
        for part, digest in parts.items():
            if found.get(part) != digest:
                return f"{part} is not the one that {name} tells of"
    return ""


def sets(name: str, found: dict[str, str]) -> dict[str, dict[str, str]]:
    """The files by the set that they belong to: a sweep's are one for each budget, and the page."""
    if name != "sweep":
        return {"": found}
    parted: dict[str, dict[str, str]] = {}
    for file, digest in found.items():
        parted.setdefault(file[: len("model.flops-0.0")] if file.startswith("model.") else file, {})[file] = digest
    return parted


def judged(name: str, folder: Path, old: dict[str, str], new: dict[str, str]) -> str:
    """What is wrong with what a kill left."""
    found = held(folder)
    wrong = whole(folder, found)
    if wrong:
        return wrong
    before, after, now = sets(name, old), sets(name, new), sets(name, found)
    if set(now) != set(before):
        return f"lost {set(before) - set(now)}, found {set(now) - set(before)}"
    for key, files in now.items():
        if files == before[key] or (name == "sweep" and key == "config.json"):
            continue
        # Reports, pages and tables hold times: they differ from run to run, and are judged by what they say above.
        told: tuple[str, ...] = (".html", "report.json", "manifest.json", "t.json", "README.md")
        if name == "profile":  # the nodes of micro-models may stand in another order; the manifest has their digests
            told += (".onnx",)
        sure = {n: d for n, d in files.items() if not n.endswith(told)}
        odd = {*(set(files) ^ set(after[key])), *(n for n, d in sure.items() if after[key].get(n) != d)}
        if odd:
            return f"neither the old set nor the new one: {sorted(odd)}"
        mixed = [n for n in files if n in before[key] and files[n] == before[key][n] != after[key].get(n)]
        if mixed:
            return f"of the old set: {mixed}"
    return ""


def main(folder: Path, name: str, step: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    makers, replacing = COMMANDS[name]
    base = folder / "base"
    inputs(base)
    shutil.copytree(base, folder / "warm")
    for maker in makers:
        warm(maker, folder / "warm")
        code, said = run(maker, base)
        assert code == 0, said
    warm([*replacing, "--force"], folder / "warm")
    for cache in (base / "out").glob("*.scores.json"):
        cache.unlink()
    old, log = held(base), folder / "events"
    shutil.copytree(base, folder / "new")
    code, said = run([*replacing, "--force"], folder / "new", log=log)
    assert code == 0, said
    new, events = held(folder / "new"), log.read_text().splitlines()
    assert old != new and not hidden(folder / "new"), hidden(folder / "new")
    result: dict[str, Any] = {"events": len(events), "tried": 0, "old": 0, "failures": []}
    for at in range(1, len(events) + 1, step):
        place = folder / "killed"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(base, place)
        code, said = run([*replacing, "--force"], place, at)
        if code != -signal.SIGKILL:
            continue  # what was cached outside made it a shorter run
        result["tried"] += 1
        result["old"] += held(place) == old
        wrong = judged(name, place, old, new)
        left = hidden(place)
        code, said = run([*replacing, "--force"], place)
        if not wrong and code:
            wrong = f"the next run ended with {code}: {said[-300:]}"
        elif not wrong and hidden(place):
            wrong = f"the next run left {hidden(place)}"
        elif not wrong and any(n.endswith(".onnxprune") for n in left) and "was killed" not in said:
            wrong = f"the next run did not say what it found: {said!r} {left}"
        wrong = wrong or whole(place, held(place))
        if wrong:
            result["failures"].append([at, events[at - 1], wrong])
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])), indent=1))
