# SPDX-License-Identifier: Apache-2.0
"""A lab with network cards for tests: one whose virtual functions have a host driver and are on two buses,
one whose virtual functions come late, and one without any; and short ways through it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.labs import MountedLab

CARD, LATE, PLAIN = "0000:65:00.0", "0000:67:00.0", "0000:68:00.0"
DELAY = 0.3
SRIOV = 0x10
LAB = f"""
[functions."{CARD}"]
vendor = 0x8086
device = 0x1592
subsystem_vendor = 0x8086
subsystem_device = 0x0002
class = 0x020000
revision = 2
driver = "ice"
capabilities = ["pm", "msix:64", "express"]
bars = {{ 0 = {{ size = "32M", kind = "mem64" }} }}
net = "enp101s0f0"
mac = "52:54:00:ff:ff:ff"
vfs = 8
[functions."{CARD}".vf]
device = 0x1889
driver = "iavf"
bars = {{ 0 = {{ size = "64K", kind = "mem64-prefetch" }}, 3 = {{ size = "16K", kind = "mem64" }} }}
capabilities = ["msix:16@3", "express"]
offset = 250
stride = 2
failing = [2]
vectors = 40

[functions."{LATE}"]
vendor = 0x15b3
device = 0x101d
class = 0x020000
driver = "mlx5_core"
net = ["ens1", "ens2"]
bars = {{ 0 = {{ size = "32M", kind = "mem64" }} }}
capabilities = ["express"]
vfs = 4
[functions."{LATE}".vf]
device = 0x101e
driver = "mlx5_core"
delay = {DELAY}
net = ["late0"]
bars = {{ 0 = {{ size = "4K", kind = "mem64" }} }}

[functions."{PLAIN}"]
driver = "nic"
net = "eth9"
"""


def function(lab: MountedLab, name: str) -> Path:
    """The directory of a function."""
    return lab.path / "sys/bus/pci/devices" / name


def enable(lab: MountedLab, count: int, name: str = CARD) -> list[Path]:
    """Enable virtual functions of a card, and give their directories in the order of their indexes."""
    (function(lab, name) / "sriov_numvfs").write_text(f"{count}\n")
    return virtual(lab, name)


def virtual(lab: MountedLab, name: str = CARD) -> list[Path]:
    """The virtual functions of a card, those that are there."""
    own = function(lab, name)
    found = sorted(int(each.removeprefix("virtfn")) for each in os.listdir(own) if each.startswith("virtfn"))
    assert found == list(range(len(found)))
    return [function(lab, (own / f"virtfn{index}").readlink().name) for index in found]


def driver_of(own: Path) -> str | None:
    """The driver of a function."""
    link = own / "driver"
    return link.readlink().name if link.is_symlink() else None


def to_vfio(lab: MountedLab, own: Path) -> str:
    """Give a function to vfio-pci. Returns the number of its IOMMU group."""
    if (own / "driver").is_symlink():
        (own / "driver/unbind").write_text(own.name)
    (own / "driver_override").write_text("vfio-pci")
    (lab.path / "sys/bus/pci/drivers_probe").write_text(own.name)
    assert driver_of(own) == "vfio-pci"
    return (own / "iommu_group").readlink().name


def give_back(lab: MountedLab, own: Path) -> None:
    """Give a function to its host driver again, as far as that takes it."""
    if (own / "driver").is_symlink():
        (own / "driver/unbind").write_text(own.name)
    (own / "driver_override").write_text("\n")
    (lab.path / "sys/bus/pci/drivers_probe").write_text(own.name)


def sriov(own: Path) -> bytes:
    """The SR-IOV capability of a card."""
    config = (own / "config").read_bytes()
    place = 0x100
    while place:
        head = int.from_bytes(config[place : place + 4], "little")
        if head & 0xFFFF == SRIOV:
            return config[place : place + 64]
        place = head >> 20
    raise LookupError(own.name)


def interfaces(lab: MountedLab) -> set[str]:
    """The names in sys/class/net."""
    return set(os.listdir(lab.path / "sys/class/net"))
