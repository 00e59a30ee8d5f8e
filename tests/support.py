"""What can be pruned: family x exporter x attention, as a table, with the equivalence error of random cuts.

python tests/support.py -o tests/golden/support.md [FAMILY ...]
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import zoo
import zoo_forms
from plans import Subject, distance, in_runtime, random_plan
from zoo import Plant, ZooModel
from zoo_families import BROKEN

from onnxprune.graph.plan import Plan, Structure
from onnxprune.graph.structure.reading_matrices import matrices
from onnxprune.measure.cost import Costs, default_bindings

Make = Callable[[], ZooModel]
KINDS = ("heads", "query_heads", "neurons", "channels")
ORDER = ("heads", "query_heads", "head_dims", "neurons", "channels")
COLUMNS = (
    "family",
    "exporter",
    "attention",
    "units",
    "branches",
    "free FLOPs",
    "pinned by",
    "cut = gated",
    "dead found",
)
SIZES = {"sequence_length": 128, "decoder_sequence_length": 32}
INTRODUCTION = """# Support

Tiny models with random weights, exported as users export them. *Free FLOPs*: the share that goes when every unit
but one of each group is cut; whole branches may go beside. *Pinned by*: the most frequent reasons among weight
dimensions that stay. *Cut = gated*: the largest difference between the written graph in ONNX Runtime and the gated
original in the interpreter over random plans (units of every kind, branches, new weights and intercepts), relative to
the outputs' scale. *Dead found*: heads and neurons that were zeroed in the torch module before export and that the
analysis finds as units nobody reads, of those planted; with them gone the outputs differ by the number behind.
What optimum exports by task has nothing planted in it. Made by
`python tests/support.py --keep -o tests/golden/support.md`.

"""
FORMED: tuple[tuple[str, zoo.Exporter, zoo.Attention], ...] = (
    ("bert", "torchscript", "eager"),
    ("bert", "dynamo", "sdpa"),
    ("vit", "dynamo", "sdpa"),
    ("gpt2", "torchscript", "sdpa"),
    ("resnet", "torchscript", "eager"),
)
"""What every form of `zoo_forms` is made of."""
PLANT = Plant(heads=0.5, neurons=0.5)


def row(model: ZooModel, plans: int, planted: ZooModel | None = None) -> list[str]:
    """One line of the table; `planted` is the same export with dead units in it."""
    subject = Subject.load(model.path)
    return [
        model.family,
        model.exporter,
        model.attention,
        *summary(subject),
        f"{free_share(subject):.0%}",
        "; ".join(reasons(subject.structure)),
        f"{worst(subject, model, plans):.0e}",
        "" if planted is None else dead_found(planted),
    ]


def summary(subject: Subject) -> tuple[str, str]:
    """The units and the branches that were found."""
    kinds: dict[str, Counter[int]] = {}
    for group in subject.structure.groups:
        kinds.setdefault(group.kind, Counter())[group.size] += 1
    units = ", ".join(f"{k} {_counts(kinds[k])}" for k in ORDER if k in kinds)
    sides = Counter(b.kind for b in subject.structure.branches)
    return units or "none", ", ".join(f"{count} {kind}" for kind, count in sides.items()) or "none"


def _counts(sizes: Counter[int]) -> str:
    return " + ".join(f"{count}×{size}" for size, count in sizes.items())


def free_share(subject: Subject) -> float:
    """The share of the multiply-accumulates that can go."""
    model, structure = subject.model, subject.structure
    bindings = default_bindings(model, {})
    for spec in model.inputs:
        for dim in spec.shape:
            if isinstance(dim, str):
                bindings.setdefault(dim, SIZES.get(dim, 64))
    costs = Costs(model, structure, bindings)
    one = {g.id: tuple(range(0, g.size, g.shape[-1])) for g in structure.groups}
    least = Plan(structure.digest, one)
    return 1 - costs.macs(least) / costs.macs()


def reasons(structure: Structure, most: int = 3) -> list[str]:
    """The commonest pins, inputs and outputs of the graph apart."""
    found: Counter[str] = Counter()
    for pin in structure.pins:
        for why in pin.reasons:
            if "of the graph" not in why:
                found[why] += pin.count
    return [why for why, _ in found.most_common(most)]


def dead_found(planted: ZooModel) -> str:
    """Law 2: the planted units among those found, and what the outputs move by when exactly the dead ones go."""
    subject, feeds = Subject.load(planted.path), fed(planted)
    keep: dict[str, tuple[int, ...]] = {}
    found: Counter[str] = Counter()
    for group in subject.structure.groups:
        read = matrices(subject.model.graph, subject.structure, group) if group.kind in KINDS else None
        if read is None:
            continue
        alive = np.zeros(group.size, dtype=bool)
        for matrix in read:
            weight = subject.interpreter.weight(matrix.reader.weight or "").float().numpy()
            reading = np.abs(matrix.weight(weight)).sum(axis=1) > 0
            alive[matrix.units[reading & (matrix.units >= 0)]] = True
        if 0 < alive.sum() < group.size and len(np.unique(alive.reshape(group.shape).sum(-1))) == 1:
            keep[group.id] = tuple(np.flatnonzero(alive).tolist())
            found["heads" if "heads" in group.kind else "neurons"] += int((~alive).sum())
    moved = distance(subject.written(Plan(subject.structure.digest, keep), feeds), in_runtime(planted.path, feeds))
    wanted = {
        kind: sum(map(len, units.values()))
        for kind, units in (("heads", planted.planted.heads), ("neurons", planted.planted.neurons))
    }
    return ", ".join(f"{found[k]} of {n} {k}" for k, n in wanted.items() if n) + f", {moved:.0e}"


def fed(model: ZooModel) -> zoo.Feeds:
    """The example, in the element types that the graph wants (a form may have narrowed them)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    kinds = {v.name: np.float16 if v.type == "tensor(float16)" else None for v in session.get_inputs()}
    return {name: a if kinds.get(name) is None else a.astype(kinds[name]) for name, a in model.feeds.items()}


