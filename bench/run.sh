#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Measures vfsfuse, a minimal C libfuse server (bench/floor.c) and Debian's lxcfs and umockdev in one run. Writes
# bench/RESULTS.md and bench/results.png, which the README and docs/performance.md quote. Needs no arguments and about
# five minutes. --quick runs one repetition; --output FOLDER writes there and changes no file of the project.
set -euo pipefail

# shellcheck source=tools/setup.sh
. "${BASH_SOURCE[0]%/*}/../tools/setup.sh"

# A peer that cannot be installed is left out of the results.
install_peers() {
    local wanted=() package
    for package in umockdev lxcfs strace; do
        have "${peers[$package]}" || wanted+=("$package")
    done
    [[ ${#wanted[@]} -gt 0 ]] || return 0
    if ! can_install; then
        say "going on without ${wanted[*]}: install them to have them measured"
        return 0
    fi
    for package in "${wanted[@]}"; do
        say "installing $package with apt-get"
        env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends \
            "$package" >>"$log" 2>&1 </dev/null || say "going on without $package: apt-get could not install it"
    done
}

build() {
    local flags
    read -ra flags < <(pkg-config --cflags --libs fuse3)
    gcc -O2 -std=gnu11 -Wall -Wextra -o "$work/client" "$root/bench/client.c"
    gcc -O2 -std=gnu11 -Wall -Wextra -o "$work/floor" "$root/bench/floor.c" "${flags[@]}"
}

# As root, the mounts are made in a mount namespace of their own: nothing stays behind, and nobody else sees them.
measure() {
    local apart=()
    [[ $(id -u) != 0 ]] || apart=(unshare --mount --propagation private)
    cd "$root"
    "${apart[@]}" "$venv/bin/python" -m bench "$work" "$@"
}

declare -A peers=([umockdev]=umockdev-run [lxcfs]=lxcfs [strace]=strace)

set_up
install_peers
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
build
measure "$@"
