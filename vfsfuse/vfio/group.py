# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/<N>: the group file, and the ask by which `vfsfuse run` opens a device of it for its client."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from devmodel.vfio import Assignable, Group
from ioctl_shim._native import ffi, lib
from ioctl_shim.abi import OPEN_DEVICE, Kind
from ioctl_shim.lane import IoctlCall, LaneFile, Opened, OpenRequest
from vfsfuse.devicefd import read_name
from vfsfuse.vfio.container import ContainerFile
from vfsfuse.vfio.files import Request, VfioFile, answers
from vfsfuse.vfio.privilege import CAP_SYS_RAWIO, has_capability

log = logging.getLogger(__name__)

FileFinder = Callable[[int], LaneFile | None]
DeviceOffer = Callable[["GroupFile", Assignable], int]


class GroupFile(VfioFile):
    """The open of dev/vfio/<N>.  `find_file` names the file of ours behind a descriptor (None: not ours);
    `offer` makes a hidden file for one open of a device and returns the token in its name."""

    __slots__ = ("file", "find_file", "offer")
    kind = Kind.GROUP

    def __init__(self, group: Group, tid: int, find_file: FileFinder, offer: DeviceOffer) -> None:
        self.file = group.open(self, rawio(group, tid))
        self.find_file, self.offer = find_file, offer

    @classmethod
    def opener(
        cls, group: Group, find_file: FileFinder, offer: DeviceOffer
    ) -> Callable[[OpenRequest], Opened]:
        return lambda request: Opened(cls(group, request.tid, find_file, offer))

    @answers("VFIO_GROUP_GET_STATUS")
    def get_status(self, request: Request) -> int:
        status = self.file.status()
        request.argument.value.flags = (lib.VFIO_GROUP_FLAGS_VIABLE if status.viable else 0) | (
            lib.VFIO_GROUP_FLAGS_CONTAINER_SET if status.container_set else 0
        )
        request.argument.reply()
        return 0

    @answers("VFIO_GROUP_SET_CONTAINER")
    def set_container(self, request: Request) -> int:
        fd = int.from_bytes(request.client.read(request.arg, 4), "little", signed=True)
        with request.client.borrowed(fd) as copy:
            found = self.find_file(copy)
        container = found.container if isinstance(found, ContainerFile) else None
        self.file.set_container(container, rawio(self.file.group, request.client.tid))
        return 0

    @answers("VFIO_GROUP_UNSET_CONTAINER")
    def unset_container(self, request: Request) -> int:
        self.file.unset_container()
        return 0

    @answers("VFIO_GROUP_GET_DEVICE_FD")
    def get_device_fd(self, request: Request) -> int:
        name = read_name(request.client, request.arg).decode("ascii", "replace")
        self.file.get_device(name, rawio(self.file.group, request.client.tid))
        log.warning(
            "GROUP_GET_DEVICE_FD from thread %d: run the client under `vfsfuse run`", request.client.tid
        )
        raise OSError(errno.EOPNOTSUPP, "a FUSE server cannot give its client a descriptor")

    def ioctl(self, call: IoctlCall) -> int:
        return self._open_device(call) if call.cmd == OPEN_DEVICE else super().ioctl(call)

    def _open_device(self, call: IoctlCall) -> int:
        size = ffi.sizeof("struct vfsfuse_open_device")
        if len(call.data) != size:
            raise OSError(errno.EINVAL, "short request")
        ask = ffi.new("struct vfsfuse_open_device *")
        ffi.memmove(ask, call.data, size)
        name = ffi.string(ask.name, 256).decode("ascii", "replace")
        ask.token = self.offer(self, self.file.get_device(name, rawio(self.file.group, call.tid)))
        call.reply = bytes(ffi.buffer(ask))
        return 0

    def release(self) -> None:
        self.file.close()


def rawio(group: Group, tid: int) -> bool:
    """Whether thread `tid` may use a group without IOMMU; asked of the kernel only where it matters."""
    return group.noiommu and has_capability(tid, CAP_SYS_RAWIO)
