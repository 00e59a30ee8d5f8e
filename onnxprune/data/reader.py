"""read(): rows of any source as a Dataset of feeds for one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.data import tensors
from onnxprune.data.audio import audio_input, encode_audio
from onnxprune.data.dataset import Dataset, Example
from onnxprune.data.excerpts import excerpt
from onnxprune.data.filled_inputs import make_missing
from onnxprune.data.fixed_batches import gathered
from onnxprune.data.image import encode_images, image_input
from onnxprune.data.image_options import image_options
from onnxprune.data.labels import class_names, resolve
from onnxprune.data.model_info import Files, Graph, Job, Pairs, Part, Spec
from onnxprune.data.random_rows import invent
from onnxprune.data.sources import Row, open_rows, parsed
from onnxprune.data.target import decoder_ids, encode_targets
from onnxprune.data.text import encode_questions, encode_text, encode_tokens
from onnxprune.errors import DataError, UsageError, listed, reading


@dataclass(frozen=True)
class Modality:
    """What the rows may hold besides arrays: the fields that tell it, and the input that it feeds."""

    kind: str
    fields: tuple[str, ...]
    optional: tuple[str, ...]
    feeds: Callable[[Graph], Spec | None]
    encode: Callable[[Sequence[Row], Job], list[list[Part]]]


def _ids(graph: Graph) -> Spec | None:
    return graph.by_role.get("input_ids")


MODALITIES = (  # the first that feeds an input wins
    Modality("qa", ("question", "context"), ("answers",), _ids, encode_questions),
    Modality("tokens", ("tokens",), (), _ids, encode_tokens),
    Modality("text", ("text",), ("text_pair",), _ids, encode_text),
    Modality("image", ("image",), ("mask",), image_input, encode_images),
    Modality("audio", ("audio",), (), audio_input, encode_audio),
    Modality("target", ("target",), (), decoder_ids, encode_targets),
)
LABELS = ("label", "labels")
READING = (
    *("columns", "pairs", "tokenizer", "max_length", "allow_outside"),
    *("preset", "mean", "std", "scale", "layout"),
)
"""What `read` is asked besides the rows and the graph: what repeats it."""


def read(
    source: Any,
    inputs: Sequence[Spec],
    *,
    outputs: Sequence[Spec | str] | None = None,
    folder: Path | str | None = None,
    tokenizer: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    pairs: Pairs | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    vocab_size: int | None = None,
    allow_outside: bool = False,
    shape: Mapping[str, int] | None = None,
    preset: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float | str | None = None,
    layout: Sequence[str] | str | None = None,
) -> Dataset:
    """Read calibration or evaluation rows as feeds for a graph.

    Args:
        source: a .jsonl, .json, .csv, .tsv, .parquet, .txt (a text a line) or .npz file; a folder of images or sounds
            (sub-folder names are labels); an
            iterable of rows or feeds (dicts), columns as one dict, an ORT CalibrationDataReader; or "random".
        inputs: the graph's inputs (name, dtype, shape with int, str or None).
        outputs: the graph's outputs, or their names: what a guess about pairs goes by.
        folder: where the model lies, and with it its tokenizer, preprocessor_config.json and config.json.
        tokenizer: another tokenizer.json, or a folder that has one.
        columns: our field -> the source's column, e.g. {"text": "sentence1"}.
        pairs: "joint" or "separate"; None to guess, which is said.
        max_length: the most tokens of a row; None for the model's own limit.
        limit: the most rows: the first ones (of a folder of images, drawn by seed); of "random", how many (64).
        seed: for whatever is drawn.
        vocab_size: token ids must be below it; None for config.json's.
        allow_outside: images and sounds that rows name may lie outside the folder of the rows.
        shape: sizes of the graph's symbolic dimensions, where what is read has none of its own: images, random rows,
            the length of a sound.
        preset, mean, std, scale, layout: how images are prepared (`image_options`), in place of what lies beside the
            model.

    Raises:
        DataError: the rows cannot be read or do not fit the graph; names file, row and field.
        UsageError: the options contradict each other.
    """
    _check_options(pairs, max_length, limit)
    job = Job(
        graph=Graph.of(inputs, outputs),
        files=Files(Path(folder) if folder is not None else None),
        tokenizer=_existing(tokenizer),
        pairs=pairs,
        max_length=max_length,
        seed=seed,
        allow_outside=allow_outside,
        shape=dict(shape or {}),
        images=image_options(preset, mean, std, scale, layout),
    )
    name = source if isinstance(source, str | Path) else type(source).__name__
    with reading(f"{name}: the rows cannot be read", DataError):
        return _read(source, job, columns, limit, vocab_size)


def _read(
    source: Any, job: Job, columns: Mapping[str, str] | None, limit: int | None, vocab_size: int | None
) -> Dataset:
    vocabulary = vocab_size if vocab_size is not None else job.files.setting("vocab_size")
    if isinstance(source, str) and source == "random":
        rows, parts, kind = *invent(job, 64 if limit is None else limit, vocabulary), "random"
    else:
        rows = open_rows(source, job, columns, limit)
        parts, kind = _encode(rows, job)
    examples = _examples(rows, parts, job, vocabulary)
    name = source if isinstance(source, str | Path) else type(source).__name__
    raw = [example.label for example in examples]
    labels = resolve(raw, job, folders=isinstance(source, str | Path) and Path(source).is_dir())
    labelled = tuple(replace(example, label=label) for example, label in zip(examples, labels, strict=True))
    labelled = tuple(gathered(labelled, job))
    if job.graph.together > 1:
        for example in labelled:
            tensors.check_feeds(example.feeds, example.source, job.graph)
    said = job.notes if kind == "random" else [f"rows: {len(rows)} of {kind} from {name}", *job.notes]
    return Dataset(
        labelled, kind, tuple(said), job.graph.shared, job.graph.max_batch, inside=job.graph.inside,
        classes=class_names(job), together=job.graph.together,
    )  # fmt: skip


def _check_options(pairs: str | None, max_length: int | None, limit: int | None) -> None:
    if pairs not in (None, "joint", "separate"):
        raise UsageError(f"pairs: {pairs!r} is neither 'joint' nor 'separate'")
    for name, value in (("max_length", max_length), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: {value} is not a positive number")


def _existing(path: Path | str | None) -> Path | None:
    if path is not None and not Path(path).exists():
        raise DataError(f"{path}: no such tokenizer file or folder: check the path")
    return None if path is None else Path(path)


def _encode(rows: Sequence[Row], job: Job) -> tuple[list[list[Part]], str]:
    """The feeds that rows hold, by what the first of them holds; usually one part a row, two for separate pairs."""
    first = rows[0].fields
    named = [name for name in job.graph.by_name if name in first and not isinstance(parsed(first[name]), str)]
    fed = set(named)
    chosen: list[Modality] = []
    for modality in MODALITIES:
        spec = modality.feeds(job.graph)
        if all(field in first for field in modality.fields) and spec is not None and spec.name not in fed:
            chosen.append(modality)
            fed.add(spec.name)
    if not named and not chosen:
        raise _nothing_fits(rows[0], job)
    used = {*named, *LABELS, *(field for m in chosen for field in (*m.fields, *m.optional))}
    if ignored := [name for name in first if name not in used]:
        known = {field for m in MODALITIES for field in (*m.fields, *m.optional)}
        unlabelled = not any(name in first for name in LABELS) and not known.issuperset(ignored)
        hint = "; --columns label=NAME reads labels from one" if unlabelled else ""
        job.say(f"fields not used: {', '.join(map(str, ignored))}{hint}")
    columns = [modality.encode(rows, job) for modality in chosen]
    if named:
        columns.append([[tensors.encode(row, named, job)] for row in rows])
    kinds = [modality.kind for modality in chosen] or ["tensors"]
    return [_merged(list(parts)) for parts in zip(*columns, strict=True)], "+".join(kinds)


def _merged(columns: list[list[Part]]) -> list[Part]:
    """The parts of one row from several encoders as one; a pair's two sides share what is not theirs."""
    if len(columns) == 1:
        return columns[0]
    sides = max(len(parts) for parts in columns)
    merged = []
    for side in range(sides):
        own = [parts[side if len(parts) > 1 else 0] for parts in columns]
        feeds = {name: array for part in own for name, array in part.feeds.items()}
        label = next((part.label for part in own if part.label is not None), None)
        merged.append(Part(feeds, label, next((part.real for part in own if part.real is not None), None)))
    return merged


