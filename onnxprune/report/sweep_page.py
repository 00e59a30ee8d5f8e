"""The page of a sweep: what each budget costs and brings, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.measure.validation import Accuracy
from onnxprune.report import advice, charts, text
from onnxprune.report.markup import Markup, join, table, tag
from onnxprune.report.page import page, section
from onnxprune.report.schema import Report

_NOTE = (
    "Each point is a pruned model, the last one the dense model; bars are 95% intervals on the evaluation rows. They "
    "hold for each budget alone: the best of many may be the luckiest."
)


def render(reports: Sequence[Report]) -> str:
    """The page.

    Args:
        reports: of one model at several budgets.
    """
    first = reports[0]
    taken, why = advice.recommended(reports)
    head = join(
        [
            tag("div", "Sweep", class_="eyebrow"),
            tag("h1", text.name(first)),
            tag("p", f"{taken}.", class_="verdict"),
            tag("p", f"{why}.", class_="lead"),
        ]
    )
    warnings = [*dict.fromkeys(line for report in reports for line in report.broken), *text.warned(reports)]
    noted = (
        tag("div", tag("ul", *(tag("li", w) for w in warnings)), class_="warnings", role="note") if warnings else None
    )
    curves = _curves(reports)
    return page(
        f"{text.name(first)}: sweep", [head, section("Accuracy against cost", _NOTE, curves), _models(reports), noted]
    )


def _models(reports: Sequence[Report]) -> Markup | None:
    files = [(r, r.model.pruned_path) for r in reports if r.model.pruned_path]
    rows = [
        [text.percent(r.flops.ratio), text.size(r.size_bytes.pruned), tag("span", path, class_="file")]
        for r, path in files
    ]
    return section("Files", None, table(["FLOPs kept", "Size", "File"], rows, ["", "n", ""]) if rows else None)


def _curves(reports: Sequence[Report]) -> Markup | None:
    kept = [(r, r.accuracy) for r in reports if r.accuracy is not None]
    if not kept:
        return None
    names = text.series([r for r, _ in kept])
    held = [(r, a, name) for (r, a), name in zip(kept, names, strict=True)]
    first = held[0][1]
    fraction = text.metric_value(first, 1.0).endswith("%")
    scale, unit = (100, "%") if fraction else (1, "")
    title = text.metric_title(first.metric)
    by_cost = [
        charts.Point(100 * r.flops.ratio, scale * a.pruned, _told(r, a, name), y_range=_bounds(a, scale), series=name)
        for r, a, name in held
    ]
    by_speed = [
        charts.Point(
            r.latency[0].speedup,
            scale * a.pruned,
            f"{_told(r, a, name)}, {text.speedup(r.latency[0])}",
            x_range=r.latency[0].speedup_interval,
            y_range=_bounds(a, scale),
            series=name,
        )
        for r, a, name in held
        if r.latency
    ]
    dense = f"dense: {text.metric_value(first, first.dense)}"
    by_cost += [charts.Point(100.0, scale * first.dense, dense, series=name) for name in dict.fromkeys(names)]
    drawn = [charts.curve(by_cost, scale * first.dense, ("FLOPs kept", "%"), (title, unit))]
    if len(by_speed) > 1:
        row = next(r.latency[0] for r, _, _ in held if r.latency)
        threads = f"{row.threads} thread{'s' * (row.threads != 1)}"
        where = f"speed-up on {text.provider(row.provider)} at {text.shape(row)}, {threads}"
        drawn.append(charts.curve(by_speed, scale * first.dense, (where, "×"), (title, unit)))
    rows = [
        [
            *([name] if any(names) else []),
            text.percent(r.flops.ratio),
            text.percent(r.params.ratio),
            text.metric_value(a, a.pruned),
            text.drop(a),
            text.speedup(r.latency[0]) if r.latency else "not measured",
        ]
        for r, a, name in sorted(held, key=lambda one: (names.index(one[2]), -one[0].flops.ratio))
    ]
    own = ["Method"] if any(names) else []
    columns = [*own, "FLOPs kept", "Parameters kept", title, "Change", "Speed-up"]
    return join([*drawn, table(columns, rows, [*[""] * len(own), "", "n more", "n", "n more", "n"])])


def _told(report: Report, accuracy: Accuracy, series: str) -> str:
    named = f"{series}, " if series else ""
    return f"{named}{text.percent(report.flops.ratio)} of the FLOPs: {text.metric_value(accuracy, accuracy.pruned)}"


def _bounds(accuracy: Accuracy, scale: float) -> tuple[float, float] | None:
    """The interval of the drop, put around the dense model's value."""
    if accuracy.confidence_interval is None:
        return None
    turn = -1 if accuracy.higher_is_better else 1
    ends = [scale * (accuracy.dense + turn * bound) for bound in accuracy.confidence_interval]
    return min(ends), max(ends)
