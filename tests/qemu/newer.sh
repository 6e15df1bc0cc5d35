#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Gets the QEMUs of newer Debians for the tests of iommufd. Debian 12's QEMU (7.2) does not know iommufd.
#
#   tests/qemu/newer.sh [SUITE...]      suites of Debian; trixie (QEMU 10) and forky (QEMU 11) unless given
#
# apt-get downloads from Debian's archive into an apt root of its own, so root or an ordinary user can run
# this, and the packages and settings of this system stay as they are. tests/qemu/.cache/qemu-SUITE then has
# the program, its libraries, its firmware and a launcher. Where that fails, the tests skip with the reason
# that is in qemu-SUITE.why. A QEMU that is there is kept: remove its folder to get the newest.
set -euo pipefail

archive=http://deb.debian.org/debian
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=$(cd "${BASH_SOURCE[0]%/*}" && pwd)/.cache

# What QEMU runs with. The other packages that it depends on set up a system.
wanted='^(lib.*|zlib1g|seabios|qemu-system-x86|qemu-system-data)$'

# fail REASON: one line, which the tests show.
fail() {
    printf '%s\n' "$*" >"$work/why"
    exit 1
}

# The system's proxies and options are read first. Then its sources, its state and its hooks are set aside.
# An old list of packages, of a mirror that is behind, will do; it is signed.
configure() {
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
    : >"$work/apt/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$archive" "$suite" >"$work/apt/sources.list"
    cat >"$work/apt/conf" <<END
Dir::State "$work/apt";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Update::Error-Mode "any";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::http::Timeout "20";
#clear APT::Default-Release;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
END
}

apt() {
    LC_ALL=C apt-get -c "$work/apt/conf" -qq "$@" 2>"$work/errors" ||
        fail "apt-get $1 of Debian's $suite failed: $(grep -m 1 '^E: ' "$work/errors" || tail -n 1 "$work/errors")"
}

download() {
    local names
    [[ -r $keyring ]] || fail "$keyring is missing: apt-get install debian-archive-keyring"
    configure
    apt update >/dev/null
    apt --print-uris install qemu-system-x86 >"$work/closure"
    names=$(sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p" "$work/closure" | grep -E "$wanted")
    mkdir "$work/packages"
    cd "$work/packages"
    # shellcheck disable=SC2086 # one word a package
    apt download $names >/dev/null
}

# Keeps the libraries that the program is linked to. Its own dynamic linker says which these are.
extract() {
    local package linker file folders=''
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
    cd "$work/root"
    mkdir "$work/made" "$work/made/lib" "$work/made/firmware"
    mv usr/bin/qemu-system-x86_64 "$work/made"
    cp -R usr/share/qemu/. usr/share/seabios/. "$work/made/firmware"
    linker=$(find "$work/root" -name 'ld-linux-*.so.*' -print -quit)
    cp -L "$linker" "$work/made/lib/ld.so"
    while IFS= read -r file; do
        folders+=:$file
    done < <(find "$work/root" -name '*-linux-gnu' -path '*/lib/*' -type d)
    LD_LIBRARY_PATH='' "$linker" --library-path "${folders#:}" --list "$work/made/qemu-system-x86_64" >"$work/linked"
    while IFS= read -r file; do
        cp -L "$file" "$work/made/lib"
    done < <(sed -n "s,.* => \($work/root/.*\) (0x.*,\1,p" "$work/linked")
    cat >"$work/made/run" <<'END'
#!/bin/sh
# QEMU with the libraries and the firmware beside this file.
here=${0%/*}
exec "$here/lib/ld.so" --library-path "$here/lib" --argv0 qemu-system-x86_64 \
    "$here/qemu-system-x86_64" -L "$here/firmware" "$@"
END
    chmod 0755 "$work/made/run"
    "$work/made/run" --version >"$work/version" 2>"$work/errors" ||
        fail "QEMU of Debian's $suite does not start here: $(tail -n 1 "$work/errors")"
}

# Another run may have made it meanwhile: theirs is as good.
publish() {
    mv -T "$work/made" "$cache/qemu-$suite" 2>/dev/null || [[ -x $cache/qemu-$suite/run ]]
    rm -f "$cache/qemu-$suite.why"
    printf "QEMU of Debian's %s is in tests/qemu/.cache: %s\n" "$suite" "$(head -n 1 "$work/version")"
}

# Runs at the end of each suite's subshell, and leaves nothing but the QEMU or the reason.
# shellcheck disable=SC2317 # the trap calls it
finish() {
    local status=$? why=$cache/qemu-$suite.why
    if [[ $status -ne 0 ]]; then
        cat "$work/why" >"$why" 2>/dev/null || printf 'tests/qemu/newer.sh %s failed\n' "$suite" >"$why"
        printf 'newer.sh: %s\n' "$(<"$why")" >&2
    fi
    rm -rf "$work"
}

# shellcheck disable=SC1091 # it is a list of variables
codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")
umask 022
mkdir -p "$cache"
[[ $# -gt 0 ]] || set -- trixie forky
missing=0
for suite; do
    [[ $suite != "$codename" && ! -x $cache/qemu-$suite/run ]] || continue
    (
        work=$(mktemp -d "$cache/getting-$suite-XXXXXX")
        trap finish EXIT
        download
        extract
        publish
    ) & # errexit works in a subshell that nobody asks for its status
    wait $! || missing=1
done
exit "$missing"
