# SPDX-License-Identifier: Apache-2.0
"""What all ioctls of an open device work on; the modules irqs, pcicalls, features and device add them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devmodel.device.pci import Device
from devmodel.irq.eventfd import Watcher
from devmodel.lifecycle.function import PciFunction
from devmodel.vfio.group import DeviceFile
from ioctl_shim.abi import Kind
from ioctl_shim.lane import IoctlCall, LaneFile
from vfsfuse.vfio.chain import InfoCap
from vfsfuse.vfio.files import VfioFops

RegionFacts = tuple[int, int, Sequence[InfoCap]]
"""Size in bytes, VFIO_REGION_INFO_FLAG_* and capabilities of a region."""


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers need of the lab: `find_file` names the file of ours behind a descriptor (None: not ours;
    only for the lane's worker), `watcher` waits for clients' eventfds."""

    find_file: Callable[[int], LaneFile | None]
    watcher: Watcher


class OpenDevice(VfioFops):
    """One open of a device; `mappable` says whether its memory regions can be mapped on this machine."""

    __slots__ = ("device", "low_power", "mappable", "opened", "regions", "released", "services")
    kind = Kind.DEVICE

    def __init__(
        self, opened: DeviceFile, services: Services, mappable: bool, released: Callable[[], None] | None
    ) -> None:
        self.opened, self.services = opened, services
        self.device: Device = opened.device
        self.mappable, self.released = mappable, released
        self.low_power = False
        self.regions: dict[int, RegionFacts] = {}
        """Of those that a client has asked for: it never changes."""

    @property
    def function(self) -> PciFunction | None:
        """The PCI function, which vfio-pci drives; None for a mediated device, which has its own driver."""
        assignable = self.opened.assignable
        return assignable if isinstance(assignable, PciFunction) else None

    @property
    def by_cdev(self) -> bool:
        """Whether it was opened through its own character device, not through its group."""
        return self.opened.group_file is None

    def control(self, cmd: int, arg: int, tid: int) -> int | None:
        self.device.check_present()
        return VfioFops.control(self, cmd, arg, tid)  # super() costs more

    def ioctl(self, call: IoctlCall) -> int:
        self.device.check_present()
        return super().ioctl(call)

    def release(self) -> None:
        self.opened.close()
        if self.released is not None:
            self.released()
