"""What a run gives: the graph, its plan, its report, and the files that were written."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from onnxprune.graph import model as models
from onnxprune.graph.companions import add_companions
from onnxprune.graph.model import Model
from onnxprune.graph.outputs import Lasting, OutputSet
from onnxprune.graph.plan import Plan
from onnxprune.pipeline import output_files, written
from onnxprune.report import Report, html, text
from onnxprune.report.summary import summary


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        graph: the pruned graph; None where it is in a file alone (of a sweep, or by a worker), which `model` reads.
        plan: what was cut, with refit weights.
        report: everything measured.
        files: what was written; empty until `save`, if `prune` was not given an output.
        dense: what was pruned.
        scratch: what holds the file of a model that was handed over in memory.
    """

    graph: ir.Model | None
    plan: Plan
    report: Report
    files: tuple[Path, ...] = ()
    dense: Model | None = None
    scratch: Lasting | None = None

    @cached_property
    def model(self) -> ir.Model:
        """The pruned graph."""
        return models.read(self.files[0]) if self.graph is None else self.graph

    def __repr__(self) -> str:
        return f"<onnxprune.Result of {text.name(self.report)}: {text.sentence(self.report)}>"

    def _repr_html_(self) -> str:
        return summary(self.report)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Write the model (weights beside it where they do not fit in one file; several graphs into a folder).

        A path that does not end in `.onnx` is a folder, and gets the whole set: NAME.pruned.onnx, its plan, its
        reports, and the tokenizer and configuration of the model.

        With `force`, an older model of that name goes with its plan and its report, which are not this one's.

        Raises:
            UsageError: there is one and `force` is off, or the name is that of something the run read.
        """
        target, source = Path(path), Path(self.report.model.path)
        several = self.dense is not None and self.dense.several
        whole = target.suffix != ".onnx" and not target.is_file() and not several
        if whole:
            target = target / f"{source.stem}.pruned.onnx"
        told = self.report.recipe.get("sources", {})
        read = [told.get(name) for name in ("calibration", "evaluation")]
        inputs = output_files.inputs_of(source, *read, tokenizer=told.get("tokenizer"))
        with output_files.opened(target, source, inputs, force=force) as out:
            if self.dense is None:
                models.save(self.model, out.folder / out.first)
            else:
                made = written.write(self.dense, self.model, out.folder, out.first)
                written.listed(out, self.dense, {}, made.files)
            if several:
                add_companions(source, out)
            if whole:
                add_companions(source.parent, out)
                self._tell(out)
            return out.commit()

    def _tell(self, out: OutputSet) -> None:
        """Put the plan and the reports beside the model."""
        self.plan.save(out.folder / written.name_of(out, "plan.json"))
        report = replace(
            self.report, model=replace(self.report.model, pruned_path=str(out.target.absolute())), files={}
        )
        (out.folder / written.name_of(out, "report.html")).write_text(html.render(report), encoding="utf-8")
        report = replace(report, files=output_files.digests(out.folder))
        report.save(out.folder / written.name_of(out, "report.json"))
