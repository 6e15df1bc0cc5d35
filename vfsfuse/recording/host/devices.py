# SPDX-License-Identifier: Apache-2.0
"""The devices of a recording that is being made: their names, what they say of themselves, their regions.

State belongs to the thread of the ptrace loop.  Source: Documentation/driver-api/vfio.rst, sysfs-devices of
vfio-dev.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ioctl_shim.client import Caller
from vfsfuse.recording.host.description import Layout, describe
from vfsfuse.recording.host.files import HostFile, info
from vfsfuse.recording.recording import MOST_DEVICES, RecordedDevice


class HostDevices:
    """The devices that the program has opened.  `say` gets a line for the user."""

    def __init__(self, recorded: list[RecordedDevice], say: Callable[[str], None]) -> None:
        self._recorded, self._say = recorded, say
        self._layouts: dict[int, Layout] = {}
        """By index of a device, once it has been described."""

    def layout(self, device: int) -> Layout | None:
        """Where the regions of a device are in its file.  None before it can be asked."""
        return self._layouts.get(device)

    def name(self, device: int) -> str:
        """The name of a device."""
        return self._recorded[device].name

    def of_group(self, asked: bytes, group: HostFile) -> int:
        """The device that GROUP_GET_DEVICE_FD gives for `asked`: a name, which options may follow, such as a
        token.  -1 when there are too many."""
        name = asked.decode("ascii", "replace").split(" ")[0]
        number = group.path.rpartition("/")[2].removeprefix("noiommu-")
        return self._add(name, int(number) if number.isdecimal() else None)

    def of_file(self, file: HostFile, tid: int, fd: int) -> int:
        """The device of a file that the program has opened by itself, or had from the beginning: the name
        that sysfs has for it.  -1 when there are too many."""
        of_group = info(tid, fd, "vfio-device-syspath")  # Linux 6.18
        folder = os.path.realpath(file.sysfs) if file.path else of_group
        return self._add(os.path.basename(folder) or f"device{len(self._recorded)}", _group_of(folder))

    def _add(self, name: str, group: int | None) -> int:
        for index, device in enumerate(self._recorded):
            if device.name == name:
                return index
        if len(self._recorded) >= MOST_DEVICES:
            self._say(f"there are more than {MOST_DEVICES} devices: the rest is not recorded")
            return -1
        self._recorded.append(RecordedDevice(name, group=group))
        return len(self._recorded) - 1

    def describe(self, device: int, tid: int, fd: int) -> None:
        """Have a device say what it is, when it is first opened."""
        if device < 0 or device in self._layouts:
            return
        try:
            copy = Caller(tid).borrow(fd)
            try:
                self._layouts[device] = describe(copy, self._recorded[device])
            finally:
                os.close(copy)
        except OSError as error:
            self._say(f"{self.name(device)} does not say what it is: {error.strerror or error}")


def _group_of(folder: str) -> int | None:
    try:
        return int((Path(folder) / "iommu_group").readlink().name)
    except (OSError, ValueError):
        return None
