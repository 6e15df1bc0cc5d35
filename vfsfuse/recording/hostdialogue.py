# SPDX-License-Identifier: Apache-2.0
"""The events of a recording, made from the system calls of a program that ptrace stops.

`Dialogue` is told of each call by its name and arguments before it is made, and of its result.  CALLS has
what each call means.  The memory of the program is hostile: sizes are bounded, and what cannot be read is
left out.  Another thread of it may change what a pointer leads to between the look of the recorder and that
of the kernel; then the recording has what the recorder saw.

State belongs to the thread of the ptrace loop, except the list of events, which the lock of `Interrupts`
guards.  Source: <linux/vfio.h>, the manual pages of the calls.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ioctl_shim.abi import Kind, Row, rows_of
from ioctl_shim.client import Caller, peek
from ioctl_shim.procfs import name_of
from vfsfuse.recording import recording as form
from vfsfuse.recording.hostcalls import Machine, is_same_file
from vfsfuse.recording.hostdescription import Layout, describe
from vfsfuse.recording.hostfiles import HostFile, HostFiles, file_of_path, info
from vfsfuse.recording.hosthiding import REGION_INFO, without_mmap
from vfsfuse.recording.hostinterrupts import Asked, Interrupts
from vfsfuse.recording.hosttracees import Ending
from vfsfuse.recording.recording import Event, RecordedDevice, Recording

Args = tuple[int, ...]
_MOST_PATH = 4096
_MOST_NAME = 64
_MOST_SEGMENTS = 1024
_MOST_CONTROL = 1 << 16
_F_DUPFD, _F_DUPFD_CLOEXEC = 0, 1030
_CLOSE_RANGE_CLOEXEC = 4
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_FILES = {Kind.CONTAINER: form.CONTAINER, Kind.GROUP: form.GROUP, Kind.IOMMUFD: form.IOMMUFD}
_NUMBERS = ("VFIO_GROUP_SET_CONTAINER",)
"""Ioctls that take a number by a pointer."""
_PLAIN = ("VFIO_CHECK_EXTENSION", "VFIO_SET_IOMMU")
"""Ioctls whose argument is a number."""
_GET_DEVICE_FD = "VFIO_GROUP_GET_DEVICE_FD"


def _fd(value: int) -> int:
    """An argument as a descriptor."""
    return (value & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


class Dialogue:
    """What the recorded processes do with VFIO (vfsfuse.recording.hosttracees.Watcher).

    `say` gets a line for the user; the same line is said once."""

    def __init__(self, machine: Machine, shows_mmap: bool, say: Callable[[str], None]) -> None:
        self.recording = Recording(form.HOST, shows_mmap=shows_mmap)
        self._say, self._said = say, set[str]()
        self._start = time.monotonic()
        self._files = HostFiles(lambda one, other: is_same_file(machine, one, other))
        self._layouts: dict[int, Layout] = {}
        """By index of a device, once it has been described."""
        self._room = form.MOST_TOTAL
        self._events: list[Event | None] = []
        """In the order in which they began.  None is a call that has not ended."""
        self.interrupts = Interrupts(self._interrupted)

    def finish(self) -> Recording:
        """The recording, when all processes have ended."""
        self.interrupts.end()
        self.recording.events = [event for event in self._events if event is not None]
        return self.recording

    # ---- the program ----

    def stopped(self) -> None:
        self.interrupts.look()

    def entered(self, tid: int, tgid: int, name: str, args: Args) -> Ending | None:
        return CALLS[name](self, tid, tgid, args)

    def forked(self, tgid: int, child: int) -> None:
        self._files.fork(tgid, child)

    def replaced(self, tid: int, tgid: int) -> None:
        self._closed(self._files.left_by_exec(tgid))

    def ended(self, tgid: int) -> None:
        self._closed(self._files.close(tgid, self._files.of(tgid)))

    # ---- events ----

    def say(self, line: str) -> None:
        """Say a line once."""
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _begin(self) -> tuple[int, float] | None:
        """The place of an event that begins now, and its time.  None when the recording is full."""
        with self.interrupts.lock:
            if len(self._events) >= form.MOST_EVENTS or self._room <= 0:
                self.say("the recording is full: what follows is not recorded")
                return None
            self._events.append(None)
            return len(self._events) - 1, self._now()

    def _end(self, place: int, event: Event) -> None:
        with self.interrupts.lock:
            self._events[place] = event
        self._room -= len(event.data) + len(event.before) + len(event.after)

    def _add(self, event: Event) -> None:
        """An event that began and ended now."""
        begun = self._begin()
        if begun:
            self._end(begun[0], event)

    def _interrupted(self, device: int, index: int, vector: int) -> None:
        name = form.irq_name(index)
        self._add(Event(self._now(), device, form.INTERRUPT, name, vector=vector))

    def _closed(self, files: Iterable[HostFile]) -> None:
        for file in files:
            if file.kind is Kind.DEVICE:
                self.interrupts.close(file.device)
            self._add(Event(self._now(), file.device, form.CLOSE, file.path, _FILES.get(file.kind, "")))

    # ---- devices ----

    def _device(self, name: str, group: int | None) -> int:
        """The index of the device with this name."""
        for index, device in enumerate(self.recording.devices):
            if device.name == name:
                return index
        self.recording.devices.append(RecordedDevice(name, group=group))
        return len(self.recording.devices) - 1

    def _found(self, tid: int, tgid: int, fd: int) -> HostFile | None:
        """The file behind a descriptor, None if it is not of VFIO.  A device's file has its device."""
        file = self._files.find(tid, tgid, fd)
        if file is not None and file.kind is Kind.DEVICE and file.device < 0:
            if len(self.recording.devices) >= form.MOST_DEVICES:
                self.say(f"there are more than {form.MOST_DEVICES} devices: the rest is not recorded")
                return None
            folder = _sysfs(file) if file.path else info(tid, fd, "vfio-device-syspath")
            name = os.path.basename(folder) or f"device{len(self.recording.devices)}"
            file.device = self._device(name, _group_of(folder))
            if not file.path:
                self._describe(tid, fd, file.device)
        return file

    def _describe(self, tid: int, fd: int, device: int) -> None:
        """Ask the device for what it is when it is first opened."""
        if device in self._layouts:
            return
        recorded = self.recording.devices[device]
        try:
            copy = Caller(tid).borrow(fd)
            try:
                self._layouts[device] = describe(copy, recorded)
            finally:
                os.close(copy)
        except OSError as error:
            self.say(f"{recorded.name} does not say what it is: {error.strerror or error}")

    # ---- calls ----

    def open(self, tid: int, tgid: int, path: int) -> Ending | None:
        name = _string(tid, path)
        if "vfio" not in name and "iommu" not in name:
            return None
        begun = self._begin()

        def end(result: int) -> None:
            file = file_of_path(name) if result < 0 else self._found(tid, tgid, result)
            if file is None or not file.path or not begun:
                return
            place, when = begun
            where = file.device, form.OPEN, file.path, _FILES.get(file.kind, "")
            if result >= 0 or file.kind is not Kind.DEVICE:
                self._end(place, Event(when, *where, errno=max(0, -result)))

        return end

    def close(self, tid: int, tgid: int, args: Args) -> Ending | None:
        fd = _fd(args[0])
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
        return lambda result: self._closed(self._files.close(tgid, fds)) if not result else None

    def dup(self, tid: int, tgid: int, args: Args) -> Ending | None:
        """dup, dup2 and dup3: the result is another number for the file, and what had it is closed."""
        file = self._files.known(tgid, _fd(args[0]))
        if file is None and self._files.known(tgid, _fd(args[1])) is None:
            return None

        def end(result: int) -> None:
            if result < 0 or result == _fd(args[0]):
                return
            gone = self._files.close(tgid, [result])
            if file is not None:
                self._files.add(tgid, result, file)
            self._closed(each for each in gone if each is not file)

        return end

    def fcntl(self, tid: int, tgid: int, args: Args) -> Ending | None:
        if args[1] & 0xFFFFFFFF not in (_F_DUPFD, _F_DUPFD_CLOEXEC):
            return None
        return self.dup(tid, tgid, (args[0], args[0]))

    def sendmsg(self, tid: int, tgid: int, args: Args) -> Ending | None:
        """A file that is sent may be closed here before another process receives it."""
        header = peek(tid, args[1], 56)
        control, size = struct.unpack("=2Q", header[32:48]) if header else (0, 0)
        for fd in _sent(peek(tid, control, min(size, _MOST_CONTROL))):
            file = self._files.known(tgid, fd)
            if file is not None:
                file.sent = True
        return None

    def mmap(self, tid: int, tgid: int, args: Args) -> Ending | None:
        size, fd, position = args[1], _fd(args[4]), args[5]
        file = self._files.find(tid, tgid, fd) if fd >= 0 and self.recording.devices else None
        begun = self._begin() if file is not None and file.device in self._layouts else None
        if file is None or begun is None:
            return None
        device, (place, when) = file.device, begun
        region, _ = self._layouts[device].place(position)

        def end(result: int) -> None:
            if result >= 0 or result < -4095:
                self._end(place, Event(when, device, form.MMAP, region=region, size=size))
                name = self.recording.devices[device].name
                self.say(
                    f"{form.region_name(region)} of {name} is mapped: accesses through it are not recorded"
                )

        return end

    def ptrace(self, tid: int, tgid: int, args: Args) -> Ending | None:
        def end(result: int) -> None:
            if result == -errno.EPERM:
                self.say(f"{name_of(tid)} cannot use ptrace(2), because the recorder does already")

        return end

    # ---- accesses ----

    def access(
        self, tid: int, tgid: int, args: Args, kind: str, parts: _Parts, position: int
    ) -> Ending | None:
        """A read or write of `parts`, (address, size) each, of a file at `position`, -1 for where it is."""
        fd = _fd(args[0])
        file = self._found(tid, tgid, fd)
        if file is None or file.device < 0:
            return None
        layout = self._layouts.get(file.device)
        if layout is None:
            return None
        if position < 0:
            position = int(info(tid, fd, "pos") or 0)
        events: list[tuple[int, Event, int]] = []
        for address, size in parts(tid):
            begun = self._begin()
            if not begun:
                break
            region, offset = layout.place(position)
            event = Event(begun[1], file.device, kind, region=region, offset=offset, size=size)
            if kind == form.WRITE:
                event.data = peek(tid, address, min(size, form.MOST_DATA))
            events.append((begun[0], event, address))
            position += size
        return lambda result: self._accessed(tid, events, result)

    def _accessed(self, tid: int, events: list[tuple[int, Event, int]], result: int) -> None:
        """The kernel gives a device each part of a vector as an access of its own."""
        left = max(result, 0)
        for number, (place, event, address) in enumerate(events):
            if result < 0:
                event.errno = -result
            moved = min(left, event.size)
            if event.kind == form.READ:
                event.data = peek(tid, address, min(moved, form.MOST_DATA))
            else:
                event.result = moved
            left -= moved
            if number == 0 or moved:
                self._end(place, event)

    # ---- ioctls ----

    def ioctl(self, tid: int, tgid: int, args: Args) -> Ending | None:
        fd, cmd, arg = _fd(args[0]), args[1] & 0xFFFFFFFF, args[2]
        if cmd >> 8 != ord(";"):
            return None
        file = self._found(tid, tgid, fd)
        begun = self._begin() if file is not None else None
        if file is None or not begun:
            return None
        row = rows_of(file.kind).get(cmd)
        name = f"{cmd:#x}" if row is None else row.name
        event = Event(begun[1], file.device, form.IOCTL, name, _FILES.get(file.kind, ""))
        event.before = _before(tid, row, arg)
        if name in _PLAIN:
            event.argument = arg
        asked = None
        if name == "VFIO_DEVICE_SET_IRQS":
            asked = Asked(file.device, event.before, tid, self.say)

        def end(result: int) -> None:
            if name == "VFIO_DEVICE_GET_REGION_INFO" and not result:
                self._hide_mmap(tid, arg)
            event.after = peek(tid, arg, len(event.before))
            event.result, event.errno = max(0, result), max(0, -result)
            if name == _GET_DEVICE_FD and result >= 0:
                event.result = 0
                self._got_device(tid, tgid, result, file, event.before)
            elif name == "VFIO_DEVICE_BIND_IOMMUFD" and not result:
                self._describe(tid, fd, file.device)
            if asked:
                self.interrupts.set_up(asked) if not result else asked.drop()
            self._end(begun[0], event)

        return end

    def _hide_mmap(self, tid: int, address: int) -> None:
        if self.recording.shows_mmap:
            return
        size = int.from_bytes(peek(tid, address, 4), "little")
        answer = peek(tid, address, min(max(size, REGION_INFO.size), form.MOST_STRUCT))
        shown = without_mmap(answer)
        if shown != answer:
            try:
                Caller(tid).write(address, shown)
            except OSError:
                self.say("the answer of VFIO_DEVICE_GET_REGION_INFO cannot be changed: regions may be mapped")

    def _got_device(self, tid: int, tgid: int, fd: int, group: HostFile, asked: bytes) -> None:
        """A group has given a device, whose name may be followed by options, such as a token."""
        if len(self.recording.devices) >= form.MOST_DEVICES:
            return
        name = asked.decode("ascii", "replace").split(" ")[0]
        number = group.path.rpartition("/")[2].removeprefix("noiommu-")
        device = self._device(name, int(number) if number.isdecimal() else None)
        self._files.add_device(tid, tgid, fd, device)
        self._describe(tid, fd, device)


