# SPDX-License-Identifier: Apache-2.0
"""Fault rules on a mounted lab, as clients meet them: each kind of call, and each thing that happens to it.

Rules are written to the file `faults` of the mount, while the clients have their files and devices open.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests import needs
from tests.commands import one_write
from tests.iommufd.client import Iommufd
from tests.iommufd.conftest import copier, gpu, iommufd, memory, vgpu
from tests.iommufd.devices import LAB, Copier
from tests.labs import MountedLab, Vgpu, described
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
    vfio_pci,
)
from tests.waiting import wait_for

__all__ = ["copier", "gpu", "iommufd", "memory", "vgpu"]

IOVA, TARGET = 1 << 20, (1 << 20) + PAGE
SOURCE_REGISTER, STATUS_REGISTER, COMMAND_REGISTER = 0x00, 0x18, 0x14
VFS = """
[functions."0000:90:00.0"]
driver = "pf"
vfs = 4
vf = { driver = "vfdriver" }
"""
PF = "0000:90:00.0"


class Faults:
    """The rules of a lab, through its file."""

    def __init__(self, lab: MountedLab) -> None:
        self.path = lab.path / "faults"

    def write(self, text: str | bytes) -> str:
        """The outcome of a write. Raises OSError, whose text is the file's reason."""
        fd = os.open(self.path, os.O_RDWR)
        try:
            os.write(fd, text.encode() if isinstance(text, str) else text)
            return os.pread(fd, 1 << 20, 0).decode()
        except OSError as error:
            raise OSError(error.errno, os.pread(fd, 1 << 20, 0).decode()) from None
        finally:
            os.close(fd)

    def list(self) -> list[str]:
        return self.path.read_text().splitlines()

    @contextmanager
    def hold(self, *rules: str) -> Iterator[None]:
        """The lab has these rules in the block."""
        self.write("".join(f"add {rule}\n" for rule in rules))
        try:
            yield
        finally:
            self.write("clear\n")

    def said(self, number: int = 0) -> str:
        """How often a rule has hit."""
        return self.list()[number].partition("  # ")[2]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab of copiers, and a function with virtual ones."""
    with described(tmp_path_factory.mktemp("faults"), LAB + VFS) as mounted:
        yield mounted


@pytest.fixture
def faults(machine: MountedLab) -> Faults:
    return Faults(machine)


@pytest.fixture
def mapped(iommufd: Iommufd, copier: Copier, memory: Memory) -> Memory:
    """Memory of the client that the copier reaches at IOVA."""
    ioas = iommufd.ioas()
    iommufd.map(ioas, memory.address, memory.size, IOVA)
    copier.attach(ioas)
    return memory


def read(copier: Copier, offset: int, size: int = 4) -> int:
    return int.from_bytes(os.pread(copier.fd, size, offset), "little")


def put(copier: Copier, offset: int, value: int, size: int = 4) -> None:
    assert os.pwrite(copier.fd, value.to_bytes(size, "little"), offset) == size


@contextmanager
def aside(call: Callable[[], object]) -> Iterator[Future[object]]:
    """A call on a thread of its own."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(call)


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
        assert signals(event) == 2
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
                future.result(20)
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
        assert client.wait(20) == -signal.SIGKILL
        wait_for(lambda: faults.said() == "1 hit of 1 call")


# ---- when ----


def test_the_same_seed_hits_the_same_calls(faults: Faults, copier: Copier) -> None:
    def outcome(seed: int) -> list[int]:
        with faults.hold(f"name=some register=STATUS probability=0.3 seed={seed} value=1"):
            return [read(copier, STATUS_REGISTER) for _ in range(100)]

    first = outcome(1)
    assert 10 < sum(first) < 60 and outcome(1) == first and outcome(2) != first


def test_a_rule_holds_while_a_file_is_there(faults: Faults, copier: Copier, tmp_path: Path) -> None:
    path = tmp_path / "on"
    with faults.hold(f"register=STATUS while={path} value=1"):
        assert read(copier, STATUS_REGISTER) == 0
        path.touch()
        wait_for(lambda: read(copier, STATUS_REGISTER) == 1)
        path.unlink()
        wait_for(lambda: read(copier, STATUS_REGISTER) == 0)


