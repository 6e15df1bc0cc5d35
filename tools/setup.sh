#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes .venv with vfsfuse in it, once: Debian packages, an interpreter, pip. Sourced by mount.sh and
# tests/run.sh, which call `set_up` or `set_up test`; run by itself it does the same and nothing else.
#
#   PYTHON=/path/to/python3   use this interpreter (CPython 3.11 or newer) and no other
#
# A .venv that is already right is left alone: .venv/.stamp says what it was made from, and is there only
# when a set-up came to its end. The log of the last set-up is .venv/setup.log.
set -euo pipefail

root=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
venv=$root/.venv
stamp=$venv/.stamp
log=$venv/setup.log
lock=$venv/.lock

# Debian package -> the test that says it is there: by use, not by dpkg, so what was built by hand counts too.
packages=(fuse3 pkg-config libfuse3-dev gcc libc6-dev)
declare -A provides=(
    [fuse3]='have fusermount3'
    [pkg-config]='have pkg-config'
    [libfuse3-dev]='have_libfuse3'
    [gcc]='have gcc'
    [libc6-dev]='have_headers'
)

# Prints "<optimized> <has venv> <has Python.h> <path>", or fails when the interpreter is not one for us.
# Debian builds its own with profile guided optimization, but its CONFIG_ARGS do not say so.
# shellcheck disable=SC2016 # it is Python
probe='
import importlib.util, os, sys, sysconfig
said = sysconfig.get_config_var
if sys.version_info < (3, 11) or sys.implementation.name != "cpython" or said("Py_GIL_DISABLED"):
    sys.exit(1)
path = os.path.realpath(sys._base_executable)
optimized = path.startswith("/usr/bin/") or "--enable-optimizations" in (said("CONFIG_ARGS") or "")
venv = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
header = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
print(int(optimized), int(venv), int(header), path)
'

have() { command -v "$1" >/dev/null; }
have_libfuse3() { have pkg-config && pkg-config --exists fuse3; }
have_headers() { ! have gcc || gcc -E -x c - <<<'#include <stdlib.h>' >/dev/null 2>&1; }

say() { printf '%s\n' "$*" >&2; }
die() {
    say "${0##*/}: $*"
    exit 1
}

# trust PATH: dies if PATH is another user's in a folder such as /tmp, where everybody may make files and links.
trust() {
    local folder=${1%/*} owner
    [[ -k $folder && (-e $1 || -L $1) && -n $(find "$folder/" -maxdepth 0 -perm -0002) ]] || return 0
    owner=$(find "$1" -maxdepth 0 -printf %U)
    [[ $owner == "$EUID" || $owner == "$(find "$folder/" -maxdepth 0 -printf %U)" ]] ||
        die "$1 is of user $owner, in a folder that everybody may write to: remove it, or use another checkout"
}

# One line for the reader, the same in the log; then the command, all it prints in the log.
step() {
    say "$1"
    printf '== %s\n' "$1" >>"$log"
    shift
    "$@" >>"$log" 2>&1 </dev/null 9>&-
}

fail() {
    tail -n 25 "$log" >&2
    die "$*; the whole log is $log"
}

# What .venv depends on, as text. A moved checkout, a vanished interpreter, a changed source of the native
# extension or a deleted one each make it differ.
fingerprint() {
    cd "$root"
    printf 'root %s\npython %s\n' "$root" "$(readlink -e "$venv/bin/python")"
    printf 'built %s\n' ioctl_shim/_native.*.so
    sha256sum setup.cfg pyproject.toml setup.py ioctl_shim/_build.py ioctl_shim/native/*
}

# A .venv made for the tests serves a mount as well.
up_to_date() {
    [[ -f $stamp ]] || return
    local made_of now
    made_of=$(<"$stamp")
    now=$(fingerprint)
    [[ $made_of == "extra test"$'\n'"$now" || (-z $1 && $made_of == "extra "$'\n'"$now") ]] || return
    right_python
}

right_python() {
    [[ -n ${PYTHON-} ]] || return 0
    look_at "$PYTHON" && [[ $python == "$(readlink -e "$venv/bin/python")" ]]
}

# Sets python, optimized, has_venv and has_header. A pyenv shim of a version not selected fails here.
look_at() {
    local found
    found=$("$1" -I -c "$probe" 2>/dev/null </dev/null) || return
    read -r optimized has_venv has_header python <<<"$found"
}

interpreters() {
    if [[ -n ${PYTHON-} ]]; then
        printf '%s\n' "$PYTHON"
        return
    fi
    type -Pa python3 || true
    printf '%s\n' /usr/bin/python3
    compgen -c python3. | grep -Ex 'python3\.[0-9]+' | sort -ru || true
    compgen -G "${PYENV_ROOT:-${HOME-}/.pyenv}/versions/*/bin/python3" | sort -Vr || true
}

# Takes the first complete and optimized one, or else the best; apt can complete only the distribution's.
choose_python() {
    local candidate score best=0 chosen=''
    while IFS= read -r candidate; do
        look_at "$candidate" || continue
        score=$((4 * (has_venv & has_header) + 2 * optimized + 1))
        if [[ $score -lt 4 ]]; then
            [[ $python == /usr/bin/* ]] || continue
            ! can_install || score=6
        fi
        [[ $score -le $best ]] || { best=$score chosen=$candidate; }
        [[ $best -lt 7 ]] || break
    done < <(interpreters)
    python=''
    [[ -n $chosen ]] && look_at "$chosen"
}

can_install() { have apt-get && [[ $(id -u) == 0 ]]; }

# The packages of the chosen interpreter are named after it when it is not the distribution's default.
missing_packages() {
    local package name=python3
    for package in "${packages[@]}"; do
        ${provides[$package]} || printf '%s\n' "$package"
    done
    if [[ -z ${python-} ]]; then
        [[ -x /usr/bin/python3 || -n ${PYTHON-} ]] || printf '%s\n' python3 python3-venv python3-dev
        return
    fi
    [[ $python == "$(readlink -e /usr/bin/python3)" ]] || name=${python##*/}
    [[ $has_venv == 1 ]] || printf '%s\n' "$name-venv"
    [[ $has_header == 1 ]] || printf '%s\n' "$name-dev"
}

install_packages() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120)
    local install=("${apt[@]}" install -y --no-install-recommends "$@")
    step "installing $* with apt-get" "${install[@]}" && return
    step "refreshing the package lists, which lack them or are old" "${apt[@]}" update ||
        fail "apt-get update failed: check the network and run this again"
    step "installing $* with apt-get" "${install[@]}" ||
        fail "apt-get could not install $*: mend that and run this again"
}

