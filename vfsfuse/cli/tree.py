# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse tree [MOUNTPOINT]`: the tree of a mounted lab, with modes and link targets, read through the
mount."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Iterator

from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import State, locate, no_answer
from vfsfuse.cli.output import complain, discard_stdout
from vfsfuse.cli.targets import why


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", nargs="?", default="mnt", metavar="MOUNTPOINT", help="default: ./mnt")
    parser.add_argument("-d", "--depth", type=int, metavar="N", help="go down N levels only")


def main(args: argparse.Namespace) -> int:
    path = args.mountpoint
    try:
        patience = Patience()
        found = locate(path, patience)
        path = found.path
        if found.state is not State.LIVE:
            return complain("tree", f"{path}: no lab is mounted there")
        for line in patience.answers(lambda: tree(path, args.depth)):
            print(line)
        sys.stdout.flush()
    except NoAnswer:
        return complain("tree", no_answer(path))
    except Refusal as error:
        return complain("tree", str(error))
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        return complain("tree", why(error, path))
    return 0


def tree(path: str, depth: int | None) -> Iterator[str]:
    """The lines of the tree.  Raises OSError."""
    os.listdir(path)  # another user's lab is closed to us
    yield path
    yield from lines(path, "", depth)


def lines(directory: str, indent: str, depth: int | None) -> Iterator[str]:
    """The lines below `directory`, in the order of their names."""
    if depth == 0:
        return
    entries = list(described(directory))
    for number, (entry, line) in enumerate(entries, start=1):
        last = number == len(entries)
        yield f"{indent}{'└── ' if last else '├── '}{line}"
        if entry.is_dir(follow_symlinks=False):
            below = None if depth is None else depth - 1
            yield from lines(entry.path, indent + ("    " if last else "│   "), below)


def described(directory: str) -> Iterator[tuple[os.DirEntry[str], str]]:
    """The entries of `directory`, sorted by name.  An entry that is removed meanwhile is left out."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            with contextlib.suppress(FileNotFoundError):
                yield entry, describe(entry)


def describe(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return f"{entry.name} -> {os.readlink(entry.path)}"
    if entry.is_dir():
        return f"{entry.name}/"
    return f"{entry.name} [{stat.S_IMODE(entry.stat().st_mode):04o}]"
