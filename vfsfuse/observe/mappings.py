# SPDX-License-Identifier: Apache-2.0
"""Which processes have mapped a device's memory.  FUSE tells a server nothing of mmap(2), so the trace looks.

A process is looked at after it was told that a region can be mapped, or has opened a `resource<N>`: 50 ms
later, and then less and less often while nothing changes, once a second in the end.  The kernel shows a
mapping in /proc/PID/maps with the device number of the mount and the inode of the file, also when it goes to
a backing file (passthrough).  Where there is no passthrough nothing can be mapped, and no region says that it
can.

A client can hold up a look for as long as it likes, by the lock of its mappings.  So a thread that may be
lost makes the looks, `trace-maps`.  A process that has held one up is not looked at any more.

State: `suspect` is for any thread; all else is under a lock, which is not held during a look.
Source: proc_pid_maps(5), <linux/vfio.h> (struct vfio_region_info).
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from devmodel.calls.call import Call, CallKind
from devmodel.region.backing import REGION_SHIFT
from vfsfuse.observe.clients import Client
from vfsfuse.observe.told import Told, tell_mapping

log = logging.getLogger(__name__)
FIRST_SECONDS, MOST_SECONDS = 0.05, 1.0
MOST_PROCESSES = 256
MOST_LOST = 4
"""Threads that clients may hold up.  Beyond that nobody is looked at."""
HELD_SECONDS = 1.0
IDLE_SECONDS = 3600.0
SHARE = 20
"""A process is not looked at for so many times as long as the last look at it took: a client can make that
long by many mappings."""
_MOST_MAPS = 32 << 20
_PIECE = 1 << 16
"""Bytes of a process' mappings that are looked through at once, because that keeps the GIL from the pump."""
REGION_INFO = "VFIO_DEVICE_GET_REGION_INFO"
_STRUCT = struct.Struct("=IIIIQQ")
_FLAG_MMAP = 4
_RESOURCE = re.compile(r"/resource\d+(_wc)?$")
_LINE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...s ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) ([0-9]+)", re.M)
Put = Callable[[Told], None]


class Mapping(NamedTuple):
    """What is mapped: a device's name, the index of a region, and how many bytes."""

    device: str
    region: int
    size: int


class MappedFiles(Protocol):
    """The files of a mount, as mappings show them."""

    @property
    def st_dev(self) -> Callable[[], int]:
        """Gives the device number of the mount."""

    def region_of(self, inode: int) -> tuple[str, int | None] | None:
        """The device of a file, and the index of its region; None instead for all regions.  None for a file
        that is no device's, or is gone.  Any thread but a pump."""


class _Process:
    """A process that may map something."""

    __slots__ = ("client", "due", "interval", "rested", "told")

    def __init__(self, client: Client) -> None:
        self.client, self.interval = client, FIRST_SECONDS
        self.due = time.monotonic() + FIRST_SECONDS
        self.rested = 0.0
        """It is not looked at before that."""
        self.told: set[tuple[str, int]] = set()


