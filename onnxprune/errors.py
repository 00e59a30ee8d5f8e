"""Every error the tool raises on purpose, with the exit code the command line ends with.

    OnnxPruneError
    ├── UsageError          2   options that contradict each other or name nothing
    ├── InputError          3   the model or the data cannot be read
    │   ├── ModelError
    │   └── DataError
    ├── UnsupportedError    4   a graph we cannot handle; says which node, operator, opset
    │   └── NothingToPruneError
    ├── BudgetError         5   the budget cannot be met; carries the closest that can
    └── CheckError          6   a self-check failed; nothing was written

A message says what happened, where (file, row, node, operator, opset) and what to do next.
"""

from __future__ import annotations


class OnnxPruneError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(OnnxPruneError):
    """The request itself is wrong: an unknown option value, two budgets, output equal to input."""

    exit_code = 2


class InputError(OnnxPruneError):
    """Something the user handed over cannot be read."""

    exit_code = 3


class ModelError(InputError):
    """The model file is missing, truncated, not ONNX, or lacks its external data."""


class DataError(InputError):
    """Calibration or evaluation rows cannot be read; the message names file and row."""


class UnsupportedError(OnnxPruneError):
    """The graph holds something the tool cannot work with."""

    exit_code = 4


class NothingToPruneError(UnsupportedError):
    """No unit of the requested kinds is free to be cut; the message says what pins them."""


class BudgetError(OnnxPruneError):
    """No plan meets the budget.

    Attributes:
        closest: the smallest cost that a plan can reach, in the budget's unit (fraction kept or absolute).
    """

    exit_code = 5

    def __init__(self, message: str, closest: float | None = None) -> None:
        super().__init__(message)
        self.closest = closest


class CheckError(OnnxPruneError):
    """A self-check failed (for example: the written file differs from the plan); nothing was written."""

    exit_code = 6