def test_a_rule_is_about_one_process(faults: Faults, machine: MountedLab) -> None:
    path = machine.path / "dev/iommu"
    with faults.hold("process=cat open=iommu errno=EPERM"):
        done = subprocess.run(["cat", path], capture_output=True, text=True, check=False)
        os.close(os.open(path, os.O_RDWR))
        assert "Operation not permitted" in done.stderr and faults.said() == "1 hit of 1 call"
    with faults.hold(f"process={os.getpid()} open=iommu errno=EPERM"):
        done = subprocess.run(["cat", path], capture_output=True, text=True, check=False)
        fails(errno.EPERM, os.open, path, os.O_RDWR)
        assert "Operation not permitted" not in done.stderr and faults.said() == "1 hit of 1 call"


def test_rules_of_one_device_leave_the_others_alone(faults: Faults, copier: Copier, gpu: Copier) -> None:
    with faults.hold(f"device={GPU} register=STATUS value=1", "device=copier-1 register=STATUS value=2"):
        assert (read(gpu, STATUS_REGISTER), read(copier, STATUS_REGISTER)) == (1, 2)
    with faults.hold("device=86:0?.0 call=any errno=plausible"):
        fails(errno.EIO, read, gpu, STATUS_REGISTER)
        fails(errno.EAGAIN, ioctl, gpu.fd, DEVICE_RESET)
        assert read(copier, STATUS_REGISTER) == 0


# ---- devices ----


def test_a_device_is_gone_at_a_call(machine: MountedLab, faults: Faults, iommufd: Iommufd) -> None:
    vgpu = machine.create("copier-1", "copiers")
    with Copier(vgpu.cdev) as copier:
        copier.ready(iommufd)
        with faults.hold("register=SIZE access=write nth=2 remove=true"):
            put(copier, 0x10, 1)
            put(copier, 0x10, 2)
            wait_for(lambda: not vgpu.path.exists())
            wait_for(lambda: _errno(copier) == errno.ENODEV or read(copier, 0x10) == 0xFFFFFFFF)
            assert faults.said() == "1 hit of 2 calls"


def _errno(copier: Copier) -> int:
    try:
        os.pread(copier.fd, 4, 0x10)
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_device_resets_itself(faults: Faults, copier: Copier, vgpu: Vgpu) -> None:
    put(copier, 0x10, 7)
    with faults.hold("register=COMMAND access=write nth=1 reset=true"):
        put(copier, COMMAND_REGISTER, 0)
        wait_for(lambda: read(copier, 0x10) == 0)


def test_a_device_goes_by_itself(machine: MountedLab, faults: Faults) -> None:
    vgpu = machine.create("copier-1", "copiers")
    trace = os.open(machine.path / "trace", os.O_RDWR)
    os.write(trace, b'{"kinds": ["lifecycle"]}\n')
    with faults.hold(f"name=gone device={vgpu.name} after=0.05 remove=true"):
        wait_for(lambda: not vgpu.path.exists())
        assert faults.said() == "1 hit of 1 call"
    record = json.loads(os.read(trace, 1 << 16).partition(b"\n")[0])
    os.close(trace)
    assert (record["subject"], record["name"]) == (vgpu.name, "fault")
    assert (record["arguments"], record["fault"]) == ({"arguments": ["remove"]}, "gone")


def test_virtual_functions_appear_late_and_without_a_driver(machine: MountedLab, faults: Faults) -> None:
    function = function_dir(machine, PF)

    def present(index: int) -> bool:
        return (function / f"virtfn{index}").exists()

    try:
        with faults.hold(f"device={PF} nth=2 late=0.2", f"name=bare device={PF} nth=1 driverless=true"):
            one_write(function / "sriov_numvfs", "2")
            assert present(0) and not (function / "virtfn0/driver").exists()
            wait_for(lambda: present(1))
            assert (function / "virtfn1/driver").resolve().name == "vfdriver"
    finally:
        one_write(function / "sriov_numvfs", "0")


