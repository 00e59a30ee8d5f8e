#!/usr/bin/env bash
# The main job on the built-in example, set-up included: trains a small vision transformer, exports it and prunes it.
set -euo pipefail
. "$(dirname "$0")/../.ci/setup"
python examples/digits_vit.py "$@"
