# SPDX-License-Identifier: Apache-2.0
"""dev/iommu: an iommufd context for each open, and the ioctls that every type of object has.

Source: <linux/iommufd.h>, Documentation/userspace-api/iommufd.rst.  Threads and errors: vfsfuse.vfio.fops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from devmodel.iommu.accounts import LockedMemory
from devmodel.iommu.api import MustWait
from devmodel.iommufd.context import Context
from devmodel.vfio.module import VfioModule
from ioctl_shim.abi import ROWS, Kind
from ioctl_shim.client import Caller
from ioctl_shim.lane import Opened, Opener, OpenRequest
from ioctl_shim.processes import Processes
from vfsfuse.vfio.compat import CompatFops
from vfsfuse.vfio.container import ContainerFops
from vfsfuse.vfio.fops import Request, Services, answers
from vfsfuse.vfio.hwpt import HwptFops
from vfsfuse.vfio.ioas import IoasFops
from vfsfuse.vfio.options import OptionFops
from vfsfuse.vfio.sharing import SharingFops

_NUMBERS = {row.cmd & 0xFF for row in ROWS if row.kind is Kind.IOMMUFD and row.checked}
"""The low bytes of the request numbers of iommufd."""


class IommufdFops(CompatFops, IoasFops, SharingFops, OptionFops, HwptFops):
    """One open of dev/iommu.  Each base class answers the ioctls of one subject."""

    __slots__ = ()

    @answers("IOMMU_DESTROY")
    def destroy(self, request: Request) -> int | None:
        try:
            self.context.objects.destroy(request.argument.value.id, may_wait=not request.on_pump)
        except MustWait:  # a call on another thread uses the object
            return None
        return 0

    def unknown(self, cmd: int, arg: int | None, tid: int) -> int:
        if cmd & 0xFF in _NUMBERS and arg is not None:  # the size comes before the rest of the number
            Caller(tid).read(arg, 4)
        return super().unknown(cmd, arg, tid)


def openers(
    module: VfioModule, services: Services, st_dev: Callable[[], int], iommufd_container: bool
) -> tuple[Opener, Opener]:
    """The functions that open dev/vfio/vfio and dev/iommu of a lab.  Both account for locked memory together.

    `module` has the parameters of the lab's modules, `st_dev` returns that of the mount's files.  With
    `iommufd_container` dev/vfio/vfio opens an iommufd, which charges processes for memory as type1 does."""
    locked = LockedMemory()

    def on_a_thread(end: Callable[[], None]) -> None:
        """Objects end on a thread that may wait, because they may have very many mappings."""
        try:
            services.threads.submit(end, 0)
        except OSError:  # there can be no more threads
            end()

    def open_iommufd(by_user: bool, request: OpenRequest) -> Opened:
        context = Context(locked, by_user, on_a_thread)
        return Opened(IommufdFops(context, Processes(st_dev, bars=False), services))

    containers = ContainerFops.opener(module, locked, st_dev)
    return (
        partial(open_iommufd, False) if iommufd_container else containers,
        partial(open_iommufd, True),
    )
