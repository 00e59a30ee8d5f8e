#!/usr/bin/env bash
# The checks and the everyday tests, set-up included. Arguments go to pytest: `bash tests/run.sh -m slow` runs the others.
set -euo pipefail
. "$(dirname "$0")/../.ci/setup"
. .ci/runtimes
ruff check .
ruff format --check .
mypy
lint-imports
[ $# -gt 0 ] || set -- -m "not slow and not bench"
python -m pytest "$@"
