#!/usr/bin/env bash
# The package itself, from the checkout that the workflow is run in.
set -euo pipefail
pip install --no-deps --no-build-isolation --editable .
