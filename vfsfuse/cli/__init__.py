# SPDX-License-Identifier: Apache-2.0
"""The command line: `main`, the parser, and one module a subcommand.  All of it is single-threaded.

The module of a subcommand has `add_arguments(parser)` and `main(args) -> exit status`.  Only the module that
the command line names is imported, because a second `mount` should take little time.  Commands reach a
mounted lab through its files, as any program does.  The server of a lab is in vfsfuse/server.py.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

EPILOG = "`vfsfuse COMMAND --help` explains a command; the README opens with a session to paste."


class Subcommand(NamedTuple):
    """A subcommand: its module in the package vfsfuse, and its line in --help."""

    module: str
    summary: str
    takes_program: bool = False
    """Whether what follows `--` is a program: `program`, None without `--`."""


# To add a command: CONTRIBUTING.md, "Adding a command"
SUBCOMMANDS = {
    "mount": Subcommand("cli.mount", "mount a lab, in the background unless --foreground"),
    "umount": Subcommand("cli.umount", "unmount a lab and end its server"),
    "run": Subcommand("cli.run", "run a program that finds a lab at /sys and /dev/vfio"),
    "trace": Subcommand("cli.trace", "print what programs do with a lab, call by call", takes_program=True),
    "fault": Subcommand("cli.fault", "make chosen calls on a mounted lab fail, wait or go wrong"),
    "record": Subcommand(
        "cli.record", "write what a program does with VFIO devices to a file", takes_program=True
    ),
    "replay": Subcommand("cli.replay", "run a program with the devices of a recording", takes_program=True),
    "model": Subcommand("cli.model", "write a first device model from a recording"),
    "sweep": Subcommand(
        "cli.sweep",
        "run a program again and again, and fail another of its calls each time",
        takes_program=True,
    ),
    "check": Subcommand("cli.check", "say what a lab file makes, without a mount"),
    "tree": Subcommand("cli.tree", "print the tree of a mounted lab"),
    "list": Subcommand("cli.list", "say what is in a mounted lab, and which processes use it"),
    "top": Subcommand("cli.top", "watch what the devices of a mounted lab do"),
    "surprise-remove": Subcommand(
        "cli.surprise_remove", "take a vGPU away from whoever has it, for tests of its users"
    ),
    "capture": Subcommand("cli.capture", "write the lab file of a real machine"),
    "plug": Subcommand("cli.plug", "put a card into its PCI slot"),
    "unplug": Subcommand("cli.unplug", "take a card out of its PCI slot, also while a program uses it"),
    "reload": Subcommand("cli.reload", "read the code of a lab's models again, for new devices of it"),
    "screenshot": Subcommand("cli.screenshot", "save the picture that a vGPU shows as a PNG"),
}


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("vfsfuse")
    except PackageNotFoundError:
        return "(run from a checkout, not installed)"


class _Version(argparse.Action):
    """--version. Looks the number up only when it is used."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"vfsfuse {version()}")
        parser.exit()


class _Help(argparse.HelpFormatter):
    """Help with each command on one line. argparse itself does not count the indentation of commands."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, SUBCOMMANDS)) + 2 * self._indent_increment


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of `chosen` only."""
    parser = argparse.ArgumentParser(
        prog="vfsfuse",
        description="A virtual VFIO lab in a mount.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in SUBCOMMANDS.items():
        said = f"{command.summary[0].upper()}{command.summary[1:]}."
        sub = subparsers.add_parser(name, help=command.summary, description=said, allow_abbrev=False)
        if name == chosen:
            module = importlib.import_module(f"vfsfuse.{command.module}")
            module.add_arguments(sub)
            sub.set_defaults(main=module.main)
    return parser


def _occupy_standard_streams() -> None:
    """Keep files of ours off the descriptors 0, 1 and 2 when the caller has closed those, and let a path of
    any bytes be printed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def _empty(args: argparse.Namespace, arguments: Sequence[str]) -> str | None:
    """What is empty of a command line, such as the name of a lab from a shell's variable that is not set:
    that would choose another lab.  None: nothing is."""
    if "" in vars(args).values():
        for before, argument in zip(("", *arguments), arguments, strict=False):
            if not argument:
                return before if before.startswith("-") else "an argument"
            if argument.startswith("--") and argument.endswith("="):
                return argument[:-1]
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit status: 0, 1 for a failure (with one line on stderr), 2 for wrong
    usage."""
    _occupy_standard_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    program = None
    if chosen in SUBCOMMANDS and SUBCOMMANDS[chosen].takes_program and "--" in arguments:
        end = arguments.index("--")
        arguments, program = arguments[:end], arguments[end + 1 :]
    args = build_parser(chosen).parse_args(arguments, argparse.Namespace(program=program))
    if empty := _empty(args, arguments):
        print(f"vfsfuse: {args.command}: {empty} is empty", file=sys.stderr)
        return 2
    if args.command not in ("run", "trace", "replay"):  # whose program inherits it
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, children would leave no status
    status: int = args.main(args)
    return status
