#!/usr/bin/env bash
# The main job on the built-in example, set-up included: prunes a small vision transformer that comes trained.
# Options go to `onnxprune prune`: `bash examples/digits.sh --flops 0.4`. examples/digits_vit.py trains it.
set -euo pipefail
WITH=torch . "$(dirname "$0")/../.ci/setup"
onnxprune demo --output examples/output/digits "$@"