def worst(subject: Subject, model: ZooModel, plans: int) -> float:
    """Law 1 and the dense interpreter against ONNX Runtime, over several plans."""
    feeds = fed(model)
    found = distance(subject.dense(feeds), in_runtime(model.path, feeds))
    for seed in range(plans):
        rng = np.random.default_rng(seed)
        plan = subject.complete(random_plan(subject, rng), feeds)
        found = max(found, distance(subject.written(plan, feeds), subject.gated(plan, feeds)))
    return found


def form_rows(plans: int, folder: Path, cache: Path | None) -> Iterator[list[str]]:
    """The forms of `zoo_forms`, the opsets, and optimum's tasks."""
    for variant in FORMED:
        plain = zoo.build(*variant, cache=cache)
        dead = zoo.build(*variant, cache=cache, plant=PLANT)
        for form in zoo_forms.available():
            yield _line((*variant, form), plans, *(partial(_formed, form, m, folder) for m in (plain, dead)))
    every: tuple[tuple[zoo.Exporter, range], ...] = (("torchscript", range(13, 21)), ("dynamo", range(18, 24)))
    for exporter, opsets in every:
        for opset in opsets:
            yield _line(
                ("bert", exporter, "sdpa", f"opset {opset}"),
                plans,
                partial(zoo.build, "bert", exporter, "sdpa", opset, cache=cache),
                partial(zoo.build, "bert", exporter, "sdpa", opset, PLANT, cache=cache),
            )
    for family in ("llama", "vit", "rms-sdpa"):
        yield _line(
            (family, "dynamo", "sdpa", "opset 23"),
            plans,
            partial(zoo.build, family, "dynamo", "sdpa", 23, cache=cache),
            partial(zoo.build, family, "dynamo", "sdpa", 23, PLANT, cache=cache),
        )
    for family, tasks in zoo_forms.TASKS.items():
        for task in tasks:
            yield from _task_rows(family, task, plans, folder)


def _line(names: tuple[str, ...], plans: int, make: Make, make_planted: Make) -> list[str]:
    family, exporter, attention, form = names
    try:
        models = make(), make_planted()
    except Exception as error:  # other people's tools raise their own; the table says what they said
        return [*names, "", "", "", _said(error), "not made", ""]
    try:
        made = row(models[0], plans, models[1])
    except Exception as error:
        return [*names, "", "", "", _said(error), "fails", ""]
    return [family, exporter, attention, form, *made[3:]]


