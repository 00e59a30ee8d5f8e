"""`onnxprune run`: a command's options from a file, so that a run can be kept, read and repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.help import Command
from onnxprune.documents import built, read_text
from onnxprune.errors import DataError, UsageError, closest, reading, repeated

if TYPE_CHECKING:
    from onnxprune.graph.plan import Budget

_AMOUNTS = {"flops": (1e9, "GMAC"), "params": (1e6, "M"), "size": (1e6, "MB"), "latency": (1, "ms")}
"""Kind of budget -> what one of this unit is in the budget's own unit, and how it is written."""
_MOST = 1 << 20
"""Bytes of a recipe."""
_READ = ("options", "sources", "data")
"""What is read of a report's recipe."""
_NOT_FOR_FILES = ("as_json", "quiet", "verbose", "help")
"""How much is said is a matter of the moment."""
_TYPED = "force"
"""So is what may be replaced: where an output goes is in the file, too."""


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("further", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, recipe: Path, further: tuple[str, ...]) -> None:
    """Carry out RECIPE: a YAML file with a command's options, or the report of an earlier run.

    A recipe holds `model`, and options of `prune` under their names (flops: 0.6, calib: rows.jsonl); `command` names
    another command. Lists, mappings and true or false are written as YAML has them, and paths are relative to the
    file. FURTHER options (--force, -o small.onnx, --json) are added, and win over the file's.
    """
    assert context.parent is not None and isinstance(context.parent.command, click.Group)
    commands = {name: held for name, held in context.parent.command.commands.items() if held is not context.command}
    told = _report(recipe, commands["prune"]) if recipe.suffix == ".json" else _yaml(recipe)
    name = str(told.pop("command", "prune"))
    command = commands.get(name)
    if command is None:
        others = ", ".join(sorted(commands))
        raise UsageError(f"{recipe}: command: {name} is no command; choose from {others}")
    arguments = [*_arguments(recipe, command, told), *further]
    try:
        command.main(arguments, prog_name=f"onnxprune {name}", standalone_mode=False, obj=(recipe,))
    except click.UsageError as error:
        key = error.param.name if isinstance(error, click.BadParameter) and error.param is not None else None
        at = f"{_key(command, key)}: " if key else ""
        raise UsageError(f"{recipe}: {at}{error.format_message()}") from error


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    text = read_text(file, DataError, most=_MOST)
    with reading(f"{file}: not YAML", DataError):
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        given = [_option(str(key.value)) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        told = None if node is None else loader.construct_document(node)
    if not isinstance(told, dict) or not all(isinstance(key, str) for key in told):
        raise DataError(f"{file}: a recipe is a mapping from options to values, such as flops: 0.6")
    if (twice := repeated(given)) is not None:
        raise UsageError(f"{file}: {twice} is given twice; leave one")
    return told


def _option(key: str) -> str:
    """A key as the command line spells it."""
    return key.replace("_", "-")


def _report(file: Path, prune: click.Command) -> dict[str, Any]:
    """A finished run as a recipe: the model, the rows and every option; what the command line does not have is left."""
    from onnxprune.graph.plan import Budget
    from onnxprune.report import Report

    report = Report.load(file)
    told = built(
        Mapping[str, Mapping[str, Any]], {k: report.recipe.get(k, {}) for k in _READ}, f"{file}: recipe", DataError
    )
    options: dict[str, Any] = {**told["options"], **told["sources"]}
    if "budget" not in options:
        raise DataError(f"{file}: the report does not hold the options of its run")
    budget: Budget = built(Budget, options.pop("budget"), f"{file}: recipe.options.budget", DataError)
    if "calibration" in told["data"] and not options.get("calibration"):
        raise UsageError(
            f"{file}: the calibration rows of that run were no file, so that it cannot be repeated from one"
        )
    if budget.kind not in _AMOUNTS:
        raise DataError(f"{file}: recipe.options.budget: {budget.kind!r:.40} is no kind of budget")
    if not options.get("max_drop") and not (budget.relative and budget.value == 1):
        options[budget.kind] = _amount(budget)
    options["no_compensate"] = not options.pop("compensate", True)
    options["round_to"] = options.get("round_to") or "auto"
    known = {p.name: p for p in prune.params}
    if not report.model.path:
        raise DataError(f"{file}: the report names no model")
    given = {_key(prune, n): v for n, v in options.items() if n in known and v not in (None, [], {}, known[n].default)}
    there: dict[str, Any] = {
        name: str(_located(file, built(str, given[name], f"{file}: recipe.sources: {name}", DataError)))
        for name in ("calib", "eval", "tokenizer")
        if name in given
    }
    return {"model": str(_located(file, report.model.path)), "output": report.model.pruned_path, **given, **there}


def _located(report: Path, named: str) -> str | Path:
    """A file that a report names: where it says, or, if it went along with the report, beside that.

    Reports name files from the root of the file system on; older ones as they were typed.
    """
    if named == "random":
        return named
    told = Path(named)
    for place in (told, report.parent / told, report.parent / told.name):
        if place.exists():
            return place.resolve()
    return told


def _amount(budget: Budget) -> str:
    if budget.relative:
        return repr(budget.value)
    unit, name = _AMOUNTS[budget.kind]
    return f"{budget.value / unit!r}{name}"


def _arguments(file: Path, command: click.Command, told: Mapping[str, Any]) -> Iterator[str]:
    """What would be typed: positional arguments last, in the command's order."""
    known = {_spelled(p): p for p in command.params if p.name not in _NOT_FOR_FILES}
    placed: dict[str, str] = {}
    for key, value in told.items():
        param = known.get(_option(key))
        if _option(key) == _TYPED:
            raise UsageError(f"{file}: {_TYPED} is not read from a file, which others may have made: type --{_TYPED}")
        if param is None:
            meant = closest(_option(key), known, 0.6)
            hint = f"did you mean {meant}?" if meant else f"the keys are {', '.join(sorted(known))}"
            raise UsageError(f"{file}: {key} is not an option of {command.name}; {hint}")
        if value is None:
            continue
        written = _written(file, key, value, param)
        if isinstance(param, click.Argument):
            placed[_spelled(param)] = written[0]
        elif isinstance(param, click.Option) and param.is_flag:
            if not isinstance(value, bool):
                raise UsageError(f"{file}: {key} is true or false, not {value!r}")
            yield from [f"--{_spelled(param)}"] * value
        else:
            for piece in written:
                yield f"--{_spelled(param)}={piece}"
    for param in command.params:
        if isinstance(param, click.Argument) and _spelled(param) in placed:
            yield placed[_spelled(param)]
        elif isinstance(param, click.Argument) and param.required:
            raise UsageError(f"{file}: {_spelled(param)} is missing")


def _spelled(param: click.Parameter) -> str:
    """The longest name of an option, without dashes; of an argument the name itself."""
    longest = max((o for o in param.opts if o.startswith("--")), key=len, default=None)
    if longest is None:
        return (param.metavar or param.name or "").lower() if isinstance(param, click.Argument) else str(param.name)
    return longest.removeprefix("--")


def _key(command: click.Command, name: str) -> str:
    """The key of a recipe that stands for a parameter."""
    return next((_spelled(p) for p in command.params if p.name == name), name)


def _written(file: Path, key: str, value: Any, param: click.Parameter) -> list[str]:
    """A value as it is typed: several where the option may be given several times."""
    if (isinstance(value, Mapping | list | tuple) and not value) or "\0" in str(value):
        raise UsageError(f"{file}: {key}: {value!r:.60} is no value")
    if isinstance(value, Mapping):
        return [",".join(f"{name}={held}" for name, held in value.items())]
    if isinstance(value, list | tuple):
        if not all(isinstance(held, str | int | float) for held in value):
            raise UsageError(f"{file}: {key} holds something that is neither text nor a number")
        pieces = [str(held) for held in value]
        return pieces if param.multiple else [",".join(pieces)]
    text = str(value)
    path = isinstance(param.type, click.Path) or (param.metavar == "ROWS" and text != "random")
    ending = "/" if text.endswith(("/", "/.")) else ""  # which says that it is a folder's name, and no path keeps
    return [f"{file.parent / text}{ending}" if path else text]
