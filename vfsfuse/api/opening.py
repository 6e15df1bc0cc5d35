# SPDX-License-Identifier: Apache-2.0
"""What VFIO knows of a vGPU or of a function: its file, its group, and how it is opened.  No state."""

from __future__ import annotations

import errno
import os

from vfsfuse.api.device import Device
from vfsfuse.api.directory import Directory


class Assignable(Directory):
    """A device that a driver of VFIO can give to a client."""

    @property
    def driver(self) -> str | None:
        """The name of its driver, None if it has none."""
        return self._files.link(self.path / "driver")

    @property
    def group(self) -> str | None:
        """The number of its IOMMU group, which is the name of a file in dev/vfio while a driver of VFIO has
        the device.  That of a device without IOMMU begins with "noiommu-".  None if it is in no group."""
        number = self._files.link(self.path / "iommu_group")
        unsafe = f"noiommu-{number}"
        return unsafe if self._files.has(self._files.root / "dev/vfio" / unsafe) else number

    @property
    def vfio(self) -> str | None:
        """The name of its file in dev/vfio/devices, None while no driver of VFIO has it."""
        names = self._files.names(self.path / "vfio-dev")
        return names[0] if names else None

    def open(self) -> Device:
        """Open it as a VFIO client does.  Raises OSError: ENODEV while no driver of VFIO has it, ENOENT once
        it is removed, and as `Device` does."""
        name = self.vfio
        if name is None:
            if not self._files.has(self.path):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
            why = "no driver of VFIO has it (bind a PCI function to vfio-pci)"
            raise OSError(errno.ENODEV, why, str(self.path))
        return Device(self._files, self._files.root / "dev/vfio/devices" / name)
