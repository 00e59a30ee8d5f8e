"""The report in a terminal: a few tables; plain ASCII columns where the output is a pipe or a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from onnxprune.measure.drift import Drift
from onnxprune.measure.latency import LatencyRow
from onnxprune.measure.validation import Accuracy, Evidence
from onnxprune.report import advice, text
from onnxprune.report.names import by_name, layer_names
from onnxprune.report.schema import Change, Report, Units

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_BAR = 12
_PLAIN_WIDTH = 110
_WIDE = 100
"""From this width on, latency tables show the 99th percentiles too."""
_ROOMY = 3
"""Kinds of units beside which a layer's groups of one kind fit into one line."""
_CELLS = 16
"""Groups of up to this many units are drawn unit by unit."""
_INTERVAL = 18
"""Characters of a speed-up with its interval."""
_SWEEP_SHAPES = 2
"""Shapes whose speed-ups fit beside a sweep's accuracies."""


def print_report(report: Report, console: Console | None = None) -> None:
    """All of a report, to stdout unless another console is given."""
    view = _View(console)
    view.heading(text.name(report), text.budget(report.budget))
    view.alarm(report.broken)
    view.verdict(f"{text.sentence(report)}.")
    if fewer := text.in_fewer_bits(report):
        view.verdict(f"{fewer}.")
    view.table(view.changes(report))
    view.table(view.unit_map(report.units))
    if report.accuracy is not None:
        view.table(view.accuracy((report.accuracy, *report.further)))
    view.drift(report.drift)
    if report.latency:
        view.table(view.latency(report.latency))
    if report.drop_search is not None:
        view.line(text.drop_search(report.drop_search))
    if report.landing is not None:
        view.line(text.landing(report.landing))
    if report.steps:
        from onnxprune.report.export import steps_table

        view.table(steps_table(report.steps, view.ascii))
    if report.equivalence is not None:
        held = report.equivalence
        view.line(f"File against plan: off by {held.max_rel:.1e} of the outputs' scale on {held.rows} rows.")
    if report.sparsity is not None:
        zeros = report.sparsity
        view.line(f"Zeros: {text.zeros(zeros)}.")
    view.notes("Warnings", [w for w in report.warnings if w not in report.broken], "yellow")
    view.steps(advice.next_steps(report))


def print_latency(rows: Sequence[LatencyRow], console: Console | None = None) -> None:
    """The result of a benchmark."""
    view = _View(console)
    view.table(view.latency(rows))


def print_evidence(evidence: Evidence, console: Console | None = None) -> None:
    """The result of a validation."""
    view = _View(console)
    view.alarm(evidence.broken)
    view.table(view.accuracy((evidence.accuracy, *evidence.further)))
    view.drift(evidence.drift)
    view.notes("Warnings", evidence.warnings, "yellow")


def print_sweep(reports: Sequence[Report], console: Console | None = None) -> None:
    """Several budgets of one model, one line each."""
    view = _View(console)
    view.table(view.sweep(reports))
    taken, why = advice.recommended(reports)
    view.verdict(f"{taken}.")
    view.line(f"{why}.")
    for report in reports:
        view.alarm([f"at {text.percent(report.flops.ratio)} of the FLOPs {line}" for line in report.broken])
    view.notes("Warnings", text.warned(reports), "yellow")


def to_text(report: Report) -> str:
    """The report as plain text."""
    import io

    from rich.console import Console

    stream = io.StringIO()
    print_report(report, Console(file=stream, width=_PLAIN_WIDTH, no_color=True, force_terminal=False))
    return stream.getvalue()


