"""The command line. It parses, calls the pipeline, and prints; `prune` is the default command."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.boundary import guarded
from onnxprune.cli.compare import bench, validate
from onnxprune.cli.demo import demo
from onnxprune.cli.export import export
from onnxprune.cli.help import Command, among, examples, schemes
from onnxprune.cli.options import (
    MODEL,
    Pairs,
    budgets,
    bundle_beside,
    bundled,
    json_alone,
    judged,
    logs,
    planning,
    reads,
    rewriting,
    seeds,
    size,
    split,
    spread,
    stated_shape,
    talk,
)
from onnxprune.cli.profile import profile
from onnxprune.cli.progress import Bar
from onnxprune.cli.reading import calibration
from onnxprune.cli.run import run
from onnxprune.errors import UsageError, closest


class _Default(click.Group):
    """A group whose first argument may also be a model: `onnxprune m.onnx --flops 0.6`."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] == ["help"] and not Path("help").exists():
            args = [*args[1:2], "--help"]
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            meant = closest(args[0], self.commands)
            if meant and not ctx.resilient_parsing and not Path(args[0]).exists():
                raise UsageError(f"{args[0]} is neither a command nor a file: did you mean `onnxprune {meant}`?")
            args = ["prune", *args]
        return super().parse_args(ctx, args)


_START = (
    examples(
        "onnxprune demo                                              # the whole job on a model that is built in",
        "onnxprune model.onnx --flops 0.6 --calib rows.jsonl         # keep 60% of the FLOPs -> model.pruned.onnx",
        "onnxprune inspect model.onnx                                # what can be cut, and what cannot, and why",
        "onnxprune prune --help                                      # all options of the main job",
    )
    + """

\b
The shell completes commands, options and their values after
  eval "$(_ONNXPRUNE_COMPLETE=bash_source onnxprune)"          # bash; zsh_source and fish_source for the others
"""
)


