# SPDX-License-Identifier: Apache-2.0
"""dev/vfio/devices/vfio<N>: a device by its own character device, unbound at first, then bound to an iommufd.

The meaning of each ioctl is in devmodel.vfio.cdev and devmodel.iommufd.device. Source: <linux/vfio.h>
(VFIO_DEVICE_BIND_IOMMUFD to VFIO_DEVICE_DETACH_IOMMUFD_PT); the order of checks is the kernel's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from uuid import UUID

from devmodel.iommufd.context import Context
from devmodel.vfio.cdev import CdevFile
from devmodel.vfio.group import Assignable
from ioctl_shim._native import lib
from ioctl_shim.abi import Kind, row_of
from ioctl_shim.client import Caller, ClientProcess
from ioctl_shim.lane import Opened, OpenRequest, Shut, SizedIoctl
from vfsfuse.vfio.contextfile import ContextFops
from vfsfuse.vfio.described import tell_device
from vfsfuse.vfio.device import DeviceFops, check_bind, open_device
from vfsfuse.vfio.fops import Request, Services, VfioFops, answers, rawio
from vfsfuse.vfio.port import Port

_BIND_CMD = row_of(Kind.DEVICE, "VFIO_DEVICE_BIND_IOMMUFD").cmd
_OUT_DEVID, _PT_ID = 12, 8
"""Offsets of what BIND and ATTACH write."""


class CdevFops(DeviceFops):
    """One open of dev/vfio/devices/vfio<N>."""

    __slots__ = ("_cdev", "_shut")

    def __init__(
        self,
        opened: CdevFile,
        services: Services,
        mappable: frozenset[int],
        released: Callable[[], None],
    ) -> None:
        super().__init__(opened, services, mappable, released)
        self._cdev = opened
        self._shut = Shut(not opened.granted)

    @property
    def shut(self) -> Shut:
        return self._shut

    def ioctl(self, cmd: int, arg: int, tid: int, on_pump: int) -> int | None:
        if not self._cdev.granted and cmd != _BIND_CMD:
            raise OSError(errno.EINVAL, "the device is not bound to an iommufd")
        self.device.check_present()
        return VfioFops.ioctl(self, cmd, arg, tid, on_pump)  # as DeviceFops: a call less

    def sized_ioctl(self, call: SizedIoctl) -> int:
        if not self._cdev.granted:
            raise OSError(errno.EINVAL, "the device is not bound to an iommufd")
        return super().sized_ioctl(call)

    @answers("VFIO_DEVICE_BIND_IOMMUFD")
    def bind(self, request: Request) -> int:
        asked, cdev = check_bind(request), self._cdev
        wants_token = asked.flags & lib.VFIO_DEVICE_BIND_FLAG_TOKEN
        token = partial(_token, request, asked.token_uuid_ptr) if wants_token else None
        find = partial(self._context, request.caller, asked.iommufd)

        def tell(number: int) -> None:
            request.caller.write(request.arg + _OUT_DEVID, number.to_bytes(4, "little"))

        cdev.bind(token, find, ClientProcess(request.tid).ended, tell)
        if self.services.calls.recorded:
            tell_device(self.services.calls, cdev, self.can_map)
        self._shut.open()
        return 0

    @answers("VFIO_DEVICE_ATTACH_IOMMUFD_PT")
    def attach(self, request: Request) -> int:
        asked = request.argument.value
        self._check_pasid(request)
        number = self._cdev.attach(asked.pt_id)
        try:
            request.caller.write(request.arg + _PT_ID, number.to_bytes(4, "little"))
        except OSError:
            with suppress(OSError):
                self._cdev.detach()
            raise
        return 0

    @answers("VFIO_DEVICE_DETACH_IOMMUFD_PT")
    def detach(self, request: Request) -> int:
        self._check_pasid(request)
        self._cdev.detach()
        return 0

    def _check_pasid(self, request: Request) -> None:
        """No device has PASIDs. Raises OSError: EOPNOTSUPP for one, EINVAL for an unknown flag."""
        flags = request.argument.value.flags
        if flags & ~lib.VFIO_DEVICE_ATTACH_PASID:
            raise OSError(errno.EINVAL, f"{request.row.name} flags {flags:#x}")
        if flags:
            raise OSError(errno.EOPNOTSUPP, f"{self.device.name} has no PASIDs")

    def _context(self, caller: Caller, number: int) -> Context:
        found = self.services.find_file(caller, number)
        if not isinstance(found, ContextFops):
            raise OSError(errno.EBADFD, f"descriptor {number} is no iommufd")
        return found.context


def cdev_opener(
    device: Assignable, port: Callable[[], Port], services: Services
) -> Callable[[OpenRequest], Opened]:
    """The function that answers opens of a device's own character device. It raises OSError as open(2), and
    MustWait as `open_device`."""

    def opener(request: OpenRequest) -> Opened:
        client = ClientProcess(request.tid, request.leads)

        def make() -> CdevFile:
            return CdevFile(device, client.ended, rawio(device.group, request.tid))

        return open_device(device, make, CdevFops, port, services, may_wait=not request.on_pump)

    return opener


def _token(request: Request, address: int) -> UUID:
    """The VF token. Raises OSError(EFAULT)."""
    return UUID(bytes=request.caller.read(address, 16))
