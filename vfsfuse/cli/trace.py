# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse trace [DEVICE...] [-- CMD ARG...]`: what programs do with a lab, and what the lab does.

With CMD it is a run (vfsfuse.run.command) whose program is a child of this process.  Without, it reads the
file `trace` of a mounted lab.  Single-threaded.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Collection
from dataclasses import replace

from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.account import STDERR, STDOUT, Account, Style
from vfsfuse.cli.output import complain, explained
from vfsfuse.cli.targets import check_lab, find, only_lab
from vfsfuse.run.command import NOT_MOUNTED, PROGRAM_OPTIONS, add_program_options
from vfsfuse.sticky import open_file
from vfsfuse.trace.filters import KEEP, Filter
from vfsfuse.trace.record import KINDS, TraceError

USAGE = "vfsfuse trace [--mount MNT | --config LAB.toml] [OPTION...] [DEVICE...] [-- CMD [ARG...]]"
EPILOG = """\
With CMD, it is run as `vfsfuse run` does, in a lab of its own or in the one that --mount names, and traced
until its last process has ended; the exit status is CMD's. Without CMD, the lab that is mounted is traced
until Ctrl-C or until it is unmounted, also programs that run already. docs/trace.md explains the lines.
"""
EXIT_SETUP = 125
PATIENCE = 5.0
"""Seconds in which the server of a program's lab answers a tracer that asks for the last records."""
PLACES = ("bus/pci/devices", "class/mdev_bus")
"""Directories of devices besides vGPUs."""
MADE_LATER = re.compile(r"vgpu\d+|\d+", re.IGNORECASE)
"""Names that devices get when they are made, and that a trace does not have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage, parser.epilog = USAGE, EPILOG
    lab = parser.add_mutually_exclusive_group()
    lab.add_argument(
        "--mount",
        metavar="MNT",
        help="the lab mounted there (default: a private one for CMD, else the only one)",
    )
    lab.add_argument("--config", metavar="LAB.toml", help="make the private lab from this file")
    add_program_options(parser)
    _add_output(parser)
    _add_filters(parser)
    parser.add_argument(
        "devices",
        metavar="DEVICE",
        nargs="*",
        help="only these: a UUID, a PCI address, the name of a directory; without CMD also vgpu<N>, a group",
    )
    parser.set_defaults(error=parser.error)


def _add_output(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o", "--output", metavar="FILE", help="write to FILE (default: stderr with CMD, else stdout)"
    )
    out.add_argument(
        "--json", action="store_true", help="a line of JSON for each record, and one for the counts"
    )
    out.add_argument(
        "-c", "--summary-only", action="store_true", help="count calls, times and errors, and print only that"
    )
    out.add_argument(
        "-C", "--summary", action="store_true", help="print the lines, and the counts at the end"
    )
    out.add_argument(
        "--colour",
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours: auto (the default) is on a terminal, unless NO_COLOR is set",
    )
    out.add_argument(
        "--keep",
        type=_positive,
        metavar="N",
        default=KEEP,
        help=f"records that the lab keeps for a slow reader before it drops some (default: {KEEP})",
    )


def _add_filters(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("filters (a record has to pass each)")
    which.add_argument(
        "-k",
        "--kind",
        type=_words,
        action="extend",
        default=[],
        metavar="KIND[,KIND]",
        help=f"only these: {', '.join(KINDS[:-1])}",
    )
    which.add_argument(
        "--register",
        type=_words,
        action="extend",
        default=[],
        metavar="PATTERN[,...]",
        help="accesses to these registers, such as CTRL or 'RING*'",
    )
    which.add_argument(
        "--errno",
        type=_words,
        action="extend",
        default=[],
        metavar="any|NAME[,NAME]",
        help="failures: all of them, or such as EINVAL,EFAULT",
    )
    which.add_argument(
        "--pid",
        type=_pids,
        action="extend",
        default=[],
        metavar="PID[,PID]",
        help="calls of these processes; 0 is for what no process waits for, such as DMA",
    )
    which.add_argument(
        "--injected",
        type=_words,
        action="extend",
        default=[],
        metavar="any|PATTERN[,...]",
        help="calls that fault rules have hit: all of them, or rules with such names",
    )


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _pids(text: str) -> list[int]:
    words = _words(text)
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of process numbers")
    return [int(word) for word in words]


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def main(args: argparse.Namespace) -> int:
    style = Style(not args.summary_only, args.json, args.summary or args.summary_only, args.colour)
    try:
        wanted = Filter(args.devices, args.kind, args.register, args.errno, args.pid, args.injected)
    except TraceError as error:
        args.error(str(error))
    if args.program is None:
        for name in ("config", *PROGRAM_OPTIONS):
            if getattr(args, name):
                args.error(f"--{name.replace('_', '-')} is for a program: name one after --")
        return _trace_lab(args.mount, args.output, style, wanted, args.keep)
    if not args.program:
        args.error("no command after --")
    if args.fault and args.mount:
        args.error(NOT_MOUNTED)
    for name in filter(MADE_LATER.fullmatch, wanted.devices):
        args.error(f"{name}: with a command, name a device by its UUID or its PCI address")
    args.argv = args.program
    return trace_run(args, args.output, style, wanted, args.keep, "trace")


def _trace_lab(lab: str | None, output: str | None, style: Style, wanted: Filter, keep: int) -> int:
    """Trace a mounted lab.  Returns the exit status."""
    from vfsfuse.cli import tracing
    from vfsfuse.cli.mountpoint import no_answer
    from vfsfuse.cli.mountwatch import MountWatch
    from vfsfuse.trace.reader import TraceReader

    path = lab or ""
    try:
        path = os.path.join(os.getcwd(), lab or only_lab("; trace a program with: vfsfuse trace -- CMD"))
        names, device = Patience().ask(lambda: (_names(path, wanted.devices), os.stat(path).st_dev))
        reader = TraceReader(path, replace(wanted, devices=names), keep)
        account = _account(output, STDOUT, "standard output", style)
    except NoAnswer:
        return complain("trace", no_answer(path))
    except (Refusal, TraceError) as error:
        return complain("trace", str(error))
    except OSError as error:
        return complain("trace", explained(error, path))
    return tracing.follow_lab(path, MountWatch(device), reader, account)


def trace_run(
    args: argparse.Namespace, output: str | None, style: Style, wanted: Filter, keep: int, command: str
) -> int:
    """Run the program of `run`'s arguments `args` and trace it.  Returns its exit status, 125 when that is
    not possible, or dies by its signal.  `command` is the one that complains."""
    from vfsfuse.cli import tracing
    from vfsfuse.run.command import main as run
    from vfsfuse.trace.reader import TraceReader

    try:
        account = _account(output, STDERR, "standard error", style)
    except OSError as error:
        complain(command, explained(error, output or ""))
        return EXIT_SETUP
    return tracing.follow_command(
        lambda tracer: run(args, tracer),
        lambda file: TraceReader(file, wanted, keep, PATIENCE),
        account,
        wanted.devices,
    )


def _account(output: str | None, default: int, name: str, style: Style) -> Account:
    """Raises OSError."""
    if output is None:
        return Account(default, name, style)
    file = open_file(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.set_blocking(file, True)
    return Account(file, output, style)


def _names(lab: str, devices: Collection[str]) -> list[str]:
    """What these devices are called in the trace of `lab`.  Raises Refusal and OSError."""
    check_lab(lab)
    return [name for device in devices for name in _names_of(lab, device)]


def _names_of(lab: str, device: str) -> list[str]:
    """The name of a device, and that of its group, which programs open it by."""
    if device.isdecimal() and os.path.isdir(f"{lab}/sys/kernel/iommu_groups/{device}"):
        return [f"group {device}"]
    found = _directory(lab, device)
    group = os.path.basename(os.path.realpath(f"{found}/iommu_group"))
    return [os.path.basename(found), *([f"group {group}"] if group.isdecimal() else [])]


def _directory(lab: str, device: str) -> str:
    if "/" not in device and device.strip("."):
        for name in (device, f"0000:{device}"):
            for place in PLACES:
                if os.path.isdir(path := f"{lab}/sys/{place}/{name}"):
                    return os.path.realpath(path)
    return find(lab, device, what="device")
