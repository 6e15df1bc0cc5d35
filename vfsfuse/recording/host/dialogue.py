# SPDX-License-Identifier: Apache-2.0
"""The events of a recording, made from the system calls of a program that ptrace stops.

`Dialogue` is told of each call by its name and arguments before it is made, and of its result.  CALLS has
what each call means.  Another thread of the program may change what a pointer leads to between the look of
the recorder and that of the kernel; then the recording has what the recorder saw.

State belongs to the thread of the ptrace loop.  Source: <linux/vfio.h>, the manual pages of the calls.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping

from ioctl_shim.abi import Kind, rows_of
from ioctl_shim.client import Caller, peek
from ioctl_shim.procfs import name_of
from vfsfuse.recording import recording as kinds
from vfsfuse.recording.host.devices import HostDevices
from vfsfuse.recording.host.events import Begun, Events
from vfsfuse.recording.host.files import HostFile, HostFiles, file_of_path, info, is_hidden
from vfsfuse.recording.host.hiding import region_asked, without_mmap
from vfsfuse.recording.host.interrupts import Asked, Interrupts
from vfsfuse.recording.host.memory import (
    GET_DEVICE_FD,
    Part,
    descriptor,
    sent_at,
    string_at,
    struct_at,
    vector_at,
)
from vfsfuse.recording.host.syscalls import Machine, is_same_file
from vfsfuse.recording.host.tracees import Ending
from vfsfuse.recording.recording import Event, Recording

Args = tuple[int, ...]
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
_CLOSE_RANGE_CLOEXEC = 4
_FAILED = range(-4095, 0)
"""What a call returns that fails.  The address of a mapping may look negative, too."""
MOST_TRANSFER = 0x7FFFF000
"""Bytes that one read(2) or write(2) moves."""
_FILES = {Kind.CONTAINER: kinds.CONTAINER, Kind.GROUP: kinds.GROUP, Kind.IOMMUFD: kinds.IOMMUFD}


class Dialogue:
    """What the recorded processes do with VFIO (vfsfuse.recording.host.tracees.Watcher).  `say` gets a line
    for the user."""

    def __init__(self, machine: Machine, shows_mmap: bool, say: Callable[[str], None]) -> None:
        self.recording = Recording(kinds.HOST, shows_mmap=shows_mmap)
        self._events = Events(say)
        self._files = HostFiles(lambda one, other: is_same_file(machine, one, other))
        self._devices = HostDevices(self.recording.devices, self._events.say)
        self.interrupts = Interrupts(self._interrupted, self._events)

    def finish(self) -> Recording:
        """The recording, when all processes have ended."""
        self.interrupts.end()
        self._closed(self._files.lost())
        self.recording.events = self._events.all()
        begun = min((event.time for event in self.recording.events), default=0.0)
        for event in self.recording.events:
            event.time = round(event.time - begun, 6)
        return self.recording

    # ---- the program ----

    def stopped(self) -> None:
        self.interrupts.look()

    def entered(self, tid: int, tgid: int, name: str, args: Args) -> Ending | None:
        ending: Ending | None = None
        with self._guarded(tid):
            ending = CALLS[name](self, tid, tgid, args)
        if ending is None:
            return None

        def end(result: int) -> None:
            with self._guarded(tid):
                ending(result)

        return end

    @contextlib.contextmanager
    def _guarded(self, tid: int) -> Iterator[None]:
        """Nothing that a program does, or how it ends meanwhile, ends the recorder."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENOENT):  # it is not there any more
                self._events.say(f"a call of {name_of(tid)} is not recorded: {error.strerror or error}")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._events.say(f"a call of {name_of(tid)} is not recorded: {type(error).__name__}: {error}")

    def forked(self, tgid: int, child: int) -> None:
        self._files.fork(tgid, child)

    def replaced(self, tid: int, tgid: int) -> None:
        self._closed(self._files.left_by_exec(tgid))

    def ended(self, tgid: int) -> None:
        self._closed(self._files.close(tgid, self._files.of(tgid)))

    def _interrupted(self, device: int, index: int, vector: int) -> None:
        name = kinds.irq_name(index)
        self._events.add(lambda now: Event(now, device, kinds.INTERRUPT, name, vector=vector))

    def _closed(self, files: Iterable[HostFile]) -> None:
        for file in files:
            if file.kind is Kind.DEVICE and not self._files.have(file.device):
                self.interrupts.close(file.device)
            self._file_event(kinds.CLOSE, file)

    def _file_event(self, kind: str, file: HostFile) -> None:
        device, path, what = file.device, file.path, _FILES.get(file.kind, "")
        if what or device >= 0:
            self._events.add(lambda now: Event(now, device, kind, path, what))

    def _found(self, tid: int, tgid: int, fd: int) -> HostFile | None:
        """The file behind a descriptor, None if it is not of VFIO.  A device's file has its device."""
        file = self._files.find(tid, tgid, fd)
        if file is not None and file.kind is Kind.DEVICE and file.device < 0:
            file.device = self._devices.of_file(file, tid, fd)
            if not file.path:
                self._devices.describe(file.device, tid, fd)
        return None if file is None or (file.kind is Kind.DEVICE and file.device < 0) else file

    # ---- descriptors ----

    def open(self, tid: int, tgid: int, path: int) -> Ending | None:
        name = string_at(tid, path)
        begun = self._events.begin() if "vfio" in name or "iommu" in name else None
        if not begun:
            return None

        def end(result: int) -> None:
            file = file_of_path(name) if result < 0 else self._found(tid, tgid, result)
            if file is None or not file.path:
                return
            what = _FILES.get(file.kind, "")
            if what or file.device >= 0:
                event = Event(begun.time, file.device, kinds.OPEN, file.path, what, errno=max(0, -result))
                self._events.end(begun, event)

        return end

    def close(self, tid: int, tgid: int, args: Args) -> Ending | None:
        fd = descriptor(args[0])
        if self._files.known(tgid, fd) is None:
            return None

        def end(result: int) -> None:
            if result != -errno.EBADF:
                self._closed(self._files.close(tgid, [fd]))

        return end

    def close_range(self, tid: int, tgid: int, args: Args) -> Ending | None:
        first, last, flags = (each & 0xFFFFFFFF for each in args[:3])
        fds = [fd for fd in self._files.of(tgid) if first <= fd <= last]
        if not fds or flags & _CLOSE_RANGE_CLOEXEC:
            return None

        def end(result: int) -> None:
            if not result:
                self._closed(self._files.close(tgid, fds))

        return end

    def dup(self, tid: int, tgid: int, args: Args) -> Ending | None:
        """dup, dup2 and dup3: the result is another number for the file, and what had it is closed."""
        file = self._files.known(tgid, descriptor(args[0]))
        if file is None and self._files.known(tgid, descriptor(args[1])) is None:
            return None

        def end(result: int) -> None:
            if result < 0 or result == descriptor(args[0]):
                return
            gone = self._files.close(tgid, [result])
            if file is not None:
                self._files.add(tgid, result, file)
            self._closed(gone)

        return end

    def fcntl(self, tid: int, tgid: int, args: Args) -> Ending | None:
        if args[1] & 0xFFFFFFFF not in (_F_DUPFD, _F_DUPFD_CLOEXEC):
            return None
        return self.dup(tid, tgid, (args[0], args[0]))

    def sendmsg(self, tid: int, tgid: int, args: Args) -> Ending | None:
        """A file that is sent may be closed here before another process receives it."""
        for fd in sent_at(tid, args[1]):
            file = self._files.known(tgid, fd)
            if file is not None:
                file.sent = True
        return None

    def ptrace(self, tid: int, tgid: int, args: Args) -> Ending | None:
        def end(result: int) -> None:
            if result == -errno.EPERM:
                self._events.say(f"{name_of(tid)} cannot use ptrace(2), because the recorder does already")

        return end

    # ---- regions ----

    def mmap(self, tid: int, tgid: int, args: Args) -> Ending | None:
        size, fd, position = args[1], descriptor(args[4]), args[5]
        file = self._files.known(tgid, fd)
        layout = None if file is None else self._devices.layout(file.device)
        if file is None or layout is None:
            return None
        device, (region, _) = file.device, layout.place(position)
        begun = self._events.begin() if region < kinds.MOST_INDEXES else None
        if not begun:
            return None
        size = min(size, kinds.MOST_SIZE)

        def end(result: int) -> None:
            if result not in _FAILED:
                self._events.end(begun, Event(begun.time, device, kinds.MMAP, region=region, size=size))
                where = f"{kinds.region_name(region)} of {self._devices.name(device)}"
                self._events.say(f"{where} is mapped: accesses through the mapping are not recorded")

        return end

    def access(
        self, tid: int, tgid: int, fd: int, kind: str, position: int, parts: Callable[[], list[Part]]
    ) -> Ending | None:
        """A read or write of `parts` of a file at `position`; at -1 it is where the file is."""
        file = self._found(tid, tgid, fd)
        layout = None if file is None else self._devices.layout(file.device)
        if file is None or layout is None:
            return None
        if position < 0:
            position = int(info(tid, fd, "pos") or 0)
        if layout.place(position)[0] >= kinds.MOST_INDEXES:
            return None
        begun: list[tuple[Begun, Event, int]] = []
        for address, size in parts():
            size = min(size, MOST_TRANSFER)
            event_begun = self._events.begin()
            if not event_begun:
                break
            region, offset = layout.place(position)
            event = Event(event_begun.time, file.device, kind, region=region, offset=offset, size=size)
            if kind == kinds.WRITE:
                event.data = peek(tid, address, min(size, kinds.MOST_DATA))
            begun.append((event_begun, event, address))
            position += size
        return lambda result: self._accessed(tid, begun, result)

    def _accessed(self, tid: int, accesses: list[tuple[Begun, Event, int]], result: int) -> None:
        """The kernel gives a device each part of a vector as an access of its own."""
        left = max(result, 0)
        for number, (begun, event, address) in enumerate(accesses):
            moved = min(left, event.size)
            event.errno = max(0, -result)
            if event.kind == kinds.READ:
                event.data = peek(tid, address, min(moved, kinds.MOST_DATA))
            else:
                event.result = moved
            left -= moved
            if number == 0 or moved:
                self._events.end(begun, event)

    # ---- ioctls ----

    def ioctl(self, tid: int, tgid: int, args: Args) -> Ending | None:
        fd, cmd, arg = descriptor(args[0]), args[1] & 0xFFFFFFFF, args[2]
        file = self._found(tid, tgid, fd) if cmd >> 8 == ord(";") else None
        if file is None and cmd >> 8 == ord(";") and is_hidden(tid):
            self._events.say(
                f"{name_of(tid)} cannot be looked into, so it is not recorded:"
                " make its executable readable, or record it as root"
            )
        begun = self._events.begin() if file is not None else None
        if file is None or not begun:
            return None
        row = rows_of(file.kind).get(cmd)
        name = f"{cmd:#x}" if row is None else row.name
        event = Event(begun.time, file.device, kinds.IOCTL, name, _FILES.get(file.kind, ""))
        event.before = struct_at(tid, row, arg)
        event.argument = arg if name in kinds.TAKE_NUMBERS else 0
        asked = None
        if name == "VFIO_DEVICE_SET_IRQS":
            asked = Asked(file.device, event.before, tid, self._events.say)

        def end(result: int) -> None:
            if result < 0:
                event.errno = -result
            elif name == GET_DEVICE_FD:
                self._got_device(tid, tgid, result, file, event.before)
            else:
                event.result = result
                self._succeeded(tid, fd, arg, file, event)
            if asked:
                self.interrupts.set_up(asked, succeeded=result >= 0)
            event.after = peek(tid, arg, len(event.before))
            self._events.end(begun, event)

        return end

    def _got_device(self, tid: int, tgid: int, fd: int, group: HostFile, asked: bytes) -> None:
        device = self._devices.of_group(asked, group)
        if device >= 0:
            self._files.add_device(tid, tgid, fd, device)
            self._devices.describe(device, tid, fd)

    def _succeeded(self, tid: int, fd: int, arg: int, file: HostFile, event: Event) -> None:
        if event.name == "VFIO_DEVICE_BIND_IOMMUFD":
            self._devices.describe(file.device, tid, fd)
        elif event.name == "VFIO_DEVICE_GET_REGION_INFO" and not self.recording.shows_mmap:
            after = peek(tid, arg, len(event.before))
            region = self.recording.devices[file.device].regions.get(region_asked(event.before))
            shown = without_mmap(event.before, after, region.capabilities if region else b"")
            if shown != after:
                Caller(tid).write(arg, shown)


