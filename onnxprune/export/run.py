"""The export itself: prepare the model, let the target build, check every file, measure, and write what goes beside."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from onnxprune import data
from onnxprune.data import Dataset
from onnxprune.documents import read_object
from onnxprune.errors import CheckError, DataError, OnnxPruneError, UsageError, reading
from onnxprune.export import bundle, samples, several, shipped_files, usability, vocabulary
from onnxprune.export.base import Artefact, Asked, Exported, Target, Workshop, scheme_for
from onnxprune.export.precision import SCHEMES, measure_steps
from onnxprune.export.preprocessing import preprocessing
from onnxprune.export.targets.registry import TARGETS
from onnxprune.graph import joined, model_files, outputs, runtime
from onnxprune.graph import model as models
from onnxprune.graph.companions import beside, copy_companions
from onnxprune.graph.example_feeds import require_dimensions
from onnxprune.graph.model import InputSpec, Model
from onnxprune.graph.outputs import Inputs
from onnxprune.measure import latency
from onnxprune.measure.equivalence import Equivalence, max_distance
from onnxprune.measure.validation import Teacher, aligned_outputs, compare
from onnxprune.rewrite.cleanup import sweep

logger = logging.getLogger(__name__)

ROWS = 128
"""Calibration rows that ranges and shapes are taken from."""
_SAME = 1e-3
"""How far a file in single precision may be from the model it was made of, relative to its outputs' scale."""


def export(
    source: str | os.PathLike[str],
    target: str,
    folder: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    calibration: Any = None,
    evaluation: Any = None,
    dense: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    shape: Mapping[str, int] | None = None,
    bench: bool = False,
    web_runtime: str | os.PathLike[str] | None = None,
    metric: str | Sequence[str] | None = None,
    force: bool = False,
    reads: Sequence[str | os.PathLike[str]] = (),
    **reading: Any,
) -> Exported:
    """Make a folder that ships a model to a target.

    Args:
        source: a `.onnx` file, or an optimum folder, of several graphs, too.
        target: a key of TARGETS.
        folder: to make; everything appears in it at once, when all checks have passed.
        quantize: a scheme of `precision.SCHEMES`, or `int8` for the target's own.
        calibration: rows for ranges, shapes and samples (`data.read` says in which forms).
        evaluation: rows to measure each step and each file on, against the dense original.
        dense: the model that was pruned; without it, what the report beside the source names, if it is there.
        vocab: a text file; tokens that its lines do not use leave the embedding table and the tokenizer.
        shape: sizes for dimensions that the target fixes.
        bench: for Android: add the device kit.
        web_runtime: for the web: a folder with onnxruntime-web's files.
        metric: of the task; guessed.
        force: replace what an earlier export wrote in the folder, if nobody changed it; other files stay.
        reads: further files that must stay as they are (a recipe).
        reading: columns, pairs, tokenizer, max_length of `data.read`.

    Raises:
        UsageError: an unknown target or scheme, a folder that exists or is not from an export, options that miss rows.
        CheckError: a file does not compute what the model computes; nothing is written then.
    """
    started = time.perf_counter()
    place, file = Path(folder), joined.find(source)
    chosen, original = _target(target), _dense(file, dense)
    if file.is_dir():
        several.refuse({"--vocab": vocab is not None, "--bench": bench})
    inputs = _inputs(file, original, calibration, evaluation, vocab, web_runtime, reading.get("tokenizer"), *reads)
    with outputs.folder(place, inputs=inputs, force=force) as out:
        with outputs.scratch() as scratch:
            asked = Asked(quantize, dict(shape or {}), bench, None if web_runtime is None else Path(web_runtime))
            job = _Job(chosen, file, out.folder, scratch, asked, calibration, evaluation, reading)
            made = job.run(original, vocab, metric)
        made = replace(made, folder=out.folder, seconds=time.perf_counter() - started)
        bundle.write_report(made)
        bundle.write_manifest(made)
        out.commit()
    return replace(made, folder=place)


