# SPDX-License-Identifier: Apache-2.0
"""examples/desktop.toml: a graphics card whose functions share an IOMMU group with the port above them.

Source of what is expected: how Linux forms groups (a port without ACS isolates nothing), <linux/vfio.h>, and
the messages of an unmodified QEMU.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import virsh
from tests.commands import vfsfuse
from tests.labs import MountedLab, described
from tests.machines.machine import (
    EXAMPLES,
    GROUPS,
    can_pin,
    driver_of,
    example,
    function_dir,
    group_of,
    lspci,
    override,
    partition,
    reset,
    shell,
)
from tests.qemu import drivers, programs
from tests.qemu.guest import build
from tests.qemu.iommufd import Opened
from tests.qemu.machine import Machine, in_lab
from tests.tool import Tool, need
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import Device, group_device, opened
from tests.vfio.test_device import hot_reset, hot_reset_info

HOST, SLOT, GPU, AUDIO = "0000:00:00.0", "0000:00:01.0", "0000:01:00.0", "0000:01:00.1"
NIC, DISK = "0000:02:00.0", "0000:03:00.0"
OTHER_PORTS = "0000:00:1c.0", "0000:00:1d.0"
HOST_DRIVERS = {GPU: "nouveau", AUDIO: "snd_hda_intel"}
VIABLE, CONTAINER_SET = 1, 2
GRAPHICS = 5
"""The card's slot in a guest."""
PAUSED = ["-nodefaults", "-display", "none", "-accel", "tcg", "-S"]
TREE = """\
-[0000:00]-+-00.0
           +-01.0-[01]--+-00.0
           |            \\-00.1
           +-1c.0-[02]----00.0
           \\-1d.0-[03]----00.0
"""
GROUPED = """\
IOMMU Group 0:
    00:00.0 0600: 8086:18ff
IOMMU Group 1:
    00:01.0 0604: 1b36:000c
    01:00.0 0300: 10de:2ac0 (rev a1)
    01:00.1 0403: 10de:2ac1 (rev a1)
IOMMU Group 2:
    00:1c.0 0604: 1b36:000c
IOMMU Group 3:
    00:1d.0 0604: 1b36:000c
IOMMU Group 4:
    02:00.0 0200: 8086:15fe
IOMMU Group 5:
    03:00.0 0108: 144d:a8ff
"""
NOT_VIABLE = (
    f"vfio {GPU}: group 1 is not viable\n"
    "Please ensure all devices within the iommu_group are bound to their vfio bus driver.\n"
)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with example(tmp_path_factory.mktemp("desktop"), "desktop.toml") as made:
        yield made


@pytest.fixture
def desktop(mounted: MountedLab) -> Iterator[MountedLab]:
    """The desktop; in the end its host drivers have their functions again."""
    yield mounted
    for name, driver in HOST_DRIVERS.items():
        if driver_of(mounted, name) != driver:
            reset(mounted, name)
        assert driver_of(mounted, name) == driver


# ---- what programs see ----


def test_lspci_draws_the_machine(desktop: MountedLab) -> None:
    assert lspci(desktop, "-t") == TREE


def test_the_loop_of_the_guides_lists_the_groups(desktop: MountedLab) -> None:
    need("lspci", "pciutils")
    assert shell(desktop, GROUPS) == GROUPED


