#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Sets vfsfuse up with what its tests need (tools/setup.sh), then runs the campaigns of tests/stress against it:
# docs/robustness.md. Not a part of tests/run.sh. tests/stress.sh --help has the arguments.
set -euo pipefail

# shellcheck source=tools/setup.sh
. "${BASH_SOURCE[0]%/*}/../tools/setup.sh"

have gcc || die "gcc is missing: the campaigns compile their programs (apt-get install gcc libc6-dev)"
set_up test
cd "$root"
exec "$venv/bin/python" -m tests.stress "$@"
