# SPDX-License-Identifier: Apache-2.0
"""SR-IOV in sysfs: the attributes that a physical function has for it, and the directory of a virtual one.

Names, modes, formats and errors: Documentation/ABI/testing/sysfs-bus-pci and, for how they are used,
Documentation/PCI/pci-iov-howto.rst.
"""

from __future__ import annotations

from devmodel.device.pci import PciRegion
from devmodel.lifecycle.binding import virtual_functions_held
from devmodel.lifecycle.functionmodels import as_hardware, lacks
from devmodel.lifecycle.physical import VirtualFunction
from devmodel.lifecycle.removal import taking_away
from devmodel.lifecycle.sriov import layout_of
from devmodel.pci.regs import CFG_SPACE_EXP_SIZE
from ioctl_shim.lane import Opened, OpenRequest
from vfsfuse.kernfs.kobject import Entry
from vfsfuse.kernfs.members import attribute, binary, link, store_only, waiting
from vfsfuse.sysfs.endpoint import EndpointAttributes
from vfsfuse.sysfs.function import PciFunctionDir
from vfsfuse.sysfs.kstrtox import parse_bool, parse_number
from vfsfuse.sysfs.lab import View
from vfsfuse.sysfs.parent import ParentFunctionDir, PhysicalFunctionDir
from vfsfuse.vfio.port import OWNER_ONLY_ABOVE, RegionFile

MAX_INT = 2**31 - 1
MAX_COUNT = 0xFFFF
"""The kernel parses the number of virtual functions as one of 16 bits: a larger one is EINVAL."""


class SriovFunctionDir(PhysicalFunctionDir):
    """<function>: a physical function with SR-IOV."""

    __slots__ = ()

    @attribute()
    def sriov_totalvfs(self) -> int:
        """The number of virtual functions that the function can have."""
        return layout_of(self.assignable).total

    @waiting()
    def sriov_numvfs(self) -> int:
        """The number of virtual functions that are enabled, also before those of a function with a `delay`
        have appeared."""
        return self.view.lab.sriov.count_of(self.assignable)

    @sriov_numvfs.store
    async def _store_numvfs(self, text: str) -> None:
        """Enables this many virtual functions, 0 disables all. EINVAL: no number of 16 bits; ERANGE: more
        than `sriov_totalvfs`; EBUSY: some are enabled, or a client holds one, or with `remove = "wait"` the
        write waits for the client; ENOENT: no driver that configures SR-IOV; ENOSPC: no room."""
        count = parse_number(text)
        if count > MAX_COUNT:
            raise ValueError(f"{count} does not fit in 16 bits")
        lab, physical = self.view.lab, self.assignable
        await taking_away(
            lab,
            lambda: () if count else virtual_functions_held(physical),
            lambda: lab.sriov.set_count(physical, count),
        )

    @attribute()
    def sriov_offset(self) -> int:
        """The distance from the routing id of the function to that of its first virtual function."""
        return layout_of(self.assignable).offset

    @attribute()
    def sriov_stride(self) -> int:
        """The distance between the routing ids of virtual functions."""
        return layout_of(self.assignable).stride

    @attribute()
    def sriov_vf_device(self) -> str:
        """The device id of the virtual functions, in hexadecimal."""
        return f"{layout_of(self.assignable).device_id:x}"

    @attribute(0o644)
    def sriov_drivers_autoprobe(self) -> int:
        """Whether new virtual functions are offered to drivers: 1 or 0."""
        return int(self.assignable.autoprobe)

    @sriov_drivers_autoprobe.store
    def _store_autoprobe(self, text: str) -> None:
        """Sets it. EINVAL: no truth value."""
        self.assignable.autoprobe = parse_bool(text)

    @attribute()
    def sriov_vf_total_msix(self) -> int:
        """The number of MSI-X vectors that its driver shares out among virtual functions (the lab file's
        `vectors`); 0 without a driver that does so."""
        return self.view.lab.sriov.pool_of(self.assignable)


class SriovParentDir(SriovFunctionDir, ParentFunctionDir):
    """<function>: a physical GPU with SR-IOV, which is an mdev parent."""

    __slots__ = ()


class VfConfigFile(RegionFile):
    """An open `config` of a virtual function.  Registers that the function lacks read as in the hardware."""

    __slots__ = ()

    def read(self, offset: int, size: int) -> bytes:
        return as_hardware(offset, super().read(offset, size))

    def write(self, offset: int, data: bytes) -> int:
        """Write only the registers that the function has.  The values of the others are those that a client
        of vfio-pci wrote."""
        written = bytearray(data)
        for position, byte in enumerate(super().read(offset, len(data))):
            if lacks(offset + position):
                written[position] = byte
        return super().write(offset, bytes(written))


class VirtualFunctionDir(PciFunctionDir, EndpointAttributes):
    """<function>: a virtual function."""

    __slots__ = ("virtual",)

    def __init__(self, view: View, function: VirtualFunction) -> None:
        super().__init__(view, function)
        self.virtual = function

    @binary(0o644, lambda self: CFG_SPACE_EXP_SIZE)
    def config(self, request: OpenRequest) -> Opened:
        """Configuration space, as the hardware shows it: ids and BARs read as ones or zeros.

        Writes the bits that the function lets a client write.
        """
        limit = CFG_SPACE_EXP_SIZE if self.owned_by(request.uid) else OWNER_ONLY_ABOVE
        return Opened(VfConfigFile(self.assignable.device, PciRegion.CONFIG, limit))

    @link()
    def physfn(self) -> Entry | None:
        """To the physical function."""
        return self.view.directory(self.virtual.physical)

    @store_only()
    def sriov_vf_msix_count(self, text: str) -> None:
        """Sets the number of vectors in the MSI-X table, 0 for that which it was enabled with. EINVAL: no
        number, or a negative one; EOPNOTSUPP: the driver of the physical function shares out no vectors;
        EBUSY: the function has a driver; EOVERFLOW: more than its table has room for; ENOSPC: more than is
        left."""
        count = parse_number(text)
        if count > MAX_INT:
            raise ValueError(f"{count} does not fit an int")
        self.view.lab.sriov.set_vectors(self.virtual, count)
