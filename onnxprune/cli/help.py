"""How commands show their options: under headings, with examples; and what the shell completes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import click
from click.shell_completion import CompletionItem

from onnxprune.errors import UsageError

SECTIONS: Mapping[str, Sequence[str]] = {
    "Budget (exactly one)": ("flops", "params", "size", "latency", "max_drop"),
    "Rows to learn from and to judge by": (
        "calibration", "evaluation", "rows", "columns", "pairs", "tokenizer", "max_length", "metric", "allow_outside",
        "preset", "mean", "std", "scale", "layout",
    ),
    "What goes, and by which method": (
        "method", "alpha", "search", "units", "include", "exclude", "uniform", "round_to", "no_compensate",
        "tune", "snip_threshold", "snip_spectral", "keep_unread",
    ),
    "Zeros in what is left": ("sparsity", "solver", "finetune"),
    "Where it runs": (
        "shape", "ep", "provider", "no_latency", "latency_threads", "latency_table", "device", "threads", "max_memory",
        "seed", "seeds", "workers", "cluster", "on", "store", "batch", "seq", "runs", "profile", "calls",
    ),
    "What is written": (
        "output", "output_option", "quantize", "report", "dry_run", "debug_bundle", "force", "target", "table", "micro",
        "vocab", "dense", "bench", "web_runtime", "imported", "flips", "keep_broken",
    ),
    "What is said": ("as_json", "quiet", "verbose", "traceback", "help", "everything"),
}  # fmt: skip
"""Heading -> names of parameters, in order; a command shows those that it has."""
OTHER = "Options"


class Command(click.Command):
    """A command whose options stand under headings, where it has many, and none of whose arguments is empty."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """An empty argument is a variable that was not set; as a path it would be the folder that one is in."""
        for before, word in zip(("", *args), args, strict=False):
            name, equals, value = word.partition("=")
            if ctx.resilient_parsing or (word and not (equals and not value and name.startswith("--"))):
                continue
            told = name or (before if before.startswith("-") else "an argument")
            raise UsageError(f"{told} is empty: leave it out, or give it a value")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options: under the headings of `SECTIONS` if they are more than fit a screen."""
        params = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        if len(params) < 12:
            super().format_options(ctx, formatter)
            return
        heading = {name: title for title, names in SECTIONS.items() for name in names}
        order = {name: i for i, name in enumerate(name for names in SECTIONS.values() for name in names)}
        for title in (*SECTIONS, OTHER):
            held = [p for p in params if heading.get(_name(p), OTHER) == title]
            records = [p.get_help_record(ctx) for p in sorted(held, key=lambda p: order.get(_name(p), 0))]
            if records:
                with formatter.section(title):
                    formatter.write_dl([record for record in records if record is not None])


def _name(param: click.Parameter) -> str:
    return "help" if "--help" in param.opts else param.name or ""


def examples(*lines: str) -> str:
    """The end of a command's help: lines to be pasted, as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def among(names: Callable[[], Iterable[str]]) -> Complete:
    """What the shell offers for an option whose values are these, alone or with commas between.

    Args:
        names: called when the shell asks, so that the program's own help stays instant.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, begun = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in names() if name.startswith(begun)]

    return complete


def methods() -> Iterable[str]:
    """Values of --method."""
    from onnxprune.score import METHODS

    return ("auto", *METHODS)


def searches() -> Iterable[str]:
    """Values of --search."""
    from onnxprune.search.allocate import ALLOCATIONS

    return (*ALLOCATIONS, "rank")


def solvers() -> Iterable[str]:
    """Values of --solver."""
    from onnxprune.refit.solvers import SOLVERS
    from onnxprune.search.options import MASKS

    return ("auto", *SOLVERS, *MASKS)


def kinds() -> Iterable[str]:
    """Values of --units."""
    from onnxprune.search.options import UNITS

    return ("auto", *UNITS)


def providers() -> Iterable[str]:
    """Short names of execution providers."""
    from onnxprune.graph.providers import SHORT_NAMES

    return SHORT_NAMES


def metrics() -> Iterable[str]:
    """Values of --metric."""
    from onnxprune.measure.metrics import NAMES

    return NAMES


def schemes() -> Iterable[str]:
    """Values of --quantize."""
    from onnxprune.export.precision.apply import SCHEMES

    return ("int8", *SCHEMES)
