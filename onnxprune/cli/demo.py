"""`onnxprune demo`: the main job on a model that comes with the program."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from onnxprune.cli.help import Command
from onnxprune.errors import UsageError


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("onnxprune-demo"), show_default=True,
    help="Folder for the model, its rows, and what is made of them.",
)  # fmt: skip
@click.argument("further", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def demo(context: click.Context, output: Path, further: tuple[str, ...]) -> None:
    """Prune a small vision transformer that is built in, to 60% of its FLOPs; takes well under a minute.

    FURTHER options (--flops 0.4, --quantize int8, --json) are those of `prune`, which does the work.
    """
    from onnxprune.pipeline.demo import unpack
    from onnxprune.probe.engine import EXTRA, has_torch

    assert context.parent is not None and isinstance(context.parent.command, click.Group)
    prune = context.parent.command.commands["prune"]
    with prune.make_context("onnxprune prune", ["model.onnx", *further]) as asked:  # before anything is written
        if named := asked.params["output"]:
            raise UsageError(f"{named}: the demo has a model of its own; `onnxprune prune {named}` prunes yours")
    files = unpack(output)
    learns = has_torch()
    click.echo(
        f"{files.model} is a vision transformer of 450,000 parameters, trained on 1,347 handwritten digits. The rows "
        "are 512 of these to learn from, and 450 others to judge by.",
        err=True,
    )
    if not learns:
        click.echo(
            f"PyTorch is not installed, so units go by their weights alone, and nothing is mended: {EXTRA} brings what "
            "loses less.",
            err=True,
        )
    rows = ["--calib", str(files.learn)] if learns else ["--method", "magnitude"]
    budget = [] if any(word.split("=")[0] in _BUDGETS for word in further) else ["--flops", "0.6"]
    arguments = [str(files.model), *budget, *rows, "--eval", str(files.judge), *further]
    click.echo(f"\n$ onnxprune {shlex.join(arguments)}\n", err=True)
    # Its own output of an earlier run may go: `unpack` saw to it that nothing else is called like that in this folder.
    prune.main([*arguments, "--force"], prog_name="onnxprune", standalone_mode=False)


_BUDGETS = ("--flops", "--params", "--size", "--latency", "--max-drop")