def _before(tid: int, row: Row | None, arg: int) -> bytes:
    """What the pointer of an ioctl leads to, as vfsfuse.vfio.told reads it."""
    if row is None or not arg:
        return b""
    if not row.struct:
        if row.name == _GET_DEVICE_FD:
            return _string(tid, arg).encode("utf-8", "surrogateescape")[:_MOST_NAME]
        return peek(tid, arg, 4) if row.name in _NUMBERS else b""
    head = peek(tid, arg, row.minsz)
    size = min(int.from_bytes(head[:4], "little"), form.MOST_STRUCT)
    return (peek(tid, arg, size) or head) if head and size > row.minsz else head


def _string(tid: int, address: int) -> str:
    try:
        return os.fsdecode(Caller(tid).read_string(address))
    except OSError:
        return ""


def _sent(control: bytes) -> list[int]:
    """The descriptors in the control data of a message."""
    fds: list[int] = []
    at = 0
    while at + 16 <= len(control):
        size, level, kind = struct.unpack_from("=Q2i", control, at)
        if size < 16:
            break
        if (level, kind) == (_SOL_SOCKET, _SCM_RIGHTS):
            data = control[at + 16 : at + size]
            fds.extend(struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4]))
        at += (size + 7) & ~7
    return fds


def _sysfs(file: HostFile) -> str:
    """The directory of the device that a character device of dev/vfio/devices stands for."""
    name = os.path.basename(file.path)
    return os.path.realpath(f"{file.prefix}/sys/class/vfio-dev/{name}/device")


