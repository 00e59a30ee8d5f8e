"""A result in a notebook."""

from __future__ import annotations

from onnxprune.report import text
from onnxprune.report.markup import Child, table, tag
from onnxprune.report.schema import Report


def summary(report: Report) -> str:
    """The verdict and the costs, as a piece of HTML for notebooks."""
    rows: list[list[Child]] = [
        [name, text.si(change.dense, unit), text.si(change.pruned, unit), text.percent(change.ratio)]
        for name, change, unit in (
            ("FLOPs", report.flops, "FLOP"), ("Parameters", report.params, ""), ("File size", report.size_bytes, "B"),
        )
    ]  # fmt: skip
    broken = [tag("p", tag("b", f"Broken: {line}")) for line in report.broken]
    said = ". ".join(filter(None, (text.sentence(report), text.in_fewer_bits(report))))
    verdict = tag("p", tag("b", text.name(report)), f": {said}.")
    return tag("div", *broken, verdict, table(["", "dense", "pruned", "kept"], rows, ["", "n", "n", "n"]))
