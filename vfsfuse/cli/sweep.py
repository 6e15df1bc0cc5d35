# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse sweep [OPTION...] -- CMD ARG...`: does a program survive each call that can fail?

CMD runs again and again, each time in a new private lab, in which its first, second, ... call fails
(vfsfuse.sweep).  Single-threaded.  Source of the idea: Documentation/fault-injection/fault-injection.rst,
"/proc/<pid>/fail-nth".
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
from typing import TYPE_CHECKING

from vfsfuse.cli.output import complain, discard_stdout, explained
from vfsfuse.faults.plausible import KINDS
from vfsfuse.run.command import add_program_options

if TYPE_CHECKING:
    from vfsfuse.sweep.report import Report

USAGE = "vfsfuse sweep [--config LAB.toml] [OPTION...] -- CMD [ARG...]"
EPILOG = """\
Runs CMD without a fault, then fails its first call that can fail, then its second one, and so on, until CMD
ends before it gets to that call. Prints a line for each run. The exit status is 0 if CMD fails or copes each
time, 1 if it crashes, hangs or succeeds with another output, 125 if there is no lab. docs/sweep.md says more.
"""
EXIT_SETUP = 125


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage, parser.epilog = USAGE, EPILOG
    parser.add_argument("--config", metavar="LAB.toml", help="make the private labs from this file")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="seconds that CMD has (default: 10 times what it needs without a fault, and 10 s at least)",
    )
    parser.add_argument(
        "-j", "--jobs", type=_positive, default=1, metavar="N", help="make N runs at once (default: 1)"
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="a file that CMD writes, which is compared as its standard output is; may be repeated",
    )
    parser.add_argument(
        "--json", action="store_true", help="a line of JSON for each run, and one for the counts"
    )
    parser.add_argument(
        "--keep", metavar="DIR", help="leave the trace and the output of each bad run in a folder of DIR"
    )
    _add_choice(parser)
    add_program_options(parser)
    parser.set_defaults(error=parser.error)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which calls fail, and how")
    which.add_argument(
        "-k",
        "--kind",
        type=_kinds,
        action="extend",
        default=[],
        metavar="KIND[,KIND]",
        help=f"only these: {', '.join(KINDS)}",
    )
    which.add_argument(
        "--from", dest="first", type=_positive, default=1, metavar="N", help="begin with the Nth call"
    )
    which.add_argument("--to", dest="last", type=_positive, metavar="N", help="end with the Nth call")
    how = which.add_mutually_exclusive_group()
    how.add_argument(
        "--errno",
        type=_errnos,
        action="extend",
        default=[],
        metavar="NAME[,NAME]",
        help="fail all calls with this errno (default: the one that Linux gives most)",
    )
    how.add_argument(
        "--all-errnos",
        action="store_true",
        help="fail each call with each errno that Linux gives, one by one",
    )


def _kinds(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in KINDS:
            raise argparse.ArgumentTypeError(f"{word}: calls that can fail are {', '.join(KINDS)}")
    return words


def _errnos(text: str) -> list[str]:
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in errno.errorcode.values():
            raise argparse.ArgumentTypeError(f"{word}: there is no such errno")
    return words


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")
    return seconds


def main(args: argparse.Namespace) -> int:
    if not args.program:
        args.error("no command; name one after --")
    if args.output and args.jobs > 1:
        args.error("with --output, one run is made at a time: leave out -j")
    if args.last is not None and args.last < args.first:
        args.error(f"--to {args.last} is before --from {args.first}")
    from vfsfuse.sweep.report import Report, folder_of

    try:
        keep = args.keep and folder_of(args.keep)
    except OSError as error:
        return complain("sweep", explained(error, args.keep))
    report = Report(args.program, args.json, keep)
    try:
        return _sweep(args, report)
    except BrokenPipeError:
        discard_stdout()
        return 1


def _sweep(args: argparse.Namespace, report: Report) -> int:
    from vfsfuse.sweep.single import Plan
    from vfsfuse.sweep.sweeping import Choice, Sweep, SweepError

    args.argv, args.mount = args.program, None
    choice = Choice(args.first, args.last, tuple(args.kind), tuple(args.errno), args.all_errnos)
    plan = Plan(args, args.timeout, tuple(map(os.path.abspath, args.output)), bool(args.keep))
    sweep = Sweep(plan, choice, args.jobs, report.tell, report.progress)
    try:
        reference = sweep.reference()
        report.begin(reference)
        sweep.go(reference)
    except SweepError as error:
        complain("sweep", str(error))
        return EXIT_SETUP
    except KeyboardInterrupt:
        pass
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        return complain("sweep", explained(error, args.keep or ""))
    finally:
        sweep.close()
    status = report.end(bool(sweep.signal))
    if sweep.signal:
        signal.signal(sweep.signal, signal.SIG_DFL)
        os.kill(os.getpid(), sweep.signal)
    return status