# ---- the trace ----


def test_each_fault_is_in_the_trace_with_its_rule(
    machine: MountedLab, faults: Faults, copier: Copier, mapped: Memory, iommufd: Iommufd
) -> None:
    rules = {
        "ioctl": "ioctl=IOMMU_IOAS_ALLOC errno=EIO",
        "region": "register=SIZE access=write flip=1",
        "dma": "dma=write drop=true",
        "interrupt": "interrupt=any drop=true",
        "store": "store=numa_node hang=true",
        "lifecycle": f"device={PF} driverless=true",
        "open": "open=vfio/vfio errno=EIO",
    }
    more = {"lifecycle create": "create=holder-1 errno=EIO", "lifecycle probe": "probe=vfio-pci errno=EIO"}
    trace = os.open(machine.path / "trace", os.O_RDWR | os.O_NONBLOCK)
    function = function_dir(machine, PF)
    with (
        eventfd() as event,
        faults.hold(
            *(f"name={kind} {rule}" for kind, rule in rules.items()),
            *(f"name={kind.replace(' ', '.')} {rule}" for kind, rule in more.items()),
        ),
    ):
        fails(errno.EIO, iommufd.ioas)
        copier.eventfds(MSIX, TRIGGER, 0, event)
        assert copier.copy(IOVA, TARGET, 8) == DONE
        copier.tear_down(MSIX)
        with aside(lambda: one_write(function / "numa_node", "-1")) as future:
            wait_for(lambda: faults.said(4).endswith("1 held"))
            faults.write("release store")
            future.exception(20)
        one_write(function / "sriov_numvfs", "1")
        one_write(function / "sriov_numvfs", "0")
        fails(errno.EIO, Container, machine.path)
        types = machine.parent("holders") / "mdev_supported_types"
        fails(errno.EIO, one_write, types / "holder-1/create", str(uuid.uuid4()))
        try:
            fails(errno.EIO, vfio_pci, machine, GPU)
        finally:
            give_back(machine, GPU)
        assert not any("# 0 hits" in line for line in faults.list())
    hits: dict[str, str] = {}

    def all_told() -> bool:
        with suppress(BlockingIOError):
            for line in os.read(trace, 1 << 20).splitlines():
                record = json.loads(line)
                if record.get("fault"):
                    hits[record["fault"]] = record["kind"]
        return len(hits) == 9

    wait_for(all_told)
    os.close(trace)
    assert hits == {
        **{kind: kind for kind in rules},
        "lifecycle.create": "lifecycle",
        "lifecycle.probe": "lifecycle",
    }


# ---- the file ----


def test_the_file_belongs_to_the_user_of_the_lab(machine: MountedLab) -> None:
    found = os.stat(machine.path / "faults")
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o600, os.geteuid(), os.getegid())


@needs.root("acts as another user")
def test_another_user_cannot_open_the_file(machine: MountedLab) -> None:
    def other() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

    done = subprocess.run(
        ["cat", "faults"], cwd=machine.path, preexec_fn=other, capture_output=True, text=True, check=False
    )
    assert "Permission denied" in done.stderr


def test_bad_rules_say_what_is_wrong(faults: Faults) -> None:
    for text, number, why in (
        (
            "add iotcl=VFIO_DEVICE_RESET errno=EIO",
            errno.EINVAL,
            "iotcl: there is no such key (did you mean ioctl?)\n",
        ),
        ("clear nobody", errno.ENOENT, "nobody: there is no such rule\n"),
        (
            "add name=a call=any delay=1\nadd name=a call=any delay=1",
            errno.EEXIST,
            "a: there is such a rule\n",
        ),
        ("remove", errno.EINVAL, "'remove' is no command (write add, clear, release or list)\n"),
    ):
        with pytest.raises(OSError) as caught:
            faults.write(text)
        assert (caught.value.errno, caught.value.strerror) == (number, why)
    assert faults.list() == []


def test_a_register_that_an_open_device_has_not(faults: Faults, copier: Copier, gpu: Copier) -> None:
    with pytest.raises(OSError, match=rf"register: {GPU} has no register STATE \(it has .*STATUS"):
        faults.write(f"add device={GPU} register=STATE value=1")


