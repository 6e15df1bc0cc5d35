# SPDX-License-Identifier: Apache-2.0
"""Abilities that only vfio-pci has: tokens, resets of a function and of its bus, ioeventfds.

A mediated device has another driver, which has none of these (ENOTTY).
Threads: the device lane, and threads that may wait.  State: a function's is under its group's lock, its
device's under the device's.
Source: <linux/vfio.h>, vfio-pci's behaviour, Documentation/PCI/pci-iov-howto.rst.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar, NamedTuple
from uuid import UUID

from devmodel.device.pci import MsixTable, PciDevice, PciRegion
from devmodel.device.traits import Traits
from devmodel.irq.eventfd import Eventfd, Watcher
from devmodel.irq.ioeventfd import IoWrite
from devmodel.pci.address import PciAddress
from devmodel.pci.regs import ExtCapId
from devmodel.region.backing import REGION_SHIFT
from devmodel.vfio.devicefile import DeviceFile
from devmodel.vfio.flags import IOEVENTFD_SIZES
from devmodel.vfio.group import Assignable, Group
from devmodel.vfio.pciaccess import FunctionAccess
from devmodel.vfio.vftoken import VfToken, parse_pci_name

OWNED, NOT_OWNED = 0, 2**32 - 1
"""VFIO_PCI_DEVID_OWNED and VFIO_PCI_DEVID_NOT_OWNED, as a __u32."""
MAX_RESETS = 7
"""How many reset methods can be chosen, the same one again included: as many as the kernel knows."""


class VfioPciFunction(Assignable):
    """A PCI function. It is one of the devices of its group while vfio-pci drives it.

    Its device, of class ``model``, is made on first use; ``traits`` say what is known before.
    ``bus`` has all functions of its bus, itself included.
    """

    __slots__ = ("_access", "_chosen_resets", "_reset_worked", "address", "bus", "model", "traits")
    emulated_iommu = False
    takes_tokens = True
    is_virtual: ClassVar[bool] = False
    """Whether it is a virtual function of another one."""

    def __init__(
        self,
        address: PciAddress,
        group: Group,
        model: type[PciDevice],
        traits: Traits,
        bus: list[VfioPciFunction],
    ) -> None:
        """The function adds itself to ``bus``."""
        self.address, self.model, self.traits = address, model, traits
        self._chosen_resets: tuple[str, ...] | None = None
        self._reset_worked = False
        self._access: FunctionAccess | None = None
        self.bus = bus
        self.bus.append(self)
        super().__init__(str(address), group, joined=False)

    @property
    @abstractmethod
    def device(self) -> PciDevice:
        """The function's configuration space and BARs, made at the first call. ``OSError(ENODEV)`` when it is
        gone."""

    @property
    @abstractmethod
    def made(self) -> PciDevice | None:
        """The same, None if nothing has used it yet. Any thread."""

    @property
    def access(self) -> FunctionAccess:
        found = self._access
        if found is None:
            device = self.device
            with device.lock:
                found = self._access or FunctionAccess(device, self._function_level_reset)
                self._access = found
        return found

    @property
    def own_vf_token(self) -> VfToken | None:
        """The token that a physical function with SR-IOV shares with the users of its virtual functions, None
        for others."""
        return None

    @property
    def ats(self) -> bool:
        unit = self.unit
        return unit is not None and unit.page_requests and self.device.config.has_extended(ExtCapId.ATS)

    def check_page_requests(self) -> None:
        if not self.ats or not self.device.config.has_extended(ExtCapId.PRI):
            super().check_page_requests()

    @abstractmethod
    def check_token(self, token: UUID | None) -> None:
        """As :meth:`BindableDevice.check_token`."""

    def answers_to(self, name: str) -> bool:
        asked = parse_pci_name(self.name, name)
        if asked is None:
            return False
        self.check_token(asked.token)
        return True

    @property
    def below_port(self) -> bool:
        """Whether the function is below a root port, which can reset its whole bus. A function on bus 0 is
        not."""
        return self.address.bus != 0

    @property
    def right_below(self) -> Sequence[VfioPciFunction]:
        """The functions on the bus right below a bridge; none for other functions. Any thread."""
        return ()

    def reset_together(self) -> list[VfioPciFunction]:
        """The functions that a hot reset resets: those of the bus, and all below the bridges there. Any
        thread."""
        found: list[VfioPciFunction] = []
        pending = list(reversed(tuple(self.bus)))  # the trio thread adds and removes functions
        while pending:
            function = pending.pop()
            found.append(function)
            pending += reversed(function.right_below)
        return found

    @property
    def supported_resets(self) -> tuple[str, ...]:
        """The ways in which the function can be reset, by their names in sysfs ``reset_method``, the best
        first: ``flr``; ``bus`` for the only physical function below a root port. Any thread."""
        if not self.model.resettable:
            return ()
        alone = not self.is_virtual and all(each is self or each.is_virtual for each in tuple(self.bus))
        return ("flr",) * self.traits.flr + ("bus",) * (alone and self.below_port)

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """Those that are used, in their order: the chosen ones, or else all that are supported. None of them
        means that the function has no reset. Any thread."""
        return self.supported_resets if self._chosen_resets is None else self._chosen_resets

    def choose_resets(self, names: Sequence[str] | None) -> None:
        """Use these methods in this order, none of them for an empty sequence, or with None all that are
        supported. Lifecycle thread.

        Raises ``OSError(EINVAL)`` for a name that is unknown or not supported, and for more than
        :data:`MAX_RESETS`.
        """
        if names is not None and (set(names) - set(self.supported_resets) or len(names) > MAX_RESETS):
            raise OSError(errno.EINVAL, f"{self.name} cannot be reset by {' '.join(names)}")
        self._chosen_resets = None if names is None else tuple(names)

    @property
    def resettable(self) -> bool:
        """Whether the function could be reset when its first client opened it, which vfio-pci goes by until
        the last one closes it. Any thread."""
        return self._reset_worked

    def first_opened(self) -> None:
        """Give the function to its new user as vfio-pci does: in D0, reset if it has a reset, decoded, and no
        bus master."""
        self._reset_worked = False
        with suppress(OSError):
            self.reset()
            self._reset_worked = True
        device = self.device
        with device.lock:
            device.power_up()
        device.enable_for_host()
        device.clear_master()
        self.access.start(own_bars=not self.is_virtual)

    def last_closed(self) -> None:
        """Reset the function, and give its registers back the values that they had before the first open."""
        try:
            with suppress(OSError):
                self.reset()
        finally:
            self.access.stop()

    def hot_reset(self, owned: Callable[[VfioPciFunction], bool]) -> None:
        """Reset the bus, as the port above it does, and all that is below. Raises ``OSError(EINVAL)`` unless
        vfio-pci drives all those functions, so that there is no bridge, and each is ``owned``."""
        functions = self.reset_together()
        for function in functions:
            if function.gone or not owned(function):
                raise OSError(errno.EINVAL, f"{function.name} is on the bus, and not the client's")
        for function in functions:
            function.reset_kept()

    def check_bus_reset(self) -> None:
        """Raise ``OSError(ENODEV)`` for a function whose bus nothing can reset: there is no port above it."""
        if not self.below_port:
            raise OSError(errno.ENODEV, f"{self.name} is on a root bus, which cannot be reset")

    def reset(self) -> None:
        """Reset the function, as pci_reset_function() does: its configuration space is saved and restored.

        Raises ``OSError``: ENOTTY without a method that works now (a bus with virtual functions on it cannot
        be reset for one function), ENODEV once the function is gone. Any thread.
        """
        if not self._has_working_reset:
            raise OSError(errno.ENOTTY, f"{self.name} has no reset")
        self.reset_kept()

    def reset_kept(self) -> None:
        """Reset the function, whether it has a reset of its own or not. Afterwards it is in D0, and the rest
        of its configuration space is as before. ``OSError(ENODEV)`` once the function is gone."""
        device = self.device
        with device.lock:
            device.check_present()
            self._reset_now()

    def reset_whole(self) -> None:
        """Reset the function as its bus does: all of its configuration space is as firmware left it.
        ``OSError(ENODEV)`` once the function is gone."""
        device = self.device
        with device.lock:
            device.check_present()
            device.power_up()
            device.reset_now()

    @property
    def _has_working_reset(self) -> bool:
        """Whether one of its methods works now: a bus with virtual functions on it is not reset for one."""
        methods = self.reset_methods
        return "flr" in methods or ("bus" in methods and len(self.bus) == 1)

    def _function_level_reset(self) -> None:
        if self._has_working_reset:
            self._reset_now()

    def _reset_now(self) -> None:
        device = self.device
        device.power_up()
        device.reset_now(kept=device.config)


class Dependent(NamedTuple):
    """A function that a hot reset also resets: its address, and its owner.

    The owner is the number of its group, or the id of the function in the client's iommufd context,
    :data:`OWNED` or :data:`NOT_OWNED`."""

    address: PciAddress
    owner: int


class HotResetInfo(NamedTuple):
    """The answer of GET_PCI_HOT_RESET_INFO.

    ``by_device`` is whether the answer gives ownership by device. That is so for a device that was opened
    without its group; then ``all_owned`` is whether the client owns all of them.
    """

    by_device: bool
    all_owned: bool
    functions: Sequence[Dependent]


def reset(opened: DeviceFile) -> None:
    """DEVICE_RESET.  Raises ``OSError``: EINVAL for a device without a reset, otherwise as
    :meth:`VfioPciFunction.reset`."""
    found = opened.assignable
    if not found.resettable:
        raise OSError(errno.EINVAL, f"{found.name} cannot be reset")
    if isinstance(found, VfioPciFunction):
        found.reset()
    else:
        opened.device.reset()


def driven(opened: DeviceFile) -> VfioPciFunction:
    """The function that vfio-pci drives.  Raises ``OSError(ENOTTY)`` for a mediated device."""
    if not isinstance(opened.assignable, VfioPciFunction):
        raise OSError(errno.ENOTTY, f"{opened.device.name} is not driven by vfio-pci")
    return opened.assignable


def hot_reset_info(opened: DeviceFile) -> HotResetInfo:
    """The functions that a hot reset of the device resets.  Raises ``OSError``: ENOTTY for a mediated device,
    ENODEV for a function on a root bus, EPERM when one of them has no group because it has no IOMMU and
    vfio-pci does not drive it."""
    function = driven(opened)
    function.check_bus_reset()
    found = function.reset_together()
    if not opened.by_cdev:
        if any(each.group.noiommu and each.gone for each in found):
            raise OSError(errno.EPERM, "a function of the bus has no group")
        return HotResetInfo(False, False, [Dependent(each.address, each.group.number) for each in found])
    functions = [Dependent(each.address, _owner(opened, each)) for each in found]
    return HotResetInfo(True, all(each.owner != NOT_OWNED for each in functions), functions)


def _owner(opened: DeviceFile, function: VfioPciFunction) -> int:
    """Whose a function is, as a client sees it that has opened another one, or this, without its group."""
    context = opened.context
    if context is None:
        return OWNED if function is opened.assignable else NOT_OWNED
    with function.group.lock:
        if function.gone:
            return NOT_OWNED
        bound = function.bound_device
        if bound is not None and bound.context is context:
            return bound.id
        return OWNED if function.group.owner is context else NOT_OWNED


def hot_reset(opened: DeviceFile, flags: int, count: int, groups: Callable[[int], Sequence[Group]]) -> None:
    """PCI_HOT_RESET with ``count`` groups, which ``groups`` finds by the client's descriptors.

    Raises ``OSError``: ENOTTY for a mediated device; EINVAL for flags; EINVAL for a device that was opened
    through its group without groups, and for any other with some; ENODEV for a function on a root bus; EINVAL
    for more groups than functions, and as :meth:`VfioPciFunction.hot_reset`; EBADF and EINVAL as ``groups``.
    """
    function = driven(opened)
    if flags:
        raise OSError(errno.EINVAL, f"PCI_HOT_RESET flags {flags:#x}")
    if bool(count) is opened.by_cdev:
        raise OSError(errno.EINVAL, "groups of a device opened without one, or none of one opened by them")
    function.check_bus_reset()
    most = len(function.reset_together())
    if count > most:
        raise OSError(errno.EINVAL, f"{count} groups for {most} devices")
    if opened.by_cdev:
        function.hot_reset(lambda each: _owner(opened, each) != NOT_OWNED)
    else:
        named = groups(count)
        function.hot_reset(lambda each: each.group in named)


class IoEventfdRequest(NamedTuple):
    """One DEVICE_IOEVENTFD: write ``size`` bytes of ``data`` at file offset ``offset`` when the eventfd of
    descriptor ``fd`` is signalled. An ``fd`` of -1 removes the ioeventfd."""

    size: int
    offset: int
    data: int
    fd: int


def ioeventfd(
    opened: DeviceFile, request: IoEventfdRequest, borrow: Callable[[int], Eventfd], watcher: Watcher
) -> None:
    """Carry the request out.

    Raises ``OSError``: ENOTTY for a mediated device, EINVAL for an invalid size, descriptor or place,
    otherwise as :class:`devmodel.irq.ioeventfd.IoEventfds`.
    """
    driven(opened)
    if request.size not in IOEVENTFD_SIZES or request.fd < -1:
        raise OSError(errno.EINVAL, f"ioeventfd of {request.size} bytes, descriptor {request.fd}")
    region, offset = request.offset >> REGION_SHIFT, request.offset & ((1 << REGION_SHIFT) - 1)
    _check_place(opened, region, offset, request.size)
    what = IoWrite(region, offset, request.size, request.data)
    if request.fd < 0:
        opened.device.ioeventfds.remove(what)
    else:
        opened.device.ioeventfds.add(what, lambda: borrow(request.fd), watcher)


def _check_place(opened: DeviceFile, region: int, offset: int, size: int) -> None:
    """Raise ``OSError(EINVAL)`` unless the place is in a BAR and outside the MSI-X table."""
    device = opened.device
    bar = device.regions[region] if region <= PciRegion.BAR0 + 5 else None
    if bar is None or offset + size > bar.size:
        raise OSError(errno.EINVAL, f"no BAR at {offset:#x} of region {region}")
    table = device.msix_table if isinstance(device, PciDevice) else None
    if table is not None and region == table.bar and _overlaps(table, offset, size):
        raise OSError(errno.EINVAL, f"the MSI-X table is at {offset:#x}")


def _overlaps(table: MsixTable, offset: int, size: int) -> bool:
    return offset < table.offset + table.size and table.offset < offset + size