def test_lspci_tells_all_of_the_card(desktop: MountedLab) -> None:
    shown = lspci(desktop, "-vv", "-nn", "-s", "01:00")
    for pattern in (
        r"VGA compatible controller \[0300\]: NVIDIA Corporation Device \[10de:2ac0\] \(rev a1\)",
        r"Audio device \[0403\]: NVIDIA Corporation Device \[10de:2ac1\] \(rev a1\)",
        r"Subsystem: ASUSTeK Computer Inc\. Device \[1043:8a01\]",
        r"Region 0: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\).* \[size=16M\]",
        r"Region 1: Memory at [0-9a-f]+ \(64-bit, prefetchable\).* \[size=256M\]",
        r"Region 3: Memory at [0-9a-f]+ \(64-bit, prefetchable\).* \[size=32M\]",
        r"Region 5: I/O ports at [0-9a-f]+.* \[size=128\]",
        r"IOMMU group: 1\n",
        r"Kernel driver in use: nouveau",
        r"Kernel driver in use: snd_hda_intel",
        r"MSI: Enable- Count=1/1",
        r"Express \(v2\)",
    ):
        assert re.search(pattern, shown), f"{pattern} in\n{shown}"
    for word in ("Unknown", "unknown", "access denied", "!!!", "ignored", "virtual", "unassigned"):
        assert word not in shown, f"{word} in\n{shown}"


def test_a_window_of_each_port_holds_what_is_below_it(desktop: MountedLab) -> None:
    """A program that walks the bridges, as firmware and hypervisors do, finds the card's BARs in them."""

    def rows(name: str) -> list[tuple[int, int, int]]:
        text = (function_dir(desktop, name) / "resource").read_text()
        found = (tuple(int(word, 16) for word in line.split()) for line in text.splitlines())
        return [(start, end, flags) for start, end, flags in found if end]

    windows = rows(SLOT)
    for start, end, flags in [*rows(GPU)[:4], *rows(AUDIO)[:1]]:
        assert any(
            low <= start and end <= high and flags & 0x300 == kind & 0x300 for low, high, kind in windows
        ), f"{start:#x}-{end:#x} in {windows}"


def test_each_function_has_its_serial_number_and_address(desktop: MountedLab) -> None:
    shown = lspci(desktop, "-vv", "-s", NIC)
    assert "Device Serial Number 52-54-00-ff-ff-12-34-56" in shown
    net = desktop.path / "sys/class/net/enp2s0"
    assert (net / "address").read_text() == "52:54:00:12:34:56\n"
    assert (net / "device").resolve() == function_dir(desktop, NIC).resolve()
    assert os.listdir(function_dir(desktop, NIC) / "net") == ["enp2s0"]


def test_dpdk_finds_the_network_card(desktop: MountedLab) -> None:
    need("dpdk-devbind.py", "dpdk")
    shown = Tool(desktop, "dpdk-devbind.py")("--status-dev", "net")
    assert re.search(rf"{NIC} '.*' .*if=enp2s0 drv=igc unused=vfio-pci", shown), shown


def test_udevadm_walks_from_the_card_to_the_root(desktop: MountedLab) -> None:
    need("udevadm", "udev")
    shown = Tool(desktop, "udevadm")("info", "-a", "-p", f"/sys/bus/pci/devices/{GPU}")
    found = re.findall(r"looking at (?:parent )?device '/devices/(.*)':", shown)
    assert found == [f"pci0000:00/{SLOT}/{GPU}", f"pci0000:00/{SLOT}", "pci0000:00"]
    assert 'ATTR{class}=="0x030000"' in shown and 'DRIVER=="nouveau"' in shown


def test_lstopo_shows_the_devices(desktop: MountedLab) -> None:
    need("lstopo-no-graphics", "hwloc-nox")
    shown = Tool(desktop, "lstopo-no-graphics")("--whole-io", "--of", "console")
    for text in ("PCI 01:00.0 (VGA)", "PCI 02:00.0 (Ethernet)", 'Net "enp2s0"', "PCI 03:00.0 (NVMExp)"):
        assert text in shown, shown