def test_the_list_can_be_written_back(faults: Faults, tmp_path: Path) -> None:
    rules = (
        f"call=any while='{tmp_path}/a b' nth=4 errno=EIO",
        "device='0000:*' region=config range=4-5 flip=0x8000 probability=0.25",
        "store=sys/bus/*/bind hang=true times=3",
    )
    with faults.hold(*rules):
        listed = faults.list()
        assert all(line.endswith("  # 0 hits of 0 calls") for line in listed)
        assert faults.write("clear\n" + "".join(f"add {line}\n" for line in listed)).count("added ") == 3
        assert faults.list() == listed
        fd = os.open(faults.path, os.O_RDWR)
        os.write(fd, b"list\n")
        assert os.pread(fd, 4096, 0).decode().splitlines() == listed
        os.close(fd)


def test_garbage_changes_nothing(machine: MountedLab, faults: Faults) -> None:
    choose = random.Random(18)
    with faults.hold("name=a open=iommu errno=EPERM"):
        for _ in range(200):
            data = bytes(choose.randrange(256) for _ in range(choose.randrange(1, 200)))
            if data.strip() and b"#" not in data:
                with pytest.raises(OSError) as caught:
                    faults.write(b"x" + data)
                assert caught.value.errno == errno.EINVAL
        for data in (
            b"add " * 20_000,
            b"\n" * 200_000,
            b"add name=" + b"a" * 60_000,
            b"\0" * 100,
            b"add \xff",
        ):
            with pytest.raises(OSError) as caught:
                faults.write(data)
            assert caught.value.errno == errno.EINVAL
        assert [line.partition(" ")[0] for line in faults.list()] == ["name=a"]
        fails(errno.EPERM, os.open, machine.path / "dev/iommu", os.O_RDWR)


def test_a_file_of_a_lab_is_nothing_to_wait_for(machine: MountedLab, faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(machine.path)
    for path in (machine.path, machine.path / "sys/class", tmp_path / "link/sys/none"):
        with pytest.raises(OSError, match="is on a file system of type fuse"):
            faults.write(f"add call=any errno=EIO while={path}")
    assert faults.list() == []


def test_a_file_server_that_does_not_answer_holds_up_nobody(
    faults: Faults, copier: Copier, tmp_path: Path
) -> None:
    """A rule is to look for a file in a lab that is stopped, at once or because a link leads there later."""
    link, here = tmp_path / "link", tmp_path / "here"
    here.mkdir()
    (here / "on").touch()
    link.symlink_to(here)

    def lead(to: Path) -> None:
        (tmp_path / "new").symlink_to(to)
        (tmp_path / "new").rename(link)

    with faults.hold(f"register=STATUS while={link}/on value=1"), MountedLab(tmp_path) as other:
        assert read(copier, STATUS_REGISTER) == 1
        os.kill(other.pid, signal.SIGSTOP)
        try:
            lead(other.path)
            wait_for(lambda: read(copier, STATUS_REGISTER) == 0)
            with pytest.raises(OSError, match="is on a file system of type fuse"):
                faults.write(f"add call=any errno=EIO while={link}/other")
            lead(here)
            wait_for(lambda: read(copier, STATUS_REGISTER) == 1)
        finally:
            os.kill(other.pid, signal.SIGCONT)


def test_ten_thousand_rules_are_the_most(machine: MountedLab, faults: Faults, copier: Copier) -> None:
    lines = b"add device=0000:86:00.0 register=STATUS errno=EIO\n" * 1000
    try:
        for _ in range(10):
            assert faults.write(lines).count("added ") == 1000
        with pytest.raises(OSError, match="there can be 10000 rules") as caught:
            faults.write("add call=any delay=1")
        assert caught.value.errno == errno.ENOSPC
        assert len(faults.list()) == 10_000
        assert read(copier, STATUS_REGISTER) == 0
    finally:
        faults.write("clear")
    assert faults.list() == []


def test_rules_can_be_changed_while_every_call_hangs(faults: Faults, iommufd: Iommufd) -> None:
    with faults.hold("name=first call=any hang=true"), ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(iommufd.ioas) for _ in range(8)]
        wait_for(lambda: faults.said().endswith("8 held"))
        assert (
            faults.write("add name=second store=* drop=true\nrelease first\n")
            == "released first\nadded second\n"
        )
        assert len({call.result(20) for call in calls}) == 8


