#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Sets vfsfuse up (tools/setup.sh), then `vfsfuse mount` or `vfsfuse umount` does the work.
set -euo pipefail

# shellcheck source=tools/setup.sh
. "${BASH_SOURCE[0]%/*}/tools/setup.sh"

usage() {
    cat <<END
usage: ./mount.sh [MOUNTPOINT] [--config FILE] [--foreground] [--log-level LEVEL] [--log-file FILE]
       ./mount.sh -u [MOUNTPOINT]

Sets vfsfuse up where needed and mounts the lab. MOUNTPOINT is mnt beside this script unless given.

  -u, --umount         unmount and end the server
  --config FILE        the lab to emulate (a lab.toml; default: the built-in one)
  -f, --foreground     stay in the foreground, log to the terminal
  --log-level LEVEL    debug, info, warning or error
  --log-file FILE      where a server in the background logs to
  -h, --help           print this
END
}

misused() {
    say "mount.sh: $*; see ./mount.sh --help"
    exit 2
}

# What is left of the command line is checked by vfsfuse itself.
parse() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            -u | --umount) command=umount ;;
            -f | --foreground | --config=* | --log-level=* | --log-file=*) options+=("$1") ;;
            --config | --log-level | --log-file)
                [[ $# -ge 2 ]] || misused "$1 needs a value"
                options+=("$1=$2")
                shift
                ;;
            -h | --help)
                usage
                exit
                ;;
            --)
                shift
                mountpoints+=("$@")
                return
                ;;
            -*) misused "unknown option $1" ;;
            *) mountpoints+=("$1") ;;
        esac
        shift
    done
}

# Opened by the server as itself, or by fusermount3 as the user who called it.
need_dev_fuse() {
    [[ -c /dev/fuse ]] ||
        die "/dev/fuse is missing: run 'modprobe fuse' as root (a container wants --device /dev/fuse)"
    [[ -r /dev/fuse && -w /dev/fuse ]] ||
        die "/dev/fuse is not yours to open: run 'chmod 0666 /dev/fuse' as root, which is what udev does"
}

command=mount options=() mountpoints=()
parse "$@"
[[ ${#mountpoints[@]} -le 1 ]] || misused "one mount point at a time, not ${mountpoints[*]}"
mountpoint=${mountpoints[0]:-$root/mnt}

if [[ $command == umount ]]; then
    [[ ${#options[@]} -eq 0 ]] || misused "-u takes no ${options[0]}"
    trust "$venv"
    # Built from sources older than these or not: what mounted can unmount.
    [[ -x $venv/bin/vfsfuse ]] || set_up
    exec "$venv/bin/vfsfuse" umount -- "$mountpoint"
fi

need_dev_fuse
set_up
exec "$venv/bin/vfsfuse" mount "${options[@]}" -- "$mountpoint"
