"""Damaged files of every kind against the command line: a program of its own, for thousands of cases.

    python tests/fuzz.py FOLDER CASES [SEED [FIRST]]

Everything is imported and run once; then forked children each work through a few cases, so that a case takes some
tens of milliseconds. A case must end with an exit code of `errors`, one line of what is wrong and no file, or with 0;
within ten seconds of processor time and six gigabytes; and what it read must be as it was. Prints one JSON document:
how many cases ended how, and what went wrong. The folder, best one in memory, keeps one case of each kind of failure.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mutations import broken, changed, mutated
from onnx import TensorProto, helper, numpy_helper
from perceptron import perceptron, write_rows
from random_graphs import build, sample

CPU_SECONDS, MEMORY, BATCH, PATIENCE = 10, 6 << 30, 40, 150
LINES = 8
"""Of an error: more than that is a trace, or the same said again and again."""
WORDS = 40
KINDS = ("model", "model", "model", "external", "rows", "rows", "text", "image", "plan", "scores", "recipe", "table")


@dataclass(eq=False)
class Seeds:
    """Sound files, by which damaged ones are made.

    Attributes:
        folder: where they lie.
        models: by name.
        documents: JSON, by name.
    """

    folder: Path
    models: dict[str, onnx.ModelProto] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)

    def bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


Case = tuple[list[str], tuple[str, ...]]
"""Arguments, and what may be written."""


def seeds(folder: Path) -> Seeds:
    """Four small models with what belongs to them, made by the commands themselves."""
    from PIL import Image

    held = Seeds(folder)
    folder.mkdir(parents=True)
    held.models = {"mlp": perceptron(), "conv": build("resnet", 1), "mix": build("transformer", 1), "text": _reader()}
    for name, model in held.models.items():
        onnx.save(model, folder / f"{name}.onnx")
    onnx.save(
        perceptron(), folder / "ext.onnx", save_as_external_data=True, location="ext.data", size_threshold=0,
        all_tensors_to_one_file=True,
    )  # fmt: skip
    write_rows(folder / "rows.jsonl", 12)
    rows = [{"x": x.round(3).tolist()} for x in sample("transformer", 6)]
    (folder / "mix.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    chance = random.Random(0)
    texts = [{"text": " ".join(f"w{chance.randrange(20)}" for _ in range(6)), "label": i % 3} for i in range(12)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in texts), encoding="utf-8")
    held.documents = {"tokenizer.json": _tokenizer(), "config.json": {"vocab_size": WORDS, "model_type": "bert"}}
    held.documents["tokenizer_config.json"] = {"model_max_length": 16, "pad_token": "[PAD]", "unk_token": "[UNK]"}
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(held.documents[name]), encoding="utf-8")
    held.documents["preprocessor_config.json"] = {
        "do_resize": True, "size": {"height": 8, "width": 8}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2,
        "do_center_crop": True, "crop_size": {"height": 8, "width": 8}, "image_processor_type": "ViTImageProcessor",
    }  # fmt: skip
    for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp"):
        Image.new("RGB" if kind != "gif" else "P", (9, 11)).save(folder / f"a.{kind}")
    for arguments in (
        ["prune", "mlp.onnx", "-o", "m.onnx", "--flops", "0.5", "--calib", "rows.jsonl", "--no-latency"],
        ["plan", "mlp.onnx", "-o", "p.json", "--flops", "0.5", "--calib", "rows.jsonl"],
        ["profile", "mlp.onnx", "-o", "t.json", "--units", "neurons"],
        ["inspect", "conv.onnx"],
        ["prune", "mix.onnx", "--dry-run", "--flops", "0.6", "--no-latency"],
        ["prune", "text.onnx", "--dry-run", "--flops", "0.6", "--no-latency", "--calib", "texts.jsonl"],
    ):
        code, told = commanded([*arguments, "--quiet"] if arguments[0] != "inspect" else arguments, folder)
        assert code == 0, (arguments, told)
    for name in ("p.json", "t.json", "m.report.json", "m.scores.json", "mlp.scores.json"):
        if (folder / name).exists():
            held.documents[name] = json.loads((folder / name).read_text(encoding="utf-8"))
    return held


def _reader() -> onnx.ModelProto:
    """Token ids, looked up, averaged and put through the perceptron."""
    model = perceptron()
    table = np.random.default_rng(2).standard_normal((WORDS, 8)).astype(np.float32)
    graph = model.graph
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["looked"]),
        helper.make_node("ReduceMean", ["looked"], ["x"], axes=[1], keepdims=0),
        *graph.node,
    ]
    ends = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    held = [numpy_helper.from_array(table, "words"), *graph.initializer]
    made = helper.make_graph(nodes, "text", ends, graph.output, held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _tokenizer() -> dict[str, Any]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(WORDS - 4))]
    ends = {"[CLS]": 2, "[SEP]": 3}
    piece = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": piece, "pair": piece,
            "special_tokens": {k: {"id": k, "ids": [v], "tokens": [k]} for k, v in ends.items()},
        },
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "[UNK]"},
    }  # fmt: skip


QUIET = ["--quiet", "--no-latency"]


def _model(held: Seeds, chance: random.Random, folder: Path) -> Case:
    name = chance.choice(("mlp", "mlp", "conv", "mix", "text"))
    sound = held.models[name]
    try:
        data = (
            mutated(chance, sound).SerializeToString()
            if chance.random() < 0.8
            else broken(chance, held.bytes(f"{name}.onnx"))
        )
    except Exception:  # a message that protobuf itself refuses to hold or write is no case
        data = broken(chance, held.bytes(f"{name}.onnx"))
    (folder / "model.onnx").write_bytes(data)
    rows = {"mlp": "rows.jsonl", "mix": "mix.jsonl", "text": "texts.jsonl"}.get(name)
    if name == "text":
        for companion in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(held.folder / companion, folder)
    if rows:
        shutil.copy(held.folder / rows, folder)
    units = chance.choice(([], ["--units", "heads,neurons,blocks,channels,head_dims"], ["--units", "hidden"]))
    learn = ["--calib", rows] if rows and chance.random() < 0.6 else []
    match chance.randrange(9):
        case 0 | 1 | 2:
            return ["inspect", "model.onnx", *chance.choice(([], ["--json"], ["--pins"]))], ()
        case 3 | 4:
            return ["plan", "model.onnx", "-o", "o.json", "--flops", "0.6", "--quiet", *learn, *units], (
                "o.json",
                "o.safetensors",
            )
        case 5 | 6:
            return ["prune", "model.onnx", "-o", "o.onnx", "--flops", "0.6", *learn, *QUIET, *units], PRUNED
        case 7 if rows:
            return ["validate", "model.onnx", "model.onnx", "--eval", rows], ()
        case _:
            return ["export", "model.onnx", "--target", chance.choice(("server", "web")), "-o", "o", "--quiet"], ("o",)


PRUNED = (
    "o.onnx",
    "o.onnx.data",
    "o.plan.json",
    "o.plan.safetensors",
    "o.report.json",
    "o.report.html",
    "model.scores.json",
    "mlp.scores.json",
)


def _external(held: Seeds, chance: random.Random, folder: Path) -> Case:
    """Weights outside: the file that holds them is damaged, or where they are said to lie."""
    model = onnx.load(held.folder / "ext.onnx", load_external_data=False)
    (folder / "ext.data").write_bytes(
        broken(chance, held.bytes("ext.data")) if chance.random() < 0.4 else held.bytes("ext.data")
    )
    if chance.random() < 0.8:
        entry = chance.choice(chance.choice(model.graph.initializer).external_data)
        entry.value = chance.choice(
            ("", "0", "-1", "1e3", "99999999999999999999", "../ext.data", "/etc/passwd", "ext.data/", "./ext.data",
             "missing", ".", "\\ext.data", "C:\\x", "a/../ext.data", "16", "64", " 4", "٣", "ext.data\0", "link",
             "fifo", "x" * 300)
        )  # fmt: skip
        if chance.random() < 0.1:
            entry.key = chance.choice(("", "location", "offset", "length", "checksum", "other"))
    (folder / "link").symlink_to("/etc/hostname")
    os.mkfifo(folder / "fifo")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if chance.random() < 0.5:
        return ["inspect", "model.onnx"], ()
    return ["prune", "model.onnx", "-o", "o.onnx", "--flops", "0.6", *QUIET], PRUNED


def _rows(held: Seeds, chance: random.Random, folder: Path) -> Case:
    shutil.copy(held.folder / "mlp.onnx", folder / "model.onnx")
    rows = [json.loads(line) for line in held.bytes("rows.jsonl").splitlines()]
    match chance.randrange(6):
        case 0 | 1:
            made, name = changed(chance, rows), "r.jsonl"
            data = "\n".join(json.dumps(r) for r in (made if isinstance(made, list) else [made])).encode()
        case 2:
            data, name = broken(chance, held.bytes("rows.jsonl")), "r.jsonl"
        case 3:
            data, name = json.dumps(changed(chance, rows)).encode(), "r.json"
        case 4:
            text = io.StringIO()
            table = csv.writer(text, delimiter=chance.choice(",\t;"))
            table.writerows([list(rows[0]), *([json.dumps(v) for v in row.values()] for row in rows)])
            data, name = broken(chance, text.getvalue().encode()), chance.choice(("r.csv", "r.tsv"))
        case _:
            kinds = ("f4", "f2", "f8", "i1", "i8", "u8", "?", "c8", "S3", "U2", "M8[s]")
            shape = chance.choice(((6, 8), (6, 8), (6,), (), (0, 8), (6, 8, 1), (1, 6, 8)))
            archive = io.BytesIO()
            np.savez(archive, x=np.zeros(shape, chance.choice(kinds)), label=np.arange(6))
            data = archive.getvalue()
            data, name = broken(chance, data) if chance.random() < 0.6 else data, "r.npz"
    (folder / name).write_bytes(data)
    if chance.random() < 0.5:
        metric = chance.choice(
            ([], [], ["--metric", chance.choice(("accuracy", "f1", "spearman", "perplexity", "r2", "top5"))])
        )
        return ["validate", "model.onnx", "model.onnx", "--eval", name, *metric], ()
    return ["plan", "model.onnx", "-o", "o.json", "--flops", "0.6", "--calib", name, "--quiet"], (
        "o.json",
        "o.safetensors",
    )


def _text(held: Seeds, chance: random.Random, folder: Path) -> Case:
    """Texts, and the files that say how to read them."""
    shutil.copy(held.folder / "text.onnx", folder / "model.onnx")
    damaged = chance.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "config.json", "texts.jsonl"))
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "texts.jsonl"):
        data = held.bytes(name)
        if name == damaged and name in held.documents and chance.random() < 0.8:
            data = json.dumps(changed(chance, held.documents[name])).encode()
        elif name == damaged:
            data = broken(chance, data)
        (folder / name).write_bytes(data)
    if chance.random() < 0.15:
        (folder / "v.txt").write_text("w1 w2 w3\n", encoding="utf-8")
        return ["export", "model.onnx", "--target", "server", "-o", "o", "--vocab", "v.txt", "--quiet"], ("o",)
    return ["validate", "model.onnx", "model.onnx", "--eval", "texts.jsonl"], ()


def _image(held: Seeds, chance: random.Random, folder: Path) -> Case:
    shutil.copy(held.folder / "conv.onnx", folder / "model.onnx")
    name = f"a.{chance.choice(('png', 'jpeg', 'gif', 'webp', 'tiff', 'bmp'))}"
    data, config = held.bytes(name), held.documents["preprocessor_config.json"]
    if chance.random() < 0.5:
        data = broken(chance, data)
    else:
        config = changed(chance, config)
    (folder / name).write_bytes(data)
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "r.jsonl").write_text(f'{{"image": "{name}", "label": 1}}\n' * 4, encoding="utf-8")
    return ["validate", "model.onnx", "model.onnx", "--eval", "r.jsonl"], ()


def _plan(held: Seeds, chance: random.Random, folder: Path) -> Case:
    shutil.copy(held.folder / "mlp.onnx", folder / "model.onnx")
    plan, tensors = held.documents["p.json"], held.bytes("p.safetensors")
    if chance.random() < 0.75:
        plan = changed(chance, plan)
    else:
        tensors = broken(chance, tensors)
        if chance.random() < 0.7:
            plan = plan | {"tensors_sha256": hashlib.sha256(tensors).hexdigest()}
    (folder / "p.safetensors").write_bytes(tensors)
    (folder / "p.json").write_text(json.dumps(plan), encoding="utf-8")
    return ["apply", "model.onnx", "p.json", "-o", "o.onnx", "--quiet"], ("o.onnx",)


def _scores(held: Seeds, chance: random.Random, folder: Path) -> Case:
    """A cache: whatever stands in it, the run succeeds, or says what else is wrong."""
    for name in ("mlp.onnx", "rows.jsonl"):
        shutil.copy(held.folder / name, folder)
    document = held.documents.get("mlp.scores.json", held.documents.get("m.scores.json"))
    data = json.dumps(changed(chance, document)).encode()
    (folder / "mlp.scores.json").write_bytes(data if chance.random() < 0.8 else broken(chance, data))
    return ["prune", "mlp.onnx", "-o", "o.onnx", "--flops", "0.5", "--calib", "rows.jsonl", *QUIET], PRUNED


def _recipe(held: Seeds, chance: random.Random, folder: Path) -> Case:
    import yaml

    shutil.copy(held.folder / "mlp.onnx", folder)
    shutil.copy(held.folder / "rows.jsonl", folder)
    if chance.random() < 0.5:
        (folder / "r.json").write_text(json.dumps(changed(chance, held.documents["m.report.json"])), encoding="utf-8")
        return ["run", "r.json", "--dry-run", *QUIET], ()
    recipe = {
        "model": "mlp.onnx", "flops": 0.6, "calib": "rows.jsonl", "rows": 8, "units": ["neurons"], "seed": 1,
        "method": "magnitude", "shape": {"batch": 1}, "eval": "rows.jsonl", "max_memory": "2GB", "threads": 1,
    }  # fmt: skip
    if chance.random() < 0.7:
        text = yaml.safe_dump(changed(chance, recipe)).encode("utf-8", "replace")
    else:
        text = broken(chance, yaml.safe_dump(recipe).encode())
    (folder / "r.yaml").write_bytes(text)
    return ["run", "r.yaml", "--dry-run", *QUIET], ()


def _table(held: Seeds, chance: random.Random, folder: Path) -> Case:
    shutil.copy(held.folder / "mlp.onnx", folder / "model.onnx")
    data = json.dumps(changed(chance, held.documents["t.json"])).encode()
    (folder / "t.json").write_bytes(data if chance.random() < 0.8 else broken(chance, data))
    if chance.random() < 0.4:
        return ["bench", "--import", "t.json", "--table", "o.json"], ("o.json",)
    arguments = ["plan", "model.onnx", "-o", "o.json", "--latency", "0.9", "--latency-table", "t.json", "--quiet"]
    return arguments, ("o.json", "o.safetensors")


MAKERS: dict[str, Callable[[Seeds, random.Random, Path], Case]] = {
    "model": _model, "external": _external, "rows": _rows, "text": _text, "image": _image, "plan": _plan,
    "scores": _scores, "recipe": _recipe, "table": _table,
}  # fmt: skip


def made(held: Seeds, seed: int, number: int, folder: Path) -> tuple[str, Case]:
    """A case in a folder; the same for the same seed and number."""
    chance = random.Random(seed * 1_000_003 + number)
    kind = chance.choice(KINDS)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return kind, MAKERS[kind](held, chance, folder)


def commanded(arguments: list[str], folder: Path) -> tuple[int, str]:
    """The command line in this process: its exit code, and what it said."""
    from onnxprune.cli import main

    told = os.open(f"{folder}.said", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
    kept = os.dup(1), os.dup(2)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os.chdir(folder)
    sys.argv = ["onnxprune", *arguments]
    try:
        main()
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1
    except BaseException as error:
        code = 99
        os.write(told, f"{type(error).__name__}: {error}".encode("utf-8", "replace"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for own, place in zip(kept, (1, 2), strict=True):
            os.dup2(own, place)
            os.close(own)
    said = os.pread(told, 100_000, 0).decode("utf-8", "replace")
    os.close(told)
    return code, said


def judged(kind: str, case: Case, folder: Path) -> tuple[int, str]:
    """Run a case; its exit code, and what is wrong with how it went (empty: nothing)."""
    arguments, may = case
    before = _held(folder)
    code, said = commanded(arguments, folder)
    after = _held(folder)
    if any(after.get(name) != digest for name, digest in before.items() if name != "mlp.scores.json"):
        return code, "a file that it reads was changed"
    new = {name.split("/")[0] for name in after.keys() - before.keys()}
    if code not in (0, 2, 3, 4, 5, 6):
        return code, f"exit code {code}: {' '.join(said.split())[-300:]}"
    if code and new - {"model.scores.json", "mlp.scores.json"}:
        return code, f"failed ({code}), and left {sorted(new)}"
    if new - set(may):
        return code, f"wrote {sorted(new - set(may))}"
    if code and (len(said.splitlines()) > LINES or "Traceback" in said):
        return code, f"{len(said.splitlines())} lines: {said[:200]}"
    if code and not said.strip():
        return code, f"ended with {code} and said nothing"
    if kind == "scores" and code:
        return code, f"a cache stopped the run: {said[-200:]}"
    return code, ""


def _held(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


def _batch(held: Seeds, seed: int, numbers: range, folder: Path, out: int) -> None:
    """What a child does: case by case, told to the parent before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process: no code of ours, or below, hears of it
    for number in numbers:
        os.write(out, f"[{number}]\n".encode())
        try:
            kind, case = made(held, seed, number, folder)
        except (ValueError, TypeError, RecursionError) as error:  # no such file can be written
            os.write(out, (json.dumps([number, "unmade", 0, "", [str(error)[:80]]]) + "\n").encode())
            continue
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        code, wrong = judged(kind, case, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(out, (json.dumps([number, kind, code, wrong, case[0]]) + "\n").encode())


def _child(held: Seeds, seed: int, numbers: range, folder: Path) -> tuple[list[Any], int, int]:
    """A batch in a forked child: what it told, the case it died in (-1: none), and how."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        try:
            _batch(held, seed, numbers, folder, theirs)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(98)
    os.close(theirs)
    text, heard = b"", time.monotonic()
    while True:
        ready, _, _ = select.select([ours], [], [], 1)
        if ready:
            piece = os.read(ours, 1 << 16)
            if not piece:
                break
            text, heard = text + piece, time.monotonic()
        elif time.monotonic() - heard > PATIENCE:
            os.kill(child, signal.SIGKILL)
    os.close(ours)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told, running = [], -1
    for line in text.decode().splitlines():
        held_line = json.loads(line)
        if len(held_line) == 1:
            running = held_line[0]
        else:
            told.append(held_line)
            running = -1
    return told, running, status


def main(folder: Path, cases: int, seed: int = 0, first: int = 0) -> dict[str, Any]:
    """Run that many cases, from the first on; what came of them."""
    import torch

    torch.set_num_threads(1)
    folder = folder.resolve()
    shutil.rmtree(folder / "work", ignore_errors=True)
    (folder / "work").mkdir(parents=True)
    held = seeds(folder / "work" / "seeds")
    ends: Counter[str] = Counter()
    failures: dict[str, list[Any]] = {}
    began, number = time.monotonic(), first
    cases += first
    while number < cases:
        told, running, status = _child(held, seed, range(number, min(number + BATCH, cases)), folder / "work" / "case")
        number = min(number + BATCH, cases)
        if running >= 0:
            died = {-signal.SIGPROF: f"more than {CPU_SECONDS} s of processor time", -signal.SIGKILL: "stuck"}
            told.append([running, "died", status, died.get(status, f"died with {status}"), []])
            number = running + 1
        for case, kind, code, wrong, arguments in told:
            ends[f"{kind} {code}"] += 1
            if wrong:
                key = f"{kind}: " + re.sub(r"[0-9]+|'[^']*'|[a-z_]*\.onnx[^:]*", "#", wrong)[:120]
                failures.setdefault(key, [0, wrong, [seed, case], arguments])[0] += 1
                if failures[key][0] == 1:
                    made(held, seed, case, folder / f"seen-{seed}-{case}")
        state: dict[str, Any] = {"cases": number - first, "seconds": round(time.monotonic() - began)}
        state |= {"ends": dict(sorted(ends.items()))}
        state |= {"failures": failures}
        (folder / f"state-{seed}-{first}.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    return state


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:])), indent=1))