def _formed(form: str, model: ZooModel, folder: Path) -> ZooModel:
    target = folder / f"{model.path.parent.name}-{form.replace(' ', '-').replace(',', '')}.onnx"
    zoo_forms.make(form, model, target)
    return replace(model, path=target)


def _task_rows(family: str, task: str, plans: int, folder: Path) -> Iterator[list[str]]:
    """optimum's graphs of a task; what they compute is checked on feeds made from their inputs' own shapes."""
    target = folder / f"{family}-{task}"
    try:
        files = zoo_forms.export_task(family, task, target)
    except Exception as error:
        yield [family, "optimum", "", task, "", "", "", _said(error), "not exported", ""]
        return
    for file in files:
        name = task if len(files) == 1 else f"{task}: {file.name}"
        try:
            subject = Subject.load(file)
            feeds = zoo_forms.feeds_of(file, zoo.FAMILIES[family].example)
            found = distance(subject.dense(feeds), in_runtime(file, feeds))
            for seed in range(plans):
                plan = subject.complete(random_plan(subject, np.random.default_rng(seed)), feeds)
                found = max(found, distance(subject.written(plan, feeds), subject.gated(plan, feeds)))
        except Exception as error:
            yield [family, "optimum", "sdpa", name, "", "", "", _said(error), "fails", ""]
            continue
        units, branches = summary(subject)
        why = "; ".join(reasons(subject.structure))
        yield [family, "optimum", "sdpa", name, units, branches, f"{free_share(subject):.0%}", why, f"{found:.0e}", ""]


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Where a file lay says nothing, and changes from run to run.
    first = re.sub(r"(/[\w.-]+)+/", "", lines[0]) if lines else ""
    return f"{type(error).__name__}: {first}"[:160].replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("families", nargs="*", default=list(zoo.FAMILIES), metavar="FAMILY")
    parser.add_argument("-o", "--output", type=Path, help="file to write; default: the terminal only")
    parser.add_argument("--plans", type=int, default=4, help="random plans per export")
    parser.add_argument("--cache", type=Path, help="folder of exports")
    parser.add_argument("--forms", action="store_true", help="the second table alone")
    parser.add_argument("--keep", action="store_true", help="rows of the output file that are not made anew stay in it")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    tables = Tables(asked.output, keep=asked.keep)
    if not asked.forms:
        for variant in zoo.variants(tuple(asked.families)):
            made = _line(
                (*variant, ""),
                asked.plans,
                partial(zoo.build, *variant, cache=asked.cache),
                partial(zoo.build, *variant, cache=asked.cache, plant=PLANT),
            )
            tables.add(0, (*made[:3], *made[4:]))
        for variant, words in BROKEN.items():
            if variant[0] in asked.families:
                tables.add(0, (*variant, "", "", "", words, "not exported", ""))
    if asked.forms or asked.families == list(zoo.FAMILIES):
        with tempfile.TemporaryDirectory() as folder:
            for made in form_rows(asked.plans, Path(folder), asked.cache):
                tables.add(1, made)


class Tables:
    """The two tables, written again after every row, so that what was made is there whatever happens."""

    heads = (COLUMNS, (*COLUMNS[:3], "form", *COLUMNS[3:]))

    def __init__(self, path: Path | None, *, keep: bool) -> None:
        self.path = path
        self.rows: tuple[dict[tuple[str, ...], Sequence[str]], ...] = ({}, {})
        for line in path.read_text(encoding="utf-8").splitlines() if path and keep and path.exists() else ():
            cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")]
            which = int(len(cells) == len(self.heads[1]))
            if len(cells) == len(self.heads[which]) and cells[0] not in ("---", COLUMNS[0]):
                self._put(which, cells)

    def add(self, which: int, cells: Sequence[str]) -> None:
        """Put a row in the place of the one of the same export, or at the end."""
        print(" | ".join(cells), flush=True)
        self._put(which, cells)
        if self.path is not None:
            self.path.write_text(INTRODUCTION + "\n".join(map(self._table, (0, 1))), encoding="utf-8")

    def _put(self, which: int, cells: Sequence[str]) -> None:
        self.rows[which][tuple(cells[: 3 + which])] = cells

    def _table(self, which: int) -> str:
        rows, head = self.rows[which].values(), self.heads[which]
        lines = (head, ["---"] * len(head), *rows) if rows else ()
        return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


if __name__ == "__main__":
    main()