def console_for(stream: TextIO | None = None, *, stderr: bool = False) -> Console:
    """A console of the terminal's width, or of a fixed one where there is no terminal."""
    from rich.console import Console

    made = Console(file=stream, stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(file=stream, stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


class _View:
    """Tables for one console: with colour, rules and block characters on a terminal, plain otherwise."""

    def __init__(self, console: Console | None) -> None:
        self.console = console or console_for()
        encoding = (self.console.encoding or "").lower()
        self.rich = self.console.is_terminal and encoding.startswith("utf")

    # -- output

    def heading(self, title: str, subtitle: str) -> None:
        self._print()
        self._print(title, style="bold")
        self._print(subtitle, style="dim")
        self._print()

    def alarm(self, lines: Iterable[str]) -> None:
        """What makes all that follows beside the point."""
        held = list(lines)
        for line in held:
            self._print(f"BROKEN: {line}", style="bold red")
        if held:
            self._print()

    def verdict(self, words: str) -> None:
        self._print(words, style="bold")
        self._print()

    def line(self, words: str) -> None:
        self._print(words, style="dim")
        self._print()

    def table(self, made: Table | None) -> None:
        if made is not None:
            self.console.print(made)
            self._print()

    def notes(self, title: str, lines: Iterable[str], style: str) -> None:
        held = list(lines)
        if held:
            self._print(title, style=f"bold {style}")
            for line in held:
                self._item(line)
            self._print()

    def steps(self, steps: Sequence[advice.Step]) -> None:
        if not steps:
            return
        self._print("Next", style="bold")
        for step in steps:
            self._item(step.text)
            if step.command:
                self._print(f"    {step.command}", style="cyan", wrap=False)
        self._print()

    def _item(self, words: str) -> None:
        """A bullet whose further lines are indented like its first."""
        from rich.table import Table

        grid = Table.grid()
        grid.add_column(width=4)
        grid.add_column()
        grid.add_row("  •" if self.rich else "  -", self._text(words))
        self.console.print(grid)

    def _print(self, words: str = "", style: str = "", wrap: bool = True) -> None:
        # Names and paths may hold brackets, which would be markup.
        self.console.print(self.ascii(words), style=style or None, markup=False, highlight=False, soft_wrap=not wrap)

    def ascii(self, words: str) -> str:
        """As it is on a terminal; without characters that a pipe's reader may lack otherwise."""
        if self.rich:
            return words
        for special, plain in (("×", "x"), ("−", "-"), ("→", "->"), ("…", "..."), ("·", "-"), ("’", "'")):
            words = words.replace(special, plain)
        return words

    # -- tables

    def changes(self, report: Report) -> Table:
        made = self._table("Cost" + (f" (at {text.dims(report.flops.shape)})" if report.flops.shape else ""))
        for column in ("", "dense", "pruned", "kept", ""):
            made.add_column(column, justify="left" if not column else "right")
        by_op = sorted(report.flops.by_op.items(), key=lambda item: -item[1].dense)
        rows: list[tuple[str, Change, str]] = [
            ("FLOPs", report.flops, "FLOP"),
            *((f"  {op}", change, "FLOP") for op, change in by_op if len(by_op) > 1),
            *([("FLOPs without unread positions", report.flops.computed, "FLOP")] if report.flops.unread else []),
            ("Parameters", report.params, ""),
            ("File size", report.size_bytes, "B"),
        ]
        for name, change, unit in rows:
            amounts = (text.si(change.dense, unit), text.si(change.pruned, unit))
            style = "dim" if name.startswith(" ") else ""
            made.add_row(self._text(name), *amounts, text.percent(change.ratio), self.bar(change.ratio), style=style)
        return made

    def unit_map(self, units: Sequence[Units]) -> Table | None:
        """Layers down, kinds across: what is left of each group."""
        kinds = list(dict.fromkeys(held.kind for held in units))
        if not kinds:
            return None
        units = by_name(units)
        by_layer: dict[int, dict[str, list[Units]]] = defaultdict(lambda: defaultdict(list))
        for held in units:
            by_layer[held.layer][held.kind].append(held)
        named = layer_names(units)
        made = self._table("What is left, layer by layer")
        made.add_column("layer", justify="left" if named else "right")
        for kind in kinds:
            made.add_column(self._text(text.kind(kind).lower()))
        for layer in sorted(by_layer):
            cells = [self._cell(by_layer[layer].get(kind, []), len(kinds) > _ROOMY) for kind in kinds]
            made.add_row(self._text(f"{layer:>2} {named[layer]}" if layer in named else str(layer)), *cells)
        totals = [[u for u in units if u.kind == kind] for kind in kinds]
        made.add_section()
        made.add_row(
            "all", *(f"{sum(u.kept for u in held)}/{sum(u.total for u in held)}" for held in totals), style="bold"
        )
        return made

    def drift(self, held: Drift | None) -> None:
        if held is None:
            return
        said = [f"KL {held.kl:.4g} nats"] if held.kl is not None else []
        said += [f"cosine {held.cosine:.4f}"] if held.cosine is not None else []
        said += [f"agreement {text.percent(held.agreement)}"] if held.agreement is not None else []
        explained = held.explained_variance
        said += [f"explained variance {text.explained(explained)}"] if explained is not None else []
        self.line(f"Against the dense outputs: {', '.join([*said, f'largest difference {held.max_abs:.3g}'])}.")

    def accuracy(self, held: Sequence[Accuracy]) -> Table:
        made = self._table("Accuracy")
        interval = f"change [{text.level(held)} interval]"
        for column in ("", "dense", "pruned", interval, "rows"):
            made.add_column(column, justify="left" if not column else "right")
        for one in held:
            values = (text.metric_value(one, one.dense), text.metric_value(one, one.pruned))
            made.add_row(text.metric_title(one.metric), *values, self.ascii(text.drop(one)), str(one.rows))
        return made

    def latency(self, rows: Sequence[LatencyRow]) -> Table:
        made = self._table("Latency: medians of interleaved runs in ms; speed-up with its 95% interval")
        wide = self.console.width >= _WIDE
        for column in (
            "provider",
            "shape",
            "threads",
            *(("dense", "p99", "pruned", "p99") if wide else ("dense", "pruned")),
        ):
            made.add_column(column, justify="left" if column == "provider" else "right")
        # An interval that is cut off would be a speed-up without one.
        longest = max((len(text.speedup(row)) for row in rows), default=0)
        made.add_column("speed-up", justify="right", no_wrap=True, min_width=longest)
        made.add_column("")
        made.add_column("nodes", justify="right")
        for row in rows:
            verdict = text.verdict(row)
            timed = [(held.p50, held.p99) if wide else (held.p50,) for held in (row.dense_ms, row.pruned_ms)]
            style = {"faster": "green", "slower": "red"}.get(verdict, "yellow")
            made.add_row(
                self._text(text.provider(row.provider)),
                self.ascii(text.shape(row)),
                str(row.threads),
                *(text.digits(ms) for held in timed for ms in held),
                self._text(text.speedup(row), style),
                self._text("" if verdict == "faster" else verdict, style),
                f"{row.coverage.nodes_on_provider}/{row.coverage.nodes}" if row.coverage.nodes else "all",
            )
        return made

    def sweep(self, reports: Sequence[Report]) -> Table:
        """One line per budget; the speed-ups of the first shapes that were timed (all are in the other formats)."""
        made = self._table("Accuracy and latency against cost; changes and speed-ups with their 95% intervals")
        shapes = list(dict.fromkeys((row.provider, text.shape(row)) for held in reports for row in held.latency))
        shown = shapes[:_SWEEP_SHAPES]
        names = text.series(reports)
        columns = ("method",) if any(names) else ()
        for column in (*columns, "FLOPs", "parameters", "metric", "pruned", "change"):
            made.add_column(column, justify="left" if column in ("method", "metric") else "right")
        for provider, shape in shown:
            made.add_column(
                self._text(f"{text.provider(provider)} {shape}"), justify="right", no_wrap=True, min_width=18
            )
        named = zip(names, reports, strict=True)
        for name, held in sorted(named, key=lambda pair: (names.index(pair[0]), -pair[1].flops.ratio)):
            accuracy = held.accuracy
            told = ("", "", "")
            if accuracy is not None:
                value = text.metric_value(accuracy, accuracy.pruned)
                told = (text.metric_title(accuracy.metric), value, self.ascii(text.drop(accuracy)))
            timed = {(row.provider, text.shape(row)): text.speedup(row) for row in held.latency}
            speeds = [self._text(timed.get(key, "")) for key in shown]
            first = [self._text(name)] if columns else []
            made.add_row(*first, text.percent(held.flops.ratio), text.percent(held.params.ratio), *told, *speeds)
        return made

    # -- parts

    def bar(self, share: float, width: int = _BAR) -> Text:
        filled = round(min(max(share, 0.0), 1.0) * width)
        return self._text(("█" if self.rich else "#") * filled + ("░" if self.rich else ".") * (width - filled), "cyan")

    def _cell(self, groups: Sequence[Units], narrow: bool) -> Text:
        below = narrow and any(held.total > 1 for held in groups)
        return self._text("\n" if below else "  ").join([self._units(held) for held in groups])

    def _units(self, held: Units) -> Text:
        if held.total == 1:
            said = "kept" if held.kept else "dropped"
            return self._text(f"{held.branch} {said}".strip(), "dim" if held.kept else "red")
        style = "cyan" if held.kept else "red"
        if held.index is not None and held.total <= _CELLS:
            on, off = ("■", "·") if self.rich else ("#", ".")
            cells = "".join(on if i in held.index else off for i in range(held.total))
            return self._text(f"{cells} {held.kept}/{held.total}", style)
        return self.bar(held.kept / held.total if held.total else 1.0).append(f" {held.kept}/{held.total}")

    def _text(self, words: str, style: str = "") -> Text:
        from rich.text import Text

        return Text(self.ascii(words), style=style if self.rich else "")

    def _table(self, title: str) -> Table:
        from rich import box
        from rich.table import Table

        return Table(
            title=self._text(title, "bold"),
            title_justify="left",
            title_style="",
            box=box.SIMPLE_HEAD if self.rich else None,
            header_style="dim" if self.rich else "",
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
