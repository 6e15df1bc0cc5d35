# SPDX-License-Identifier: Apache-2.0
"""Groups of several devices on a real mount: when a group is viable, who keeps whom out, and what members
that come and go change for a client that has the group."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.commands import ROOT
from tests.labs import MountedLab, described
from tests.test_uevents import hear, listening
from tests.vfio.client import Container, Group, Memory, fails
from tests.vfio.copiers import COMMAND_REGISTER, COPY, DECODE, DONE, FAULT, MASTER
from tests.vfio.devices import Device, Opened, bound, function_dir, give_back, group_device, vfio_pci
from tests.vfio.test_device import hot_reset, hot_reset_info
from tests.waiting import wait_for

GPU, AUDIO, OTHER = "0000:86:00.0", "0000:86:00.1", "0000:86:01.0"
CARD, TWIN = "0000:87:00.0", "0000:87:00.1"
LAB = f"""\
[models]
copier = "{ROOT}/examples/copier.py:Copier"

[parents."{CARD}"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
vfs = 2
types.own = {{ memory = "1M", description = "a share" }}

[parents."{TWIN}"]
kind = "gpu"
driver = "vgpu"
memory = "1M"
types.other = {{ memory = "1M", description = "all of it" }}

""" + "".join(
    f"""\
[parents."{name}"]
kind = "gpu"
driver = "{driver}"
model = "copier"
types.none = {{ description = "none", model = "mtty", instances = 1 }}

"""
    for name, driver in ((GPU, "gfx"), (AUDIO, "snd"), (OTHER, "gfx"))
)
VIABLE, CONTAINER_SET = 1, 2
IOVA, PAGE, VENDOR = 0x10000, 4096, 0x1234


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("shared"), LAB) as mounted:
        yield mounted


@pytest.fixture
def number(machine: MountedLab) -> Iterator[str]:
    """The number of the group of two functions. Afterwards both have their host drivers."""
    yield number_of(machine, GPU)
    for name in (GPU, AUDIO):
        give_back(machine, name)


def number_of(machine: MountedLab, name: str) -> str:
    return os.path.basename(os.readlink(function_dir(machine, name) / "iommu_group"))


def members(machine: MountedLab, number: str) -> list[str]:
    return sorted(os.listdir(machine.path / "sys/kernel/iommu_groups" / number / "devices"))


def driver(machine: MountedLab, name: str) -> str | None:
    link = function_dir(machine, name) / "driver"
    return os.path.basename(os.readlink(link)) if os.path.lexists(link) else None


def unbind(machine: MountedLab, name: str) -> None:
    (function_dir(machine, name) / "driver/unbind").write_text(name)


# ---- what the tree says ----


def test_a_group_lists_its_members_whatever_their_drivers(machine: MountedLab, number: str) -> None:
    assert members(machine, number) == [GPU, AUDIO] and number_of(machine, AUDIO) == number
    assert members(machine, number_of(machine, OTHER)) == [OTHER]
    directory = machine.path / "sys/kernel/iommu_groups" / number
    assert sorted(os.listdir(directory)) == ["devices", "reserved_regions", "type"]
    for name in (GPU, AUDIO):
        assert (directory / "devices" / name).resolve() == function_dir(machine, name).resolve()
    vfio_pci(machine, AUDIO)
    unbind(machine, GPU)
    assert members(machine, number) == [GPU, AUDIO]


def test_the_character_device_is_there_while_vfio_drives_a_member(machine: MountedLab, number: str) -> None:
    node, own = machine.path / "dev/vfio" / number, machine.path / "sys/devices/virtual/vfio" / number
    event = f"@/devices/virtual/vfio/{number}"
    assert not node.exists() and not own.exists()
    with listening(machine, os.O_NONBLOCK) as fd:
        for name in (AUDIO, GPU):
            vfio_pci(machine, name)
            assert node.exists() and own.is_dir()
        assert [head for head, _ in hear(fd)].count(f"add{event}") == 1
        unbind(machine, AUDIO)
        assert node.exists() and own.is_dir() and (machine.path / "sys/class/vfio" / number).exists()
        assert f"remove{event}" not in [head for head, _ in hear(fd)]
        unbind(machine, GPU)
        assert not node.exists() and not own.exists()
        assert [head for head, _ in hear(fd)].count(f"remove{event}") == 1


def test_the_type_is_the_groups(machine: MountedLab, number: str) -> None:
    kind = machine.path / "sys/kernel/iommu_groups" / number / "type"
    vfio_pci(machine, GPU)
    fails(errno.EPERM, kind.write_text, "identity")
    unbind(machine, AUDIO)
    kind.write_text("identity")
    assert kind.read_text() == "identity\n"
    give_back(machine, AUDIO)
    fails(errno.EPERM, kind.write_text, "auto")
    unbind(machine, AUDIO)
    kind.write_text("auto")


# ---- viability ----


def test_a_host_driver_of_any_member_keeps_the_group(machine: MountedLab, number: str) -> None:
    vfio_pci(machine, GPU)
    with Container(machine.path) as container, Group(machine.path, number) as group:
        assert group.flags == 0, "the group opens, but is not viable"
        fails(errno.EPERM, group.set_container, container)
        fails(errno.EINVAL, group.device_fd, GPU)
        unbind(machine, AUDIO)  # a member without a driver is none to fear
        assert group.flags == VIABLE
        group.set_container(container)
        assert group.flags == VIABLE | CONTAINER_SET
        group.unset_container()
        assert group.flags == VIABLE
        give_back(machine, AUDIO)
        assert group.flags == 0
        fails(errno.EPERM, group.set_container, container)


def test_no_host_driver_takes_a_member_of_a_group_that_a_client_has(machine: MountedLab, number: str) -> None:
    for name in (GPU, AUDIO):
        vfio_pci(machine, name)
    drivers, probe = machine.path / "sys/bus/pci/drivers", machine.path / "sys/bus/pci/drivers_probe"
    with Container(machine.path) as container, Group(machine.path, number) as group:
        group.set_container(container)
        unbind(machine, AUDIO)
        (function_dir(machine, AUDIO) / "driver_override").write_text("\n")
        with listening(machine, os.O_NONBLOCK) as fd:
            fails(errno.EBUSY, (drivers / "snd/bind").write_text, AUDIO)
            fails(errno.EINVAL, probe.write_text, AUDIO)
            assert not hear(fd)
        assert driver(machine, AUDIO) is None and group.flags == VIABLE | CONTAINER_SET
        group.unset_container()
        probe.write_text(AUDIO)
        assert driver(machine, AUDIO) == "snd" and group.flags == 0


def test_a_group_that_is_only_open_is_nobodys(machine: MountedLab, number: str) -> None:
    vfio_pci(machine, GPU)
    unbind(machine, AUDIO)
    with Group(machine.path, number) as group:
        give_back(machine, AUDIO)
        assert group.flags == 0
    assert driver(machine, AUDIO) == "snd"


def test_other_groups_are_no_concern(machine: MountedLab, number: str) -> None:
    with (
        bound(machine, OTHER) as (other,),
        Container(machine.path) as container,
        Group(machine.path, other) as group,
    ):
        group.set_container(container)
        assert driver(machine, GPU) == "gfx" and driver(machine, AUDIO) == "snd"
        unbind(machine, AUDIO)
        give_back(machine, AUDIO)


# ---- several devices of one open of a group ----


@pytest.fixture
def both(machine: MountedLab, number: str) -> Iterator[tuple[Opened, Opened]]:
    """Both functions, opened through their group in one container."""
    for name in (GPU, AUDIO):
        vfio_pci(machine, name)
    with ExitStack() as stack:
        container = stack.enter_context(Container(machine.path))
        group = stack.enter_context(Group(machine.path, number))
        group.set_container(container)
        container.set_iommu()
        gpu, audio = (
            Opened(
                container, group, stack.enter_context(Device(group_device(machine.path, group, name))), name
            )
            for name in (GPU, AUDIO)
        )
        yield gpu, audio


def copies(device: Device, memory: Memory) -> bool:
    """Whether the device copies from the first page at IOVA to the second."""
    memory.write(pattern := os.urandom(8))
    device.set_config(COMMAND_REGISTER, DECODE | MASTER)
    os.pwrite(device.fd, struct.pack("<QQII", IOVA, IOVA + PAGE, 8, COPY), 0)
    wait_for(lambda: int.from_bytes(os.pread(device.fd, 4, 0x18), "little"))
    os.pwrite(device.fd, (DONE | FAULT).to_bytes(4, "little"), 0x18)
    return memory.read(PAGE, 8) == pattern


def test_devices_of_a_group_share_the_address_space(both: tuple[Opened, Opened]) -> None:
    gpu, audio = both
    with contextlib.closing(Memory(2 * PAGE)) as memory:
        assert not copies(gpu.device, memory) and not copies(audio.device, memory)
        gpu.container.map(IOVA, memory.address, 2 * PAGE)
        assert copies(gpu.device, memory) and copies(audio.device, memory)
        gpu.device.close()
        assert copies(audio.device, memory)
        gpu.container.unmap(IOVA, 2 * PAGE)
        assert not copies(audio.device, memory)


def test_devices_are_opened_by_one_open_of_the_group(
    machine: MountedLab, number: str, both: tuple[Opened, Opened]
) -> None:
    gpu, audio = both
    assert gpu.device.fd != audio.device.fd and gpu.device.config(0) == audio.device.config(0)
    fails(errno.EBUSY, Group, machine.path, number)
    fails(errno.ENODEV, gpu.group.device_fd, OTHER)
    fails(errno.EBUSY, gpu.group.unset_container)
    gpu.device.close()
    fails(errno.EBUSY, gpu.group.unset_container)
    gpu.group.close()
    fails(errno.EBUSY, Group, machine.path, number)
    audio.device.close()
    Group(machine.path, number).close()


def test_a_member_that_is_in_use_stays_and_others_may_go(
    machine: MountedLab, number: str, both: tuple[Opened, Opened]
) -> None:
    gpu, audio = both
    fails(errno.EBUSY, unbind, machine, AUDIO)
    audio.device.close()
    unbind(machine, AUDIO)
    assert gpu.device.config(0) == VENDOR and gpu.group.flags == VIABLE | CONTAINER_SET
    fails(errno.ENODEV, gpu.group.device_fd, AUDIO)
    (machine.path / "sys/bus/pci/drivers/vfio-pci/bind").write_text(AUDIO)
    with Device(group_device(machine.path, gpu.group, AUDIO)) as again:
        assert again.config(0) == VENDOR, "the open group has the device that joins it"


def test_a_member_that_is_removed_and_found_again(
    machine: MountedLab, number: str, both: tuple[Opened, Opened]
) -> None:
    gpu, audio = both
    audio.device.close()
    (function_dir(machine, AUDIO) / "remove").write_text("1")
    assert members(machine, number) == [GPU] and gpu.device.config(0) == VENDOR
    (machine.path / "sys/bus/pci/rescan").write_text("1")
    assert members(machine, number) == [GPU, AUDIO]
    assert driver(machine, AUDIO) is None, "its host driver may not even try"
    assert gpu.group.flags == VIABLE | CONTAINER_SET


def test_the_last_device_takes_the_open_group_along(machine: MountedLab, number: str) -> None:
    for name in (GPU, AUDIO):
        vfio_pci(machine, name)
    with Group(machine.path, number) as group:
        for name in (GPU, AUDIO):
            assert group.flags == VIABLE
            unbind(machine, name)
        with pytest.raises(OSError) as caught:
            assert group.flags
        assert caught.value.errno == errno.ENODEV
        (machine.path / "sys/bus/pci/drivers/vfio-pci/bind").write_text(GPU)
        with Group(machine.path, number) as another:
            assert another.flags == VIABLE


def test_a_group_is_found_again_by_those_who_come_back(machine: MountedLab, number: str) -> None:
    """All of its members are removed. The lowest free number is given again."""
    for name in (AUDIO, GPU):
        (function_dir(machine, name) / "remove").write_text("1")
    assert not (machine.path / "sys/kernel/iommu_groups" / number).exists()
    (machine.path / "sys/bus/pci/rescan").write_text("1")
    assert number_of(machine, GPU) == number_of(machine, AUDIO) == number
    assert members(machine, number) == [GPU, AUDIO]


def test_virtual_functions_are_in_groups_of_their_own(machine: MountedLab) -> None:
    function, number = function_dir(machine, CARD), number_of(machine, CARD)
    (function / "sriov_numvfs").write_text("2")
    for index in range(2):
        name = os.path.basename(os.readlink(function / f"virtfn{index}"))
        assert members(machine, number_of(machine, name)) == [name]
    assert members(machine, number) == [CARD, TWIN]
    (function / "sriov_numvfs").write_text("0")


# ---- hot reset ----


def test_one_group_is_enough_to_reset_both(
    machine: MountedLab, number: str, both: tuple[Opened, Opened]
) -> None:
    gpu, audio = both
    with bound(machine, OTHER) as (other,), Group(machine.path, other) as neighbour:
        mine, theirs = int(number), int(other)
        flags, count, found = hot_reset_info(gpu.device, 3)
        assert (flags, count) == (0, 3)
        assert set(found) == {(mine, 0, 0x86, 0), (mine, 0, 0x86, 1), (theirs, 0, 0x86, 8)}
        fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd)
        for each in (gpu, audio):
            each.device.set_config(COMMAND_REGISTER, DECODE)
            os.pwrite(each.device.fd, b"mine", 0)
        hot_reset(gpu.device, gpu.group.fd, neighbour.fd)
        for each in (gpu, audio):
            assert os.pread(each.device.fd, 4, 0) == bytes(4)
    fails(errno.EINVAL, hot_reset, gpu.device, gpu.group.fd)  # the neighbour is its host driver's again
    audio.device.close()


def test_a_member_that_vfio_does_not_drive_is_not_reset(machine: MountedLab, number: str) -> None:
    vfio_pci(machine, GPU)
    unbind(machine, AUDIO)
    (function_dir(machine, OTHER) / "remove").write_text("1")
    with Container(machine.path) as container, Group(machine.path, number) as group:
        group.set_container(container)
        container.set_iommu()
        with Device(group_device(machine.path, group, GPU)) as device:
            assert {each[3] for each in hot_reset_info(device, 2)[2]} == {0, 1}
            fails(errno.EINVAL, hot_reset, device, group.fd)
            (function_dir(machine, AUDIO) / "driver_override").write_text("vfio-pci")
            (machine.path / "sys/bus/pci/drivers_probe").write_text(AUDIO)
            hot_reset(device, group.fd)
    (machine.path / "sys/bus/pci/rescan").write_text("1")
