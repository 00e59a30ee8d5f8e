"""`onnxprune profile`: what every width takes, measured here or prepared to be measured elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.help import Command
from onnxprune.cli.options import CLUSTER, MODEL, Pairs, ints, logs, on_providers, reads, size, split, talk
from onnxprune.cli.progress import Bar


@click.command(cls=Command)
@MODEL
@click.option("-o", "--output", type=click.Path(), help="table.json to write, or FOLDER/ to write into.")
@click.option("--micro", type=click.Path(path_type=Path), help="Folder to make, with what measures elsewhere.")
@on_providers("Execution providers.")
@click.option("--shape", type=Pairs(size), multiple=True, help="Where to measure; may be given several times.")
@click.option("--threads", default="1", show_default=True, callback=ints, help="Threads inside one operator: 1,2.")
@click.option("--units", default="heads,neurons,blocks", show_default=True, callback=split, help="What may be cut.")
@CLUSTER
@click.option("--on", metavar="TAG", help="The resource of the cluster's worker that owns the device.")
@click.option("--force", is_flag=True, help="Replace a table, or what an earlier run wrote in the folder.")
@talk
def profile(
    model: Path, output: str | None, micro: Path | None, shape: tuple[dict[str, int], ...], as_json: bool,
    quiet: bool, verbose: int, force: bool, **asked: Any,
) -> None:  # fmt: skip
    """Measure what each module of MODEL takes at each width, for --latency-table; or export what does it elsewhere."""
    from onnxprune.errors import UsageError
    from onnxprune.graph import joined, outputs
    from onnxprune.measure.tables import table
    from onnxprune.pipeline import latency_table as profiles
    from onnxprune.pipeline import output_files

    logs(verbose)
    if (output is None) == (micro is None):
        raise UsageError("name the table to write (-o table.json), or a folder to measure with elsewhere (--micro)")
    source = joined.find(model)
    inputs = output_files.inputs_of(source, *reads())
    if micro is not None:
        with outputs.folder(micro, inputs=inputs, force=force) as out:
            profiles.export(model, out.folder, shape or ({},), asked["units"], asked["ep"])
            out.commit()
        if not quiet:
            click.echo(f"wrote {micro}: run measure.py in it on the machine that will run the model")
        return
    assert output is not None
    place = output_files.placed(output, output_files.name_after(source, "table.json"))
    with outputs.files(place, inputs=inputs, force=force) as file:
        with Bar(quiet or as_json) as bar:
            tables = profiles.profile(model, shape or ({},), progress=bar, **asked)
        table.save(tables, file.folder / file.first)
        file.commit()
    if as_json:
        click.echo(json.dumps([t.to_json() for t in tables]))
    elif not quiet:
        from onnxprune.report import latency_table

        latency_table.print_tables(tables)
        click.echo(f"wrote {place}")
