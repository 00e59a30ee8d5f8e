"""What can be pruned: family x exporter x attention, as a table, with the equivalence error of random cuts.

python tests/support.py -o tests/golden/support.md [FAMILY ...]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import zoo
from plans import Subject, distance, in_runtime, random_plan
from zoo import ZooModel

from onnxprune.cost import Costs, default_bindings
from onnxprune.errors import OnnxPruneError
from onnxprune.plan import Plan, Structure

ORDER = ("heads", "query_heads", "head_dims", "neurons", "channels")
COLUMNS = ("family", "exporter", "attention", "units", "branches", "free FLOPs", "pinned by", "cut = gated")
SIZES = {"sequence_length": 128, "decoder_sequence_length": 32}
INTRODUCTION = """# Support

Tiny models with random weights, exported as users export them. *Free FLOPs*: the share that goes when every unit
but one of each group is cut; whole branches may go beside. *Pinned by*: the most frequent reasons among weight
dimensions that stay. *Cut = gated*: the largest difference between the written graph in ONNX Runtime and the gated
original in the interpreter over random plans (units of every kind, branches, new weights and intercepts), relative to
the outputs' scale. Made by `python tests/support.py -o tests/golden/support.md`.

"""


def row(model: ZooModel, plans: int) -> list[str]:
    """One line of the table."""
    subject = Subject.load(model.path)
    groups, branches = subject.structure.groups, subject.structure.branches
    kinds: dict[str, Counter[int]] = {}
    for group in groups:
        kinds.setdefault(group.kind, Counter())[group.size] += 1
    units = ", ".join(f"{k} {_counts(kinds[k])}" for k in ORDER if k in kinds)
    sides = Counter(b.kind for b in branches)
    return [
        model.family,
        model.exporter,
        model.attention,
        units or "none",
        ", ".join(f"{count} {kind}" for kind, count in sides.items()) or "none",
        f"{free_share(subject):.0%}",
        "; ".join(reasons(subject.structure)),
        f"{worst(subject, model, plans):.0e}",
    ]


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


def worst(subject: Subject, model: ZooModel, plans: int) -> float:
    """Law 1 and the dense interpreter against ONNX Runtime, over several plans."""
    feeds = model.feeds
    found = distance(subject.dense(feeds), in_runtime(model.path, feeds))
    for seed in range(plans):
        rng = np.random.default_rng(seed)
        plan = subject.complete(random_plan(subject, rng), feeds)
        found = max(found, distance(subject.written(plan, feeds), subject.gated(plan, feeds)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("families", nargs="*", default=list(zoo.FAMILIES), metavar="FAMILY")
    parser.add_argument("-o", "--output", type=Path, help="file to write; default: the terminal only")
    parser.add_argument("--plans", type=int, default=6, help="random plans per export")
    parser.add_argument("--cache", type=Path, help="folder of exports")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    lines = [COLUMNS, tuple("---" for _ in COLUMNS)]
    for variant in zoo.variants(tuple(asked.families)):
        try:
            made = row(zoo.build(*variant, cache=asked.cache), asked.plans)
        except (OnnxPruneError, AssertionError) as error:
            made = [*variant, "", "", "", str(error).splitlines()[0], "fails"]
        lines.append(tuple(made))
        print(" | ".join(made), flush=True)
    if asked.output is not None:
        table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
        asked.output.write_text(INTRODUCTION + table, encoding="utf-8")


if __name__ == "__main__":
    main()
