# SPDX-License-Identifier: Apache-2.0
"""A device as VFIO has it: it belongs to an IOMMU group, can be held open, and goes when nobody holds it.

State: under its group's lock; called from the device lane, and by the lifecycle thread to take it away.
Source: Documentation/driver-api/vfio.rst.
"""

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from devmodel.device.pci import Device
from devmodel.irq.irqs import PciIrq

if TYPE_CHECKING:
    from devmodel.vfio.group import Group


class Assignable(ABC):
    """A device of an IOMMU group, as VFIO sees it: it can be held open, and retired only when it is not."""

    __slots__ = ("gone", "group", "leaving", "name", "open_count")
    vfio_minor: int | None
    """Its number as vfio<N>, None while it is none of VFIO's."""
    emulated_iommu: ClassVar[bool] = True
    """Whether it reaches memory by asking, as mediated devices do, and not by DMA of its own."""

    def __init__(self, name: str, group: "Group", joined: bool = True) -> None:
        """Joins ``group`` under ``name``, which is unique there, at once or (``joined`` false) later."""
        self.name = name
        self.group = group
        self.open_count = 0
        self.leaving = 0
        """How many wait for it to go: nobody can open it meanwhile."""
        self.gone = True
        if joined:
            self.join()

    def join(self) -> None:
        """Become a device that clients can open through the group."""
        with self.group.lock:
            self.gone = False
            self.group.devices += (self,)

    @property
    @abstractmethod
    def device(self) -> Device:
        """The device itself, made when first asked for; ``OSError(ENODEV)`` when there is none any more."""

    def answers_to(self, name: str) -> bool:
        """Whether GROUP_GET_DEVICE_FD means this device by ``name``; ``OSError`` when it must not have it.

        Called under the group's lock.
        """
        return name == self.name

    def check_direct(self) -> None:
        """Whether a client may open the device by its own character device, where it can give no token;
        ``OSError`` when it must not."""
        return

    def hold(self) -> bool:
        """Count a holder, which keeps the device from being removed; True for the first.

        Raises ``OSError(ENODEV)`` once the device is gone or is to go.
        """
        with self.group.lock:
            if self.gone or self.leaving:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            self.open_count += 1
            return self.open_count == 1

    def drop(self) -> bool:
        """The opposite of :meth:`hold`; True for the last."""
        with self.group.lock:
            self.open_count -= 1
            if not self.open_count:
                self.group.let_go()
            return not self.open_count

    @property
    def held(self) -> bool:
        """Whether a client has it or its group open. Under the group's lock."""
        return bool(self.open_count) or self.group.opened is not None

    def first_opened(self) -> None:
        """For kinds of device: a first client has it now."""
        return

    def retire(self) -> None:
        """Leave the group. ``OSError``: EBUSY while it or the group is open, ENODEV if gone.

        A client that holds it is asked to let go (the REQ interrupt), as vfio-pci does.
        """
        with self.group.lock:
            if self.gone:
                raise OSError(errno.ENODEV, f"{self.name} is gone")
            opened = self.open_count
            if not self.held:
                self.withdraw()
                return
        if opened:
            self.device.irq.trigger(PciIrq.REQ)
        raise OSError(errno.EBUSY, f"{self.name} is in use")

    def withdraw(self) -> None:
        """Leave the group whoever holds it: for undoing a creation that failed."""
        with self.group.lock:
            self.gone = True
            self.group.devices = tuple(each for each in self.group.devices if each is not self)
