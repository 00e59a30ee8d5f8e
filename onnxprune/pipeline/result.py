"""What a run gives: the graph, its plan, its report, and the files that were written."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxprune.graph import model as models
from onnxprune.graph.companions import add_companions
from onnxprune.graph.joined.folder import Scratch
from onnxprune.graph.model import Model
from onnxprune.graph.plan import Plan
from onnxprune.pipeline import output_files, written
from onnxprune.report import Report, html, text
from onnxprune.report.summary import summary


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        model: the pruned graph.
        plan: what was cut, with refit weights.
        report: everything measured.
        files: what was written; empty until `save`, if `prune` was not given an output.
        dense: what was pruned.
        scratch: what holds the file of a model that was handed over in memory.
    """

    model: ir.Model
    plan: Plan
    report: Report
    files: tuple[Path, ...] = ()
    dense: Model | None = None
    scratch: Scratch | None = None

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
        target, sources = Path(path), self.report.recipe.get("sources", {})
        if target.suffix != ".onnx" and not target.is_file() and (self.dense is None or not self.dense.parts):
            return self._saved_whole(target, force)
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

    def _saved_whole(self, folder: Path, force: bool) -> list[Path]:
        source = Path(self.report.model.path)
        stem = f"{source.stem}.pruned"
        sources = self.report.recipe.get("sources", {})
        read = [sources.get(name) for name in ("calibration", "evaluation")]
        inputs = output_files.inputs_of(source, *read, tokenizer=sources.get("tokenizer"))
        with output_files.opened(folder / f"{stem}.onnx", source, inputs, force=force) as out:
            models.save(self.model, out.folder / out.first)
            self.plan.save(out.folder / f"{stem}.plan.json")
            add_companions(source.parent, out)
            model = replace(self.report.model, pruned_path=str(out.target.absolute()))
            report = replace(self.report, model=model, files={})
            (out.folder / f"{stem}.report.html").write_text(html.render(report), encoding="utf-8")
            replace(report, files=output_files.digests(out.folder)).save(out.folder / f"{stem}.report.json")
            return out.commit()
