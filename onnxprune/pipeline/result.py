"""What a run gives: the graph, its plan, its report, and the files that were written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxprune.graph import model as models
from onnxprune.graph.companions import add_companions
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan
from onnxprune.pipeline import output_files, written
from onnxprune.report import Report


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        model: the pruned graph.
        plan: what was cut, with refit weights.
        report: everything measured.
        files: what was written; empty until `save`, if `prune` was not given an output.
        dense: what was pruned.
    """

    model: ir.Model
    plan: Plan
    report: Report
    files: tuple[Path, ...] = ()
    dense: Model | None = None

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Write the model (weights beside it where they do not fit in one file; several graphs into a folder).

        With `force`, an older model of that name goes with its plan and its report, which are not this one's.

        Raises:
            UsageError: there is one and `force` is off, or the name is that of something the run read.
        """
        target, sources = Path(path), self.report.recipe.get("sources", {})
        read = [sources.get(name) for name in ("calibration", "evaluation")]
        inputs = output_files.inputs_of(Path(self.report.model.path), *read, tokenizer=sources.get("tokenizer"))
        with output_files.opened(target, Path(self.report.model.path), inputs, force=force) as out:
            if self.dense is None or not self.dense.parts:
                models.save(self.model, out.folder / target.name)
            else:
                made = written.write(self.dense, self.model, out.folder, target.name)
                add_companions(out=out, source=Path(self.report.model.path))
                written.listed(out, self.dense, {}, made.files)
            return out.commit()
