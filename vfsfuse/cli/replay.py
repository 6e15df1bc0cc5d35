# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse replay`: a program with the devices of a recording, in a private lab.

The process is the program's parent, because it says at the end how much was replayed.  It tells divergences
while the program runs; what else the lab logs is told as by `vfsfuse run`.  Single-threaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
import tempfile
import time
from typing import Any

from vfsfuse.cli.output import complain
from vfsfuse.recording.reading import read
from vfsfuse.recording.recording import RecordingError
from vfsfuse.replay.lab import lab_file
from vfsfuse.run import command as run
from vfsfuse.run.traced import TracedCommand, end_as

FILE = "replay"
"""The file of the lab that says how the replay goes."""
CLOSE_SECONDS = 2.0
"""Seconds in which the lab closes the devices of a program that has ended."""
LOOK_SECONDS = 0.1
"""How often the lab is asked for divergences while the program runs."""
EXIT_DIVERGED = 1
_MOST_BYTES = 1 << 20
USAGE = "vfsfuse replay [--strict] [OPTION...] FILE -- CMD [ARG...]"
EPILOG = """\
CMD is run as `vfsfuse run` does, in a lab of its own with the devices of FILE, which answer as they did when
they were recorded. What CMD does otherwise is told on stderr, with the line of FILE. The exit status is
CMD's. docs/recording.md says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage, parser.epilog = USAGE, EPILOG
    parser.add_argument("recording", metavar="FILE", help="a recording, as `vfsfuse record` writes it")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with status 1 if CMD did other than recorded, and succeeded",
    )
    run.add_program_options(parser)
    parser.set_defaults(error=parser.error, mount=None)


def main(args: argparse.Namespace) -> int:
    if not args.program:
        args.error("no command: name one after --")
    try:
        recording = read(args.recording)
    except RecordingError as error:
        return complain("replay", str(error))
    except OSError as error:
        return complain("replay", f"{args.recording}: {error.strerror} (vfsfuse record makes a recording)")
    if not recording.devices:
        return complain("replay", f"{args.recording}: no device was recorded (its program opened none)")
    args.argv = args.program
    with tempfile.NamedTemporaryFile("w", prefix="vfsfuse-replay-", suffix=".toml") as lab:
        lab.write(lab_file(recording, args.recording))
        lab.flush()
        args.config = lab.name
        status, account = _replay(args)
    ended = end_as(status)
    if ended or account is None:
        return ended
    account.tell_unused(args.recording)
    return EXIT_DIVERGED if account.diverged and args.strict else ended


def _replay(args: argparse.Namespace) -> tuple[int, _Account | None]:
    """Returns the wait status of the program, and what it did."""
    command = TracedCommand(lambda tracer: run.main(args, tracer, FILE))
    file = command.trace()
    if file is None:
        return command.reap(), None
    command.attached()
    account = _Account(file, args.quiet)
    _wait(command, account)
    account.finish()
    command.close()
    return command.reap(), account


def _wait(command: TracedCommand, account: _Account) -> None:
    """Wait until the last process of the program has ended, or, after its first one, a signal comes."""
    waiting = {command.pid_fd, command.link_fd}
    while waiting:
        poll = select.poll()
        for fd in (*waiting, command.wake_fd):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(LOOK_SECONDS * 1000)}
        account.look()
        if command.pid_fd in ready:
            command.reap()
        if command.wake_fd in ready:
            return
        waiting -= ready


class _Account:
    """What the lab's file says, as far as the user has been told."""

    def __init__(self, file: int, quiet: bool) -> None:
        self._file, self._quiet = file, quiet
        self._told = 0
        self._found: dict[str, Any] = {}

    @property
    def diverged(self) -> bool:
        """Whether the program did other than recorded."""
        return bool(self._found.get("count") or self._found.get("unused"))

    def look(self) -> bool:
        """Tell what is new.  Returns whether devices are open."""
        try:
            self._found = json.loads(os.pread(self._file, _MOST_BYTES, 0).splitlines()[0])
        except (OSError, ValueError, IndexError):  # the lab has ended
            return False
        told, self._told = self._told, len(self._found["divergences"])
        for line in self._found["divergences"][told:]:
            if not self._quiet:
                _say(line)
        return bool(self._found["open"])

    def finish(self) -> None:
        """Tell the rest, once the devices of the program are closed, and the summary."""
        end = time.monotonic() + CLOSE_SECONDS
        while self.look() and time.monotonic() < end:
            time.sleep(0.01)
        _say(self._found.get("summary", "the lab has ended"))

    def tell_unused(self, recording: str) -> None:
        """Tell the devices with which the program did nothing that was recorded."""
        for name in self._found.get("unused", ()):
            _say(f"{recording}: CMD did nothing of what was recorded with {name}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        complain("replay", line)
        sys.stderr.flush()
