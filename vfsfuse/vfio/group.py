# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/<N>: the group file.  The meaning of each ioctl is in devmodel.vfio.group."""

from __future__ import annotations

import errno
import logging

from devmodel.iommu.api import MustWait
from devmodel.vfio.compat import CompatContainer
from devmodel.vfio.group import Group, GroupContainer
from devmodel.vfio.groupfile import open_group
from ioctl_shim._native import lib
from ioctl_shim.abi import Kind
from ioctl_shim.client import ClientProcess
from ioctl_shim.lane import LaneFile, Opened, Opener, OpenRequest, SizedIoctl
from vfsfuse.vfio.container import ContainerFops
from vfsfuse.vfio.contextfile import ContextFops
from vfsfuse.vfio.fops import Request, Services, VfioFops, answers, rawio
from vfsfuse.vfio.handover import DeviceRequest, Handover, Offer, encode_token

log = logging.getLogger(__name__)


class GroupFops(VfioFops):
    """The open of dev/vfio/<N>."""

    __slots__ = ("_handover", "file", "services")
    kind = Kind.GROUP
    kvm_tracks = True

    def __init__(self, group: Group, request: OpenRequest, services: Services, offer: Offer) -> None:
        client = ClientProcess(request.tid, request.leads)
        self.file = open_group(group, client.ended, rawio(group, request.tid), may_wait=not request.on_pump)
        self.services = services
        self._handover = Handover(self.file, offer)

    @classmethod
    def opener(cls, group: Group, services: Services, offer: Offer) -> Opener:
        """The function that answers opens of the group.  `offer` makes the files of its devices.  It raises
        OSError as open(2), and MustWait as `open_group`."""

        return lambda request: Opened(cls(group, request, services, offer))

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
        log.warning("GROUP_GET_DEVICE_FD from thread %d: run the client under `vfsfuse run`", request.tid)
        raise OSError(errno.EOPNOTSUPP, "a FUSE server cannot give its client a descriptor")

    def sized_ioctl(self, call: SizedIoctl) -> int:
        """PREPARE_DEVICE: the client's GROUP_GET_DEVICE_FD, by the supervisor of its `vfsfuse run`.

        A group without IOMMU takes CAP_SYS_RAWIO of both: of the client, and of the caller, without which
        anybody could name a thread that has it.
        """
        request = DeviceRequest.decode(call)
        if request is None:
            return super().sized_ioctl(call)
        group = self.file.group
        allowed = rawio(group, request.supervisor) and rawio(group, request.client)
        call.reply = encode_token(self._handover.prepare(request, allowed))
        return 0

    def release(self) -> None:
        self._handover.close()
        self.file.close()


def _joinable(file: LaneFile | None) -> GroupContainer | None:
    """The open file as what a group can join.  None if it is no such file."""
    if isinstance(file, ContextFops):
        return CompatContainer(file.compat)
    return file.container if isinstance(file, ContainerFops) else None
