# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse fault add KEY=VALUE... | list | clear [NAME...] | release [NAME...]`: the fault rules of a mounted
lab.

Single-threaded.  It writes a line to the file `faults` of the mount, and reads what has become of it.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex

from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import no_answer
from vfsfuse.cli.output import complain, discard_stdout, explained
from vfsfuse.cli.targets import add_mount, check_lab, only_lab

EPILOG = """\
A rule says where, when and what: `vfsfuse fault add ioctl=VFIO_IOMMU_MAP_DMA nth=3 errno=ENOMEM`.
docs/faults.md lists the keys.
"""
MOST_BYTES = 1 << 20
"""Bytes that are read of the rules."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="add a rule", description="Add a rule, and print its name.")
    add.add_argument("words", nargs="+", metavar="KEY=VALUE", help="a key of the rule and its value")
    listing = actions.add_parser(
        "list", help="print the rules", description="Print the rules, with how often each has hit."
    )
    clear = actions.add_parser(
        "clear", help="remove rules", description="Remove rules, and let go of the calls that they hold."
    )
    release = actions.add_parser(
        "release",
        help="let go of the calls that hang",
        description="Let go of the calls that rules hold; the rules stay.",
    )
    for action in (clear, release):
        action.add_argument("words", nargs="*", metavar="NAME", help="a rule (default: all of them)")
    for action in (add, listing, clear, release):
        add_mount(action)


def main(args: argparse.Namespace) -> int:
    line = "" if args.action == "list" else shlex.join([args.action, *args.words])
    lab = args.mount or ""
    try:
        lab = os.path.join(os.getcwd(), args.mount or only_lab())
        failed, said = Patience().ask(lambda: _ask(lab, line))
    except NoAnswer:
        return complain("fault", no_answer(lab) + ("; the change may still come later" if line else ""))
    except Refusal as error:
        return complain("fault", str(error))
    except OSError as error:
        return complain("fault", explained(error, lab))
    if failed:
        for each in said.splitlines() or [os.strerror(failed)]:
            complain("fault", each)
        return 1
    try:
        print(said, end="", flush=True)
    except BrokenPipeError:
        discard_stdout()
    return 0


def _ask(lab: str, line: str) -> tuple[int, str]:
    """Write `line`, if there is one, and read what the file says: errno, or 0, and text."""
    check_lab(lab)
    try:
        fd = os.open(f"{lab}/faults", (os.O_RDWR if line else os.O_RDONLY) | os.O_CLOEXEC)
    except PermissionError:
        raise Refusal(f"{lab}: only the user who mounted the lab has its fault rules") from None
    except FileNotFoundError:
        raise Refusal(
            f"{lab}: its server is of an older vfsfuse, without fault rules (mount it anew)"
        ) from None
    try:
        failed = 0
        try:
            if line:
                os.write(fd, f"{line}\n".encode(errors="surrogateescape"))
        except OSError as error:
            failed = error.errno or errno.EIO
        return failed, _content(fd)
    finally:
        os.close(fd)


def _content(fd: int) -> str:
    parts: list[bytes] = []
    while part := os.pread(fd, MOST_BYTES, sum(map(len, parts))):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")
