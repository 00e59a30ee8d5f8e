"""`onnxprune export`: what is shipped to a device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.help import Command
from onnxprune.cli.options import MODEL, MOST, Pairs, in_metrics, logs, reads, stated_shape, talk
from onnxprune.cli.progress import Bar
from onnxprune.cli.reading import OUTSIDE


class _Targets(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """The names in `export.TARGETS`, looked up when this command runs: the program's own help stays instant."""

    def __init__(self) -> None:
        self.case_sensitive = True

    @property
    def choices(self) -> Sequence[str]:  # type: ignore[override]
        from onnxprune.export import TARGETS

        return tuple(TARGETS)


@click.command(cls=Command)
@MODEL
@click.option("--target", required=True, type=_Targets(), help="Where it will run.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make; default NAME.TARGET.")
@click.option(
    "--quantize",
    metavar="SCHEME",
    help="int8 (what the target runs best), fp16, int8-weights, int8-dynamic, int8-static, fp16-compute, a16w8, a8w8.",
)
@click.option("--calib", "calibration", metavar="ROWS", help="Rows for ranges, shapes and samples.")
@click.option("--eval", "evaluation", metavar="ROWS", help="Rows to measure every step on.")
@click.option("--dense", type=click.Path(path_type=Path), help="The dense original, if the report does not name it.")
@click.option("--vocab", type=click.Path(path_type=Path), metavar="TEXTS", help="Keep the tokens these lines use.")
@stated_shape("Sizes where the target fixes them, by the graph's names.")
@click.option("--bench", is_flag=True, help="android: add scripts that measure on a phone.")
@click.option("--web-runtime", type=click.Path(path_type=Path), help="web: folder with onnxruntime-web's files.")
@in_metrics("Task metric; guessed.")
@click.option("--columns", type=Pairs(str), help="Rename columns: text=sentence1,label=gold.")
@click.option("--pairs", type=click.Choice(["joint", "separate"]), help="Two texts as one input, or as two; guessed.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json or a folder.")
@click.option("--max-length", type=click.IntRange(1, MOST), help="The most tokens of a row.")
@OUTSIDE
@click.option("--force", is_flag=True, help="Replace what an earlier export wrote there; other files stay.")
@talk
def export(
    model: Path, target: str, output: Path | None, as_json: bool, quiet: bool, verbose: int, metric: tuple[str, ...],
    **kwargs: Any,
) -> None:  # fmt: skip
    """Make the folder that ships MODEL to a device, checked on the runtimes that are here."""
    from onnxprune.export import export as run
    from onnxprune.graph import joined
    from onnxprune.report import export as exported

    logs(verbose)
    file = joined.find(model).resolve()
    folder = output or file.with_name(f"{file.name if file.is_dir() else file.stem}.{target}")
    reading = {
        name: value
        for name in ("columns", "pairs", "tokenizer", "max_length", "allow_outside")
        if (value := kwargs.pop(name))
    }
    with Bar(quiet or as_json):
        made = run(file, target, folder, metric=metric or None, reads=reads(), **kwargs, **reading)
    if as_json:
        click.echo(json.dumps(json.loads((made.folder / "report.json").read_text(encoding="utf-8"))))
    elif not quiet:
        exported.print_export(made)


def import_bench(
    file: Path, table: Path | None = None, ep: Sequence[str] = (), *, force: bool = False, as_json: bool, quiet: bool
) -> None:
    """Show what `bench/run.sh` measured on a phone, and write its latency table.

    Args:
        table: file to write; None for none.
        force: replace a table that exists.
        ep: the providers whose tables are kept; all where none is named.
    """
    from dataclasses import asdict

    from onnxprune.errors import UsageError
    from onnxprune.export.device import read_result
    from onnxprune.graph import outputs
    from onnxprune.graph.providers import SHORT_NAMES, short_name
    from onnxprune.measure.tables.table import save
    from onnxprune.report import latency_table, terminal

    rows, tables = read_result(file)
    wanted = {SHORT_NAMES.get(name.lower(), name) for name in ep}
    kept = [t for t in tables if not wanted or t.provider in wanted]
    if table is not None:
        if not kept:
            there = ", ".join(short_name(t.provider) for t in tables) or "none"
            raise UsageError(f"{file}: no latency table of {', '.join(ep) or 'any provider'}; it has {there}")
        with outputs.files(table, inputs=outputs.Inputs.of(file, reads()), force=force) as out:
            save(kept, out.folder / out.first)
            out.commit()
    if as_json:
        told = {"latency": [asdict(row) for row in rows], "tables": [t.to_json() for t in kept]}
        click.echo(json.dumps(told, default=float))
    elif not quiet:
        terminal.print_latency(rows)
        latency_table.print_tables(kept)
        if table is not None:
            click.echo(f"wrote {table}")
