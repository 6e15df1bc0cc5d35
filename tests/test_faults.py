# SPDX-License-Identifier: Apache-2.0
"""Fault rules on a mounted lab, as clients meet them: each thing that happens to each kind of call.

Rules are written to the file `faults` of the mount, while the clients have their files and devices open.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable

import pytest

from tests.commands import one_write
from tests.faultrules import (
    COMMAND_REGISTER,
    IOVA,
    SOURCE_REGISTER,
    STATUS_REGISTER,
    TARGET,
    Faults,
    aside,
    faults,
    machine,
    mapped,
    put,
    read,
)
from tests.iommufd.client import Iommufd
from tests.iommufd.conftest import copier, gpu, iommufd, memory, vgpu
from tests.iommufd.devices import Copier
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import (
    DEVICE_RESET,
    PAGE,
    Container,
    Group,
    Memory,
    fails,
    ioctl,
)
from tests.vfio.copiers import DONE, FAULT, GPU, MASTER
from tests.vfio.devices import (
    MSIX,
    TRIGGER,
    eventfd,
    function_dir,
    give_back,
    group_device,
    signals,
    silent,
)
from tests.waiting import wait_for

__all__ = ["copier", "faults", "gpu", "iommufd", "machine", "mapped", "memory", "vgpu"]


# ---- errno: each kind of call fails as the rule says, and works again afterwards ----


def test_an_ioctl_fails(faults: Faults, iommufd: Iommufd, copier: Copier) -> None:
    with faults.hold(
        "name=full ioctl=IOMMU_IOAS_ALLOC nth=2 errno=ENOSPC", "ioctl=VFIO_DEVICE_RESET errno=EAGAIN"
    ):
        iommufd.ioas()
        fails(errno.ENOSPC, iommufd.ioas)
        iommufd.ioas()
        fails(errno.EAGAIN, ioctl, copier.fd, DEVICE_RESET)
        assert [faults.said(0), faults.said(1)] == ["1 hit of 2 calls", "1 hit of 1 call"]
    ioctl(copier.fd, DEVICE_RESET)


def test_an_ioctl_of_a_container_fails(
    machine: MountedLab, faults: Faults, vgpu: Vgpu, memory: Memory
) -> None:
    with Container(machine.path) as container, Group(machine.path, vgpu.group) as group:
        with faults.hold(
            "ioctl=VFIO_GROUP_SET_CONTAINER nth=1 errno=EBUSY", "ioctl=VFIO_IOMMU_* every=2 errno=12"
        ):
            fails(errno.EBUSY, group.set_container, container)
            group.set_container(container)
            container.set_iommu()
            container.map(0, memory.address, PAGE)
            fails(errno.ENOMEM, container.map, PAGE, memory.address, PAGE)
            container.map(PAGE, memory.address, PAGE)
        assert container.unmap(0, 2 * PAGE) == 2 * PAGE


def test_an_ioctl_that_gives_a_descriptor_fails(machine: MountedLab, faults: Faults, vgpu: Vgpu) -> None:
    with Container(machine.path) as container, Group(machine.path, vgpu.group) as group:
        group.set_container(container)
        container.set_iommu()
        with faults.hold(f"device={vgpu.name} ioctl=VFIO_GROUP_GET_DEVICE_FD nth=1 errno=EMFILE"):
            fails(errno.EMFILE, group_device, machine.path, group, vgpu.name)
            os.close(group_device(machine.path, group, vgpu.name))


def test_region_accesses_fail(faults: Faults, copier: Copier) -> None:
    with faults.hold("register=STATUS errno=EIO", "region=BAR0 range=0x00-0x07 access=write errno=ENODEV"):
        fails(errno.EIO, read, copier, STATUS_REGISTER)
        fails(errno.EIO, read, copier, STATUS_REGISTER + 3, 1)
        fails(errno.ENODEV, put, copier, SOURCE_REGISTER, 1, 8)
        assert read(copier, SOURCE_REGISTER, 8) == 0
        put(copier, 0x10, 7)
        assert read(copier, 0x10) == 7
    with faults.hold("region=config range=0-1 errno=EFAULT"):
        fails(errno.EFAULT, copier.config, 0)
        assert copier.config(4) & MASTER
    assert read(copier, STATUS_REGISTER) == 0 and copier.config(0) == 0x1234


def test_opens_fail(machine: MountedLab, faults: Faults, vgpu: Vgpu) -> None:
    rules = (
        "open=iommu errno=EMFILE",
        f"device={vgpu.name} open=* errno=EBUSY",
        f"open=sys/*/{GPU}/config errno=EPERM",
    )
    with faults.hold(*rules):
        fails(errno.EMFILE, Iommufd, machine.path)
        fails(errno.EBUSY, Group, machine.path, vgpu.group)
        fails(errno.EBUSY, Copier, vgpu.cdev)
        fails(errno.EPERM, (function_dir(machine, GPU) / "config").read_bytes)
        Container(machine.path).close()
    for path in (machine.path / "dev/iommu", vgpu.cdev):
        os.close(os.open(path, os.O_RDWR))


def test_stores_and_creations_fail(machine: MountedLab, faults: Faults, vgpu: Vgpu) -> None:
    names = set(os.listdir(machine.mdevs))
    with faults.hold(f"device={vgpu.name} store=remove errno=EBUSY", "create=copier-* errno=ENOSPC"):
        fails(errno.EBUSY, one_write, vgpu.path / "remove", "1")
        fails(errno.ENOSPC, machine.create, "copier-1", "copiers")
        machine.create("holder-1", "holders").remove()
        assert set(os.listdir(machine.mdevs)) == names


def test_binds_and_probes_fail(machine: MountedLab, faults: Faults) -> None:
    function, driver = function_dir(machine, GPU), machine.path / "sys/bus/pci/drivers/vfio-pci"
    try:
        (function / "driver_override").write_text("vfio-pci")
        (function / "driver/unbind").write_text(GPU)
        with faults.hold(
            "name=bind bind=vfio-pci nth=1 errno=EBUSY", f"device={GPU} probe=vfio-* nth=1 errno=EIO"
        ):
            fails(errno.EBUSY, one_write, driver / "bind", GPU)
            assert faults.said(1) == "0 hits of 0 calls"
            fails(errno.EIO, one_write, driver / "bind", GPU)
            assert not (function / "driver").exists()
            one_write(driver / "bind", GPU)
        assert (function / "driver").resolve().name == "vfio-pci"
    finally:
        give_back(machine, GPU)
    name = str(uuid.uuid4())
    with faults.hold("probe=vfio_mdev errno=ENODEV"):
        one_write(machine.parent("copiers") / "mdev_supported_types/copier-1/create", name)
        assert not (machine.mdevs / name / "driver").exists()
    one_write(machine.mdevs / name / "remove", "1")


def test_dma_fails_as_a_fault_of_the_device(faults: Faults, copier: Copier, mapped: Memory) -> None:
    mapped.write(b"\7" * 8)
    for kind, rule in (("read", f"iova={IOVA:#x}"), ("write", f"iova={TARGET:#x}-{TARGET + PAGE:#x}")):
        with faults.hold(f"dma={kind} {rule} errno=EIO"):
            assert copier.copy(IOVA, TARGET, 8) == FAULT
            assert copier.copy(IOVA + 2 * PAGE, IOVA + 3 * PAGE, 8) == DONE
    assert mapped.read(PAGE, 8) == bytes(8)
    assert copier.copy(IOVA, TARGET, 8) == DONE and mapped.read(PAGE, 8) == b"\7" * 8


# ---- data ----


def test_reads_give_other_values(faults: Faults, copier: Copier) -> None:
    put(copier, SOURCE_REGISTER, 0x1122334455667788, 8)
    with faults.hold("register=SOURCE access=read value=0xa1a2a3a4a5a6a7a8"):
        assert read(copier, 0, 8) == 0xA1A2A3A4A5A6A7A8
        assert (
            read(copier, 0, 4) == 0xA5A6A7A8
            and read(copier, 4, 4) == 0xA1A2A3A4
            and read(copier, 2, 1) == 0xA6
        )
        assert os.pread(copier.fd, 16, 0) == bytes.fromhex("a8a7a6a5a4a3a2a1") + bytes(8)
    with faults.hold("region=BAR0 range=0-7 flip=0x80"):
        assert read(copier, 0, 8) == 0x1122334455667708 and read(copier, 4, 1) == 0x44 ^ 0x80
        put(copier, SOURCE_REGISTER, 0, 8)
        assert read(copier, 0, 8) == 0
    assert read(copier, 0, 8) == 0x80
    with faults.hold(
        "register=STATUS region=BAR0 value=0xa5a5a5a5", "register=COMMAND region=config value=0"
    ):
        assert read(copier, STATUS_REGISTER) == 0xA5A5A5A5 and copier.config(6) == 0x10
        assert copier.config(4, 4) == 0x100000 and read(copier, COMMAND_REGISTER) == 0
    with faults.hold("region=config range=0-3 value=0xffffffff"):
        assert copier.config(0, 4) == 0xFFFFFFFF
    assert copier.config(0, 4) == 0xC0F11234


def test_writes_and_dma_have_other_data(faults: Faults, copier: Copier, mapped: Memory) -> None:
    with faults.hold("register=SIZE access=write value=4"):
        mapped.write(b"\7" * 8)
        assert copier.copy(IOVA, TARGET, 8) == DONE
        assert mapped.read(PAGE, 8) == b"\7" * 4 + bytes(4) and read(copier, 0x10) == 4
    with faults.hold("dma=read flip=0x0100"):
        assert copier.copy(IOVA, TARGET, 8) == DONE
        assert mapped.read(PAGE, 8) == b"\7\6" + b"\7" * 6 and mapped.read(0, 8) == b"\7" * 8
    with faults.hold("dma=write value=0x4241"):
        assert copier.copy(IOVA, TARGET, 3) == DONE
        assert mapped.read(PAGE, 4) == b"AB\0\7"


def test_a_store_has_other_data(machine: MountedLab, faults: Faults) -> None:
    override = function_dir(machine, GPU) / "driver_override"
    with faults.hold(f"device={GPU} store=driver_override nth=1 flip=0x20"):
        override.write_text("abc\n")
        assert override.read_text() == "Abc\n"
        override.write_text("abc\n")
        assert override.read_text() == "abc\n"
    override.write_text("\n")


# ---- lost, and twice ----


def test_what_is_lost(
    faults: Faults, copier: Copier, mapped: Memory, machine: MountedLab, vgpu: Vgpu
) -> None:
    mapped.write(b"\7" * 8)
    with faults.hold("register=SIZE access=write drop=true"):
        put(copier, 0x10, 9)
    assert read(copier, 0x10) == 0
    put(copier, 0x10, 9)
    with faults.hold("register=SIZE access=read drop=true"):
        assert read(copier, 0x10) == 0
    assert read(copier, 0x10) == 9
    with faults.hold("dma=write drop=true"):
        assert copier.copy(IOVA, TARGET, 8) == DONE
    assert mapped.read(PAGE, 8) == bytes(8)
    with faults.hold("ioctl=VFIO_DEVICE_RESET drop=true"):
        ioctl(copier.fd, DEVICE_RESET)
    assert read(copier, 0x10) == 8
    with faults.hold(f"device={vgpu.name} store=remove drop=true"):
        one_write(vgpu.path / "remove", "1")
    assert vgpu.path.exists()


def test_interrupts_are_lost_come_twice_and_later(faults: Faults, copier: Copier, mapped: Memory) -> None:
    with eventfd() as event, eventfd() as other:
        copier.eventfds(MSIX, TRIGGER, 0, event, other)
        with faults.hold("interrupt=MSIX vector=0 drop=true"):
            assert copier.copy(IOVA, TARGET, 8) == DONE
            wait_for(lambda: faults.said() == "1 hit of 1 call")
        assert silent(event)
        with faults.hold(
            "interrupt=MSIX duplicate=true", "interrupt=MSI drop=true", "interrupt=any vector=1 drop=true"
        ):
            assert copier.copy(IOVA, TARGET, 8) == DONE
            wait_for(lambda: faults.said() == "1 hit of 1 call")
        came: list[int] = []

        def both() -> bool:
            came.append(signals(event))
            return sum(came) > 1

        wait_for(both)
        assert sum(came) == 2
        with faults.hold("interrupt=any hang=true"):
            assert copier.copy(IOVA, TARGET, 8) == DONE
            wait_for(lambda: faults.said() == "1 hit of 1 call, 1 held")
            assert silent(event)
            faults.write("release")
            assert signals(event) == 1
        with faults.hold("interrupt=any delay=0.05"):
            assert copier.copy(IOVA, TARGET, 8) == DONE
            assert signals(event) == 1
        copier.tear_down(MSIX)


def test_what_is_written_twice(faults: Faults, machine: MountedLab, copier: Copier, mapped: Memory) -> None:
    with eventfd() as event:
        copier.eventfds(MSIX, TRIGGER, 0, event)
        mapped.write(b"\7" * 8)
        with faults.hold("register=COMMAND duplicate=true", "name=count dma=any nth=1000 errno=EIO"):
            copier.begin(IOVA, TARGET, 8)
            wait_for(lambda: faults.said(1) == "0 hits of 4 calls")
            assert faults.said(0) == "1 hit of 1 call"
        wait_for(lambda: signals(event))
        copier.tear_down(MSIX)
    name = str(uuid.uuid4())
    types = machine.parent("copiers") / "mdev_supported_types/copier-1"
    with faults.hold("store=create duplicate=true"):
        fails(errno.EEXIST, one_write, types / "create", name)
    one_write(machine.mdevs / name / "remove", "1")


# ---- waiting ----


@pytest.mark.parametrize("end", ["release", "clear", "release held", "clear held"])
def test_calls_hang_until_they_are_let_go(
    faults: Faults, machine: MountedLab, iommufd: Iommufd, copier: Copier, vgpu: Vgpu, end: str
) -> None:
    calls: dict[str, tuple[str, Callable[[], object]]] = {
        "ioctl": ("ioctl=IOMMU_IOAS_ALLOC", iommufd.ioas),
        "blocking ioctl": ("ioctl=VFIO_DEVICE_RESET", lambda: ioctl(copier.fd, DEVICE_RESET)),
        "read": ("register=STATUS access=read", lambda: read(copier, STATUS_REGISTER)),
        "write": ("region=BAR0 access=write", lambda: put(copier, SOURCE_REGISTER, 5, 8)),
        "open": ("open=vfio/vfio", lambda: Container(machine.path).close()),
        "store": (f"device={vgpu.name} store=remove", lambda: one_write(vgpu.path / "remove", "0")),
        "create": ("create=holder-1", lambda: machine.create("holder-1", "holders").remove()),
    }
    for rule, call in calls.values():
        faults.write(f"add name=held {rule} nth=1 hang=true")
        try:
            with aside(call) as future:
                wait_for(lambda: faults.said() == "1 hit of 1 call, 1 held")
                assert read(copier, 0x10) == 0 and not future.done()  # others go on
                faults.write(end)
                future.result(60)
        finally:
            if "release" in end:
                assert faults.said() == "1 hit of 1 call"
                faults.write("clear")
    assert faults.list() == []


def test_dma_hangs(faults: Faults, copier: Copier, mapped: Memory) -> None:
    with faults.hold("dma=write hang=true"):
        copier.begin(IOVA, TARGET, 8)
        wait_for(lambda: faults.said() == "1 hit of 1 call, 1 held")
        assert copier.status == 0
        faults.write("release")
        wait_for(lambda: copier.status == DONE)


def test_delays_add_up_and_the_call_is_made(faults: Faults, copier: Copier) -> None:
    with faults.hold("register=STATUS delay=0.05", "register=STATUS delay=0.05 flip=1"):
        assert read(copier, STATUS_REGISTER) == 1


def test_a_signal_ends_a_call_that_hangs(machine: MountedLab, faults: Faults) -> None:
    program = "import os,sys; os.open(sys.argv[1], os.O_RDWR)"
    with faults.hold("open=iommu hang=true"):
        client = subprocess.Popen([sys.executable, "-c", program, str(machine.path / "dev/iommu")])
        wait_for(lambda: faults.said().endswith("1 held"))
        client.send_signal(signal.SIGKILL)
        assert client.wait(60) == -signal.SIGKILL
        wait_for(lambda: faults.said() == "1 hit of 1 call")
