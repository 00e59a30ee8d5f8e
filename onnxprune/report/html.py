"""The report as one self-contained HTML page: it loads nothing, and a content policy keeps it that way."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from onnxprune.export.precision import Step
from onnxprune.measure.latency import LatencyRow
from onnxprune.measure.validation import Accuracy
from onnxprune.report import advice, charts, row_by_row, text
from onnxprune.report.markup import Child, Markup, join, table, tag
from onnxprune.report.names import by_name, layer_names
from onnxprune.report.page import page, section
from onnxprune.report.schema import Change, Report, Units

_ROOMY = 3
"""Kinds of units that have room beside each other; more are drawn narrower."""
_CELLS = 64
"""Groups of up to this many units are drawn unit by unit, larger ones as a bar."""


def render(report: Report) -> str:
    """The page of one pruned model."""
    parts = [
        _header(report),
        _warnings(report),
        section("What was cut where", _MAP_NOTE, _unit_map(report.units)),
        section("Accuracy", _accuracy_note(report), _accuracy(report)),
        *row_by_row.sections(report.flips, report.slices, report.layers, report.accuracy),
        section("Fewer bits", _STEPS_NOTE, _precision(report.steps)),
        section("Latency", _latency_note(report), _latency(report.latency)),
        section("Cost by operator", _flops_note(report), _flops(report)),
        section("What to do next", None, _steps(report)),
        section("How it was made", None, _details(report)),
    ]
    return page(f"{text.name(report)}: pruning report", parts)


_MAP_NOTE = "Each row is a layer, in the order of the graph. Filled is what stays."
_STEPS_NOTE = "Pruning alone, fewer bits alone, and both together, against the dense model on the same rows."


# ---- head of the page


def _header(report: Report) -> Markup:
    return join(
        [
            tag("div", "Pruning report", class_="eyebrow"),
            tag("h1", text.name(report)),
            *(tag("p", f"Broken: {line}", class_="broken", role="alert") for line in report.broken),
            tag("p", f"{text.sentence(report)}.", class_="verdict"),
            tag("p", f"{fewer}.", class_="verdict") if (fewer := text.in_fewer_bits(report)) else None,
            tag("p", text.budget(report.budget), class_="lead"),
            tag("p", text.landing(report.landing)) if report.landing is not None else None,
            tag("p", text.drop_search(report.drop_search)) if report.drop_search is not None else None,
            tag("div", *_figures(report), class_="figures"),
        ]
    )


def _figures(report: Report) -> Iterator[Markup]:
    flops, params, size = report.flops, report.params, report.size_bytes
    yield _figure(
        "FLOPs",
        f"{text.percent(flops.ratio, 0)} kept",
        f"{text.si(flops.dense, 'FLOP')} → {text.si(flops.pruned, 'FLOP')}",
        charts.bar(flops.ratio),
    )
    yield _figure(
        "File size",
        text.size(size.pruned),
        f"from {text.size(size.dense)}; {text.si(params.dense)} → {text.si(params.pruned)} parameters",
        charts.bar(size.ratio),
    )
    if report.accuracy is not None:
        held = report.accuracy
        yield _figure(
            text.metric_title(held.metric),
            text.metric_value(held, held.pruned),
            f"from {text.metric_value(held, held.dense)}; {text.drop(held)}",
        )
    if report.latency:
        row = report.latency[0]
        low, high = row.speedup_interval
        yield _figure(
            f"Speed-up on {text.provider(row.provider)}",
            f"{row.speedup:.2f}×",
            f"95% interval {low:.2f} to {high:.2f}, shape {text.shape(row)}, {_threads(row.threads)}",
        )


def _figure(name: str, value: str, note: str, drawing: Markup | None = None) -> Markup:
    return tag("div", tag("span", name, class_="name"), tag("b", value), tag("small", note), drawing, class_="figure")


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _warnings(report: Report) -> Markup | None:
    lines = [line for line in report.warnings if line not in report.broken]
    return (
        tag("div", tag("ul", *(tag("li", line) for line in lines)), class_="warnings", role="note") if lines else None
    )


# ---- what was cut


def _unit_map(units: Sequence[Units]) -> Markup | None:
    if not units:
        return None
    kinds = list(dict.fromkeys(held.kind for held in units))
    units = by_name(units)
    by_layer: dict[int, dict[str, list[Units]]] = defaultdict(lambda: defaultdict(list))
    for held in units:
        by_layer[held.layer][held.kind].append(held)
    named = layer_names(units)
    rows: list[list[Child]] = [
        [
            join([str(layer), tag("small", f" {named[layer]}") if layer in named else None]),
            *(join(_units(held) for held in by_layer[layer].get(kind, [])) for kind in kinds),
        ]
        for layer in sorted(by_layer)
    ]
    totals = [_count([held for held in units if held.kind == kind]) for kind in kinds]
    return table(
        ["Layer", *map(text.kind, kinds)],
        rows,
        ["layer", *("" for _ in kinds)],
        foot=["all", *totals],
        class_="map" if len(kinds) <= _ROOMY else "map many",
    )


def _count(units: Sequence[Units]) -> str:
    return f"{sum(held.kept for held in units):,} of {sum(held.total for held in units):,}"


def _units(held: Units) -> Markup:
    count = tag("small", f"{held.kept:,} / {held.total:,}", class_=None if held.kept else "gone")
    if held.total == 1:
        what = f"{held.branch} {'kept' if held.kept else 'dropped'}".strip()
        said = tag("small", what, class_=None if held.kept else "gone")
        return tag("div", charts.cells(1, {0} if held.kept else ()), said, class_="unit", title=held.id)
    if held.index is not None and held.total <= _CELLS:
        return tag("div", charts.cells(held.total, frozenset(held.index)), count, class_="unit", title=held.id)
    share = held.kept / held.total if held.total else 1.0
    return tag("div", charts.bar(share), count, class_="unit", title=held.id)


def _flops_note(report: Report) -> str:
    at = f" at {text.dims(report.flops.shape)}" if report.flops.shape else ""
    said = f"FLOPs of one forward pass{at}: two per multiply-accumulate."
    if not report.flops.unread:
        return said
    saved = text.si(report.flops.unread, "FLOP")
    return (
        f"{said} The written graph computes {saved} less than the budget counts "
        f"({text.percent(report.flops.computed.ratio)} of the dense model's): positions that no output reads are left "
        "out."
    )


def _flops(report: Report) -> Markup:
    most = max([change.dense for change in report.flops.by_op.values()], default=report.flops.dense) or 1

    def row(name: str, change: Change, scale: float) -> list[Child]:
        amounts = [text.si(change.dense, "FLOP"), text.si(change.pruned, "FLOP"), text.percent(change.ratio)]
        return [name, *amounts, charts.bar(change.ratio, scale)]

    ordered = sorted(report.flops.by_op.items(), key=lambda item: -item[1].dense)
    rows = [row(op, change, change.dense / most) for op, change in ordered]
    total = row("all", report.flops, 1.0)
    columns = ["Operator", "Dense", "Pruned", "Kept", ""]
    return table(columns, rows or [total], ["", "n", "n", "n", "wide"], foot=total if len(rows) > 1 else None)


# ---- accuracy


def _accuracy_note(report: Report) -> str:
    held = report.accuracy
    if held is None:
        return "No evaluation rows were given, so no accuracy was measured."
    why = f" ({held.reason})" if held.reason else ""
    decided = "nothing" if report.drop_search is None else f"the size among {len(report.drop_search.tries)}, by it"
    return (
        f"{text.metric_title(held.metric)}{why} of both files on the same {held.rows:,} rows, which decided {decided}. "
        f"Intervals are paired, at {text.level([held])}, and leave room for what so few rows cannot show."
    )


def _accuracy(report: Report) -> Markup:
    held = () if report.accuracy is None else (report.accuracy, *report.further)
    rows: list[list[Child]] = [
        [
            text.metric_title(a.metric),
            text.metric_value(a, a.dense),
            text.metric_value(a, a.pruned),
            text.drop(a),
            f"{a.rows:,}",
        ]
        for a in held
    ]
    fractions = [change for a in held if (change := _change(a)) is not None]
    plot = charts.forest(fractions, 0.0, "") if fractions else None
    metrics = table(["Metric", "Dense", "Pruned", "Change", "Rows"], rows, ["", "n", "n", "n", "n"]) if rows else None
    return join([plot, metrics, _drift(report)])


def _precision(steps: Sequence[Step]) -> Markup | None:
    rows: list[list[Child]] = []
    for step in steps:
        held, drift, timed = step.accuracy, step.drift, step.latency
        agreement = None if drift is None else drift.agreement
        explained = None if drift is None else drift.explained_variance
        rows.append([
            f"{step.name} ({step.scheme})" if step.scheme else step.name,
            text.size(step.bytes),
            None if held is None else text.metric_value(held, held.pruned),
            None if held is None else text.drop(held),
            None if agreement is None else text.percent(agreement, 1),
            None if explained is None else text.explained(explained),
            None if timed is None else text.speedup(timed),
        ])  # fmt: skip
    columns = ["Step", "Size", "Metric", "Change", "Agreement", "Explained variance", "Speed-up"]
    return table(columns, rows, ["", *["n"] * 6]) if rows else None


def _change(held: Accuracy) -> charts.Interval | None:
    """A metric's change in points, where it is a fraction and has an interval."""
    if held.confidence_interval is None or not held.higher_is_better:
        return None
    low, high = (-100 * bound for bound in reversed(held.confidence_interval))
    good = False if high < 0 else True if low > 0 else None
    title = text.metric_title(held.metric)
    return charts.Interval(title, -100 * held.drop, low, high, text.drop(held).partition(" [")[0], good)


