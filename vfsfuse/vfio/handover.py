# SPDX-License-Identifier: Apache-2.0
"""How the supervisor of `vfsfuse run` opens a device for its client, by the client's own group file.

Who holds an open file of the group may have the group's devices, and nobody else.  So the supervisor proves
that it holds one: it makes a private ioctl, PREPARE_DEVICE, on a copy of its client's descriptor.  The answer
is the name of an unlisted file in dev/vfio, which the thread that made the ioctl can open once.  The kernel
says which threads they are.  The owner and the mode of the device files do not matter, as on Linux.

An open of that file is in use from the start.  The supervisor closes its own descriptors before its client
goes on, so that nothing of it keeps a device or a group in use.

State: on the device lane; while somebody listens, on threads that a listener may hold up.  So it is under a
lock.
"""

from __future__ import annotations

import errno
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

from devmodel.iommu.api import MustWait
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable
from devmodel.vfio.groupfile import GroupFile
from devmodel.vfio.lingering import Renewing
from ioctl_shim._native import ffi
from ioctl_shim.abi import PREPARE_DEVICE
from ioctl_shim.client import ClientProcess
from ioctl_shim.lane import OpenRequest, SizedIoctl

PREPARED = ".device-"
"""Prefix of the names of the unlisted files. The token follows it."""

MAX_PREPARED = 256
"""How many files of one open group may wait to be opened.  Beyond that the oldest is withdrawn: a client
prepares as many as it likes and opens none."""

Take = Callable[[OpenRequest], DeviceFile]
Withdraw = Callable[[], None]
Offer = Callable[[str, Assignable, Take], Withdraw]
"""Makes an unlisted file of dev/vfio with a name, for a device.  An open of it gives what the Take returns,
and fails as the Take does.  Returns the function that removes the file if it was not opened."""


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """A client's GROUP_GET_DEVICE_FD, as PREPARE_DEVICE passes it on.

    `client` is the thread that the supervisor names, `supervisor` the one that the kernel names."""

    name: str
    client: int
    supervisor: int

    @classmethod
    def decode(cls, call: SizedIoctl) -> DeviceRequest | None:
        """What `call` asks for.  None for another ioctl."""
        if call.cmd != PREPARE_DEVICE:
            return None
        asked = ffi.from_buffer("struct vfsfuse_prepare_device *", call.data)
        name = ffi.string(asked.name, len(asked.name)).decode("ascii", "replace")
        return cls(name, asked.tid, call.tid)


def encode_token(token: int) -> bytes:
    """The reply to PREPARE_DEVICE."""
    return bytes(ffi.buffer(ffi.new("struct vfsfuse_prepare_device *", {"token": token})))


@dataclass(frozen=True, slots=True)
class _Prepared:
    request: DeviceRequest
    rawio: bool
    withdraw: Withdraw


class Handover:
    """The devices of one open group that are on their way to clients."""

    __slots__ = ("_closed", "_file", "_lock", "_offer", "_prepared")

    def __init__(self, file: GroupFile, offer: Offer) -> None:
        self._file, self._offer = file, offer
        self._lock = threading.Lock()
        self._prepared: dict[int, _Prepared] = {}
        self._closed = False

    def prepare(self, request: DeviceRequest, rawio: bool) -> int:
        """The token of a file that `request.supervisor` can open.  Raises OSError as GROUP_GET_DEVICE_FD
        does."""
        self._file.used_by(ClientProcess(request.client).ended)
        device = self._file.get_device(request.name, rawio)
        token = secrets.randbits(64)
        withdraw = self._offer(f"{PREPARED}{token}", device, lambda opening: self._take(token, opening))
        with self._lock:
            late = [withdraw] if self._closed else []
            if not self._closed:
                self._prepared[token] = _Prepared(request, rawio, withdraw)
            while len(self._prepared) > MAX_PREPARED:
                late.append(self._prepared.pop(next(iter(self._prepared))).withdraw)
        for each in late:
            each()
        return token

    def _take(self, token: int, opening: OpenRequest) -> DeviceFile:
        with self._lock:
            prepared = self._prepared.get(token)
        if prepared is None:
            raise OSError(errno.ENXIO, "opened already, or withdrawn")
        asked = prepared.request
        if opening.tid != asked.supervisor:
            raise OSError(errno.EACCES, f"thread {opening.tid} did not prepare this device")
        again = False
        try:
            return DeviceFile.named(self._file, asked.name, prepared.rawio, may_wait=not opening.on_pump)
        except (MustWait, Renewing):
            again = True  # this call is made once more
            raise
        finally:
            if not again:
                with self._lock:
                    self._prepared.pop(token, None)

    def close(self) -> None:
        """The group file was closed: withdraw what nobody has opened."""
        with self._lock:
            self._closed = True
            left = list(self._prepared.values())
            self._prepared.clear()
        for prepared in left:
            prepared.withdraw()