# ---- the calls by their names ----

_Call = Callable[[Dialogue, int, int, Args], Ending | None]


def _access(kind: str, vector: bool, positioned: bool) -> _Call:
    def call(dialogue: Dialogue, tid: int, tgid: int, args: Args) -> Ending | None:
        def parts() -> list[Part]:
            return vector_at(tid, args[1], args[2]) if vector else [Part(args[1], args[2])]

        position = args[3] if positioned else -1
        if position >= 1 << 63:
            position = -1  # preadv2(2): where the file is
        return dialogue.access(tid, tgid, descriptor(args[0]), kind, position, parts)

    return call


def _open(at: int) -> _Call:
    return lambda dialogue, tid, tgid, args: dialogue.open(tid, tgid, args[at])


CALLS: Mapping[str, _Call] = {
    **{"open": _open(0), "creat": _open(0), "openat": _open(1), "openat2": _open(1)},
    **{"close": Dialogue.close, "close_range": Dialogue.close_range, "fcntl": Dialogue.fcntl},
    **{"dup": Dialogue.dup, "dup2": Dialogue.dup, "dup3": Dialogue.dup, "sendmsg": Dialogue.sendmsg},
    **{"ioctl": Dialogue.ioctl, "mmap": Dialogue.mmap, "ptrace": Dialogue.ptrace},
    "read": _access(kinds.READ, vector=False, positioned=False),
    "write": _access(kinds.WRITE, vector=False, positioned=False),
    "pread64": _access(kinds.READ, vector=False, positioned=True),
    "pwrite64": _access(kinds.WRITE, vector=False, positioned=True),
    "readv": _access(kinds.READ, vector=True, positioned=False),
    "writev": _access(kinds.WRITE, vector=True, positioned=False),
    **dict.fromkeys(("preadv", "preadv2"), _access(kinds.READ, vector=True, positioned=True)),
    **dict.fromkeys(("pwritev", "pwritev2"), _access(kinds.WRITE, vector=True, positioned=True)),
}
"""By the names in vfsfuse.recording.host.syscalls.MACHINES."""