def test_rules_come_and_go_while_clients_work(
    machine: MountedLab, faults: Faults, iommufd: Iommufd, copier: Copier, mapped: Memory
) -> None:
    """No call is left hanging when its rule has gone, and afterwards all is as before."""
    choose, over = random.Random(18), threading.Event()
    wheres = (
        "ioctl=*",
        "region=BAR0",
        "register=STATUS",
        "open=*",
        "store=*",
        "dma=any",
        "call=any",
        "create=*",
    )
    whens = ("", "nth=3", "every=2", "probability=0.3", "times=5", "after=0.001")
    whats = ("hang=true", "delay=0.001", "errno=EIO", "errno=ENODEV delay=0.001", "hang=true delay=0.001")
    work: tuple[Callable[[], object], ...] = (
        iommufd.ioas,
        lambda: read(copier, STATUS_REGISTER),
        lambda: put(copier, SOURCE_REGISTER, IOVA, 8),
        lambda: os.close(os.open(machine.path / "dev/vfio/vfio", os.O_RDWR)),
        lambda: one_write(function_dir(machine, PF) / "driver_override", "a"),
        lambda: copier.begin(IOVA, TARGET, 8),
    )

    def client(call: Callable[[], object]) -> int:
        done = 0
        while not over.is_set():
            with suppress(OSError):
                call()
            done += 1
        return done

    with ThreadPoolExecutor(len(work)) as threads, ExitStack() as stack:
        stack.callback(faults.write, "clear")
        stack.callback(over.set)
        clients = [threads.submit(client, call) for call in work]
        for number in range(150):
            rule = " ".join((choose.choice(wheres), choose.choice(whens), choose.choice(whats)))
            faults.write(f"add name=r{number} {rule}")
            if number % 3 == 2:
                faults.write(f"clear r{number - choose.randrange(2)}\nrelease")
            if number % 12 == 11:
                faults.write("clear")
    assert all(each.result() > 1 for each in clients)
    one_write(function_dir(machine, PF) / "driver_override", "\n")
    mapped.write(b"\7" * 8)
    copier.begin(IOVA, TARGET, 8)
    wait_for(lambda: mapped.read(PAGE, 8) == b"\7" * 8)
    assert read(copier, SOURCE_REGISTER, 8) == IOVA and iommufd.ioas()


def test_a_lab_has_rules_from_its_start(tmp_path: Path) -> None:
    rules = '[[faults]]\nname = "full"\nopen = "iommu"\nnth = 2\nerrno = "EMFILE"\n'
    with described(tmp_path, LAB + rules) as lab:
        os.close(os.open(lab.path / "dev/iommu", os.O_RDWR))
        fails(errno.EMFILE, os.open, lab.path / "dev/iommu", os.O_RDWR)
        assert Faults(lab).list() == ["name=full open=iommu nth=2 errno=EMFILE  # 1 hit of 2 calls"]


def test_a_lab_ends_while_calls_hang(tmp_path: Path) -> None:
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(3))
        with described(tmp_path, LAB) as lab:
            faults = Faults(lab)
            fd = os.open(lab.path / "dev/iommu", os.O_RDWR)
            stack.callback(os.close, fd)
            faults.write("add call=any hang=true")
            waiting: list[Callable[[], object]] = [
                lambda: os.open(lab.path / "dev/vfio/vfio", os.O_RDWR),
                Iommufd(fd).ioas,
                lambda: one_write(lab.path / "sys/bus/pci/rescan", "1"),
            ]
            calls = [threads.submit(call) for call in waiting]
            wait_for(lambda: faults.said().endswith("3 held"))
        for call in calls:
            call.exception(20)
