"""Numbers as people read them. A speed-up has one wording here, and its interval is part of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from onnxprune.graph.dimensions import independent
from onnxprune.graph.providers import short_name
from onnxprune.measure.drop_search import DropSearch
from onnxprune.measure.latency import LatencyRow
from onnxprune.measure.tables.landing import Landing
from onnxprune.measure.validation import Accuracy
from onnxprune.report.schema import Budget, Report, Sparsity

UNBOUNDED = ("perplexity",)
"""Metrics that are no fraction and are not shown as one."""
_NAMESAKES = ("matthews", "pearson", "spearman")
"""Metrics that are called after someone."""
_TITLES = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "top5": "Top-5 accuracy",
    "perplexity": "Perplexity",
    "token_f1": "Token F1",
    "token_accuracy": "Token accuracy",
    "miou": "Mean IoU",
    "qa_f1": "Answer F1",
    "qa_em": "Exact answers",
    "agreement": "Agreement with the dense model",
    "cosine": "Cosine to the dense model",
    "teacher_spearman": "Rank correlation with the dense model",
    "explained_variance": "Variance of the dense outputs explained",
    "r2": "R²",
}

_NUMBER = re.compile(r"\d+(\.\d+)?")

UNITS = {"flops": "MAC", "params": "parameters", "size": "bytes", "latency": "ms"}
"""Of budgets that state an amount."""

TEACHER = ("agreement", "cosine", "teacher_spearman", "explained_variance")
"""Metrics of rows without labels: the dense model is what they compare with."""

_BUDGETS = {
    "flops": "FLOPs",
    "params": "Parameters",
    "size": "File size",
    "latency": "Latency",
    "max_drop": "Metric drop",
}


def si(value: float, unit: str = "") -> str:
    """1234567 -> "1.23 M": three significant digits with an SI prefix."""
    sign, value = "-" if value < 0 else "", abs(value)
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            return f"{sign}{digits(value / scale)} {prefix}{unit}"
    return f"{sign}{digits(value)} {unit}".rstrip() if value != int(value) else f"{sign}{int(value)} {unit}".rstrip()


def size(value: float) -> str:
    """Bytes in decimal megabytes, as in budgets."""
    return si(value, "B")


def zeros(held: Sparsity) -> str:
    """Which weights are zero, and what the graph saves by them."""
    said = f"{held.pattern}, {percent(held.zeros)} of the weights in the matrices that have them"
    if held.skipped is None:
        return said
    saved = held.skipped.dense - held.skipped.pruned
    return f"{said}; the graph skips them, which saves {si(saved, 'FLOP')} of {si(held.skipped.dense, 'FLOP')}"


def percent(share: float, digits: int = 1) -> str:
    """0.5996 -> "60.0%"."""
    return f"{share * 100:.{digits}f}%"


def milliseconds(value: float) -> str:
    """Three significant digits."""
    return f"{digits(value)} ms"


def seconds(value: float) -> str:
    """ "0.4 s", "12 s", "3 min 05 s"."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def metric_title(name: str) -> str:
    """A metric's name as a heading."""
    return _TITLES.get(name, name)


def metric_value(accuracy: Accuracy, value: float) -> str:
    """89.68% for fractions, 0.867 for correlations and cosines, 12.3 for perplexity."""
    if accuracy.metric in UNBOUNDED:
        return digits(value)
    if accuracy.metric in ("matthews", "pearson", "spearman", "cosine", "teacher_spearman"):
        return f"{value:.4f}"
    return percent(value, 2)


def explained(share: float) -> str:
    """0.98765 -> "98.77%"; what is below nothing says no more than that."""
    return percent(share, 2) if share >= 0 else "none"


def level(held: Sequence[Accuracy]) -> str:
    """ "95%": of all metrics' intervals."""
    return f"{100 * (held[0].level if held else 0.95):.3g}%"