@click.group(cls=_Default, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_START)
@click.version_option(package_name="onnxprune")
def cli() -> None:
    """Make an .onnx model smaller and faster, to a budget, without retraining, and prove it."""


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Command-line values as fields of search.options.Options."""
    kwargs["compensate"] = not kwargs.pop("no_compensate")
    _threads(kwargs["threads"])
    return kwargs


def _threads(count: int) -> None:
    if count:
        os.environ["OMP_NUM_THREADS"] = str(count)  # torch reads it when it is imported, which no refusal waits for
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(count)


@cli.command(
    epilog=examples(
        "onnxprune model.onnx --flops 0.6 --calib rows.jsonl --eval dev.jsonl",
        "onnxprune model.onnx small.onnx --latency 0.5 --calib rows.jsonl --quantize int8",
        "onnxprune folder/ --max-drop 1pt --calib rows.jsonl --eval dev.jsonl    # a point at most",
        "onnxprune model.onnx --flops 0.8 --method magnitude    # without rows",
    )
)
@MODEL
@click.argument("output", required=False, type=click.Path())
@click.option(
    "-o",
    "--output",
    "output_option",
    type=click.Path(),
    help="File to write, or FOLDER/ to write into; default NAME.pruned.onnx.",
)
@budgets
@calibration
@judged
@planning
@rewriting
@spread
@click.option(
    "--max-drop", metavar="DROP", help="The smallest model within 1pt (points) or 1% (relative) of the metric."
)
@click.option(
    "--quantize",
    shell_complete=among(schemes),
    metavar="SCHEME",
    help="Also write it in int8 or fp16, and measure every step.",
)
@bundled
@click.option("--keep-broken", is_flag=True, help="Write a model of whose outputs nothing is left, too.")
@click.option("--force", is_flag=True, help="Replace an output that exists, with the files that belong to it.")
@click.option("--dry-run", is_flag=True, help="Read everything, say what would be done, and stop: takes seconds.")
@talk
def prune(
    model: Path,
    output: str | None,
    output_option: str | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
    dry_run: bool,
    **kwargs: Any,
) -> None:
    """Prune MODEL to a budget: score, search, cut, mend, check, measure (the default command)."""
    from onnxprune.graph import joined
    from onnxprune.pipeline import output_files, verbs
    from onnxprune.report import terminal
    from onnxprune.report.preview import print_preview

    logs(verbose)
    if output is not None and output_option is not None:
        raise UsageError("the output is named twice; give OUTPUT or -o")
    asked, file = output if output_option is None else output_option, joined.find(model)
    target = output_files.target_of(asked, file)
    options = _options(kwargs)
    measure = not options.pop("no_latency")
    providers = options.pop("ep")
    metric = options.pop("metric") or None
    options["debug_bundle"] = bundle_beside(options["debug_bundle"], target)
    if dry_run:
        for name in ("debug_bundle", "keep_broken", "workers", "cluster", "store"):
            del options[name]
        with Bar(quiet or as_json) as bar:
            found = verbs.dry_run(
                model, target, providers=providers, metric=metric, progress=bar, reads=reads(), **options
            )
        if as_json:
            click.echo(json.dumps(asdict(found), indent=1))
        elif not quiet:
            print_preview(asdict(found))
        return
    with Bar(quiet or as_json) as bar:
        result = verbs.prune(
            model,
            target,
            providers=providers,
            metric=metric,
            measure_latency=measure,
            progress=bar,
            reads=reads(target),
            **options,
        )
    if as_json:
        click.echo(json.dumps(result.report.to_json(), indent=1))
    elif not quiet:
        terminal.print_report(result.report)
        for written in result.files:
            click.echo(f"wrote {written}")


@cli.command()
@MODEL
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder for the pruned models; default: none are written."
)
@click.option("--flops", callback=split, metavar="BUDGETS", help="Fractions to keep: 0.9,0.75,0.6,0.5,0.4.")
@click.option("--latency", callback=split, metavar="BUDGETS", help="The same of the latency, instead; or 8ms,6ms.")
@calibration
@judged
@planning
@click.option("--seeds", callback=seeds, metavar="SEEDS", help="Each of these seeds, instead of --seed: 0,1,2.")
@rewriting
@spread
@click.option("--report", type=click.Path(), help="HTML page with the curve.")
@bundled
@click.option("--force", is_flag=True, help="Replace outputs that exist.")
@talk
def sweep(
    model: Path, output: Path | None, flops: tuple[str, ...], latency: tuple[str, ...], report: str | None,
    force: bool, as_json: bool, quiet: bool, verbose: int, **kwargs: Any,
) -> None:  # fmt: skip
    """The curve: MODEL at several budgets, scored once; of several methods, --method obs,wanda, a curve each."""
    from onnxprune.data import READING
    from onnxprune.graph import joined, outputs
    from onnxprune.pipeline import output_files
    from onnxprune.pipeline.sweep import sweep as curve
    from onnxprune.report import sweep_page, terminal

    logs(verbose)
    if bool(flops) == bool(latency):
        raise UsageError("give the budgets of one kind: --flops 0.9,0.75,0.6 or --latency 0.9,0.75,0.6")
    options = _options(kwargs)
    file = joined.find(model)
    bundle = bundle_beside(options.pop("debug_bundle"), (output or file.parent) / file.name)
    asked = (*READING, "calibration", "evaluation", "flips", "seeds", "workers", "cluster", "store")
    common = {name: options.pop(name) for name in asked}
    common |= {
        "measure": not options.pop("no_latency"),
        "providers": options.pop("ep"),
        "metric": options.pop("metric") or None,
        "methods": [name.strip() for name in options.pop("method").split(",") if name.strip()],
    }
    with ExitStack() as stack:
        page = None
        place = None if report is None else output_files.placed(report, output_files.name_after(file, "sweep.html"))
        if place is not None:
            read = [common["calibration"], common["evaluation"], options.get("latency_table"), *reads()]
            inputs = output_files.inputs_of(file, *read, tokenizer=common["tokenizer"])
            page = stack.enter_context(outputs.files(place, inputs=inputs, force=force))
        with Bar(quiet or as_json) as bar:
            results = curve(
                model, flops or latency, output, kind="flops" if flops else "latency", force=force, options=options,
                progress=bar, reads=reads(), debug_bundle=bundle, **common,
            )  # fmt: skip
        reports = [r.report for r in results]
        if page is not None:
            (page.folder / page.first).write_text(sweep_page.render(reports), encoding="utf-8")
            page.commit()
    if as_json:
        click.echo(json.dumps([r.to_json() for r in reports], indent=1))
    elif not quiet:
        terminal.print_sweep(reports)
        for written in [*(file for result in results for file in result.files), *([place] if place else [])]:
            click.echo(f"wrote {written}")


@cli.command()
@MODEL
@stated_shape("Where FLOPs are counted; default batch 1, else what the graph can run with.")
@click.option("--calls", type=Pairs(size), default={}, help="Of a folder of several graphs, how often each runs.")
@click.option("--pins", is_flag=True, help="All pinned dimensions, not the most common reasons only.")
@talk
def inspect(
    model: Path, shape: dict[str, int], calls: dict[str, int], pins: bool, as_json: bool, quiet: bool, verbose: int
) -> None:  # fmt: skip
    """Show what can be cut in MODEL, its share of the FLOPs, what is pinned and why."""
    from onnxprune.pipeline import verbs
    from onnxprune.report import inspection

    logs(verbose)
    dense, structure, costs = verbs.inspect(model, shape, calls)
    found = inspection.survey(dense, structure, costs)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        inspection.print_survey(found, everything=pins)


@cli.command()
@MODEL
@click.option("-o", "--output", required=True, type=click.Path(), help="plan.json to write, or FOLDER/ to write into.")
@budgets
@calibration
@planning
@click.option("--ep", "provider", default="cpu", show_default=True, help="Execution provider that --latency is about.")
@click.option("--force", is_flag=True, help="Replace a plan that exists.")
@talk
def plan(model: Path, output: str, force: bool, as_json: bool, quiet: bool, verbose: int, **kwargs: Any) -> None:
    """Make a plan for MODEL without carrying it out: plan.json, and plan.safetensors with refit weights."""
    from onnxprune.data import READING
    from onnxprune.graph import joined, outputs
    from onnxprune.graph.plan_file import tensors_beside
    from onnxprune.pipeline import output_files, verbs
    from onnxprune.search.options import Options

    logs(verbose)
    options = _options(kwargs)
    asked = {name: options.pop(name) for name in READING}
    calibration = options.pop("calibration")
    limits = {kind: options.pop(kind) for kind in ("flops", "params", "size", "latency")}
    budget = verbs.budget_of(**limits, whole=verbs.needs_no_budget(options))
    file = joined.find(model)
    inputs = output_files.inputs_of(
        file, calibration, options.get("latency_table"), *reads(), tokenizer=asked["tokenizer"]
    )
    place = output_files.placed(output, output_files.name_after(file, "plan.json"))
    with outputs.files(place, [tensors_beside(place).name], inputs=inputs, force=force) as out:
        with Bar(quiet or as_json) as bar:
            made = verbs.make_plan(model, calibration, Options(budget, **options), progress=bar, **asked)
        made.save(out.folder / out.first)
        files = out.commit()
    if as_json:
        click.echo(json.dumps(made.to_json(), indent=1))
    elif not quiet:
        for file in files:
            click.echo(f"wrote {file}")


@cli.command(name="apply")
@MODEL
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="File to write, or FOLDER/ to write into; default NAME.pruned.onnx.",
)
@rewriting
@bundled
@click.option("--force", is_flag=True, help="Replace an output that exists.")
@talk
def apply_plan(
    model: Path, plan_file: Path, output: str | None, keep_unread: bool, debug_bundle: str | None, force: bool,
    as_json: bool, quiet: bool, verbose: int,
) -> None:  # fmt: skip
    """Carry out PLAN on the MODEL it was made for; needs no data."""
    from onnxprune.graph import joined
    from onnxprune.graph.plan import Plan
    from onnxprune.graph.plan_file import tensors_beside
    from onnxprune.pipeline import output_files, verbs

    logs(verbose)
    file = joined.find(model)
    target = output_files.target_of(output, file)
    files, found = verbs.apply(
        model, Plan.load(plan_file), target, force=force, keep_unread=keep_unread,
        debug_bundle=bundle_beside(debug_bundle, target), reads=[plan_file, tensors_beside(plan_file), *reads()],
    )  # fmt: skip
    if as_json:
        click.echo(
            json.dumps(
                {
                    "files": [str(f) for f in files],
                    "equivalence": {"max_abs": found.max_abs, "max_rel": found.max_rel, "rows": found.rows},
                }
            )
        )
    elif not quiet:
        for written in files:
            told = f" (differs from the plan by {found.max_rel:.1e} of the outputs' scale)"
            click.echo(f"wrote {written}{told if written.suffix == '.onnx' else ''}")


cli.add_command(validate)
cli.add_command(bench)
cli.add_command(demo)
cli.add_command(export)
cli.add_command(profile)
cli.add_command(run)


def main() -> None:
    """The `onnxprune` program: one clear line and the exit code of `errors` for what goes wrong."""

    def call() -> None:
        with json_alone("--json" in sys.argv):
            cli.main(standalone_mode=False)

    if code := guarded(call):
        sys.exit(code)


if __name__ == "__main__":
    main()