def _group_of(folder: str) -> int | None:
    try:
        return int((Path(folder) / "iommu_group").readlink().name)
    except (OSError, ValueError):
        return None


# ---- the calls by their names ----

_Parts = Callable[[int], list[tuple[int, int]]]


def _vector(args: Args) -> _Parts:
    """The parts of the vector that the second and third argument are."""

    def parts(tid: int) -> list[tuple[int, int]]:
        data = peek(tid, args[1], 16 * min(args[2], _MOST_SEGMENTS))
        return [part for part in struct.iter_unpack("=2Q", data) if part[1]]

    return parts


def _one(args: Args) -> _Parts:
    return lambda tid: [(args[1], args[2])]


def _access(kind: str, vector: bool, positioned: bool) -> _Call:
    def call(dialogue: Dialogue, tid: int, tgid: int, args: Args) -> Ending | None:
        position = args[3] if positioned else -1
        if position >= 1 << 63:
            position = -1  # preadv2(2): where the file is
        return dialogue.access(tid, tgid, args, kind, (_vector if vector else _one)(args), position)

    return call


def _open(at: int) -> _Call:
    return lambda dialogue, tid, tgid, args: dialogue.open(tid, tgid, args[at])


_Call = Callable[[Dialogue, int, int, Args], Ending | None]

