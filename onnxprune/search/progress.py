"""What a run takes, by stage, and how far it is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from onnxprune.graph import memory

Progress = Callable[[str, int, int], None]
"""progress(stage, done, of): of the stages of `STAGES`. A stage begins with (stage, 0, 0); `of` may be more than it
takes. A progress that has a method `say(line)` is also told what was guessed: the metric, the shape, how rows are read.
"""

STAGES = {
    "load": "Loading the model",
    "analyze": "Finding what can be cut",
    "read": "Reading rows",
    "examine": "Running the dense model",
    "profile": "Timing modules at every width",
    "rotate": "Rotating heads into bases of their own",
    "score": "Scoring units",
    "table": "Measuring what each width costs",
    "search": "Searching for the best plan",
    "plan": "Making plans, on workers",
    "tile": "Arranging tiles",
    "compensate": "Refitting what stays",
    "tune": "Learning from the dense model",
    "sparsify": "Choosing zeros",
    "finetune": "Tuning what is left",
    "rewrite": "Cutting",
    "check": "Checking the file against the plan",
    "validate": "Comparing with the dense model",
    "latency": "Timing both models",
    "quantize": "Writing fewer bits",
}
"""Stage -> what is done in it, in words."""


def quiet(stage: str, done: int, of: int) -> None:
    """The progress of a run that nobody watches."""


@dataclass
class Clock:
    """Seconds by stage; whoever watches is told where each begins."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    progress: Progress = quiet

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name, 0, 0)
        start = time.perf_counter()
        try:
            yield
        finally:
            memory.give_back()
            self.seconds[name] += time.perf_counter() - start

    def say(self, line: str) -> None:
        """Tell whoever watches what was decided for them."""
        say = getattr(self.progress, "say", None)
        if say is not None:
            say(line)
