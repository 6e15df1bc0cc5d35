# SPDX-License-Identifier: Apache-2.0
"""A recording that a lab replays: its file is read once, and all its devices share their divergences.

State: `Replay` objects are kept by file for as long as the process, because a lab file that is read again is
to find the same models.  The thread that reads lab files makes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from devmodel.models.plain import MAX_ROM
from vfsfuse.recording.reading import read
from vfsfuse.recording.recording import READ, RecordedDevice, Recording, RecordingError
from vfsfuse.replay.dialogue import Dialogue
from vfsfuse.replay.divergences import Divergences
from vfsfuse.replay.script import ROM_REGION, script_of
from vfsfuse.replay.state import Learned
from vfsfuse.replay.translation import Translation, recorded_maps


@dataclass(slots=True, eq=False)
class Replay:
    """A recording, with what differs from it."""

    recording: Recording
    divergences: Divergences
    translation: Translation
    played: dict[int, Played] = field(default_factory=dict)

    @classmethod
    def of(cls, recording: Recording, shown: str) -> Replay:
        """`shown` is the name of the file in divergences."""
        return cls(recording, Divergences(shown), Translation(recorded_maps(recording)))

    @property
    def has_maps(self) -> bool:
        """Whether the client's addresses are to be compared with recorded ones."""
        return bool(recorded_maps(self.recording))

    def device(self, name: str) -> Played:
        """What plays the device with this name; an empty one is that of the only device.  Raises ValueError
        that says which there are."""
        there = [device.name for device in self.recording.devices]
        if not name and len(there) != 1:
            raise ValueError(
                f"the recording has {len(there)} devices (say which one with recorded: {', '.join(there)})"
            )
        if name and name not in there:
            raise ValueError(f"the recording has no device {name} (there is {', '.join(there) or 'none'})")
        number = there.index(name) if name else 0
        return self.played.setdefault(number, Played(self, number))


class Played:
    """A device of a recording."""

    def __init__(self, replay: Replay, number: int) -> None:
        self.replay, self._number = replay, number
        self.device: RecordedDevice = replay.recording.devices[number]
        self.script = script_of(replay.recording, number)
        self._learned = Learned(self.script)
        self.rom = _rom(replay.recording, number)
        self._progress = replay.divergences.of_device(self.device.name, self.script.total)

    def dialogue(self) -> Dialogue:
        """One from its begin."""
        divergences, name = self.replay.divergences, self.device.name

        def report(line: int, expected: str, got: str, at: object = None) -> None:
            divergences.add(name, line, expected, got, at)

        return Dialogue(
            self.script, self._learned, report, self.device.names, self.replay.translation, self._progress
        )


def _rom(recording: Recording, number: int) -> bytes:
    """What was read of the ROM, from its begin on, as far as a ROM can be long."""
    found = bytearray()
    for event in recording.of_device(number):
        is_read = event.kind == READ and event.region == ROM_REGION and not event.errno
        if is_read and event.offset + len(event.data) <= MAX_ROM:
            found.extend(b"\xff" * (event.offset + len(event.data) - len(found)))
            found[event.offset : event.offset + len(event.data)] = event.data
    return bytes(found)


_read: dict[tuple[str, int, int], Replay] = {}


def load(path: str) -> Replay:
    """The recording at `path`, the same object for the same file.  Raises ValueError in one line."""
    try:
        found = os.stat(path)
        key = os.path.abspath(path), found.st_mtime_ns, found.st_size
        if key not in _read:
            _read[key] = Replay.of(read(path), shown(path))
        return _read[key]
    except RecordingError as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def shown(path: str) -> str:
    """A path as its user sees it: relative to the current folder if it is below."""
    whole, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(whole, here) if here != "/" and whole.startswith(f"{here}/") else whole