def drop(accuracy: Accuracy) -> str:
    """The change with its interval: "-0.23 points [-0.69, +0.23]" (minus is worse, whatever the metric)."""
    scale, unit = (1, "") if accuracy.metric in UNBOUNDED else (100, " points")
    # For perplexity a rise is worse; the sign shown is that of the metric itself.
    turn = -scale if accuracy.higher_is_better else scale
    text = f"{_signed(turn * accuracy.drop)}{unit}"
    if accuracy.confidence_interval is None:
        return f"{text} (too few rows for an interval)"
    low, high = sorted(turn * bound for bound in accuracy.confidence_interval)
    return f"{text} [{_signed(low)}, {_signed(high)}]"


def speedup(row: LatencyRow) -> str:
    """The only wording of a speed-up: the median ratio of neighbouring runs and its 95% interval, and of which time."""
    low, high = row.speedup_interval
    of = "" if row.clock == "wall" else " of processor time"
    return f"{row.speedup:.2f}× [{low:.2f}, {high:.2f}]{of}"


def verdict(row: LatencyRow) -> str:
    """What the interval allows to say: faster, slower, or no difference that was measured."""
    low, high = row.speedup_interval
    if low > 1:
        return "faster"
    return "slower" if high < 1 else "no clear difference"


def sentence(report: Report) -> str:
    """In a line, the speed-up with its interval as everywhere.

    "1.57× [1.52, 1.61] faster at 1 × 128, 24% smaller, accuracy 89.68% → 89.91%: within chance on 872 rows".
    """
    said = [_speed(report.latency[0])] if report.latency else []
    said.append(_smaller(report.size_bytes.ratio))
    said.append("accuracy not measured" if report.accuracy is None else judged(report.accuracy))
    line = ", ".join(said)
    return line[:1].upper() + line[1:]


def in_fewer_bits(report: Report) -> str:
    """The same of the second file, "Pruned and in int8: 2.1× …"; empty where --quantize wrote none.

    `sentence` is about the pruned file in its own precision.
    """
    both = next((step for step in report.steps if step.name == "both"), None)
    if both is None:
        return ""
    said = [_speed(both.latency)] if both.latency else []
    said.append(_smaller(both.bytes / max(report.size_bytes.dense, 1)))
    said += [judged(both.accuracy)] if both.accuracy else []
    return f"Pruned and in {both.scheme or 'fewer bits'}: {', '.join(said)}"


def _smaller(kept: float) -> str:
    return f"{percent(abs(1 - kept), 0)} {'smaller' if kept <= 1 else 'larger'}"


def _speed(row: LatencyRow) -> str:
    at = f"at {shape(row)}" + ("" if provider(row.provider) == "cpu" else f" on {provider(row.provider)}")
    said = verdict(row)
    if said == "no clear difference":
        return f"no clear speed-up {at}"
    return f"{speedup(row)} {'as fast' if said == 'slower' else 'faster'} {at}"


def judged(accuracy: Accuracy) -> str:
    """ "accuracy 89.68% → 89.91%: within chance on 872 rows"; where the dense model is what rows are compared with,
    "agreement with the dense model 98.70% on 872 rows".
    """
    title = metric_title(accuracy.metric)
    if title[1:2].islower() and accuracy.metric not in _NAMESAKES:
        title = title[:1].lower() + title[1:]
    after, rows = metric_value(accuracy, accuracy.pruned), f"{accuracy.rows:,} rows"
    if accuracy.metric in TEACHER:
        return f"{title} {after} on {rows}"
    said = f"{title} {metric_value(accuracy, accuracy.dense)} → {after}"
    if accuracy.confidence_interval is None:
        return f"{said}: too few rows to tell ({rows})"
    low, high = accuracy.confidence_interval
    chance = "a loss beyond chance" if low > 0 else "a gain beyond chance" if high < 0 else "within chance"
    return f"{said}: {chance} on {rows}"


def shape(row: LatencyRow) -> str:
    """The shape of the largest input: "8 x 128"."""
    return largest(row.shape) if row.shape else str(row.batch)


