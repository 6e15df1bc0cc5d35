# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/<N>: the group file.  The meaning of each ioctl is in devmodel.vfio.group."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from devmodel.vfio.group import Group
from ioctl_shim._native import lib
from ioctl_shim.abi import Kind
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.vfio.container import ContainerFops
from vfsfuse.vfio.fops import Request, Services, VfioFops, answers, rawio

log = logging.getLogger(__name__)


class GroupFops(VfioFops):
    """The open of dev/vfio/<N>."""

    __slots__ = ("file", "services")
    kind = Kind.GROUP

    def __init__(self, group: Group, tid: int, services: Services) -> None:
        self.file = group.open(self, rawio(group, tid))
        self.services = services

    @classmethod
    def opener(cls, group: Group, services: Services) -> Callable[[OpenRequest], Opened]:
        return lambda request: Opened(cls(group, request.tid, services))

    @property
    def subject(self) -> str:
        return f"group {self.file.group.number}"

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
        fd = int.from_bytes(request.caller.read(request.arg, 4), "little", signed=True)
        found = self.services.find_file(request.caller, fd)
        container = found.container if isinstance(found, ContainerFops) else None
        self.file.set_container(container, rawio(self.file.group, request.tid))
        return 0

    @answers("VFIO_GROUP_UNSET_CONTAINER")
    def unset_container(self, request: Request) -> int:
        self.file.unset_container()
        return 0

    @answers("VFIO_GROUP_GET_DEVICE_FD")
    def get_device_fd(self, request: Request) -> int:
        name = request.caller.read_string(request.arg).decode("ascii", "replace")
        self.file.get_device(name, rawio(self.file.group, request.tid))
        log.warning("GROUP_GET_DEVICE_FD from thread %d: run the client under `vfsfuse run`", request.tid)
        raise OSError(errno.EOPNOTSUPP, "a FUSE server cannot give its client a descriptor")

    def release(self) -> None:
        self.file.close()
