# SPDX-License-Identifier: Apache-2.0
"""Windows on a client's shared memory: which files get one, and that nobody is asked who may not answer."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ioctl_shim import window
from ioctl_shim.process import Process
from tests.lab import MountedLab
from tests.test_run_devices import Somebody, somebody
from tests.vfio.client import PAGE, fails
from tests.vfio.test_container_dma import KINDS, MEMFD, PAGES, Child, child

__all__ = ["child", "somebody"]
SECONDS = 10


def mapped_here(what: str) -> bool:
    return what in Path("/proc/self/maps").read_text()


def test_a_file_on_a_local_disk_has_a_window(child: Child, tmp_path: Path) -> None:
    """Unless its file system is of a kind that may not answer."""
    file = tmp_path / "a file of the client"
    file.write_bytes(bytes(PAGE))
    address = child.memory("m", f"PAGE, os.open({str(file)!r}, os.O_RDWR)")
    child.process.write(address, b"from the device")
    assert file.read_bytes()[:15] == b"from the device"
    kinds = [line.split(" - ")[1] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if not any(kind.startswith("overlay") for kind in kinds):
        assert mapped_here(str(file))


def test_memory_whose_descriptor_is_closed(child: Child) -> None:
    address = child.memory(
        "m", f"PAGES * PAGE, {MEMFD.format('closed', 'PAGES * PAGE')}".replace("PAGES", "8")
    )
    child("os.close(spare.pop())")
    pages = child.process.pin(address, 8 * PAGE, True)
    pages.write_from(5 * PAGE, memoryview(b"still there"))
    assert child("memory['m'].read(5 * PAGE, 11)") == b"still there"


def test_memory_that_was_sealed_after_it_was_mapped(child: Child) -> None:
    """No new writable mapping of it can be made, so it is copied."""
    memfd = "spare.append(os.memfd_create('sealed', os.MFD_ALLOW_SEALING)) or os.ftruncate(spare[-1], PAGE)"
    address = child.memory("m", f"PAGE, {memfd} or spare[-1]")
    child("__import__('fcntl').fcntl(spare[-1], 1033, 16)")  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE
    child.process.write(address, b"sealed")
    assert child("memory['m'].read(0, 6)") == b"sealed" and not mapped_here("memfd:sealed")


@pytest.mark.parametrize("query", [True, False], ids=["queried", "read"])
@pytest.mark.parametrize("kind", KINDS)
def test_protection_is_that_of_each_page(child: Child, kind: str, query: bool) -> None:
    """What may not be read or written is not, and the pages around it stay as they were."""
    child.process.native.can_query &= query
    address = child.memory("m", KINDS[kind])
    child(f"memory['m'].write(b'kept' * (PAGE // 4 * {PAGES}))")
    protect = "ctypes.CDLL(None).mprotect(ctypes.c_void_p({}), PAGE, {})"
    whole, middle = 3 * PAGE, address + PAGE
    assert child(protect.format(middle, 1)) == 0  # PROT_READ
    fails(errno.EFAULT, child.process.write, address, b"lost" * (whole // 4))
    fails(errno.EFAULT, child.process.pin, address, whole, True)
    assert child.process.read(address, whole) == b"kept" * (whole // 4)
    assert child(protect.format(middle, 0)) == 0  # PROT_NONE
    fails(errno.EFAULT, child.process.read, address, whole)
    fails(errno.EFAULT, child.process.read, middle + 8, 8)
    fails(errno.EFAULT, child.process.write, middle + 8, b"lost")
    assert child(protect.format(middle, 3)) == 0
    assert child(f"memory['m'].read(0, {whole})") == b"kept" * (whole // 4)


def test_addresses_that_no_process_has(child: Child) -> None:
    for address in (0, 0xFFFFFFFFFF600000, 2**63, 2**64 - PAGE):
        for query in (True, False):
            child.process.native.can_query &= query
            fails(errno.EFAULT, child.process.read, address, 8)
            fails(errno.EFAULT, child.process.write, address, bytes(8))


def test_windows_are_not_without_number(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned pages keep their windows. Beyond the limit memory is copied."""
    monkeypatch.setattr(window, "MAX_KEPT", 4)
    pins = []
    for number in range(6):
        address = child.memory(f"m{number}", f"PAGE, {MEMFD.format(f'kept{number}', 'PAGE')}")
        pins.append(child.process.pin(address, PAGE, True))
        pins[-1].write_from(0, memoryview(b"%d" % number))
    assert [child(f"memory['m{number}'].read(0, 1)") for number in range(6)] == [b"%d" % n for n in range(6)]
    assert [mapped_here(f"memfd:kept{number}") for number in range(6)] == [True] * 4 + [False] * 2