def test_libvirt_draws_the_tree_and_tells_of_the_group(
    desktop: MountedLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = "ask nodedev-list --tree\nask nodedev-dumpxml pci_0000_01_00_0\n"
    home = tmp_path_factory.mktemp("libvirt")
    tree, xml, _ = virsh.answers(home, ["--mount", str(desktop.path)], script)
    assert re.search(r"\+- pci_0000_00_01_0\n.*\|\n.*\+- pci_0000_01_00_0\n.*\+- pci_0000_01_00_1\n", tree), (
        tree
    )
    members = re.findall(r"<address domain='0x0000' bus='0x(..)' slot='0x(..)' function='0x(.)'/>", xml)
    assert "<iommuGroup number='1'>" in xml
    assert members == [("00", "01", "0"), ("01", "00", "0"), ("01", "00", "1")], xml


# ---- one function of a group is not enough ----


def test_a_group_of_ports_and_endpoints(desktop: MountedLab) -> None:
    alone = [[name] for name in (*OTHER_PORTS, NIC, DISK)]
    assert partition(desktop) == [[HOST], [SLOT, GPU, AUDIO], *alone]


@pytest.mark.parametrize(
    ("isolated", "card"),
    [([SLOT], [[GPU, AUDIO]]), ([SLOT, GPU, AUDIO], [[GPU], [AUDIO]]), ([GPU, AUDIO], [])],
)
def test_another_lab_file_gives_functions_acs(
    tmp_path: Path, isolated: list[str], card: list[list[str]]
) -> None:
    """A function keeps apart from others in its device if it has ACS. That of the port alone decides whether
    the card is apart from it."""
    tables = "".join(f'[functions."{name}"]\nacs = true\n' for name in isolated)
    with described(tmp_path, f'include = "{EXAMPLES / "desktop.toml"}"\n{tables}') as lab:
        groups = [group for group in partition(lab) if {SLOT, GPU, AUDIO} & {*group}]
        assert groups == ([[SLOT], *card] if SLOT in isolated else [[SLOT, GPU, AUDIO]])


def test_a_group_is_viable_when_no_host_driver_has_a_function(desktop: MountedLab) -> None:
    """The port above is harmless, though it has a driver: pcieport. So is a function without driver."""
    override(desktop, GPU)
    number = group_of(desktop, GPU)
    with Container(desktop.path) as container, Group(desktop.path, number) as group:
        assert group.flags == 0
        fails(errno.EPERM, group.set_container, container)
        (function_dir(desktop, AUDIO) / "driver/unbind").write_text(AUDIO)
        assert group.flags == VIABLE
        group.set_container(container)
        assert group.flags == VIABLE | CONTAINER_SET
        container.set_iommu()


def test_a_host_driver_cannot_take_a_function_of_a_group_in_use(desktop: MountedLab) -> None:
    override(desktop, GPU)
    override(desktop, AUDIO)
    with Container(desktop.path) as container, Group(desktop.path, group_of(desktop, GPU)) as group:
        group.set_container(container)
        container.set_iommu()
        audio = function_dir(desktop, AUDIO)
        (audio / "driver/unbind").write_text(AUDIO)
        (audio / "driver_override").write_text("\n")
        host = desktop.path / "sys/bus/pci/drivers/snd_hda_intel/bind"
        fails(errno.EBUSY, host.write_text, AUDIO)
        assert driver_of(desktop, AUDIO) == ""
    host.write_text(AUDIO)
    assert driver_of(desktop, AUDIO) == "snd_hda_intel"


def test_both_functions_are_opened_through_one_file_and_reset_together(desktop: MountedLab) -> None:
    """The reset is of the bus, so the port above is not part of it, though it is in the group."""
    for name in (GPU, AUDIO):
        override(desktop, name)
    number = group_of(desktop, GPU)
    with opened(desktop, number, GPU) as gpu:
        with Device(group_device(desktop.path, gpu.group, AUDIO)) as audio:
            fails(errno.EBUSY, Group, desktop.path, number)
            functions = [(int(number), 0, 1, function) for function in (0, 1)]
            assert hot_reset_info(audio, 2) == (0, 2, functions)
            hot_reset(gpu.device, gpu.group.fd)
        (function_dir(desktop, AUDIO) / "driver/unbind").write_text(AUDIO)
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd)


