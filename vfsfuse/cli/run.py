# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: a program in a lab (vfsfuse.run.command), with `--trace` also an account of what it does.

Without `--trace` the process becomes the program.  With it the program is a child, because the account has to
be complete when the command returns.  Single-threaded.
"""

from __future__ import annotations

import argparse

from vfsfuse.run import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write to FILE what CMD does with the lab (`vfsfuse trace -o FILE -- CMD` has more options)",
    )
    command.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    if args.trace is None or not command.program_of(args):
        return command.main(args)
    from vfsfuse.cli import account, trace
    from vfsfuse.trace import filters

    return trace.trace_run(args, args.trace, account.Style(), filters.EVERYTHING, filters.KEEP, "run")
