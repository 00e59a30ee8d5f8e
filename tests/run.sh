#!/usr/bin/env bash
# The checks and the everyday tests, set-up included. Arguments go to pytest: `bash tests/run.sh -m slow` runs the others.
set -euo pipefail
WITH=dev . "$(dirname "$0")/../.ci/setup"
. .ci/runtimes
ruff check .
ruff format --check .
mypy
lint-imports
# Models of tests are small: a process a core, each with one thread, takes half the time of one process with all.
export OMP_NUM_THREADS=1
[ $# -gt 0 ] || set -- -m "not slow and not bench" -n auto --dist worksteal
python -m pytest "$@"
