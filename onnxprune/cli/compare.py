"""`onnxprune validate` and `onnxprune bench`: two models on the same rows, and turn by turn."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxprune.cli.export import import_bench
from onnxprune.cli.help import Command
from onnxprune.cli.options import MODEL, MOST, Pairs, in_metrics, ints, logs, on_providers, stated_shape, talk
from onnxprune.cli.progress import Bar
from onnxprune.cli.reading import OUTSIDE, images
from onnxprune.errors import UsageError


@click.command(cls=Command)
@MODEL
@click.argument("pruned", type=click.Path(path_type=Path))
@click.option("--eval", "evaluation", required=True, metavar="ROWS", help="Rows to compare on.")
@in_metrics("Task metric; guessed.")
@on_providers("Execution providers.")
@click.option("--columns", type=Pairs(str))
@click.option("--pairs", type=click.Choice(["joint", "separate"]))
@click.option("--tokenizer", type=click.Path(path_type=Path))
@images
@stated_shape("Of images and sounds, where the graph leaves it open.")
@OUTSIDE
@talk
def validate(
    model: Path, pruned: Path, evaluation: str, metric: tuple[str, ...], ep: tuple[str, ...],
    columns: dict[str, str] | None, pairs: Any, tokenizer: Path | None, allow_outside: bool, as_json: bool, quiet: bool,
    verbose: int, **prepared: Any,
) -> None:  # fmt: skip
    """Compare PRUNED with MODEL on rows: task metric with its interval, and how far the outputs moved.

    PRUNED may be quantised, of fixed shape, in ORT format, or an exported folder.
    """
    from onnxprune.pipeline.comparison import validate as compare
    from onnxprune.report import terminal

    logs(verbose)
    with Bar(quiet or as_json) as bar:
        evidence = compare(
            model, pruned, evaluation, providers=ep, metric=metric or None, progress=bar, columns=columns, pairs=pairs,
            tokenizer=tokenizer, allow_outside=allow_outside, **prepared,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(asdict(evidence)))
    elif not quiet:
        terminal.print_evidence(evidence)


def _enough(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """Pairs of runs from which a speed-up may be told."""
    from onnxprune.measure.latency import RUNS

    if value < RUNS and not ctx.resilient_parsing:
        raise click.BadParameter(
            f"{value} pairs of runs are too few: a speed-up is the median over pairs, and its interval wants {RUNS} at "
            "least"
        )
    return value


@click.command(cls=Command)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("pruned", required=False, type=click.Path(path_type=Path))
@click.option("--import", "imported", type=click.Path(path_type=Path), help="What a phone measured: result.json.")
@click.option("--table", type=click.Path(), help="With --import: latency table to write.")
@click.option("--force", is_flag=True, help="Replace a table that exists.")
@on_providers("Execution providers.")
@click.option("--batch", default="", callback=ints, help="Batch sizes: 1,8; default 1, or what the graph fixes.")
@click.option("--seq", default="", callback=ints, help="Sequence lengths: 64,128,384.")
@stated_shape("Other dimensions, by the graph's names.")
@click.option("--threads", default="1", show_default=True, callback=ints, help="Inside an operator: 1,2.")
@click.option(
    "--runs", default=50, type=click.IntRange(1, MOST), callback=_enough, show_default=True,
    help="Pairs of runs at a shape, 35 or more.",
)  # fmt: skip
@click.option("--profile", is_flag=True, help="Also time by operator, in passes of their own.")
@talk
def bench(
    model: Path | None, pruned: Path | None, imported: Path | None, table: str | None, ep: tuple[str, ...],
    batch: tuple[int, ...], seq: tuple[int, ...], shape: dict[str, int], threads: tuple[int, ...], runs: int,
    profile: bool, force: bool, as_json: bool, quiet: bool, verbose: int,
) -> None:  # fmt: skip
    """Time MODEL and PRUNED, interleaved: medians, tails, and the speed-up with its interval.

    Besides execution providers, --ep takes node and web: onnxruntime-node, and onnxruntime-web's WASM in Node.
    A simulated provider is not timed: where its nodes run is shown, and how far its outputs are from the CPU's.
    """
    if imported is not None:
        from onnxprune.pipeline import output_files

        named = click.get_current_context().get_parameter_source("ep") is not ParameterSource.DEFAULT
        place = None if table is None else output_files.placed(table, output_files.name_after(imported, "table.json"))
        import_bench(imported, place, ep if named else (), force=force, as_json=as_json, quiet=quiet)
        return
    if model is None or pruned is None:
        raise UsageError("name the dense MODEL and the PRUNED one, or --import what a phone measured")
    if table is not None:
        raise UsageError("--table is written with --import; `onnxprune profile MODEL -o table.json` measures one here")
    from onnxprune.graph import joined
    from onnxprune.measure import bench as benchmark
    from onnxprune.report import bench as measured

    logs(verbose)
    dense, smaller = joined.opened(model), joined.opened(pruned)
    found = benchmark.measure(
        dense.file,
        smaller.file,
        providers=ep,
        batch=batch,
        sequence=seq,
        dims=shape,
        threads=threads,
        runs=runs,
        profile=profile,
    )
    if as_json:
        click.echo(json.dumps(asdict(found)))
    elif not quiet:
        measured.print_benchmark(found)