class Mappings:
    """The mappings of one lab's memory, as far as they have been noticed."""

    def __init__(self, files: MappedFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._suspects: deque[Client] = deque(maxlen=MOST_PROCESSES)
        self._processes: dict[int, _Process] = {}
        self._held: set[int] = set()
        self._lost = 0
        self._looking: _Look | None = None

    def suspect(self, call: Call, client: Client) -> None:
        """A call that is over: does it say that its client may map a region from now on?"""
        if call.kind is CallKind.OPEN:
            can = call.name == "open" and _RESOURCE.search(str(call.arguments.get("path", ""))) is not None
        else:
            can = call.name == REGION_INFO and _can_map(call.after)
        if can and client.pid and call.error is None:
            self._suspects.append(client)

    def look(self, put: Put, number: Callable[[], int]) -> float:
        """Begin a look if it is time for one.  Returns the seconds until the next one.  `put` is told of what
        is found, with a number.  The thread of the trace."""
        now = time.monotonic()
        with self._lock:
            while self._suspects:
                client = self._suspects.popleft()
                if client.pid not in self._held and len(self._processes) < MOST_PROCESSES:
                    known = self._processes.setdefault(client.pid, _Process(client))
                    known.interval = FIRST_SECONDS
                    known.due = max(known.rested, min(known.due, now + FIRST_SECONDS))
            if self._looking is not None and now - self._looking.since > HELD_SECONDS:
                self._give_up(self._looking)
            if self._looking is None and self._lost < MOST_LOST:
                due = [each for each in self._processes.values() if each.due <= now]
                if due:
                    look = _Look(self, due, put, number)
                    self._looking = look if look.start() else None
            soonest = min((each.due for each in self._processes.values()), default=now + IDLE_SECONDS)
        return max(FIRST_SECONDS, soonest - now)

    def forget(self) -> None:
        """There are no readers any more."""
        with self._lock:
            self._suspects.clear()
            self._processes.clear()
            self._held.clear()

    def _give_up(self, look: _Look) -> None:
        """A look is held up: leave its thread alone."""
        self._looking = None
        self._lost += 1
        self._processes.pop(look.at, None)
        self._held.add(look.at)

    # ---- the thread of a look ----

    def ended(self, look: _Look) -> None:
        with self._lock:
            if self._looking is look:
                self._looking = None
            else:
                self._lost -= 1

    def look_at(self, process: _Process) -> list[Mapping]:
        """What a process has mapped and was not told.  Reads /proc, which may wait."""
        pid, begun = process.client.pid, time.monotonic()
        try:
            found = list(self._mapped(pid))
        except OSError:  # it has ended
            with self._lock:
                self._processes.pop(pid, None)
            return []
        with self._lock:
            new = []
            for mapping in found:
                key = mapping.device, mapping.region
                if key not in process.told:
                    process.told.add(key)
                    new.append(mapping)
            process.interval = FIRST_SECONDS if new else min(2 * process.interval, MOST_SECONDS)
            now = time.monotonic()
            process.rested = now + SHARE * (now - begun)
            process.due = max(process.rested, now + process.interval)
        return new

    def _mapped(self, pid: int) -> Iterator[Mapping]:
        device = self._files.st_dev()
        major, minor = os.major(device), os.minor(device)
        for line in _shared(pid):
            start, end, offset, *number = (int(part, 16) for part in line.groups()[:5])
            if number != [major, minor]:
                continue
            found = self._files.region_of(int(line[6]))
            if found is not None:
                name, region = found
                index = offset >> REGION_SHIFT if region is None else region
                yield Mapping(name, index, end - start)


class _Look:
    """One look at some processes, on a thread of its own."""

    def __init__(
        self, mappings: Mappings, processes: list[_Process], put: Put, number: Callable[[], int]
    ) -> None:
        self._mappings, self._processes = mappings, processes
        self._put, self._number = put, number
        self.since, self.at = time.monotonic(), processes[0].client.pid

    def start(self) -> bool:
        """False when there can be no more threads."""
        try:
            threading.Thread(target=self._run, name="trace-maps", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _run(self) -> None:
        try:
            for process in self._processes:
                self.since, self.at = time.monotonic(), process.client.pid
                for mapping in self._mappings.look_at(process):
                    self._put(
                        tell_mapping(
                            self._number(), mapping.device, process.client, mapping.region, mapping.size
                        )
                    )
        except Exception:
            log.exception("trace: mappings")
        finally:
            self._mappings.ended(self)


def _shared(pid: int) -> Iterator[re.Match[bytes]]:
    """The shared mappings of a process.  Raises OSError when it has ended."""
    left, rest = _MOST_MAPS, b""
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as maps:
        while left > 0 and (piece := maps.read(_PIECE)):
            left -= len(piece)
            whole, newline, rest = (rest + piece).rpartition(b"\n")
            yield from _LINE.finditer(whole + newline)
    if left == _MOST_MAPS:
        raise ProcessLookupError(pid)


def _can_map(info: bytes) -> bool:
    """Whether a struct vfio_region_info says so."""
    return len(info) >= _STRUCT.size and bool(_STRUCT.unpack_from(info)[1] & _FLAG_MMAP)