CALLS: Mapping[str, _Call] = {
    **{"open": _open(0), "creat": _open(0), "openat": _open(1), "openat2": _open(1)},
    **{"close": Dialogue.close, "close_range": Dialogue.close_range, "fcntl": Dialogue.fcntl},
    **{"dup": Dialogue.dup, "dup2": Dialogue.dup, "dup3": Dialogue.dup, "sendmsg": Dialogue.sendmsg},
    **{"ioctl": Dialogue.ioctl, "mmap": Dialogue.mmap, "ptrace": Dialogue.ptrace},
    **{"read": _access(form.READ, vector=False, positioned=False)},
    **{"write": _access(form.WRITE, vector=False, positioned=False)},
    **{"pread64": _access(form.READ, vector=False, positioned=True)},
    **{"pwrite64": _access(form.WRITE, vector=False, positioned=True)},
    **{"readv": _access(form.READ, vector=True, positioned=False)},
    **{"writev": _access(form.WRITE, vector=True, positioned=False)},
    **{name: _access(form.READ, vector=True, positioned=True) for name in ("preadv", "preadv2")},
    **{name: _access(form.WRITE, vector=True, positioned=True) for name in ("pwritev", "pwritev2")},
}
"""By the names in vfsfuse.recording.hostcalls.MACHINES."""
