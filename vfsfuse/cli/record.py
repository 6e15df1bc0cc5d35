# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse record [-o FILE] -- CMD ARG...`: the dialogue of a program with VFIO devices, as a file.

In a lab, it is a run (vfsfuse.run.command) whose program is a child of this process, which reads the lab's
file `trace`.  With --host the program uses the VFIO of this machine (vfsfuse.recording.host).
Single-threaded.  docs/recording.md describes the file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from vfsfuse.cli.output import complain, explained
from vfsfuse.run.command import EXIT_SETUP, PROGRAM_OPTIONS, add_program_options
from vfsfuse.sticky import open_file

if TYPE_CHECKING:
    from vfsfuse.recording.recording import Recording, Region
    from vfsfuse.run.traced import TracedCommand
    from vfsfuse.trace.reader import TraceReader
    from vfsfuse.trace.record import Record

USAGE = "vfsfuse record [-o FILE] [--mount MNT | --config LAB.toml | --host] [OPTION...] -- CMD [ARG...]"
EPILOG = """\
CMD is run as `vfsfuse run` does, in a lab of its own or in the one that --mount names, until its last process
has ended. The exit status is CMD's, or 125 if there is no recording. `vfsfuse replay` makes devices from it,
`vfsfuse model` a first device model. docs/recording.md describes the file.
"""
DEFAULT = "vfsfuse.recording"
PATIENCE = 5.0
"""Seconds in which the lab's server answers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage, parser.epilog = USAGE, EPILOG
    parser.add_argument(
        "-o", "--output", metavar="FILE", default=DEFAULT, help=f"write to FILE (default: {DEFAULT})"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--mount", metavar="MNT", help="the lab mounted there (default: a private one for CMD)"
    )
    where.add_argument("--config", metavar="LAB.toml", help="make the private lab from this file")
    where.add_argument(
        "--host",
        action="store_true",
        help="record CMD with the VFIO devices of this machine, without a lab; DMA is not seen",
    )
    parser.add_argument(
        "--mmap",
        action="store_true",
        help="let CMD map regions, as the devices allow it; accesses to what is mapped are not recorded",
    )
    add_program_options(parser)
    parser.set_defaults(error=parser.error)


def main(args: argparse.Namespace) -> int:
    if not args.program:
        args.error("name the program to be recorded after --")
    if args.host:
        for name in PROGRAM_OPTIONS:
            if getattr(args, name) and name != "quiet":
                args.error(f"--{name.replace('_', '-')} is for a lab, and --host has none")
    try:
        output = Output(args.output)
    except OSError as error:
        complain("record", explained(error, args.output))
        return EXIT_SETUP
    status = (_record_host if args.host else _record_lab)(args, output)
    output.close()
    return status


class Output:
    """The file of the recording.  It keeps what it had, or is not there, until there is a recording."""

    def __init__(self, path: str) -> None:
        """Raises OSError if the file cannot be written."""
        self._path = path
        self._is_new = not os.path.lexists(path)
        self._fd = open_file(path, os.O_WRONLY | os.O_CREAT)
        self._written = False

    def write(self, recording: Recording) -> str:
        """Write the recording.  Returns why it cannot be written, empty if it is."""
        from vfsfuse.recording.writing import lines

        os.set_blocking(self._fd, True)
        try:
            if os.path.isfile(self._path):
                os.ftruncate(self._fd, 0)
            with open(self._fd, "w", encoding="utf-8", closefd=False) as out:
                out.writelines(f"{line}\n" for line in lines(recording))
        except OSError as error:
            return f"{self._path}: {error.strerror}: the recording is not whole"
        self._written = True
        return ""

    def close(self) -> None:
        os.close(self._fd)
        if self._is_new and not self._written:
            os.unlink(self._path)


def _say(message: str) -> None:
    complain("record", message)
    sys.stderr.flush()


# ---- a lab ----


class Taker:
    """Takes the records of a lab's trace (vfsfuse.cli.tracing.Teller), and makes the recording in the end."""

    def __init__(self, command: Iterable[str], shows_mmap: bool) -> None:
        from vfsfuse.recording.collecting import Collector

        self._collector = Collector(list(command), shows_mmap)
        self.recording: Recording | None = None
        self.failure: str | None = None
        """Why there is no recording."""

    def add(self, records: Iterable[Record]) -> int:
        from vfsfuse.recording.recording import RecordingError

        count = 0
        for record in records:
            count += 1
            try:
                self._collector.add(record)
            except RecordingError as error:
                self.failure = str(error)
                break
        return count

    def end(self) -> None:
        from vfsfuse.recording.recording import RecordingError

        if self.failure is not None:
            return
        try:
            self.recording = self._collector.recording()
        except RecordingError as error:
            self.failure = str(error)

    @property
    def unknown(self) -> list[str]:
        """Devices that were open before, so they are not in the recording."""
        return self._collector.unknown


