# SPDX-License-Identifier: Apache-2.0
"""libvirt's node devices, unmodified: a libvirtd that finds the lab with libudev, and virsh, which asks it.

Only its driver for node devices is loaded; the others want users and programs that are none of our business.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import needs
from tests.commands import VFSFUSE, run

MARK = "<<end>>"
DRIVER = "/usr/lib/*/libvirt/connection-driver/libvirt_driver_nodedev.so"
START = f"""
mkdir -p /run/libvirt "$HOME/drivers"
mount -t tmpfs tmpfs /run/libvirt  # no other libvirtd's locks and sockets
ln -s {DRIVER} "$HOME/drivers/"
printf 'unix_sock_dir = "%s"\\nauth_unix_rw = "none"\\n' "$HOME" >"$HOME/conf"
export LIBVIRT_DRIVER_DIR="$HOME/drivers"
setpriv --pdeathsig TERM libvirtd -f "$HOME/conf" -p "$HOME/pid" 2>"$HOME/log" &
trap 'kill $! && wait $! || true' EXIT
for _ in $(seq 1200); do [ ! -S "$HOME/libvirt-sock" ] || break; sleep 0.05; done
tell() {{ virsh -q -c "nodedev:///system?socket=$HOME/libvirt-sock" "$@"; }}
ask() {{ tell "$@" && echo '{MARK}'; }}
until_so() {{
    for _ in $(seq 1200); do ! eval "$1" || return 0; sleep 0.05; done
    echo "not so: $1" >&2; return 1
}}
"""
"""Starts libvirtd.  `tell` hands its arguments to virsh.  `ask` does so and ends an answer with the mark.
`until_so` waits until a command succeeds."""


def need() -> None:
    """Skip the test where libvirt cannot run."""
    needs.be_root("libvirtd's system instance is root's")
    if not all(map(shutil.which, ("libvirtd", "virsh", "mdevctl"))) or not glob.glob(DRIVER):
        pytest.skip(
            "needs mdevctl, libvirt-daemon, libvirt-clients and, on Debian 13, libvirt-daemon-driver-nodedev"
        )


def answers(home: Path, options: Sequence[str], script: str, before: str = "") -> list[str]:
    """What `script` prints, one text for each `ask` in it; `before` runs before libvirtd starts.

    `options` are those of `vfsfuse run` besides `--udev`. `home` is a folder for libvirtd's files."""
    need()
    text = f"set -e\n{before}{START}{script}"
    done = run([*VFSFUSE, "run", "--udev", *options, "--", "sh", "-c", text], HOME=str(home))
    assert not done.returncode, done.stderr + (home / "log").read_text()
    return [part.strip() for part in done.stdout.split(MARK)]