need_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [[ ${#missing[@]} -gt 0 ]] || return 0
    have apt-get || die "missing here (Debian's names): ${missing[*]}; install them, then run this again"
    can_install || die "some Debian packages are missing; install them, then run this again:
  sudo apt-get install ${missing[*]}"
    install_packages "${missing[@]}"
}

need_python() {
    choose_python && return
    [[ -z ${PYTHON-} ]] ||
        die "PYTHON=$PYTHON is no CPython >= 3.11 with venv and Python.h: name another, or unset PYTHON"
    return 1
}

# No stamp means a set-up that did not end: what it left is not trusted. The log is kept, it is being written.
make_venv() {
    if [[ -f $stamp && $python == "$(readlink -e "$venv/bin/python")" ]] &&
        grep -qxF "root $root" "$stamp"; then
        rm -f "$stamp"
        return
    fi
    rm -f "$stamp"
    find "$venv" -mindepth 1 -maxdepth 1 ! -name setup.log ! -name .lock -exec rm -rf {} +
    step "making .venv with $python" "$python" -m venv "$venv" ||
        fail "$python could not make .venv: mend it, or name another interpreter with PYTHON="
}

install_project() (
    cd "$root"
    what=.${1:+[$1]}
    step "building vfsfuse into .venv${1:+, with what its ${1}s need}" \
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --editable "$what" ||
        fail "pip failed: if it could not download, check the network; then run this again"
    compile_sources
)

# pip compiles what it installs, but these stay where they are: whoever mounts may be unable or told not to write here.
compile_sources() {
    "$venv/bin/python" -m compileall -q vfsfuse devmodel ioctl_shim >>"$log" 2>&1 </dev/null 9>&- ||
        say "compiling the sources failed: mounts will take longer"
}

# Under the lock: another set-up may have ended while this one waited for it.
set_up_once() {
    local extra=$1
    : >"$log"
    need_python || true
    need_packages
    [[ -n ${python-} ]] || need_python ||
        die "no Python 3.11 or newer found: install one, or name it with PYTHON=/path/to/python3"
    ! up_to_date "$extra" || return 0
    make_venv
    install_project "$extra"
    printf 'extra %s\n%s\n' "$extra" "$(fingerprint)" >"$stamp.new"
    mv "$stamp.new" "$stamp"
}

# Whether process $1 is a set-up of this user that holds the lock and runs.
sets_up() {
    [[ -n $1 && -O /proc/$1 && /proc/$1/fd/9 -ef $lock ]] && [[ $(<"/proc/$1/stat") != *') T '* ]]
}

# Prints who holds the lock, as far as the kernel tells: a process that has ended may have left it to another.
lock_holder() {
    local inode kind pid file
    inode=$(find "$lock" -printf %i)
    while read -r _ kind _ _ pid file _; do
        [[ $kind == FLOCK && ${file##*:} == "$inode" && -e /proc/$pid ]] || continue
        printf 'process %s of user %s' "$pid" "$(find "/proc/$pid" -maxdepth 0 -printf %U)"
        return
    done </proc/locks
    printf 'another process'
}

# Locks descriptor 9, which is $lock. Everybody who can read that file can lock it and never let go. So only a set-up of
# the same user is waited for; its number is in the file.
take_lock() {
    local holder waiting='' end=$((SECONDS + 2))
    until flock -n 9; do
        holder=$(<"$lock")
        if sets_up "$holder"; then
            [[ -n $waiting ]] || say "waiting for process $holder, which sets up vfsfuse here"
            waiting=yes end=$((SECONDS + 2))
        elif [[ $SECONDS -ge $end ]]; then
            die "$(lock_holder) holds a lock on $lock: end that process, or use another checkout"
        fi
        sleep 0.1
    done
    printf '%s\n' "$BASHPID" >"$lock"
}

# set_up [test]: afterwards .venv/bin/vfsfuse is there and as the sources say, or this shell has exited 1.
set_up() {
    local file
    trust "$venv"
    ! { up_to_date "${1-}" && have fusermount3; } || return 0
    mkdir -p "$venv"
    for file in "$lock" "$log" "$stamp" "$stamp.new"; do
        trust "$file"
    done
    for file in "$venv" "$lock" "$log"; do
        [[ ! -e $file || -w $file ]] ||
            die "cannot write $file, another user's: run this as that user, or in a checkout of your own"
    done
    (
        take_lock
        set_up_once "${1-}"
    ) 9<>"$lock"
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || set_up "$@"
