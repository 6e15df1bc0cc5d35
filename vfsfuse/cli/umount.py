# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse umount [--lazy] [MOUNTPOINT]`: unmount a lab and wait until its server has ended."""

from __future__ import annotations

import argparse
import errno
import os

from vfsfuse.cli.mountpoint import State, inspect, unmount, wait_for_end
from vfsfuse.cli.output import complain

END_SECONDS = 10.0
LAZY_SECONDS = 1.0
"""Seconds to wait after a lazy unmount. The server may go on as long as programs use the mount."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", nargs="?", default="mnt", metavar="MOUNTPOINT", help="default: ./mnt")
    parser.add_argument(
        "-l", "--lazy", action="store_true", help="take it out of sight now, even while programs use it"
    )


def main(args: argparse.Namespace) -> int:
    found = inspect(args.mountpoint)
    if found.state in (State.FREE, State.FOREIGN):
        return complain("umount", f"{found.path}: no lab is mounted there")
    try:
        unmount(found.path, args.lazy or found.state is State.STALE)
    except OSError as error:
        mend = "; end the programs that use it, or add --lazy" if error.errno == errno.EBUSY else ""
        return complain("umount", f"{found.path}: {os.strerror(error.errno or errno.EIO)}{mend}")
    if not found.pid or wait_for_end(found.pid, LAZY_SECONDS if args.lazy else END_SECONDS):
        return 0
    after = f"its server (pid {found.pid}) ends with the programs that use it"
    complain("umount", f"{found.path} is unmounted; {after}")
    return 0 if args.lazy else 1
