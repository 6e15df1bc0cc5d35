# SPDX-License-Identifier: Apache-2.0
"""Windows on a client's shared memory: which files get one, and that nobody is asked who may not answer."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ioctl_shim import sharedfile, window
from ioctl_shim._native import ffi
from ioctl_shim.process import Process
from ioctl_shim.sharedfile import FAMILIAR, devices_of
from tests import needs
from tests.labs import MountedLab
from tests.test_run_devices import Somebody, somebody
from tests.vfio.client import PAGE, fails
from tests.vfio.test_container_dma import KINDS, MEMFD, PAGES, Child, child
from tests.waiting import stop

__all__ = ["child", "somebody"]
SECONDS = 60


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


def test_a_file_that_may_only_be_read_takes_the_place_of_a_writable_one(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the server has looked, and before it opens the file. Both have the same inode number."""
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE))
    address = child.memory("m", f"PAGE, os.open({str(file)!r}, os.O_RDWR)")
    call = "ctypes.CDLL(None).mmap(*map(ctypes.c_void_p, ({}, PAGE, 1, 0x11, os.open({!r}, os.O_RDONLY), 0)))"

    def familiar_after_a_change(device: int, tid: int) -> bool:
        child(call.format(address, str(file)))  # PROT_READ, MAP_SHARED | MAP_FIXED
        return True  # wherever tmp_path is

    monkeypatch.setattr("ioctl_shim.window.is_familiar", familiar_after_a_change)
    monkeypatch.setattr(sharedfile, "is_familiar", lambda device, tid: True)
    fails(errno.EFAULT, child.process.write, address, b"lost")
    assert file.read_bytes() == bytes(PAGE) and not mapped_here(str(file))


# ---- tables of mounts ----


def row(path: bytes, device: bytes, kind: bytes) -> bytes:
    return b"25 1 " + device + b" / " + path + b" rw,nosuid shared:7 master:1 - " + kind + b" source rw\n"


def test_rows_of_mounts_end_where_the_kernel_ends_them() -> None:
    """A client chooses names. The kernel escapes only space, tab, newline and backslash in them."""
    for end in (b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xe2\x80\xa8"):
        for gap in (b"\x0b", b"\x0c", b"\r", b"\x1f", b"\xc2\xa0"):
            forged = b"/x" + end + gap.join([b"1", b"1", b"0:90", b"/", b"/x", b"rw"])
            assert devices_of(row(forged, b"0:50", b"tmpfs"), FAMILIAR) == {os.makedev(0, 50)}


def test_rows_of_mounts_that_are_not_understood() -> None:
    good = row(b"/home", b"8:1", b"ext4")
    for odd in (
        b"\n",
        b"x\n",
        b"1 2 3 - ext4 x\n",
        row(b"/x", b"8:x", b"ext4"),
        row(b"/x", b"0:50", b"fuse.\xff"),
    ):
        assert devices_of(odd + good, FAMILIAR) == {os.makedev(8, 1)}
    cut_off = row(b"/x", b"0:50", b"ext4dev")
    for size in range(len(cut_off)):
        assert devices_of(good + cut_off[:size], FAMILIAR) == {os.makedev(8, 1)}


@needs.root("mounts by fusermount3 without being its server")
def test_a_mount_whose_kind_is_no_text(child: Child, tmp_path: Path) -> None:
    """Anybody can make one. It keeps nobody else from the memory."""
    file, folder = tmp_path / "file", tmp_path / "mount"
    file.write_bytes(bytes(PAGE))
    folder.mkdir()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        options = os.fsdecode(b"fsname=x,subtype=\xff")
        command = ["fusermount3", "-o", options, "--", str(folder)]
        subprocess.run(command, env=environment, pass_fds=(theirs.fileno(),), check=True)
        try:
            address = child.memory("m", f"PAGE, os.open({str(file)!r}, os.O_RDWR)")
            child.process.write(address, b"as ever")
        finally:
            subprocess.run(["fusermount3", "-u", "-z", folder], check=True)
    assert file.read_bytes()[:7] == b"as ever"


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
        stop(silent.pid)
        in_time(lambda: process.pin(address, PAGE, True)).write_from(0, memoryview(b"memfd"))
        assert child("memory['m'].read(0, 5)") == b"memfd"
        if bar is not None:
            in_time(lambda: process.pin(bar, PAGE, True))
            in_time(lambda: process.write(bar, b"bar"))
            assert child("memory['bar'].read(0, 3)") == b"bar" and not mapped_here("resource0")
        os.kill(silent.pid, signal.SIGCONT)
        child("[one.close() for one in memory.values()] and os.close(spare[0])")


def test_the_search_for_a_file_passes_an_epoll_that_is_held(
    compile_client: Callable[..., Path], tmp_path: Path
) -> None:
    """Without a way through map_files. To read what fdinfo says of the epoll would wait."""
    file = tmp_path / "file"
    file.touch()
    pipe = subprocess.PIPE
    with subprocess.Popen([compile_client("held_epoll"), file], stdin=pipe, stdout=pipe, text=True) as client:
        assert client.stdin and client.stdout
        address = int(client.stdout.readline().removeprefix("at "), 16)
        assert client.stdout.readline() == "held POLL\n"
        vma = Process(client.pid, client.pid, -1)._vma_at(address)
        described = (0, PAGE, *vma[2:5], os.major(vma.device), os.minor(vma.device))  # no such mapping
        native = ffi.new("struct shim_vma *", described)
        fd = in_time(lambda: sharedfile.open_shared(client.pid, native, os.O_RDWR, lambda: True))
        client.stdin.close()
        assert os.pread(fd, 5, 0) == b"found"
        os.close(fd)


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
