# SPDX-License-Identifier: Apache-2.0
"""Devices for QEMU by iommufd: opened descriptors of /dev/iommu and of devices, as libvirt passes them.

Source: QEMU's docs/devel/vfio-iommufd.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.labs import MountedLab, Vgpu

OBJECT = "iommufd0"
"""The id of the object that stands for /dev/iommu in QEMU."""


class Opened:
    """The files that one QEMU gets. `descriptors` are for a Machine, which takes them over."""

    def __init__(self, lab: MountedLab) -> None:
        self._lab = lab
        self.descriptors: list[int] = []

    def iommu(self) -> list[str]:
        """QEMU's options for /dev/iommu, opened."""
        fd = self._open(self._lab.path / "dev/iommu")
        return ["-object", f"iommufd,id={OBJECT},fd={fd}"]

    def mediated(self, vgpu: Vgpu, slot: int, **options: str) -> list[str]:
        """QEMU's options for a vGPU at PCI address 00:`slot`.0; its id there is dev<slot>.

        QEMU attaches mediated devices in another way. It knows them by their subsystem, which has to be
        /sys/bus/mdev: it runs under `with_sys`.
        """
        return self._device(vgpu.cdev, slot, sysfsdev=mdev(vgpu), **options)

    def physical(self, function: str, slot: int, **options: str) -> list[str]:
        """The same for a function that is bound to vfio-pci."""
        return self._device(cdev(self._lab, function), slot, **options)

    def _device(self, path: Path, slot: int, **options: str) -> list[str]:
        options = {
            "fd": str(self._open(path)),
            "id": f"dev{slot}",
            "addr": f"{slot:#x}",
            "iommufd": OBJECT,
            **options,
        }
        more = [f"{key.replace('_', '-')}={value}" for key, value in options.items()]
        return ["-device", ",".join(["vfio-pci", *more])]

    def _open(self, path: Path) -> int:
        self.descriptors.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        return self.descriptors[-1]


def with_sys(lab: MountedLab) -> list[str]:
    """The start of a command that sees the lab's sys at /sys, as in a container that is given it as a volume.

    There is no supervisor, and no other file of the lab is at its usual place.
    """
    own = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    return [*own, "sh", "-ec", f'mount --bind "{lab.path}/sys" /sys; exec "$@"', "sh"]


def mdev(vgpu: Vgpu) -> str:
    """The directory of a vGPU under `with_sys`."""
    return f"/sys/bus/mdev/devices/{vgpu.name}"


def cdev(lab: MountedLab, function: str) -> Path:
    """The device file of a function that is bound to vfio-pci."""
    (name,) = os.listdir(lab.path / "sys/bus/pci/devices" / function / "vfio-dev")
    return lab.path / "dev/vfio/devices" / name
