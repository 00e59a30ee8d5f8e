"""What lies behind the averages: rows with another answer, parts of the rows, and where in the model it begins."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from onnxprune.measure.flips import Flip, Flips
from onnxprune.measure.layer_drift import LayerDrift
from onnxprune.measure.slices import Slice
from onnxprune.measure.validation import Accuracy
from onnxprune.report import charts, text
from onnxprune.report.markup import Child, Markup, join, table, tag
from onnxprune.report.page import section

_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+=*")
_ANSWERS = {
    "classes": "Other answers", "tags": "Other tags", "spans": "Other answers", "scores": "Scores that moved most"
}  # fmt: skip
_TITLES = {"class": "By class", "length": "By length"}


def sections(
    flips: Flips | None, slices: Sequence[Slice], layers: Sequence[LayerDrift], accuracy: Accuracy | None
) -> Iterator[Markup | None]:
    """Those that there is something for."""
    yield section("Parts of the rows", _SLICES, _slices(slices, accuracy))
    title = "Other answers" if flips is None else _ANSWERS.get(flips.what, "Other answers")
    yield section(title, None if flips is None else flipped(flips), _flips(flips))
    yield section("Drift by layer", _LAYERS, _layers(layers))


_SLICES = (
    "The metric on parts of the rows. Few rows have wide intervals, and of many parts one or two lie outside theirs by "
    "chance."
)
_LAYERS = (
    "The residual stream behind each block against the dense model's: the norm of the difference relative to the dense "
    "norm, on held-out rows. Blocks that are gone are hollow."
)


def flipped(held: Flips) -> str:
    """ "12 of 872 rows are answered otherwise: 8 were right before, 3 are right now, 1 is wrong either way."."""
    if held.moved is not None:
        median, most, spread = map(text.digits, held.moved)
        return (
            f"Over {held.rows:,} rows, scores moved by {median} in the median and by {most} at most; the standard "
            f"deviation of the dense model's is {spread}."
        )
    if not held.count:
        return f"Every one of the {held.rows:,} rows is answered as by the dense model."
    how = "tagged otherwise somewhere" if held.what == "tags" else "answered otherwise"
    said = f"{held.count:,} of {held.rows:,} rows {'are' if held.count > 1 else 'is'} {how}"
    if held.lost is None or held.won is None:
        return f"{said}."
    rest = held.count - held.lost - held.won
    both = f", {rest:,} {'are' if rest > 1 else 'is'} wrong either way" if rest else ""
    before, now = "was" if held.lost == 1 else "were", "is" if held.won == 1 else "are"
    whole = "all " if held.what == "tags" else ""
    return f"{said}: {held.lost:,} {before} {whole}right before, {held.won:,} {now} {whole}right now{both}."


def _flips(held: Flips | None) -> Markup | None:
    if held is None:
        return None
    if not held.shown:
        return join([])
    first = "that moved most" if held.what == "scores" else "in which both models are surest"
    fewer = f"These {len(held.shown)} are those {first}. " if len(held.shown) < held.count else ""
    privacy = tag("p", f"{fewer}They are rows of yours, in this file and in the JSON: --flips 0 leaves them out.")
    return join([tag("ol", *map(_flip, held.shown), class_="flips"), privacy])


def _flip(held: Flip) -> Markup:
    shown = _PICTURE.fullmatch(held.picture)
    picture = tag("img", src=held.picture, alt="", width=72) if shown else None
    sides: list[Child] = [
        _answer(name, answer, sure, held.label)
        for name, answer, sure in (
            ("dense", held.dense, held.dense_confidence), ("pruned", held.pruned, held.pruned_confidence),
        )
    ]  # fmt: skip
    known = tag("small", f"label {held.label}") if held.label else None
    told = [tag("p", held.excerpt) if held.excerpt else None, tag("div", *sides, known, class_="answers")]
    return tag("li", picture, tag("div", *told, tag("small", _short(held.source), class_="source")))


def _short(source: str) -> str:
    """ "/home/me/rows.jsonl:3" -> "rows.jsonl:3"."""
    return re.split(r"[/\\]", source)[-1]


def _answer(side: str, answer: str, sure: float, label: str) -> Markup:
    style = "" if not label or math.isnan(sure) else "good" if answer == label else "bad"
    confidence = "" if math.isnan(sure) else f" {text.percent(sure, 0)}"
    return tag("span", tag("small", f"{side} "), tag("b", answer, class_=style or None), confidence)


def _slices(held: Sequence[Slice], accuracy: Accuracy | None) -> Markup | None:
    if accuracy is None or not held:
        return None
    parts = []
    for by in dict.fromkeys(one.by for one in held):
        rows: list[list[Child]] = []
        for one in (s for s in held if s.by == by):
            own = _as_accuracy(one, accuracy)
            values = (text.metric_value(own, own.dense), text.metric_value(own, own.pruned))
            change, _, interval = text.drop(own).partition(" points ")
            rows.append(
                [
                    one.name.replace(" ", "\u00a0") if by == "length" else one.name,
                    *values,
                    f"{change} {interval}".strip(),
                    f"{one.rows:,}",
                ]
            )
        title = "Share answered rightly" if by == "class" else text.metric_title(accuracy.metric)
        parts += [tag("h3", f"{_TITLES.get(by, by)}: {title[:1].lower()}{title[1:]}")]
        unit = "" if accuracy.metric in text.UNBOUNDED else ", points"
        parts += [table(["", "Dense", "Pruned", f"Change{unit}", "Rows"], rows, ["", "n", "n", "n", "n"])]
    return join(parts)


def _as_accuracy(held: Slice, of: Accuracy) -> Accuracy:
    metric = "accuracy" if held.by == "class" else of.metric
    return Accuracy(
        metric, held.dense, held.pruned, held.drop, held.rows, held.confidence_interval, of.higher_is_better, "",
        of.level,
    )  # fmt: skip


def _layers(held: Sequence[LayerDrift]) -> Markup | None:
    if not held:
        return None
    return charts.columns(
        [charts.Column(one.block, one.difference, text.percent(one.difference), one.dropped) for one in held]
    )
