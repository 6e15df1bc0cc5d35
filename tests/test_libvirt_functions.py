# SPDX-License-Identifier: Apache-2.0
"""libvirt's domains, unmodified, on other machines than the built-in one: functions that share an IOMMU
group, virtual functions, vGPUs of NVIDIA's framework, devices that leave the lab.  QEMU is paused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import domains
from tests.commands import ROOT
from tests.domains import HOTPLUG, PORTS, Libvirt, driver, mdev, pci
from tests.labs import MountedLab, described
from tests.waiting import wait_for

CARD, SOUND = "0000:01:00.0", "0000:01:00.1"
NETWORK, VIRTUAL = "0000:02:00.0", "0000:02:00.1"
LAB = f"""\
[mount]
remove = "wait"

[models]
serial = "{ROOT}/devmodel/models/mtty.py:Mtty"

[parents.serial]
kind = "virtual"
driver = "serial"
model = "serial"
slots = 1
types.serial-1.description = "one port"
types.serial-1.options = {{ ports = 1 }}

[functions."0000:00:01.0"]
bridge = "root-port"
secondary = 0x01
acs = false

[functions."{CARD}"]
driver = "nouveau"
vendor = 0x10de
device = 0x2ac0
class = 0x030000
bars.0 = {{ size = "16M" }}

[functions."{SOUND}"]
driver = "snd_hda_intel"
vendor = 0x10de
device = 0x2ac1
class = 0x040300
bars.0 = {{ size = "16K" }}

[functions."0000:00:02.0"]
bridge = "root-port"
secondary = 0x02

[functions."{NETWORK}"]
driver = "igb"
vendor = 0x8086
device = 0x10c9
class = 0x020000
capabilities = ["express"]
vfs = 1

[functions."{NETWORK}".vf]
driver = "igbvf"
device = 0x10ca
bars.0 = {{ size = "16K" }}
capabilities = ["msix:3", "express"]
"""


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    domains.need()
    with (
        described(tmp_path_factory.mktemp("lab"), LAB) as lab,
        Libvirt(lab, tmp_path_factory.mktemp("libvirt")) as running,
    ):
        yield running


def function(libvirt: Libvirt, address: str) -> Path:
    return libvirt.lab.path / "sys/bus/pci/devices" / address


def drivers(libvirt: Libvirt) -> list[str]:
    """The drivers of the two functions that share a group."""
    return [driver(function(libvirt, address)) for address in (CARD, SOUND)]


# ---- a group of two functions ----


def test_one_function_of_a_group_is_not_viable(libvirt: Libvirt) -> None:
    """The other is on a driver of the host."""
    libvirt.define("one", pci(CARD))
    assert "is not viable" in libvirt.refused("start", "one", "--paused")
    assert drivers(libvirt) == ["nouveau", "snd_hda_intel"]
    libvirt.drop("one")


def test_a_domain_gets_both_functions_of_a_group(libvirt: Libvirt) -> None:
    libvirt.define("both", pci(CARD), pci(SOUND))
    libvirt.virsh("start", "both", "--paused")
    assert drivers(libvirt) == ["vfio-pci", "vfio-pci"]
    assert {"10de:2ac0", "10de:2ac1"} <= set(libvirt.pci_ids("both"))
    libvirt.drop("both")
    assert drivers(libvirt) == ["nouveau", "snd_hda_intel"]


def test_the_other_function_is_detached_by_hand(libvirt: Libvirt) -> None:
    libvirt.virsh("nodedev-detach", "pci_0000_01_00_1")
    libvirt.define("one", pci(CARD))
    libvirt.virsh("start", "one", "--paused")
    assert drivers(libvirt) == ["vfio-pci", "vfio-pci"]
    libvirt.drop("one")
    assert drivers(libvirt) == ["nouveau", "vfio-pci"]
    libvirt.virsh("nodedev-reattach", "pci_0000_01_00_1")
    assert drivers(libvirt) == ["nouveau", "snd_hda_intel"]


# ---- virtual functions ----


def test_a_domain_gets_a_virtual_function(libvirt: Libvirt) -> None:
    """libvirtd hears of the function by a uevent."""
    (function(libvirt, NETWORK) / "sriov_numvfs").write_text("1")
    address = os.path.basename(os.readlink(function(libvirt, NETWORK) / "virtfn0"))
    node = "pci_" + address.replace(":", "_").replace(".", "_")
    libvirt.shell.check(f"until virsh nodedev-dumpxml {node} >/dev/null 2>&1; do sleep 0.05; done")
    assert "<capability type='phys_function'>" in libvirt.virsh("nodedev-dumpxml", node)
    libvirt.define("network", pci(address))
    libvirt.virsh("start", "network", "--paused")
    assert driver(function(libvirt, address)) == "vfio-pci" and "8086:10ca" in libvirt.pci_ids("network")
    libvirt.drop("network")
    assert driver(function(libvirt, address)) == "igbvf"
    (function(libvirt, NETWORK) / "sriov_numvfs").write_text("0")
    libvirt.shell.check(f"while virsh nodedev-dumpxml {node} >/dev/null 2>&1; do sleep 0.05; done")


# ---- devices that leave the lab ----


def test_a_device_that_is_removed_leaves_its_domain(libvirt: Libvirt) -> None:
    """The lab asks for it (VFIO's REQ interrupt), QEMU unplugs it, libvirt hears of that."""
    device = libvirt.lab.create("serial-1", "serial")
    libvirt.define("leaving", PORTS, machine=HOTPLUG)
    libvirt.virsh("start", "leaving", "--paused")
    libvirt.virsh("attach-device", "leaving", libvirt.file("device", mdev(device.name)), "--live")
    assert len(libvirt.hostdevs("leaving")) == 1
    device.remove()
    wait_for(lambda: not libvirt.hostdevs("leaving"))
    assert libvirt.virsh("domstate", "leaving") == "paused"
    libvirt.drop("leaving")


# ---- NVIDIA's framework ----


def test_a_domain_gets_a_vgpu_of_nvidias_framework(tmp_path: Path) -> None:
    """The virtual function keeps NVIDIA's driver, which is one of VFIO."""
    domains.need()
    version = subprocess.run(["virsh", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.split(".")[0]) < 10:
        pytest.skip(f"libvirt 10 knows other drivers of VFIO than vfio-pci: this is {version.strip()}")
    with (
        MountedLab(tmp_path, "--config", str(ROOT / "examples/vendor_host.toml")) as lab,
        Libvirt(lab, tmp_path) as libvirt,
    ):
        gpu = function(libvirt, "0000:86:00.0")
        (gpu / "sriov_numvfs").write_text("1")
        path = (gpu / "virtfn0").resolve()
        (path / "nvidia/current_vgpu_type").write_text("1301")
        libvirt.define("vgpu", pci(path.name, managed="no"))
        libvirt.virsh("start", "vgpu", "--paused")
        assert driver(path) == "nvidia" and "1234:1111" in libvirt.pci_ids("vgpu")
        with pytest.raises(OSError):
            (path / "nvidia/current_vgpu_type").write_text("0")
        libvirt.drop("vgpu")
        (path / "nvidia/current_vgpu_type").write_text("0")