def _drift(report: Report) -> Markup | None:
    held = report.drift
    if held is None:
        return None
    pairs = [
        ("Divergence", None if held.kl == held.divergence else f"{held.divergence:.4g}"),
        ("KL", f"{held.kl:.4g} nats" if held.kl is not None else None),
        ("Cosine", f"{held.cosine:.4f}" if held.cosine is not None else None),
        ("Same decisions", text.percent(held.agreement) if held.agreement is not None else None),
        ("Explained variance", None if held.explained_variance is None else text.explained(held.explained_variance)),
        ("Dense outputs vary by", None if held.variation is None else f"{text.percent(held.variation)} of their size"),
        ("Largest difference", f"{held.max_abs:.3g}"),
        ("Compared by", held.measure),
    ]
    return join([tag("h3", "Outputs against the dense model's"), _pairs(pairs)])


# ---- latency


def _latency_note(report: Report) -> str:
    if not report.latency:
        return "Latency was not measured. Fewer FLOPs alone promise no speed-up."
    runs = min(row.runs for row in report.latency)
    return (
        f"Dense and pruned ran turn by turn in one process, {runs} times each. "
        "A speed-up is the median ratio of neighbouring runs, with its 95% interval."
    )


def _latency(rows: Sequence[LatencyRow]) -> Markup:
    if not rows:
        return join([])
    goods = {"faster": True, "slower": False}
    intervals = [
        charts.Interval(
            f"{text.provider(row.provider)}  {text.shape(row)}",
            row.speedup,
            *row.speedup_interval,
            text.speedup(row),
            goods.get(text.verdict(row)),
        )
        for row in rows
    ]
    measured: list[list[Child]] = [
        [
            text.provider(row.provider),
            text.shape(row),
            row.threads,
            *(text.digits(t) for times in (row.dense_ms, row.pruned_ms) for t in (times.p50, times.p90, times.p99)),
            text.coverage(row),
        ]
        for row in rows
    ]
    columns = ["Provider", "Shape", "Threads", "Dense p50", "p90", "p99", "Pruned p50", "p90", "p99", "On the provider"]
    return join([charts.forest(intervals, 1.0, "×"), table(columns, measured, ["", "", *["n"] * 7, ""], unit="ms")])


