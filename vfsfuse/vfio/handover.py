# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/.devices, an unlisted file by which the supervisor of `vfsfuse run` opens a device for its client.

The client must be the only process that keeps its group and device in use.  Otherwise they would stay in use
after the client closes them, or dies.  So the supervisor does not borrow the group's descriptor, but names
the group by its inode.  And the device is not in use until the client has it: `prepare` checks the request
and makes an unlisted file, an open of that file gives an idle open of the device, and `claim` puts the device
into use when the client has the descriptor.

State: on the device lane; while somebody listens, on threads that a listener may hold up.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable

from devmodel.callpoint import Call, CallKind
from devmodel.vfio.group import DeviceFile, Group
from ioctl_shim._native import ffi
from ioctl_shim.abi import CLAIM_DEVICE, PREPARE_DEVICE
from ioctl_shim.lane import Opened, OpenRequest, PlainFile, SizedIoctl
from vfsfuse.vfio.fops import Services, rawio

CONTROL = ".devices"
PREPARED = ".device-"
"""Prefix of the names of the unlisted files. The token follows it."""

GroupFinder = Callable[[int], Group | None]
DeviceShower = Callable[[str, Callable[[], DeviceFile], Callable[[], None]], None]


class Handover:
    """The devices on their way to clients.  `find_group` gives the group by the inode number of its file.
    `show` makes an unlisted file with a name.  The file opens a DeviceFile once, and calls back when that is
    released."""

    def __init__(self, find_group: GroupFinder, show: DeviceShower, services: Services) -> None:
        self._find_group, self._show, self._services = find_group, show, services
        self._tokens = itertools.count(1)
        self._idle: dict[int, DeviceFile] = {}

    def open(self, request: OpenRequest) -> Opened:
        """Open the control file.  A listener may hold its calls up, so it leaves them to other threads."""
        listened = self._services.calls.listener is not None
        return Opened(_ControlFile(self), submit=self._services.threads.submit if listened else None)

    def prepare(self, group_inode: int, name: str, tid: int) -> int:
        """A token for device `name` of a client's group; `tid` is the client.

        This is the client's VFIO_GROUP_GET_DEVICE_FD, and passes the call point as that.  Raises OSError:
        ENOTTY for an inode that is no group's, otherwise as GROUP_GET_DEVICE_FD does.
        """
        group = self._find_group(group_inode)
        if group is None:
            raise OSError(errno.ENOTTY, "no VFIO group has this inode")
        calls = self._services.calls
        if calls.listener is None:
            return self._prepare(group, name, tid)
        subject = f"group {group.number}"
        call = Call(CallKind.IOCTL, subject, "VFIO_GROUP_GET_DEVICE_FD", {"name": name}, tid)
        made: list[int] = []  # the call's result is a descriptor's number, which nobody knows yet
        calls.run(call, lambda: made.append(self._prepare(group, name, tid)))
        return made[0]

    def _prepare(self, group: Group, name: str, tid: int) -> int:
        opened = group.opened
        if opened is None:
            raise OSError(errno.ENODEV, f"group {group.number} is not open")
        device = opened.get_device(name, rawio(group, tid))
        token = next(self._tokens)

        def take() -> DeviceFile:
            self._idle[token] = idle = DeviceFile(device, opened, held=False)
            return idle

        def released() -> None:
            self._idle.pop(token, None)

        self._show(f"{PREPARED}{token}", take, released)
        return token

    def claim(self, token: int) -> None:
        """Put the device into use.  Raises OSError: ENOENT when its client is gone, otherwise as an open."""
        idle = self._idle.pop(token, None)
        if idle is None:
            raise OSError(errno.ENOENT, f"no device waits by token {token}")
        idle.claim()


class _ControlFile(PlainFile):
    """An open of dev/vfio/.devices."""

    __slots__ = ("_handover",)

    def __init__(self, handover: Handover) -> None:
        self._handover = handover

    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None:
        if cmd != CLAIM_DEVICE:
            return super().ioctl(cmd, arg, tid, on_pump)
        self._handover.claim(arg)
        return 0

    def sized_ioctl(self, call: SizedIoctl) -> int:
        if call.cmd != PREPARE_DEVICE:
            return super().sized_ioctl(call)
        ask = ffi.new("struct vfsfuse_prepare_device *")
        if len(call.data) != ffi.sizeof(ask[0]):
            raise OSError(errno.EINVAL, "short request")
        ffi.memmove(ask, call.data, len(call.data))
        name = ffi.string(ask.name, len(ask.name)).decode("ascii", "replace")
        ask.token = self._handover.prepare(ask.group_inode, name, ask.tid)
        call.reply = bytes(ffi.buffer(ask))
        return 0