@pytest.mark.qemu
def test_qemu_says_that_the_group_is_not_viable(desktop: MountedLab) -> None:
    override(desktop, GPU)
    command = [programs.system(), *PAUSED, "-device", f"vfio-pci,host={GPU}"]
    done = vfsfuse("run", "--mount", desktop.path, "--", *command)
    assert done.returncode == 1
    assert done.stderr.endswith(NOT_VIABLE), done.stderr


@pytest.mark.qemu
@pytest.mark.parametrize("suite", programs.NEWER)
def test_qemu_says_it_of_iommufd_too(desktop: MountedLab, suite: str) -> None:
    """There the kernel's word for it is EPERM of BIND_IOMMUFD."""
    program = programs.of_suite(suite)
    override(desktop, GPU)
    opened = Opened(desktop)
    try:
        command = [program, *PAUSED, *opened.iommu(), *opened.physical(GPU, GRAPHICS)]
        done = subprocess.run(
            command, pass_fds=opened.descriptors, capture_output=True, text=True, check=False, timeout=60
        )
    finally:
        for fd in opened.descriptors:
            os.close(fd)
    assert done.returncode == 1 and "Operation not permitted" in done.stderr, done.stderr


# ---- both functions, in a guest ----


@can_pin
@pytest.mark.qemu
@pytest.mark.parametrize("suite", ["", *programs.NEWER])
def test_a_guest_has_the_whole_card(desktop: MountedLab, suite: str) -> None:
    """QEMU gets both functions by their group, or by iommufd in a newer QEMU. The guest finds their identity
    and their BARs, and reads back what it writes into the memory of the card."""
    override(desktop, GPU)
    override(desktop, AUDIO)
    with guest(desktop, suite) as machine:
        machine.console.wait_up()
        check = machine.console.check
        gpu, audio = (f"/sys/bus/pci/devices/0000:00:{GRAPHICS:02x}.{number}" for number in (0, 1))
        assert words(machine, gpu, "vendor", "device", "class") == ["0x10de", "0x2ac0", "0x030000"]
        assert words(machine, audio, "vendor", "device", "class") == ["0x10de", "0x2ac1", "0x040300"]
        assert words(machine, gpu, "subsystem_vendor", "subsystem_device") == ["0x1043", "0x8a01"]
        rows = [[int(word, 16) for word in row.split()] for row in check(f"cat {gpu}/resource").splitlines()]
        sizes = [end - start + 1 if end else 0 for start, end, _ in rows[:6]]
        assert sizes == [16 << 20, 256 << 20, 0, 32 << 20, 0, 128]
        check(f"echo 1 > {gpu}/enable")
        memory = rows[1][0] + 0x1000
        check(f"devmem {memory:#x} 32 0x12345678")
        assert check(f"devmem {memory:#x} 32").strip() == "0x12345678"
        drivers.assert_healthy(machine.console)


def words(machine: Machine, function: str, *attributes: str) -> list[str]:
    """What attributes of a function are in the guest."""
    return machine.console.check(f"cd {function} && cat {' '.join(attributes)}").split()


def guest(lab: MountedLab, suite: str) -> Machine:
    """A guest that has the card's functions at 00:05.0 and 00:05.1."""
    places = [(GPU, f"{GRAPHICS:x}.0"), (AUDIO, f"{GRAPHICS:x}.1")]
    if not suite:
        devices = [f"vfio-pci,host={name},addr={place},multifunction=on" for name, place in places]
        return Machine(in_lab(lab), [part for each in devices for part in ("-device", each)], build())
    program, opened = programs.of_suite(suite), Opened(lab)
    options = opened.iommu()
    for slot, (name, place) in enumerate(places, GRAPHICS):
        options += opened.physical(name, slot, addr=place, multifunction="on")
    return Machine([], options, build(), program=program, descriptors=opened.descriptors)