def _inputs(file: Path, dense: Path | None, *others: Any) -> Inputs:
    """What an export reads: the models with their weights and companions, the report, and what else is named."""
    own = [file, *([dense] if dense is not None else [])]
    graphs = [g for f in own for g in (sorted(f.glob("*.onnx")) if f.is_dir() else [f])]
    return Inputs.of([models.files_of(g) for g in graphs], [beside(f) for f in own], map(_report, own), *others)


def _report(source: Path) -> Path:
    """Where the report of what was pruned lies."""
    return source / "report.json" if source.is_dir() else source.with_name(f"{source.stem}.report.json")


def _target(name: str) -> Target:
    if name not in TARGETS:
        raise UsageError(f"--target {name}: choose from {', '.join(TARGETS)}")
    return TARGETS[name]


def _dense(source: Path, named: str | os.PathLike[str] | None) -> Path | None:
    """The dense original: as named, or as the report beside the pruned model names it."""
    if named is not None:
        return joined.find(named)
    report = _report(source)
    try:
        held = read_object(report, "a report")
        told, files = held["model"], held.get("files", {})
        if source.name in files and source.is_file() and files[source.name] != outputs.digest(source):
            logger.warning("%s: is of another model than %s, and is not gone by", report, source)
            return None
        found = Path(told["path"])
        if found.is_file() and models.digest_of(found) == told["sha256"]:
            return found
        if found.is_dir() and joined.is_job(found) and joined.load(found).digest == told["sha256"]:
            return found
    except (OSError, ValueError, LookupError, TypeError, OnnxPruneError):
        return None
    return None