# ---- end of the page


def _steps(report: Report) -> Markup:
    steps = (tag("li", s.text, tag("code", s.command) if s.command else None) for s in advice.next_steps(report))
    return tag("ol", *steps, class_="steps")


def _details(report: Report) -> Markup:
    model, held, zeros = report.model, report.equivalence, report.sparsity
    facts = [
        ("Model", model.path),
        ("SHA-256", model.sha256),
        ("Opset", str(model.opset)),
        ("Written to", model.pruned_path or None),
        ("File against plan", f"off by {held.max_rel:.1e} of the outputs' scale, {held.rows} rows" if held else None),
        ("Zeros", text.zeros(zeros) if zeros else None),
        ("Peak memory", text.size(report.peak_memory_bytes) if report.peak_memory_bytes else None),
        ("Time", text.seconds(sum(report.seconds.values())) if report.seconds else None),
    ]
    folded = []
    if report.seconds:
        longest = max(report.seconds.values()) or 1.0
        rows = [[stage, text.seconds(s), charts.bar(1.0, s / longest)] for stage, s in report.seconds.items()]
        folded.append(
            tag("details", tag("summary", "Time by stage"), table(["Stage", "", ""], rows, ["", "n", "wide"]))
        )
    if report.recipe:
        recipe = json.dumps(report.to_json()["recipe"], indent=2, ensure_ascii=False)
        folded.append(tag("details", tag("summary", "Recipe: what repeats this run"), tag("pre", recipe)))
    return join([_pairs(facts), *folded])


def _pairs(pairs: Iterable[tuple[str, str | None]]) -> Markup:
    return tag("dl", *(join([tag("dt", key), tag("dd", value)]) for key, value in pairs if value is not None))
