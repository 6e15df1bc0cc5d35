# SPDX-License-Identifier: Apache-2.0
"""sys/kernel/iommu_groups and sys/class/iommu: what they say of each device, in each binding state."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.labs import MountedLab, described
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import bound, function_dir, give_back, opened, vfio_pci

LAB = """
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
vfs = 2
types.own = { memory = "1M", description = "of the first function" }

[parents."0000:87:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "1M"
iommu = false
types.other = { memory = "1M", description = "without IOMMU" }

[parents."0001:00:05.0"]
kind = "gpu"
driver = "vgpu"
memory = "1M"
types.third = { memory = "1M", description = "in another domain" }

[parents.mtty]
kind = "virtual"
driver = "mtty"
slots = 8
types.one = { description = "a serial card" }
"""
NO_IOMMU = LAB[LAB.index('[parents."0000:87') : LAB.index('[parents."0001')]
GPU, UNPROTECTED, FAR = "0000:86:00.0", "0000:87:00.0", "0001:00:05.0"
PORT, UNPROTECTED_PORT = "0000:00:01.0", "0000:00:02.0"
MSI = "0x00000000fee00000 0x00000000feefffff msi\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("groups"), LAB) as made:
        yield made


def group(machine: MountedLab, name: str) -> Path:
    """The IOMMU group of a device, which it is alone in."""
    device = machine.mdevs / name if (machine.mdevs / name).exists() else function_dir(machine, name)
    found = (device / "iommu_group").resolve()
    assert found.parent == machine.path / "sys/kernel/iommu_groups"
    assert os.listdir(found / "devices") == [name]
    assert (found / "devices" / name).resolve() == device.resolve()
    return found


def check_translated(found: Path) -> None:
    """Check a group with an IOMMU."""
    assert sorted(os.listdir(found)) == ["devices", "reserved_regions", "type"]
    assert (found / "type").read_text() == "DMA-FQ\n" and (found / "type").stat().st_mode & 0o777 == 0o644
    assert (found / "reserved_regions").read_text() == MSI
    assert (found / "reserved_regions").stat().st_mode & 0o777 == 0o444


def check_made_by_vfio(found: Path) -> None:
    """Check a group without an IOMMU."""
    assert sorted(os.listdir(found)) == ["devices", "name", "reserved_regions", "type"]
    assert (found / "name").read_text() == "vfio-noiommu\n"
    assert (found / "type").read_text() == "unknown\n" and (found / "type").stat().st_mode & 0o777 == 0o644
    assert (found / "reserved_regions").read_text() == ""
    fails(errno.EINVAL, (found / "type").write_text, "DMA")


@contextmanager
def without_driver(machine: MountedLab, name: str) -> Iterator[None]:
    (function_dir(machine, name) / "driver/unbind").write_text(name)
    yield
    give_back(machine, name)


# ---- groups ----


def test_group_of_a_physical_function_in_each_binding_state(machine: MountedLab) -> None:
    check_translated(group(machine, GPU))
    with without_driver(machine, GPU):
        check_translated(group(machine, GPU))
    with bound(machine, GPU) as (number,):
        check_translated(group(machine, GPU))
        with opened(machine, number, GPU):
            check_translated(group(machine, GPU))
    check_translated(group(machine, GPU))


def test_groups_of_ports_and_virtual_functions(machine: MountedLab) -> None:
    check_translated(group(machine, PORT))
    assert not (function_dir(machine, UNPROTECTED_PORT) / "iommu_group").exists()
    numvfs = function_dir(machine, GPU) / "sriov_numvfs"
    numvfs.write_text("2")
    for index in range(2):
        check_translated(group(machine, os.path.basename(os.readlink(numvfs.parent / f"virtfn{index}"))))
    numvfs.write_text("0")


def test_group_of_a_mediated_device(machine: MountedLab) -> None:
    with machine.create("own", GPU) as vgpu, machine.create("one", "mtty") as card:
        for each in (vgpu, card):
            check_made_by_vfio(group(machine, each.name))


def test_group_without_iommu_is_there_while_vfio_has_it(machine: MountedLab) -> None:
    function = function_dir(machine, UNPROTECTED)
    parameter = machine.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    parameter.write_text("Y")
    assert not (function / "iommu_group").exists()
    vfio_pci(machine, UNPROTECTED)
    check_made_by_vfio(group(machine, UNPROTECTED))
    give_back(machine, UNPROTECTED)
    assert not (function / "iommu_group").exists()
    parameter.write_text("N")


def test_numbers_follow_the_lab_file_then_the_ports(machine: MountedLab) -> None:
    names = (GPU, FAR, PORT)
    assert [group(machine, name).name for name in names] == ["0", "2", "3"]


# ---- type ----


def test_a_type_is_chosen_while_no_driver_has_the_function(machine: MountedLab) -> None:
    kind = group(machine, GPU) / "type"
    for text in ("identity", "DMA", "auto", "DMA-FQ"):
        fails(errno.EPERM, kind.write_text, text)
    for text in ("\n", "dma", "blocked", "unmanaged", "DMA\n\n", " DMA", "DMA-FQ x"):
        fails(errno.EINVAL, kind.write_text, text)
    with without_driver(machine, GPU):
        for text, shown in (("identity\n", "identity"), ("DMA", "DMA"), ("auto", "DMA-FQ"), ("DMA", "DMA")):
            kind.write_text(text)
            assert kind.read_text() == f"{shown}\n"
    fails(errno.EPERM, kind.write_text, "DMA")
    kind.write_text("DMA-FQ")  # a flush queue can be started at any time
    assert kind.read_text() == "DMA-FQ\n"


def test_vfio_claims_a_group_with_its_container(machine: MountedLab) -> None:
    kind = group(machine, GPU) / "type"
    with bound(machine, GPU) as (number,), Container(machine.path) as container:
        kind.write_text("identity")
        with Group(machine.path, number) as file:
            kind.write_text("DMA")
            file.set_container(container)
            fails(errno.EPERM, kind.write_text, "identity")
            file.unset_container()
            kind.write_text("auto")
    port = group(machine, PORT) / "type"
    port.write_text("identity")  # pcieport does no DMA
    port.write_text("auto")


# ---- units ----


def test_a_unit_for_each_domain_with_an_iommu(machine: MountedLab) -> None:
    units = machine.path / "sys/class/iommu"
    behind = {"dmar0": [PORT, GPU], "dmar1": [FAR]}
    assert sorted(os.listdir(units)) == list(behind)
    for name, functions in behind.items():
        unit = units / name
        assert unit.resolve() == machine.path / "sys/devices/virtual/iommu" / name
        assert (unit / "subsystem").resolve() == units and (unit / "uevent").read_text() == ""
        assert (unit / "power").is_dir()
        assert sorted(os.listdir(unit / "devices")) == functions
        for function in functions:
            own = function_dir(machine, function)
            assert (unit / "devices" / function).resolve() == own.resolve()
            assert (own / "iommu").resolve() == unit.resolve()
    for name in (UNPROTECTED, UNPROTECTED_PORT):
        assert not (function_dir(machine, name) / "iommu").exists()


def test_registers_of_a_unit_say_what_type1_says(machine: MountedLab) -> None:
    intel = machine.path / "sys/class/iommu/dmar0/intel-iommu"
    said = {name: (intel / name).read_text().removesuffix("\n") for name in os.listdir(intel)}
    assert said.keys() == {"address", "cap", "domains_supported", "domains_used", "ecap", "version"}
    assert (said["version"], said["address"]) == ("6:0", "fed90000")
    cap, ecap = int(said["cap"], 16), int(said["ecap"], 16)
    assert int(said["domains_supported"]) == 1 << (4 + 2 * (cap & 7)) == 65536
    with bound(machine, GPU) as (number,), opened(machine, number, GPU) as device:
        info, caps = device.container.info()
        sizes = 1 << 12 | (cap >> 34 & 1) << 21 | (cap >> 35 & 1) << 30
        assert info.iova_pgsizes == sizes
        last = int.from_bytes(caps[1][1][-8:], "little")
        assert last == (1 << (cap >> 16 & 0x3F) + 1) - 1
    assert cap >> 8 & 0x1F == 4 and ecap & 0x40  # four levels, identity
    assert ecap >> 43 & ecap >> 45 & ecap >> 46 & 1  # scalable mode, dirty bits in the second stage
    other = machine.path / "sys/class/iommu/dmar1/intel-iommu/address"
    assert other.read_text() == "fed8f000\n"


def test_domains_are_counted(machine: MountedLab) -> None:
    used = machine.path / "sys/class/iommu/dmar0/intel-iommu/domains_used"
    numvfs = function_dir(machine, GPU) / "sriov_numvfs"
    assert used.read_text() == "2\n"
    numvfs.write_text("2")
    assert used.read_text() == "4\n"
    names = [os.path.basename(os.readlink(numvfs.parent / f"virtfn{index}")) for index in range(2)]
    numbers = []
    for name in names:
        (function_dir(machine, name) / "driver_override").write_text("vfio-pci")
        (machine.path / "sys/bus/pci/drivers_probe").write_text(name)
        numbers.append(group(machine, name).name)
    with (
        Container(machine.path) as container,
        Group(machine.path, numbers[0]) as one,
        Group(machine.path, numbers[1]) as two,
    ):
        one.set_container(container)
        assert used.read_text() == "4\n"
        two.set_container(container)
        assert used.read_text() == "3\n"
    for name in names:
        (group(machine, name) / "type").write_text("identity")
    assert used.read_text() == "3\n"
    numvfs.write_text("0")
    assert used.read_text() == "2\n"


def test_a_lab_without_iommu_has_no_unit(tmp_path: Path) -> None:
    with described(tmp_path, NO_IOMMU) as lab:
        assert os.listdir(lab.path / "sys/class/iommu") == []
        assert os.listdir(lab.path / "sys/kernel/iommu_groups") == []
        assert not (lab.path / "sys/devices/virtual/iommu").exists()
