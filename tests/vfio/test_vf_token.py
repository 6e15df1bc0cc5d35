# SPDX-License-Identifier: Apache-2.0
"""Virtual functions and their physical one as VFIO devices: who needs which token, and what they share.

The rules of tokens are those of vfio-pci (VFIO_DEVICE_FEATURE_PCI_VF_TOKEN in <linux/vfio.h>).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.commands import ROOT, VFSFUSE, one_write
from tests.iommufd.client import Cdev, Iommufd
from tests.labs import MountedLab, described
from tests.vfio.client import (
    DEVICE_FEATURE,
    DEVICE_GET_IRQ_INFO,
    DEVICE_PCI_HOT_RESET,
    DEVICE_PCI_HOT_RESET_INFO,
    DEVICE_RESET,
    PAGE,
    Container,
    Group,
    IrqInfo,
    Memory,
    fails,
    unmapped_address,
)
from tests.vfio.devices import (
    ERR,
    INTX,
    MSI,
    MSIX,
    REQ,
    TRIGGER,
    Device,
    Opened,
    eventfd,
    function_dir,
    give_back,
    group_device,
    opened,
    signals,
    vfio_pci,
)
from tests.vfio.gpu_client import IOVA, Gpu, client_memory, copy

LAB = f"""\
[models]
copier = "{ROOT}/examples/copier.py:Copier"

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
vfs = 2
vf_memory = "4M"
types.own = {{ memory = "1M", description = "of the function" }}

