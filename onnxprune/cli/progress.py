"""What a run says while it works, on stderr: a line as each stage begins, and a bar where one takes longer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress

LONG = 2.0
"""Seconds after which a stage gets a bar."""


class Bar:
    """The progress of a command (`search.progress.Progress`): lines for everyone, bars where someone is looking.

    Args:
        off: say nothing.
    """

    def __init__(self, off: bool) -> None:
        self.off = off
        self.watched = not off and sys.stderr.isatty()
        self.stage = ""
        self.said: set[str] = set()
        self.task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __call__(self, stage: str, done: int, of: int) -> None:
        if self.off:
            return
        if stage != self.stage:
            self._begin(stage)
        if self.watched and of:
            self.bar.update(self.task, completed=min(done, of), total=of)

    def say(self, line: str) -> None:
        """A line about what was decided for the user, once."""
        if not self.off and line not in self.said:
            self.said.add(line)
            self._tell(f"  {line}")

    def __exit__(self, *_: object) -> None:
        if "bar" in self.__dict__:
            self.bar.stop()

    def _begin(self, stage: str) -> None:
        from onnxprune.search.progress import STAGES

        self.stage = stage
        self._tell(f"{STAGES.get(stage, stage)} …")
        if self.watched:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(STAGES.get(stage, stage), total=None)

    def _tell(self, line: str) -> None:
        if "bar" in self.__dict__:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    @cached_property
    def bar(self) -> Progress:
        """The bar itself, started."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

        class Late(Progress):
            """Shows only what takes long."""

            def get_renderables(self) -> Iterable[Any]:
                yield self.make_tasks_table([t for t in self.tasks if (t.elapsed or 0) > LONG])

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left:", TimeRemainingColumn())
        made = Late(*columns, console=Console(stderr=True), transient=True)
        made.start()
        return made
