"""Running control flow that was opened: which side of a choice is done, and the turns of a loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import LimitError, UnsupportedError
from onnxprune.graph import patience
from onnxprune.graph.flow.nodes import ends, ints, kind, lead, states
from onnxprune.probe.engine import namespace, to_numpy

Arguments = Callable[[ir.Node, dict[str, Any]], list[Any]]
"""What a node reads among some values, after the hooks."""


@dataclass(frozen=True)
class Turns:
    """A Loop or Scan between its Enter and its Leave."""

    enter: ir.Node
    leave: ir.Node

    def run(
        self, values: dict[str, Any], arguments: Arguments, turn: Callable[[dict[str, Any]], None], kept: Sequence[str]
    ) -> tuple[list[Any], dict[str, Any], int]:
        """All turns.

        Args:
            values: known before; they stay as they are.
            arguments: gives operands.
            turn: does one turn, on the values that it is given.
            kept: names of values of a turn that are wanted.

        Returns:
            (the Leave's outputs, the kept values of all turns on the first axis, how many turns there were).
        """
        given = arguments(self.enter, values)
        looping, first, count = kind(self.enter) == "Loop", lead(self.enter), states(self.enter)
        held = given[first : first + count]
        stacked = len(self.leave.outputs) - count
        parts: list[list[Any]] = [[] for _ in range(stacked)]
        most, going = self._bounds(given)
        started, allowed = time.process_time(), patience.allowed()
        seen: dict[str, list[Any]] = {name: [] for name in kept}
        done = 0
        while going and (most is None or done < most):
            scope = dict(values)
            begun = [*self._counters(done, given), *held] if looping else [*held, *self._slices(given[count:], done)]
            scope.update((v.name, x) for v, x in zip(self.enter.outputs, begun, strict=True) if v.name)
            turn(scope)
            ended = arguments(self.leave, scope)[: ends(self.leave)]
            if looping:
                going, ended = bool(ended[0]), ended[1:]
            held = ended[:count]
            for part, x in zip(parts, ended[count:], strict=True):
                part.append(x)
            for name, found in seen.items():
                if scope.get(name) is not None:
                    found.append(scope[name])
            done += 1
            if time.process_time() - started > allowed:
                raise LimitError(
                    f"the loop {self.leave.name} has not ended after {allowed:g} s of processor time; "
                    f"{patience.VARIABLE} in the environment allows more"
                )
        if not done and stacked:
            raise UnsupportedError(f"the loop {self.leave.name} took no turn on a row: what it gives has no shape")
        joined = [self._stacked(place, part) for place, part in enumerate(parts)]
        return [*held, *joined], {name: _together(found) for name, found in seen.items()}, done

    def _bounds(self, given: Sequence[Any]) -> tuple[int | None, bool]:
        """(most turns, whether there is a first)."""
        if kind(self.enter) == "Loop":
            most, going = given[:2]
            return None if most is None else int(most), going is None or bool(going)
        axes = ints(self.enter, "axes")
        return int(given[states(self.enter)].shape[axes[0]]), True

    def _counters(self, done: int, given: Sequence[Any]) -> list[Any]:
        """A Loop's number of the turn, and that it goes on."""
        one = next((x for x in given if x is not None), np.zeros(1))
        xp = namespace(one)
        return [xp.asarray(done, dtype=xp.int64), xp.asarray(True, dtype=xp.bool)]

    def _slices(self, wholes: Sequence[Any], done: int) -> list[Any]:
        axes, backwards = ints(self.enter, "axes"), ints(self.enter, "backwards")
        found = []
        for whole, axis, back in zip(wholes, axes, backwards, strict=True):
            place = whole.shape[axis] - 1 - done if back else done
            part = whole[(slice(None),) * (axis % whole.ndim) + (place,)]
            found.append(np.asarray(part) if isinstance(part, np.generic) else part)
        return found

    def _stacked(self, place: int, parts: list[Any]) -> Any:
        if ints(self.leave, "backwards")[place]:
            parts = parts[::-1]
        return namespace(parts[0]).stack(parts, ints(self.leave, "axes")[place])


def _together(parts: Sequence[Any]) -> Any:
    """One after another on the first axis; of numbers the last, of none nothing."""
    if not parts or not parts[0].ndim:
        return parts[-1] if parts else None
    return namespace(parts[0]).concatenate(tuple(parts))


def holds(value: Any) -> bool:
    """Whether a condition does."""
    return bool(to_numpy(value).reshape(-1)[0])