[parents."0000:90:1f.4"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
vfs = 2
vf_model = "copier"
types.own = {{ memory = "1M", description = "of the function" }}
"""
PF, VFS = "0000:86:00.0", ("0000:86:00.4", "0000:86:00.5")
EDGE, BEYOND = "0000:90:1f.4", ("0000:91:00.0", "0000:91:00.1")
TOKEN = UUID("83d8f4f2-509f-382f-3c1e-e6bfe0fa1001")
OTHER = uuid4()
GET, SET, PROBE, VF_TOKEN = 1 << 16, 1 << 17, 1 << 18, 0
SCRATCH, DISPI_XRES = (2 << 40) + 0x0C, (2 << 40) + 0x502
"""Registers of the physical function and of a display."""
PARAMETER = "sys/module/vfio_pci/parameters/enable_sriov"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("vfs"), LAB) as mounted:
        yield mounted


def enable(machine: MountedLab, physical: str, count: int) -> None:
    one_write(function_dir(machine, physical) / "sriov_numvfs", str(count))


def group_of(machine: MountedLab, name: str) -> str:
    return os.readlink(function_dir(machine, name) / "iommu_group").rsplit("/", 1)[1]


def cdev_of(machine: MountedLab, name: str) -> Path:
    return machine.path / "dev/vfio/devices" / os.listdir(function_dir(machine, name) / "vfio-dev")[0]


def bind(machine: MountedLab, name: str, token: UUID | None = None) -> None:
    """Bind the function to an iommufd by its own character device, and let go."""
    with Cdev(cdev_of(machine, name)) as device, Iommufd(machine.path) as iommufd:
        device.bind(iommufd, token)


def named(name: str, token: UUID | None) -> str:
    return name if token is None else f"{name} vf_token={token}"


@contextlib.contextmanager
def use(machine: MountedLab, name: str, token: UUID | None = None) -> Iterator[Opened]:
    """The function `name`, opened with a token in a container of its own."""
    with opened(machine, group_of(machine, name), named(name, token)) as found:
        yield found


def refused(machine: MountedLab, number: int, name: str, token: UUID | None = None) -> None:
    def attempt() -> None:
        with use(machine, name, token):
            pass

    fails(number, attempt)


@pytest.fixture
def user_driver(machine: MountedLab) -> Iterator[None]:
    """vfio-pci has the physical function and two virtual ones of it."""
    parameter = machine.path / PARAMETER
    parameter.write_text("Y")
    try:
        vfio_pci(machine, PF)
        enable(machine, PF, 2)
        yield
    finally:
        give_back(machine, PF)
        parameter.write_text("N")


@pytest.fixture
def host_driver(machine: MountedLab) -> Iterator[None]:
    """The host driver has the physical function, vfio-pci the virtual ones of both."""
    try:
        for physical, virtual in ((PF, VFS), (EDGE, BEYOND)):
            enable(machine, physical, 2)
            for name in virtual:
                (function_dir(machine, name) / "driver_override").write_text("vfio-pci")
                (machine.path / "sys/bus/pci/drivers_probe").write_text(name)
        yield
    finally:
        enable(machine, PF, 0)
        enable(machine, EDGE, 0)


def feature(device: Device, flags: int, data: bytes = b"") -> None:
    head = struct.pack("=II", 8 + len(data), flags)
    device.ioctl(DEVICE_FEATURE, ctypes.create_string_buffer(head + data))


# ---- tokens ----


@pytest.mark.usefixtures("host_driver")
def test_a_host_driver_asks_for_no_token(machine: MountedLab) -> None:
    for name in VFS:
        refused(machine, errno.EINVAL, name, TOKEN)
        with use(machine, name) as vf:
            fails(errno.ENOTTY, feature, vf.device, PROBE | SET | VF_TOKEN)
        bind(machine, name)
        fails(errno.EINVAL, bind, machine, name, TOKEN)


@pytest.mark.usefixtures("user_driver")
def test_nobody_knows_the_first_token(machine: MountedLab) -> None:
    for token in (None, TOKEN, UUID(int=0)):
        refused(machine, errno.EACCES, VFS[0], token)
        fails(errno.EACCES, bind, machine, VFS[0], token)
    for text in ("vf_token=", f"vf_token={TOKEN}x", f"token={TOKEN}"):
        with pytest.raises(OSError) as caught, opened(machine, group_of(machine, VFS[0]), f"{VFS[0]} {text}"):
            pass
        assert caught.value.errno == errno.EINVAL


@pytest.mark.usefixtures("user_driver")
def test_who_opens_the_physical_function_sets_the_token(machine: MountedLab) -> None:
    with use(machine, PF, TOKEN):
        refused(machine, errno.EACCES, VFS[0])
        refused(machine, errno.EACCES, VFS[0], OTHER)
        with use(machine, VFS[0], TOKEN), use(machine, VFS[1], TOKEN):
            pass
    with use(machine, VFS[0], TOKEN):  # it stays when its user has left
        pass
    with use(machine, PF, OTHER):
        refused(machine, errno.EACCES, VFS[0], TOKEN)


@pytest.mark.usefixtures("user_driver")
def test_the_physical_functions_user_sets_it_by_an_ioctl(machine: MountedLab) -> None:
    with use(machine, PF) as pf:
        feature(pf.device, PROBE | SET | VF_TOKEN)
        fails(errno.EINVAL, feature, pf.device, PROBE | GET | VF_TOKEN)
        fails(errno.EINVAL, feature, pf.device, GET | VF_TOKEN, bytes(16))
        fails(errno.EINVAL, feature, pf.device, SET | VF_TOKEN, bytes(15))
        feature(pf.device, SET | VF_TOKEN, TOKEN.bytes)
        with use(machine, VFS[0], TOKEN) as vf:
            fails(errno.ENOTTY, feature, vf.device, PROBE | SET | VF_TOKEN)
            feature(pf.device, SET | VF_TOKEN, OTHER.bytes)
            assert vf.device.config(0) == 0x1234  # who is in, stays in
            refused(machine, errno.EACCES, VFS[1], TOKEN)
            with use(machine, VFS[1], OTHER):
                pass


@pytest.mark.usefixtures("user_driver")
def test_the_physical_function_needs_it_while_a_virtual_one_is_open(machine: MountedLab) -> None:
    with use(machine, PF, TOKEN), use(machine, VFS[0], TOKEN):
        pass
    with use(machine, VFS[0], TOKEN) as vf:
        refused(machine, errno.EACCES, PF)
        refused(machine, errno.EACCES, PF, OTHER)
        fails(errno.EACCES, bind, machine, PF)
        fails(errno.EACCES, bind, machine, PF, OTHER)
        bind(machine, PF, TOKEN)
        with use(machine, PF, TOKEN):
            pass
        again = Device(group_device(machine.path, vf.group, named(VFS[0], TOKEN)))
        vf.device.close()
        refused(machine, errno.EACCES, PF)
        again.close()
        with use(machine, PF):
            pass


@pytest.mark.usefixtures("user_driver")
def test_tokens_of_functions_that_are_bound(machine: MountedLab) -> None:
    """The rules are those of GROUP_GET_DEVICE_FD; the open of the file asks for nothing."""
    with (
        Iommufd(machine.path) as iommufd,
        Cdev(cdev_of(machine, PF)) as pf,
        Cdev(cdev_of(machine, VFS[0])) as vf,
    ):
        fails(errno.EFAULT, vf.bind, iommufd, flags=1, token_uuid_ptr=unmapped_address())
        pf.bind(iommufd, TOKEN)
        for token in (None, OTHER):
            fails(errno.EACCES, vf.bind, iommufd, token)
        fails(errno.EACCES, vf.bind, iommufd, TOKEN, flags=0)
        assert vf.bind(iommufd, TOKEN) == 2
        assert vf.config(0) == 0x1234
        pf.close()
        for token in (None, OTHER):
            fails(errno.EACCES, bind, machine, PF, token)
        bind(machine, PF, TOKEN)
        vf.close()
        bind(machine, PF)


@pytest.mark.usefixtures("user_driver")
def test_a_token_stays_when_the_bind_fails(machine: MountedLab) -> None:
    with Cdev(cdev_of(machine, PF)) as pf:
        fails(errno.EBADFD, pf.bind, pf, TOKEN)
        bind(machine, VFS[0], TOKEN)


def test_a_new_user_driver_has_a_new_token(machine: MountedLab) -> None:
    parameter = machine.path / PARAMETER
    parameter.write_text("Y")
    try:
        for _ in range(2):
            vfio_pci(machine, PF)
            enable(machine, PF, 1)
            refused(machine, errno.EACCES, VFS[0], TOKEN)
            with use(machine, PF, TOKEN), use(machine, VFS[0], TOKEN):
                pass
            give_back(machine, PF)
    finally:
        give_back(machine, PF)
        parameter.write_text("N")


CLIENT = """
import sys
from tests.vfio.client import Container, Group
from tests.vfio.devices import Device
group, *names = sys.argv[1:]
with Container("/") as container, Group("/", group) as file:
    file.set_container(container)
    container.set_iommu()
    for name in names:
        try:
            with Device(file.device_fd(name)) as device:
                print(hex(device.config(2)))
        except OSError as error:
            print(error.errno)
"""


@pytest.mark.usefixtures("user_driver")
def test_tokens_under_run(machine: MountedLab) -> None:
    """An unmodified client's own GROUP_GET_DEVICE_FD."""
    names = [named(VFS[0], token) for token in (None, OTHER, TOKEN)]
    with use(machine, PF, TOKEN):
        client = [sys.executable, "-c", CLIENT, group_of(machine, VFS[0]), *names]
        done = subprocess.run(
            [*VFSFUSE, "run", "--mount", str(machine.path), "--", *client],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert (done.stdout.split(), done.stderr) == ([str(errno.EACCES)] * 2 + ["0x1111"], "")


# ---- removal ----


def test_holders_are_asked_before_they_go(machine: MountedLab, host_driver: None) -> None:
    with ExitStack() as stack:
        events = [stack.enter_context(eventfd()) for _ in VFS]
        for name, event in zip(VFS, events, strict=True):
            vf = stack.enter_context(use(machine, name))
            vf.device.eventfds(REQ, TRIGGER, 0, event)
        fails(errno.EBUSY, enable, machine, PF, 0)
        assert [signals(event) for event in events] == [1, 1]
        vf.device.close()
        fails(errno.EBUSY, enable, machine, PF, 0)
        assert signals(events[0]) == 1
    enable(machine, PF, 0)
    assert not function_dir(machine, VFS[0]).exists()


@pytest.mark.usefixtures("user_driver")
def test_vfio_pci_does_not_leave_virtual_functions_behind(machine: MountedLab) -> None:
    unbind = machine.path / "sys/bus/pci/drivers/vfio-pci/unbind"
    with use(machine, PF, TOKEN) as pf:
        with use(machine, VFS[1], TOKEN), eventfd() as event:
            pf.device.eventfds(REQ, TRIGGER, 0, event)
            fails(errno.EBUSY, one_write, unbind, PF)
            assert signals(event) == 1
            pf.device.close()
            fails(errno.EBUSY, one_write, unbind, PF)
            assert function_dir(machine, VFS[0]).exists()
            pf.group.close()
            with use(machine, PF, TOKEN):
                pass
        one_write(unbind, PF)
    assert not any(function_dir(machine, name).exists() for name in VFS)


# ---- as devices ----


@pytest.mark.usefixtures("host_driver")
def test_config_space_is_as_vfio_pci_shows_it(machine: MountedLab) -> None:
    with use(machine, VFS[1]) as vf:
        assert [vf.device.config(offset) for offset in (0, 2, 0x2C)] == [0x1234, 0x1111, 0x1AF4]
        assert vf.device.config(4) & 2 and not vf.device.config(4) & 4
        vf.device.set_config(0x10, 0xFFFFFFFF, 4)
        assert vf.device.config(0x10, 4) == 0xFFC00008
        config = function_dir(machine, VFS[1]) / "config"
        assert config.read_bytes()[0x10:0x14] == bytes(4)
        with config.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"\x20" * 12, 0x0D)  # from the latency timer into the BARs
        assert vf.device.config(0x10, 4) == 0xFFC00008 and vf.device.config(0x0D, 1) == 0x20
        vf.device.set_config(4, 0)
        os.pwrite(vf.device.fd, b"answers", 0)
        assert os.pread(vf.device.fd, 7, 0) == b"answers"
        os.pwrite(vf.device.fd, b"\x80\x02", DISPI_XRES)
        assert os.pread(vf.device.fd, 2, DISPI_XRES) == b"\x80\x02"
        vf.device.ioctl(DEVICE_RESET)
        assert os.pread(vf.device.fd, 2, DISPI_XRES) != b"\x80\x02"
        assert vf.device.config(0x10, 4) == 0xFFC00008  # saved and restored


@pytest.mark.usefixtures("host_driver")
@pytest.mark.parametrize(("index", "count"), [(INTX, 0), (MSI, 0), (MSIX, 4), (ERR, 1), (REQ, 1)])
def test_interrupts(machine: MountedLab, index: int, count: int) -> None:
    info = IrqInfo(index=index)
    with use(machine, VFS[0]) as vf:
        vf.device.ioctl(DEVICE_GET_IRQ_INFO, info)
        assert info.count == count


@pytest.mark.usefixtures("host_driver")
def test_mappings_are_pinned_as_for_hardware(machine: MountedLab) -> None:
    with use(machine, VFS[0]) as vf:
        fails(errno.EFAULT, vf.container.map, 0, unmapped_address(), PAGE)
        fails(errno.EINVAL, vf.container.map, 0xFEE00000, unmapped_address(), PAGE)


@pytest.mark.usefixtures("host_driver")
def test_a_virtual_function_does_dma(machine: MountedLab) -> None:
    memory = Memory(2 * PAGE)
    memory.write(b"through the IOMMU")
    with use(machine, BEYOND[1]) as vf, eventfd() as event:
        vf.container.map(0x10000, memory.address, 2 * PAGE)
        vf.device.set_config(4, 6)
        vf.device.eventfds(MSIX, TRIGGER, 0, event)
        os.pwrite(vf.device.fd, struct.pack("<QQII", 0x10000, 0x10000 + PAGE, 17, 1), 0)
        assert signals(event) == 1
        assert os.pread(vf.device.fd, 4, 0x18) == b"\x01\0\0\0"
        os.pwrite(vf.device.fd, b"\x03", 0x18)
    assert memory.read(PAGE, 17) == b"through the IOMMU"
    memory.close()


@pytest.mark.usefixtures("host_driver")
def test_its_engine_works_through_pinned_mappings(machine: MountedLab) -> None:
    memory = client_memory(8 * PAGE)
    with use(machine, VFS[0]) as vf:
        vf.container.map(IOVA, memory.address, memory.size)
        engine = Gpu(vf, memory)
        engine.start()
        engine.set_system(0, b"system memory")
        engine.finish(copy(0x1000, engine.base, 13), copy(engine.base + PAGE, 0x1000, 13))
        assert engine.video(0x1000, 13) == engine.system(PAGE, 13) == b"system memory"
    memory.close()


def hot_reset_info(device: Device) -> list[tuple[int, int, int, int]]:
    call = ctypes.create_string_buffer(struct.pack("=III", 12 + 8 * 8, 0, 0), 12 + 8 * 8)
    device.ioctl(DEVICE_PCI_HOT_RESET_INFO, call)
    count = struct.unpack_from("=III", call.raw)[2]
    return list(struct.iter_unpack("=IHBB", call.raw[12:]))[:count]


def hot_reset(device: Device, *groups: int) -> None:
    head = struct.pack(f"=III{len(groups)}i", 12 + 4 * len(groups), 0, len(groups), *groups)
    device.ioctl(DEVICE_PCI_HOT_RESET, ctypes.create_string_buffer(head))


@pytest.mark.usefixtures("user_driver")
def test_a_bus_is_reset_with_its_virtual_functions(machine: MountedLab) -> None:
    with use(machine, PF, TOKEN) as pf, ExitStack() as stack:
        groups = [stack.enter_context(Group(machine.path, group_of(machine, name))) for name in VFS]
        assert hot_reset_info(pf.device) == [
            (int(group_of(machine, name)), 0, 0x86, number)
            for name, number in ((PF, 0), (VFS[0], 4), (VFS[1], 5))
        ]
        os.pwrite(pf.device.fd, b"mine", SCRATCH)
        fails(errno.EINVAL, hot_reset, pf.device, pf.group.fd)
        fails(errno.EINVAL, hot_reset, pf.device, pf.group.fd, groups[0].fd)
        assert os.pread(pf.device.fd, 4, SCRATCH) == b"mine"
        hot_reset(pf.device, pf.group.fd, *(group.fd for group in groups))
        assert os.pread(pf.device.fd, 4, SCRATCH) == bytes(4)
        assert (function_dir(machine, PF) / "sriov_numvfs").read_text() == "2\n"


@pytest.mark.usefixtures("host_driver")
def test_a_bus_without_a_port_above_it_is_not_reset(machine: MountedLab) -> None:
    """As in Linux, where the bus of virtual functions that are behind their physical one's has no bridge."""
    with use(machine, BEYOND[0]) as vf, Group(machine.path, group_of(machine, BEYOND[1])) as other:
        fails(errno.ENODEV, hot_reset_info, vf.device)
        fails(errno.ENODEV, hot_reset, vf.device, vf.group.fd, other.fd)
        vf.device.ioctl(DEVICE_RESET)
    assert (function_dir(machine, BEYOND[0]) / "physfn").resolve().name == EDGE
    assert function_dir(machine, BEYOND[0]).resolve().parent == function_dir(machine, EDGE).resolve().parent


@pytest.mark.usefixtures("host_driver")
def test_a_container_takes_virtual_functions_and_vgpus(machine: MountedLab) -> None:
    memory = Memory(PAGE)
    with (
        machine.create("own", PF) as vgpu,
        Container(machine.path) as container,
        Group(machine.path, group_of(machine, VFS[0])) as first,
        Group(machine.path, vgpu.group) as second,
    ):
        first.set_container(container)
        second.set_container(container)
        container.set_iommu()
        container.map(0, memory.address, PAGE)
        for group, name in ((first, VFS[0]), (second, vgpu.name)):
            Device(group_device(machine.path, group, name)).close()
    memory.close()