def _record_lab(args: argparse.Namespace, output: Output) -> int:
    from vfsfuse.recording.collecting import KEEP, TRACE_KINDS, wishes
    from vfsfuse.run.command import main as run
    from vfsfuse.run.traced import TracedCommand, end_as
    from vfsfuse.trace.filters import Filter
    from vfsfuse.trace.reader import TraceReader
    from vfsfuse.trace.record import TraceError

    args.argv = args.program
    command = TracedCommand(lambda tracer: run(args, tracer))
    file = command.trace()
    if file is None:
        return _end(output, command.reap(), end_as)
    try:
        reader = TraceReader(file, Filter(kinds=TRACE_KINDS), KEEP, PATIENCE, wishes(args.mmap))
    except TraceError as error:
        _say(f"{error}: the program runs without a recording")
        command.close()
        command.reap()
        return EXIT_SETUP
    taker = Taker(args.program, args.mmap)
    failure = _follow(command, reader, taker)
    command.close()
    status = command.reap()
    if taker.recording is None or failure:
        _say(f"there is no recording: {failure}")
        return EXIT_SETUP
    if not _keep(taker.recording, output, args, taker.unknown):
        return EXIT_SETUP
    return _end(output, status, end_as)


def _follow(command: TracedCommand, reader: TraceReader, taker: Taker) -> str:
    """Record the dialogue of a program to its end.  Returns why there is no recording, empty if there is."""
    from vfsfuse.cli.tracing import Follower, follow

    follower = Follower(reader, taker)
    command.attached()
    follow(command, follower)
    whole = follower.open
    follower.finish(command.reading)
    if failure := follower.failure or taker.failure:
        return failure
    return "" if whole else "the lab has ended before the program"


def _end(output: Output, status: int, end_as: Callable[[int], int]) -> int:
    """End as the program with this wait status has ended."""
    if os.WIFSIGNALED(status):
        output.close()
    return end_as(status)


# ---- this machine ----


def _record_host(args: argparse.Namespace, output: Output) -> int:
    from vfsfuse.recording.host.recorder import record
    from vfsfuse.recording.recording import RecordingError
    from vfsfuse.run.traced import end_as

    say = (lambda message: None) if args.quiet else _say
    try:
        recording, status = record(args.program, shows_mmap=args.mmap, complain=say)
    except RecordingError as error:
        _say(str(error))
        return EXIT_SETUP
    if not _keep(recording, output, args, ()):
        return EXIT_SETUP
    return _end(output, status, end_as)


def _keep(recording: Recording, output: Output, args: argparse.Namespace, unknown: Iterable[str]) -> bool:
    """Write the recording, and say what is in it.  False if it cannot be written."""
    if failure := output.write(recording):
        _say(failure)
        return False
    if args.quiet:
        return True
    for name in unknown:
        _say(f"{name} was open before, so it is not in the recording")
    devices, events = len(recording.devices), len(recording.events)
    what = f"{_count(devices, 'device')}, {_count(events, 'event')}"
    mapped = sum(event.kind == "mmap" for event in recording.events)
    if mapped:
        how = f"; accesses to {_count(mapped, 'mapping')} are missing (leave --mmap out)"
    elif recording.shows_mmap or not any(_maps(device.regions) for device in recording.devices):
        how = ""
    else:
        how = "; the program was told that no region can be mapped (--mmap changes that)"
    _say(f"{args.output}: {what}{how}")
    return True


def _maps(regions: Mapping[int, Region]) -> bool:
    """Whether a device has a region that can be mapped."""
    from vfsfuse.recording import regioninfo

    return any(region.flags & regioninfo.MMAP for region in regions.values())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