def _nothing_fits(row: Row, job: Job) -> DataError:
    wanted = [
        repr(m.fields[-1] if m.kind != "qa" else "question") for m in MODALITIES if m.feeds(job.graph) is not None
    ]
    media = ("image", "mask", "audio")  # paths, which may hold spaces as texts do
    texts = (name for name, value in row.fields.items() if isinstance(value, str) and " " in value)
    text = next((name for name in texts if name not in media), None)
    hint = (
        f"; or name the column, as in --columns text={text}" if text is not None and _ids(job.graph) is not None else ""
    )
    return DataError(
        f"{row.source}: none of the fields {listed(row.fields) or '(none)'} is read; the graph takes "
        f"{job.graph.listing}: name fields like these{' or give ' + ', '.join(wanted) if wanted else ''}{hint}"
    )


def _examples(rows: Sequence[Row], parts: Sequence[list[Part]], job: Job, vocabulary: Any) -> list[Example]:
    """Parts made whole, checked against the graph and numbered."""
    examples, pairs = [], 0
    for row, sides in zip(rows, parts, strict=True):
        pair = pairs if len(sides) == 2 else None
        pairs += len(sides) == 2
        shown = excerpt(row)
        for part in sides:
            feeds = make_missing(part.feeds, row.source, job)
            if job.graph.together == 1:
                tensors.check_feeds(feeds, row.source, job.graph)
            if vocabulary is not None:
                tensors.check_ids(feeds, row.source, job.graph, int(vocabulary))
            label = part.label
            if label is None:
                label = next((row.fields[name] for name in LABELS if row.fields.get(name) is not None), None)
            examples.append(Example(feeds, parsed(label), pair, row.source, part.real, shown, part.pieces))
    return examples
