"""The whole job, from files to files: load, analyze, probe, score, search, refit, rewrite, measure, report.

In: a model's path, rows and options. Out: the checked file, its plan and its report. Nothing is computed here: each
step is the room of its name, and this room knows their order.
"""

from typing import Any

VERBS = ("apply", "inspect", "make_plan", "prune")


def __getattr__(name: str) -> Any:
    """The verbs by the name of the room (`pipeline.inspect`), imported when one is first used."""
    if name not in VERBS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.verbs"), name)
