#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Sets vfsfuse up with what its tests need (tools/setup.sh), then checks and tests everything.
# Arguments go to pytest, seen from the project's root: tests/run.sh tests/unit -k type1
set -euo pipefail

# shellcheck source=tools/setup.sh
. "${BASH_SOURCE[0]%/*}/../tools/setup.sh"

set_up test
cd "$root"
failed=()

check() {
    printf '\n== %s\n' "$*"
    "$venv/bin/python" -m "$@" || failed+=("[$*]")
}

check ruff check .
check ruff format --check .
check mypy
check codespell_lib README.md CONTRIBUTING.md docs/*.md
check pytest "$@"

[[ ${#failed[@]} -eq 0 ]] || die "failed: ${failed[*]}"
