# SPDX-License-Identifier: Apache-2.0
"""A VFIO client: an open device, by its own file and an iommufd of its own.

This works on the mount itself, for every user who may open the files; `vfsfuse run` is not needed.  A Device
is for one thread at a time.  Source: the kernel's Documentation/driver-api/vfio.rst and
Documentation/userspace-api/iommufd.rst.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType

from vfsfuse.api.abi import (
    CONFIG_REGION,
    DEVICE_ATTACH_IOMMUFD_PT,
    DEVICE_BIND_IOMMUFD,
    DEVICE_GET_INFO,
    DEVICE_RESET,
    IOAS_ALLOC,
    call,
    checked,
)
from vfsfuse.api.files import Files
from vfsfuse.api.interrupts import Interrupts
from vfsfuse.api.memory import Buffer, DmaMemory, access
from vfsfuse.api.regions import Region, Regions

COMMAND, IO_MEMORY_MASTER = 4, 7
"""The command register of PCI, and the bits for I/O, memory and bus mastering."""


class Device:
    """An open device, which does DMA in an address space (IOAS) of its own.  As a context manager it is
    closed at the end."""

    def __init__(self, files: Files, path: Path) -> None:
        """`path` is that of dev/vfio/devices/vfio<N>.  Raises OSError as open(2) and the ioctls do:
        EINVAL while another client has bound the device, EBUSY while one has its group open."""
        self._files, self._path = files, str(path)
        self._interrupts: list[Interrupts] = []
        self._memory: list[DmaMemory] = []
        with contextlib.ExitStack() as stack:
            self._fd = files.open(path)
            stack.callback(os.close, self._fd)
            self.iommufd = files.open(files.root / "dev/iommu")
            """The descriptor of the iommufd."""
            stack.callback(os.close, self.iommufd)
            with files.explained(path):
                _, _, self.id, _ = call(self._fd, DEVICE_BIND_IOMMUFD, "IiIQ", 0, self.iommufd, 0, 0)
                _, self.ioas = call(self.iommufd, IOAS_ALLOC, "II", 0, 0)
                """The id of the address space."""
                call(self._fd, DEVICE_ATTACH_IOMMUFD_PT, "II", 0, self.ioas)
                _, regions, *_ = call(self._fd, DEVICE_GET_INFO, "IIIII", 0, 0, 0, 0, 0)
            self.regions = Regions(files, self._path, self._fd, regions)
            """Its regions by index: BARs 0 to 5, the ROM, configuration space, VGA, those of the model."""
            self._close = weakref.finalize(self, stack.pop_all().close)
            files.opened.add(self)

    def __repr__(self) -> str:
        return f"<Device {self._path}>"

    def fileno(self) -> int:
        """The descriptor of the device's file, for ioctls that this class does not make."""
        return self._fd

    @property
    def config(self) -> Region:
        """Configuration space."""
        return self.regions[CONFIG_REGION]

    def enable(self) -> None:
        """Let the device decode I/O and memory and do DMA (bus mastering), as a driver does first."""
        command = self.config.read_int(COMMAND, 2)
        self.config.write_int(COMMAND, command | IO_MEMORY_MASTER, 2)

    def interrupts(self, index: int | str = "msix", count: int | None = None) -> Interrupts:
        """Set interrupts up: "intx", "msi", "msix", "err" or "req", or the number of an index.  `count` is
        the number of vectors, by default all.  They end with the device at the latest.

        Raises KeyError for another name, OSError as VFIO_DEVICE_SET_IRQS does: EINVAL for more vectors than
        there are, or for MSI while MSI-X is set up."""
        made = Interrupts(self._files, self._path, self._fd, index, count)
        self._interrupts.append(made)
        return made

    def map(
        self, what: int | Buffer, *, iova: int | None = None, read: bool = True, write: bool = True
    ) -> DmaMemory:
        """Map memory for DMA: `what` bytes of new memory, or an object with a writable buffer, such as a
        bytearray.  It stays mapped until it is unmapped, or the device is closed.

        `iova` is the address for the device; without one the IOMMU chooses.  `read` and `write` say what the
        device may do.  Raises TypeError for a buffer that cannot be written, ValueError for no bytes,
        OSError as IOMMU_IOAS_MAP does: EEXIST if something is mapped there, EINVAL for an iova with another
        offset in its page."""
        made = DmaMemory(self._files, self._path, (self.iommufd, self.ioas), what, iova, access(read, write))
        self._memory.append(made)
        return made

    def reset(self) -> None:
        """Reset the device (VFIO_DEVICE_RESET).  Raises OSError: ENOTTY if it cannot be reset."""
        with self._files.explained(self._path):
            fcntl.ioctl(checked(self._fd), DEVICE_RESET)

    def close(self) -> None:
        """Take interrupts away, unmap the regions, close the device and the iommufd, and let the DMA memory
        go.  May be called again."""
        for interrupts in self._interrupts:
            interrupts.close()
        self.regions.close()
        self._close()
        self._fd = self.iommufd = -1
        for memory in self._memory:
            memory.release()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
