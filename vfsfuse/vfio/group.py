# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/<N>: the group file.  The meaning of each ioctl is in devmodel.vfio.group."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from devmodel.iommu.api import MustWait
from devmodel.vfio.compat import CompatContainer
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.group import Assignable, Group, GroupContainer
from devmodel.vfio.groupfile import open_group
from ioctl_shim._native import lib
from ioctl_shim.abi import Kind
from ioctl_shim.client import ClientProcess
from ioctl_shim.lane import LaneFile, Opened, Opener, OpenRequest
from vfsfuse.vfio.container import ContainerFops
from vfsfuse.vfio.contextfile import ContextFops
from vfsfuse.vfio.fops import Request, Services, answers, rawio
from vfsfuse.vfio.handover import Given, GivingFops, HandOver, gives, refused

OpenDevice = Callable[[Assignable, Callable[[], DeviceFile], OpenRequest, Callable[[], None]], Opened]
"""Opens a device as a file that `DeviceFile` gives.  The rest is as for vfsfuse.vfio.fops.Open."""


class GroupFops(GivingFops):
    """The open of dev/vfio/<N>."""

    __slots__ = ("_open_device", "file", "services")
    kind = Kind.GROUP
    kvm_tracks = True

    def __init__(
        self, group: Group, request: OpenRequest, services: Services, open_device: OpenDevice
    ) -> None:
        client = ClientProcess(request.tid, request.leads)
        self.file = open_group(group, client.ended, rawio(group, request.tid), may_wait=not request.on_pump)
        self.services, self._open_device = services, open_device
        super().__init__(services.offer)

    @classmethod
    def opener(cls, group: Group, services: Services, open_device: OpenDevice) -> Opener:
        """The function that answers opens of the group.  `open_device` opens its devices.  It raises OSError
        as open(2), and MustWait as `open_group`."""

        return lambda request: Opened(cls(group, request, services, open_device))

    @property
    def subject(self) -> str:
        return f"group {self.file.group.number}"

    @answers("VFIO_GROUP_GET_STATUS")
    def get_status(self, request: Request) -> int:
        answer = request.argument.value  # a bad pointer or size comes before the state of the group
        status = self.file.status()
        answer.flags = (lib.VFIO_GROUP_FLAGS_VIABLE if status.viable else 0) | (
            lib.VFIO_GROUP_FLAGS_CONTAINER_SET if status.container_set else 0
        )
        request.argument.reply()
        return 0

    @answers("VFIO_GROUP_SET_CONTAINER")
    def set_container(self, request: Request) -> int:
        fd = int.from_bytes(request.caller.read(request.arg, 4), "little", signed=True)
        container = _joinable(self.services.find_file(request.caller, fd))
        self.file.set_container(container, rawio(self.file.group, request.tid))
        return 0

    @answers("VFIO_GROUP_UNSET_CONTAINER")
    def unset_container(self, request: Request) -> int | None:
        try:
            self.file.unset_container(may_wait=not request.on_pump)
        except MustWait:
            return None
        return 0

    @answers("VFIO_GROUP_GET_DEVICE_FD")
    def get_device_fd(self, request: Request) -> int:
        name = request.caller.read_string(request.arg).decode("ascii", "replace")
        self.file.get_device(name, rawio(self.file.group, request.tid))
        raise refused(request)

    @gives("VFIO_GROUP_GET_DEVICE_FD")
    def give_device(self, asked: HandOver) -> Given:
        """A group without IOMMU takes CAP_SYS_RAWIO of both: of the client, and of the supervisor, without
        which anybody could name a thread that has it."""
        group, name = self.file.group, asked.text
        allowed = rawio(group, asked.supervisor) and rawio(group, asked.client)
        self.file.used_by(ClientProcess(asked.client).ended)
        device = self.file.get_device(name, allowed)

        def opening(request: OpenRequest, closed: Callable[[], None]) -> Opened:
            make = partial(DeviceFile.named, self.file, name, allowed, not request.on_pump)
            return self._open_device(device, make, request, closed)

        return Given(open=opening, device=device.name)

    def release(self) -> None:
        super().release()
        self.file.close()


def _joinable(file: LaneFile | None) -> GroupContainer | None:
    """The open file as what a group can join.  None if it is no such file."""
    if isinstance(file, ContextFops):
        return CompatContainer(file.compat)
    return file.container if isinstance(file, ContainerFops) else None