def largest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The largest of some shapes."""
    return " × ".join(map(str, max(shapes.values(), key=math.prod)))


def provider(name: str) -> str:
    """Short name."""
    return short_name(name)


def coverage(row: LatencyRow) -> str:
    """Where the pruned graph runs."""
    held = row.coverage
    if not held.nodes:
        return "all nodes"
    on = f"all {held.nodes} nodes" if held.complete else f"{held.nodes_on_provider} of {held.nodes} nodes"
    parts = f" in {held.partitions} partitions" if held.partitions and held.partitions > 1 else ""
    return on + parts


def budget(held: Budget) -> str:
    """ "flops: 60% kept, 40% removed (target 60%)"."""
    name = _BUDGETS.get(held.kind, held.kind)
    if held.kind == "max_drop":
        return f"{name}: at most {held.achieved:.2f} {held.unit} (limit {held.target:.2f} {held.unit})"
    if held.unit == "kept":
        kept, gone, target = (percent(share) for share in (held.achieved, 1 - held.achieved, held.target))
        return f"{name}: {kept} kept, {gone} removed (target {target})"
    return f"{name}: {_amount(held.achieved, held.unit)} (target {_amount(held.target, held.unit)})"


def drop_search(held: DropSearch) -> str:
    """ "Asked for a drop of at most 1pt. The 872 evaluation rows chose among 6 sizes …"."""
    told = ", ".join(
        f"{percent(t.kept)} (may fall by {_points(t.bound)} of {_points(t.allowed)}{'' if t.passed else ': too much'})"
        for t in held.tries
    )
    return (
        f"Asked for a drop of at most {held.limit}. The {held.rows:,} evaluation rows chose among "
        f"{len(held.tries)} sizes by the upper ends of their {100 * held.level:.3g}% intervals, which hold together at "
        f"95%: {told}."
    )


def _points(value: float) -> str:
    return f"{100 * value:.2f} points"


def landing(held: Landing) -> str:
    """ "Latency on cpu at …, 1 thread: target 50.0% of dense; predicted 49.8%, measured 50.9% [50.5%, 51.2%] …"."""
    at = f"{dims(held.shape)}, " if held.shape else ""
    threads = f"{held.threads} thread{'s' if held.threads > 1 else ''}"
    said = f"Latency on {provider(held.provider)} ({at}{threads}): target {percent(held.target)} of the dense model's "
    said += f"{milliseconds(held.dense_ms)}; predicted {percent(held.predicted)}, "
    if held.measured is None or held.interval is None:
        return said + "not measured."
    low, high = (percent(bound) for bound in held.interval)
    said += f"measured {percent(held.measured)} [{low}, {high}]"
    return said + (" after one correction." if held.corrected else ", without a correction.")


def _amount(value: float, unit: str) -> str:
    if unit in ("ms", "points"):
        return f"{digits(value)} {unit}"
    return si(value, "B") if unit == "bytes" else si(value, unit)


def name(report: Report) -> str:
    """The model's file name, with its folder where the file is just `model.onnx`."""
    path = PurePath(report.model.path)
    return f"{path.parent.name}/{path.name}" if path.stem == "model" and path.parent.name else path.name


def kind(held: str) -> str:
    """A kind of units as a heading: "query_heads" -> "Query heads"."""
    return held.replace("_", " ").capitalize()


def dims(held: Mapping[str, int]) -> str:
    """ "batch_size 1, sequence_length 26"; what follows from others is left out."""
    return ", ".join(f"{key} {value}" for key, value in independent(held).items())


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")  # 999.7 has the digits of 1000
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def warned(reports: Sequence[Report]) -> list[str]:
    """What several reports warn of, each kind once: of lines that differ in their numbers alone, the first."""
    lines = (line for report in reports for line in report.warnings if line not in report.broken)
    found: dict[str, str] = {}
    for line in lines:
        found.setdefault(_NUMBER.sub("0", line), line)
    return list(found.values())


def series(reports: Sequence[Report]) -> list[str]:
    """What tells the curves of a sweep apart, a name for each report: its method, its seed; nothing of a single one."""
    told = [(str(r.recipe.get("method", "")), r.recipe.get("options", {}).get("seed", 0)) for r in reports]
    several = [len({one[i] for one in told}) > 1 for i in range(2)]
    return [" ".join(w for w, s in zip((method, f"seed {seed}"), several, strict=True) if s) for method, seed in told]