class _Job:
    """One export, from the model to the folder's contents."""

    def __init__(
        self, target: Target, source: Path, folder: Path, scratch: Path, asked: Asked, calibration: Any,
        evaluation: Any, reading: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.target, self.source, self.folder, self.scratch, self.asked = target, source, folder, scratch, asked
        self.calibration, self.evaluation, self.reading = calibration, evaluation, dict(reading)

    def run(self, dense: Path | None, vocab: Any, metric: Any) -> Exported:
        model = joined.load(self.source) if self.source.is_dir() else models.load(self.source)
        assert model.folder is not None
        companions, trimmed = model.folder, None
        if vocab is not None:
            companions = self.scratch / "companions"
            companions.mkdir()
            with reading(f"{self.source.parent}: its tokenizer cannot be trimmed", DataError):
                model, trimmed = vocabulary.trim(model, self.source.parent, Path(vocab), companions)
        file = self.source
        if trimmed is not None:
            file = models.save(sweep(model.clone().normal), companions / "model.onnx")[0]
        shops = self._shops(model, companions, dense) or [self._shop(model, file, companions, dense)]
        copy_companions(companions, self.folder)
        made = [self._checked(shop, self.target.build(shop)) for shop in shops]
        artefacts = [artefact for one in made for artefact in one[0]]
        fields = [] if model.parts else samples.fields_of(
            self._rows_source, model.inputs, companions, self.reading.get("columns")
        )  # fmt: skip
        samples.write(self.folder, artefacts, {name: rows for one in made for name, rows in one[1].items()}, fields)
        shop = shops[0]
        if model.parts:
            artefacts, measured = self._measured_together(model, shops, artefacts, metric)
        else:
            artefacts, measured = self._measured(shop, artefacts, metric)
        first = self.folder / artefacts[0].file
        told = preprocessing(latency.graph_inputs(first), latency.graph_outputs(first), self.folder)
        if told["kind"] == "text":
            told["padded_to"] = {a.file: _length(self.folder / a.file) for a in artefacts}
        if model.parts:
            told["graphs"] = several.wiring(model)
        (self.folder / "preprocess.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        bundle.write_readme(self.target, shop, artefacts, told.get("graphs", {}))
        return Exported(
            target=self.target.name,
            folder=self.folder,
            artefacts=tuple(artefacts),
            usability=tuple(shop.usability),
            advice=tuple(usability.advice(shop.usability)),
            steps=tuple(measured),
            vocabulary=trimmed,
            source_bytes=_size(self.source),
            dense_bytes=_size(dense) if dense is not None else 0,
            said=tuple(shop.said),
            graphs=tuple(one[0][0].file for one in made),
        )

    def _shop(self, model: Model, file: Path, companions: Path, dense: Path | None) -> Workshop:
        common = {"folder": companions, "outputs": model.outputs, **self.reading}
        if self._rows_source is None and not model.parts:
            common["sizes"] = samples.sizes_of(model, companions, self.asked.shape)

        def compared(inputs: Sequence[InputSpec]) -> Dataset:
            return samples.rows_for(self._rows_source, inputs, **common)

        return Workshop(
            model, file, companions, self.folder, self.scratch, self.asked, self._reader(model, companions), compared,
            dense,
        )  # fmt: skip

    def _shops(self, model: Model, companions: Path, dense: Path | None) -> list[Workshop]:
        """A workshop for each of several graphs; what is said and surveyed goes into common lists."""
        if model.parts:
            specs = [*model.inputs, *(spec for part in model.parts for spec in part.model.inputs)]
            require_dimensions(specs, self.asked.shape, "the graphs'")

        @cache
        def known(calibration: bool) -> Dataset | None:
            source = self.calibration if calibration else self._rows_source
            return None if source is None else several.rows(model, source, ROWS, **self.reading)

        shops: list[Workshop] = []
        for part in model.parts:
            scratch = self.scratch / part.file.stem
            scratch.mkdir()
            asked = replace(self.asked, shape=several.sizes(model, part, self.asked.shape))
            first = shops[0] if shops else None
            shops.append(Workshop(
                part.model, part.file, companions, self.folder, scratch, asked,
                several.reader(model, part, partial(known, calibration=True)),
                several.compared(model, part, partial(known, calibration=False)), dense, part,
                *((first.usability, first.said, first.stored) if first else ()),
            ))  # fmt: skip
            if part.merged is not None:
                shops[0].said.append(f"{part.file.stem}: is a file of its own here; it is from {part.merged.name}")
        return shops

    @property
    def _rows_source(self) -> Any:
        """Where the rows come from that files are compared on."""
        return self.calibration if self.calibration is not None else self.evaluation

    def _reader(self, model: Model, companions: Path) -> Any:
        @cache
        def read(inputs: tuple[InputSpec, ...]) -> Dataset | None:
            if self.calibration is None:
                return None
            return data.read(
                self.calibration, inputs, outputs=model.outputs, folder=companions, limit=ROWS, **self.reading
            )

        return read

    def _checked(self, shop: Workshop, artefacts: Sequence[Artefact]) -> tuple[list[Artefact], dict[str, Dataset]]:
        """(every file, compared with the model it was made of; file -> the rows that it was compared on)."""
        base = shop.compared(shop.model.inputs)
        teacher = Teacher(shop.file, base)
        checked, rows = [], {}
        for artefact in artefacts:
            file = self.folder / artefact.file
            inputs = latency.graph_inputs(file)
            own = shop.compared(inputs)
            rows[artefact.file] = own
            # Values that were made up, and what one of several graphs takes, are of one shape: both run on these.
            padded = shop.part is None and self._rows_source is not None
            agreement = _agreement(teacher if padded else Teacher(shop.file, own), file, own)
            self._judge(shop, artefact, agreement)
            checked.append(replace(artefact, agreement=agreement, bytes=model_files.size(file)))
        return checked, rows

    def _judge(self, shop: Workshop, artefact: Artefact, found: Equivalence) -> None:
        if artefact.scheme:
            usual = SCHEMES[artefact.scheme].tolerance
            if found.max_rel > usual:
                shop.say(
                    f"{artefact.file}: outputs moved by {found.max_rel:.1%} of their scale on the samples, more than "
                    f"{artefact.scheme} usually does ({usual:.1%}): measure it with --eval"
                )
        elif not found.max_rel <= _SAME:
            raise CheckError(
                f"{artefact.file} differs from the model by {found.max_rel:.2e} of its outputs' scale "
                f"({_SAME:.0e} is allowed): nothing was written; please report the model"
            )

    def _measured(self, shop: Workshop, artefacts: Sequence[Artefact], metric: Any) -> tuple[list[Artefact], list[Any]]:
        """Each file, and each step, on the evaluation rows against the dense original."""
        if self.evaluation is None:
            return list(artefacts), []
        against = shop.dense or self.source
        original = models.load(against)
        rows = data.read(
            self.evaluation, original.inputs, outputs=original.outputs, folder=original.folder, **self.reading
        )
        teacher = Teacher(against, rows)
        measured = []
        for artefact in artefacts:
            file = self.folder / artefact.file
            own = shipped_files.own_rows(
                file, original.inputs, original.folder, self.evaluation, len(rows), outputs=original.outputs,
                **self.reading,
            )  # fmt: skip
            measured.append(replace(artefact, evidence=compare(teacher, file, metric=metric, rows=own)))
        scheme = scheme_for(self.target, shop)
        if not scheme or shop.dense is None:
            return measured, []
        # The dense model's own tokenizer: the shop's may be a trimmed one.
        calibrate = self._reader(original, against.parent)(original.inputs)
        feeds = [] if calibrate is None else [example.feeds for example in calibrate.examples]
        found = measure_steps(teacher, shop.dense, self.source, scheme, feeds, self.scratch, metric=metric)
        return measured, found

    def _measured_together(
        self, model: Model, shops: Sequence[Workshop], artefacts: Sequence[Artefact], metric: Any
    ) -> tuple[list[Artefact], list[Any]]:
        """All files as the graph that they are together, and each step, against the dense original."""
        if self.evaluation is None:
            return list(artefacts), []
        file = several.together(model, shops, artefacts, self.scratch)
        if file is None:
            shops[0].said.append(
                "--eval: several files in ORT format, or of fixed shapes, cannot be run as one: each was compared with "
                "its graph on samples; `onnxprune export … --target server` with the same --quantize measures them"
            )
            return list(artefacts), []
        original = model if shops[0].dense is None else joined.load(shops[0].dense)
        assert original.path is not None and model.path is not None
        teacher = Teacher(original.path, several.rows(original, self.evaluation, None, **self.reading))
        evidence = compare(teacher, file, metric=metric)
        measured = [replace(artefact, evidence=evidence) for artefact in artefacts]
        scheme = scheme_for(self.target, shops[0])
        if not scheme or SCHEMES[scheme].rows or shops[0].dense is None:
            return measured, []
        return measured, measure_steps(teacher, original.path, model.path, scheme, (), self.scratch, metric=metric)


def _size(source: Path) -> int:
    """Bytes of a model, of all its graphs."""
    files = joined.load(source).files if source.is_dir() else (source,)
    return sum(map(model_files.size, files))


def _length(file: Path) -> int | None:
    """The tokens that a file takes, where it fixes them."""
    ids = next((s for s in latency.graph_inputs(file) if s.name == "input_ids"), None)
    size = ids.shape[1] if ids is not None and len(ids.shape) > 1 else None
    return size if isinstance(size, int) else None


def _agreement(teacher: Teacher, file: Path, rows: Dataset) -> Equivalence:
    """How far a file is from the model it was made of, over the samples."""
    session = runtime.session(file)
    apart, scale, where = 0.0, 0.0, ""
    for batch, expected in teacher.batches():
        found = aligned_outputs(session, rows, batch.index, expected, teacher.axes)
        for name, should in expected.items():
            distance = max_distance(found[name], should)
            where = name if distance >= apart else where
            apart, scale = max(apart, distance), max(scale, float(abs(should).max(initial=0.0)))
    return Equivalence(apart, apart / (scale or 1.0), len(rows), where)
