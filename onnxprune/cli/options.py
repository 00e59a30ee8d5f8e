"""Options that commands share, what their values may be, and the progress bar."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.boundary import TRACEBACK
from onnxprune.cli.help import among, kinds, methods, metrics, providers, searches, solvers
from onnxprune.cli.streams import told_apart


class Pairs(click.ParamType):  # type: ignore[type-arg]
    """`a=1,b=2` as a dictionary."""

    name = "name=value,…"

    def __init__(self, of: Callable[[str], Any]) -> None:
        self.of = of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        try:
            for key, item in (piece.split("=", 1) for piece in str(value).split(",")):
                told = self.of(item.strip())
                if found.setdefault(key.strip(), told) != told:
                    self.fail(f"{key.strip()} is {found[key.strip()]} and {told}: give it once", param, ctx)
        except ValueError:
            self.fail(f"{value!r} is not of the form name=value,name=value", param, ctx)
        return found


def merged(ctx: click.Context, param: click.Parameter, value: Any) -> dict[str, Any]:
    """What an option of `Pairs` says, given once or several times, as one dictionary.

    Raises:
        click.BadParameter: one name has two values.
    """
    found: dict[str, Any] = {}
    for told in value or ():
        for name, held in told.items():
            if found.setdefault(name, held) != held:
                raise click.BadParameter(f"{name} is {found[name]} and {held}: give it once", ctx, param)
    return found


def split(ctx: click.Context, param: click.Parameter, value: Any) -> tuple[str, ...]:
    """Comma-separated values, given once or several times."""
    values = (value,) if isinstance(value, str) else value or ()
    return tuple(piece.strip() for v in values for piece in v.split(",") if piece.strip())


MOST_THREADS = 1024
"""Past some ten thousand the libraries below crash instead of saying no."""
MOST = 2**31 - 1
"""Of a dimension, and of whatever is counted."""


def size(text: str) -> int:
    """A size of a dimension: a whole number from 1 on."""
    if not 1 <= (number := int(text)) <= MOST:
        raise ValueError(text)
    return number


def ints(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Comma-separated whole numbers from 1 on."""
    try:
        found = tuple(size(v) for v in (value or "").split(",") if v.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers from 1 on") from None
    if param.name == "threads" and any(count > MOST_THREADS for count in found):
        raise click.BadParameter(f"{value!r}: {MOST_THREADS} threads are the most")
    return found


def decays(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, float]:
    """Two numbers, comma-separated."""
    try:
        first, second = map(float, value.split(","))
        return first, second
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form 0.8,0.8") from None


def rounding(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A number, or auto."""
    if value == "auto":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor auto") from None


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Decorator) -> Decorator:
    """Options as one decorator; a command shows the last of them first."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in options:
            command = option(command)
        return command

    return decorate


def on_providers(what: str) -> Decorator:
    """Execution providers, with commas between."""
    return click.option(
        "--ep", shell_complete=among(providers), default="cpu", show_default=True, callback=split, help=what
    )


def in_metrics(what: str) -> Decorator:
    """Metrics of the task, of which several may be named."""
    return click.option("--metric", shell_complete=among(metrics), multiple=True, help=what)


MODEL = click.argument("model", type=click.Path(path_type=Path))


def memory(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes of 8GB."""
    from onnxprune.graph.memory import parse

    return None if value is None else parse(value)


def budgets(command: Any) -> Any:
    """The budgets, of which one is given."""
    for kind, what in (
        ("latency", "milliseconds (8ms), measured on the first of --ep"),
        ("size", "bytes (25MB)"),
        ("params", "parameters (30M)"),
        ("flops", "operations (6GMAC, 12GFLOP)"),
    ):
        command = click.option(
            f"--{kind}", metavar="BUDGET", help=f"Keep this fraction (0.6, 60%), or this many {what}."
        )(command)
    return command


def stated_shape(what: str) -> Decorator:
    """Sizes by the graph's names for them; several options say more, not something else."""
    return click.option("--shape", type=Pairs(size), multiple=True, callback=merged, help=what)


planning = together(
    click.option(
        "--method",
        shell_complete=among(methods),
        default="auto",
        show_default=True,
        help="How units are ordered: auto, obs, optin, seven, seven-dyn, snip, fisher, taylor, platon, wanda, "
        "magnitude, or a mixture: optin+0.5*seven.",
    ),
    click.option(
        "--alpha", default="0.8,0.8", show_default=True, callback=decays, help="SEVEN's decays of both moments."
    ),
    click.option(
        "--search",
        shell_complete=among(searches),
        default="table",
        show_default=True,
        help="table: measured damage; rank: the papers' search.",
    ),
    click.option(
        "--units",
        shell_complete=among(kinds),
        default="auto",
        show_default=True,
        callback=split,
        help="What may go: heads, neurons, blocks, channels (auto: the first three, head_ranks with the default "
        "method and search, and channels where the graph is made of convolutions); in place of heads, query_heads; "
        "beside them head_ranks (dimensions within heads, rotated first) or head_dims (those that cannot be, too); "
        "or hidden alone, the width of the stream (experimental).",
    ),
    click.option(
        "--sparsity",
        metavar="PATTERN",
        help="Zeros in what is left: tiles:0.5 (skipped on every provider, and counted in the budget), 2:4, 8:16, "
        "4x1:0.5 or 16x16:0.5 (blocks), pattern:4x4:0.5, unstructured:0.5.",
    ),
    click.option(
        "--solver",
        shell_complete=among(solvers),
        default="auto",
        show_default=True,
        help="How --sparsity chooses zeros: admm, sparsegpt, wanda, magnitude, seven, seven-dyn, platon.",
    ),
    click.option(
        "--finetune",
        default=0,
        type=click.IntRange(0, MOST),
        metavar="STEPS",
        help="Tune sparse weights with their masks; no labels.",
    ),
    click.option(
        "--snip-threshold",
        type=float,
        metavar="NORM",
        help="First drop every residual branch that writes less than this, relative to the stream (0.3).",
    ),
    click.option(
        "--snip-spectral", is_flag=True, help="That norm with each weight divided by its largest singular value."
    ),
    click.option(
        "--tune",
        default=0.0,
        type=click.FloatRange(0, MOST),
        metavar="MINUTES",
        help="Then let all that is left learn from the dense model for so long; no labels.",
    ),
    click.option("--no-compensate", is_flag=True, help="Leave the surviving weights as they are."),
    click.option(
        "--round-to",
        default="auto",
        show_default=True,
        callback=rounding,
        help="Widths in multiples of this; auto: what runs fast.",
    ),
    click.option("--uniform", is_flag=True, help="Every layer alike."),
    click.option("--include", multiple=True, callback=split, help="Only units or nodes that match (glob)."),
    click.option("--exclude", multiple=True, callback=split, help="Not the units or nodes that match (glob)."),
    stated_shape("Where FLOPs are counted, and of random rows: batch_size=1,sequence_length=128."),
    click.option(
        "--calls",
        type=Pairs(size),
        default={},
        help="Of a folder of several graphs, how often each runs where FLOPs are counted: "
        "decoder_with_past_model=32; once by default.",
    ),
    click.option(
        "--rows",
        default=512,
        type=click.IntRange(1, MOST),
        show_default=True,
        help="The most calibration rows read.",
    ),
    click.option(
        "--device",
        shell_complete=among(lambda: ("auto", "cpu", "cuda")),
        default="auto",
        show_default=True,
        help="Where scoring runs: auto, cpu, cuda.",
    ),
    click.option("--seed", default=0, type=click.IntRange(0, MOST), show_default=True, help="Of every draw."),
    click.option(
        "--threads",
        default=0,
        type=click.IntRange(0, MOST_THREADS),
        help="Of scoring and comparing; 0 for all cores.",
    ),
    click.option(
        "--max-memory",
        metavar="SIZE",
        callback=memory,
        help="What the process may hold (8GB): batches are planned by it, models of more than a quarter of it are "
        "read and run in parts, and what cannot fit is refused; default: what the machine has, and has free.",
    ),
    click.option(
        "--latency-threads",
        default=1,
        type=click.IntRange(1, MOST_THREADS),
        show_default=True,
        help="Of the sessions that are timed.",
    ),
    click.option(
        "--latency-table",
        type=click.Path(exists=True, dir_okay=False, resolve_path=True),
        help="A table measured elsewhere, by `profile` or a phone, instead of one measured here.",
    ),
)
"""What decides the plan: the fields of search.options.Options."""


def seeds(ctx: click.Context, param: click.Parameter, value: Any) -> tuple[int, ...]:
    """Comma-separated whole numbers from 0 on."""
    try:
        found = tuple(int(piece) for piece in split(ctx, param, value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers") from None
    if any(not 0 <= seed <= MOST for seed in found):
        raise click.BadParameter(f"{value!r}: give numbers from 0 to {MOST}")
    return found


CLUSTER = click.option(
    "--cluster",
    metavar="URL",
    help="Workers of a cluster: dask://HOST:8786 (a scheduler), ray://HOST:10001, or ray://auto.",
)


spread = together(
    click.option("--workers", type=click.IntRange(1, MOST_THREADS), help="Processes of this machine that plan."),
    CLUSTER,
    click.option(
        "--store",
        metavar="URL",
        help="Keep what is measured, and finished plans, in this folder (s3://bucket/runs, or any that fsspec "
        "knows): a run that was lost goes on from there, on any machine.",
    ),
)
"""Where the work is done, and where what is measured outlives the run."""


def rewriting(command: Any) -> Any:
    """What is done to the graph besides carrying out the plan."""
    return click.option(
        "--keep-unread",
        is_flag=True,
        help="Compute positions that no output reads, too (a classifier reads one token of its last block).",
    )(command)


def bundled(command: Any) -> Any:
    """What is written where the check of the written file fails."""
    return click.option(
        "--debug-bundle",
        is_flag=False,
        flag_value="",
        type=click.Path(),
        metavar="[PATH]",
        help="Should a check of the written file fail: write what reproduces it (graphs without weights, the plan, the "
        "first node that differs) to PATH; default NAME.debug.zip beside the output.",
    )(command)


def bundle_beside(asked: str | None, target: Path) -> Path | None:
    """Where the bundle goes: as asked, or beside the output."""
    if asked is None:
        return None
    from onnxprune.pipeline.output_files import placed

    name = f"{target.name.removesuffix('.onnx')}.debug.zip"
    return placed(asked, name) if asked else target.with_name(name)


judged = together(
    click.option(
        "--eval",
        "evaluation",
        metavar="ROWS",
        help="Rows for the report; default: some calibration rows, set aside.",
    ),
    in_metrics("Task metric; guessed from labels and outputs."),
    on_providers("Execution providers to validate and time on."),
    click.option("--no-latency", is_flag=True, help="Do not time the models."),
    click.option(
        "--flips",
        default=12,
        type=click.IntRange(0, 1000),
        show_default=True,
        help="Evaluation rows with another answer that the report shows, with their text or a small picture; 0 keeps "
        "rows out of it.",
    ),
)
"""What the result is measured on."""


def talk(command: Any) -> Any:
    """How much is said, and in which form."""
    command = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")(
        command
    )
    command = click.option("--quiet", "-q", is_flag=True, help="Only errors.")(command)
    command = click.option(TRACEBACK, is_flag=True, expose_value=False, help="Show where an error came from.")(command)
    return click.option("--verbose", "-v", count=True, help="Say more, on stderr.")(command)


def reads(target: Path | None = None) -> list[Path]:
    """Files that brought the command here (a recipe), which it must not write.

    Args:
        target: the model that is written: the report of an older set of that name, which is repeated, goes with the set
            if that is replaced.
    """
    context = click.get_current_context(silent=True)
    files: list[Path] = list(context.obj or ()) if context is not None else []
    if target is None or not target.name:
        return files
    own = target.with_name(f"{target.name.removesuffix('.onnx')}.report.json").resolve()
    return [file for file in files if file.suffix != ".json" or file.resolve() != own]


def logs(verbose: int) -> None:
    """Log to stderr, as much as was asked for."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    # Who asks for no more is told what is the matter, not by which module.
    form = "%(name)s: %(message)s" if verbose else "warning: %(message)s"
    logging.basicConfig(level=level, stream=sys.stderr, format=form)
    if verbose < 2:
        for noisy in ("onnxscript", "onnx_ir"):
            logging.getLogger(noisy).setLevel(logging.ERROR)


@contextlib.contextmanager
def json_alone(alone: bool) -> Iterator[None]:
    """Keep native libraries, which write to descriptor 1 past Python, off the stdout that holds one JSON document."""
    try:
        ours = os.dup(sys.stdout.fileno()) if alone else None
    except (OSError, ValueError, AttributeError):  # stdout is no file: there is nothing to keep apart
        ours = None
    if ours is None:
        yield
        return
    before = sys.stdout
    before.flush()
    os.dup2(2, before.fileno())
    try:
        with told_apart(os.dup(ours), "utf-8") as sys.stdout:
            yield
    finally:
        sys.stdout = before
        os.dup2(ours, before.fileno())
        os.close(ours)