# ---- file systems that do not answer ----


@pytest.fixture
def silent(fresh_lab: MountedLab) -> Iterator[MountedLab]:
    """A lab whose server is stopped by a test."""
    yield fresh_lab
    os.kill(fresh_lab.pid, signal.SIGCONT)


def mappable(resource: Path) -> bool:
    """Whether device memory can be mapped here, which takes root and Linux 6.9."""
    with resource.open("r+b") as file:
        try:
            mmap.mmap(file.fileno(), PAGE).close()
        except OSError:
            return False
    return True


def in_time(call: Callable[[], Any]) -> Any:
    """The result of `call`, which has to return soon."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert results, "it waits"
    return results[0]


def test_files_of_a_server_that_does_not_answer(silent: MountedLab, child: Child) -> None:
    """The client has descriptors and a shared mapping of them, and memory of its own."""
    with silent.create("mdpy-vga", "mdpy") as vgpu:
        resource = f"spare.append(os.open({str(vgpu.path / 'resource0')!r}, 2)) or spare[-1]"
        child(resource)
        bar = child.memory("bar", "PAGE, spare[0]") if mappable(vgpu.path / "resource0") else None
        address = child.memory("m", KINDS["memfd"])
        process = Process(child.pid, child.pid, -1)
        os.kill(silent.pid, signal.SIGSTOP)
        in_time(lambda: process.pin(address, PAGE, True)).write_from(0, memoryview(b"memfd"))
        assert child("memory['m'].read(0, 5)") == b"memfd"
        if bar is not None:
            in_time(lambda: process.pin(bar, PAGE, True))
            in_time(lambda: process.write(bar, b"bar"))
            assert child("memory['bar'].read(0, 3)") == b"bar" and not mapped_here("resource0")
        os.kill(silent.pid, signal.SIGCONT)
        child("[one.close() for one in memory.values()] and os.close(spare[0])")


FUNCTION = """\
import os, time
from pathlib import Path
from tests.vfio.client import *

name = "0000:86:00.0"
function = Path("/sys/bus/pci/devices") / name
(function / "driver_override").write_text("vfio-pci")
(function / "driver/unbind").write_text(name)
Path("/sys/bus/pci/drivers_probe").write_text(name)
number = os.readlink(function / "iommu_group").rsplit("/", 1)[1]
with Container("/") as container, Group("/", number) as group:
    group.set_container(container)
    container.set_iommu()
    device = group.device_fd(name)
    fd = os.memfd_create("client")
    os.ftruncate(fd, PAGE)
    os.pwrite(device, b"\\x06\\x00", (7 << 40) + 4)  # what the kernel knows of the device file is stale now
    for iova, memory in enumerate((Memory(PAGE, fd), Memory(PAGE), Memory(PAGE, private=True))):
        container.map(iova * PAGE, memory.address, PAGE)
    print((function / "vendor").read_text().strip())
"""


def test_a_users_memory_for_a_physical_function(somebody: Somebody) -> None:
    """MAP_DMA pins it. The search for its file passes the client's descriptors of the lab."""
    (somebody.home / "client.py").write_text(FUNCTION)
    start = time.monotonic()
    done = somebody.sh("$V run -- ${V%% *} $H/client.py")
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith("0x") and time.monotonic() - start < 30
