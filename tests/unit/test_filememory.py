# SPDX-License-Identifier: Apache-2.0
"""Files that a client hands in: which of them are held, and what their memory is. The client is this
process."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ioctl_shim import filememory
from ioctl_shim.client import Caller
from ioctl_shim.filememory import FileMemory, Files, ForeignFile
from tests.unit.fakes import fails

PAGE = 4096


@pytest.fixture
def me() -> Caller:
    return Caller(threading.get_native_id())


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def shm() -> Iterator[int]:
    path = Path("/dev/shm") / f"vfsfuse-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.unlink(path)
    yield fd
    os.close(fd)


def descriptors() -> int:
    gc.collect()  # the tracebacks of errors have files
    return len(os.listdir("/proc/self/fd"))


def held(files: Files, me: Caller, fd: int, write: bool = True) -> FileMemory:
    memory = files.of(me, fd, write)
    assert isinstance(memory, FileMemory)
    return memory


def test_it_is_the_memory_of_the_file(files: Files, me: Caller, memfd: int) -> None:
    memory = held(files, me, memfd)
    memory.write(PAGE - 2, b"abcd")
    assert os.pread(memfd, 4, PAGE - 2) == b"abcd"
    os.pwrite(memfd, b"client", 2 * PAGE)
    assert memory.read(2 * PAGE, 6) == b"client"
    assert memory.gather([(2 * PAGE, 3), (PAGE - 2, 2)]) == b"cliab"
    pages = memory.pin(PAGE, 2 * PAGE, True)
    pages.write_from(PAGE, memoryview(b"device"))
    assert pages.read(PAGE, 6) == b"device" == os.pread(memfd, 6, 2 * PAGE)


def test_it_stays_when_the_client_has_closed_the_file(files: Files, me: Caller) -> None:
    before = descriptors()
    fd = os.memfd_create("memory")
    os.ftruncate(fd, PAGE)
    first, second = held(files, me, fd), held(files, me, fd)
    assert descriptors() == before + 2  # it is held once
    os.pwrite(fd, b"before", 0)
    os.close(fd)
    assert first.read(0, 6) == second.read(0, 6) == b"before"
    del first, second
    assert descriptors() == before


def test_what_is_beyond_the_end_is_not_pinned(files: Files, me: Caller, memfd: int) -> None:
    memory = held(files, me, memfd)
    fails(errno.EINVAL, memory.pin, 3 * PAGE, 2 * PAGE, False)
    fails(errno.EINVAL, memory.pin, 2**63, PAGE, False)
    fails(errno.EFAULT, memory.read, 4 * PAGE, 1)
    memory.pin(3 * PAGE, PAGE, True)
    os.ftruncate(memfd, 8 * PAGE)
    memory.pin(3 * PAGE, 5 * PAGE, True)
    memory.write(8 * PAGE - 1, b"x")
    os.ftruncate(memfd, 4 * PAGE + 1)
    fails(errno.EINVAL, memory.pin, 4 * PAGE, PAGE, False)  # the kernel pins whole pages


def test_a_file_that_is_shortened_faults(files: Files, me: Caller, memfd: int) -> None:
    memory = held(files, me, memfd)
    pages = memory.pin(0, 4 * PAGE, True)
    os.ftruncate(memfd, PAGE)
    for call in (lambda: pages.read(PAGE, 1), lambda: memory.read(3 * PAGE, 8)):
        fails(errno.EFAULT, call)
    fails(errno.EFAULT, pages.write_from, PAGE, memoryview(b"x"))
    assert pages.read(0, 1) == b"\0"
    os.ftruncate(memfd, 4 * PAGE)
    pages.write_from(PAGE, memoryview(b"x"))


def test_seals_and_modes(files: Files, me: Caller, memfd: int) -> None:
    readable = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    writable = os.open(f"/proc/self/fd/{memfd}", os.O_WRONLY)
    memory = held(files, me, readable, write=False)
    fails(errno.EPERM, files.of, me, readable, True)
    fails(errno.EPERM, files.of, me, writable, True)
    fails(errno.EPERM, files.of, me, writable, False)
    fails(errno.EFAULT, memory.write, 0, b"x")
    held(files, me, memfd).write(0, b"y")
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    shared = held(files, me, memfd)
    shared.pin(0, 4 * PAGE, True)
    assert memory.read(0, 1) == b"y"
    del shared
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)  # only read-only windows are left
    fails(errno.EPERM, files.of, me, memfd, True)
    assert held(files, me, memfd, write=False).pin(0, PAGE, False).read(0, 1) == b"y"
    for fd in (readable, writable):
        os.close(fd)


def test_files_leave_the_server_some_address_space(me: Caller, memfd: int) -> None:
    """Sparse files cost a client nothing, and it may have as many contexts as it has descriptors."""
    os.ftruncate(memfd, size := filememory.MAX_BYTES)
    contexts, kept = [Files() for _ in range(80)], []
    for files in contexts:
        try:
            kept.append(held(files, me, memfd).pin(size - PAGE, PAGE, True))
        except OSError as error:
            assert error.errno == errno.ENOMEM
            break
    assert 60 < len(kept) <= 64  # the process may have other windows
    kept.pop()
    gc.collect()
    assert held(Files(), me, memfd).pin(size - PAGE, PAGE, True).read(0, 1) == b"\0"


def test_a_lease_is_not_broken(files: Files, me: Caller, shm: int) -> None:
    os.ftruncate(shm, PAGE)
    fcntl.fcntl(shm, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    for write in (False, True):
        assert held(files, me, shm, write).read(0, 4) == bytes(4)
    assert fcntl.fcntl(shm, fcntl.F_GETLEASE) == fcntl.F_WRLCK


def test_other_files_are_not_held(files: Files, me: Caller, tmp_path: Path) -> None:
    """Those of which the kernel pins nothing. They are refused when they are used."""
    before = descriptors()
    near, far = socket.socketpair()
    reading, writing = os.pipe()
    (tmp_path / "file").write_bytes(bytes(PAGE))
    opened = [
        os.open("/dev/shm", os.O_RDONLY),
        os.open("/dev/zero", os.O_RDWR),
        os.open("/proc/self/status", os.O_RDONLY),
        os.open("/", os.O_RDONLY),
        os.eventfd(0),
    ]
    if os.stat(tmp_path).st_dev != os.stat("/dev/shm").st_dev:
        opened.append(os.open(tmp_path / "file", os.O_RDWR))
    now = descriptors()
    for fd in (*opened, near.fileno(), reading, writing):
        memory = files.of(me, fd, True)
        assert isinstance(memory, ForeignFile), os.readlink(f"/proc/self/fd/{fd}")
        fails(errno.EINVAL, memory.pin, 0, PAGE, False)
        fails(errno.EINVAL, memory.read, 0, 1)
        fails(errno.EINVAL, memory.write, 0, b"x")
    assert descriptors() == now
    for fd in (*opened, reading, writing):
        os.close(fd)
    near.close()
    far.close()
    assert descriptors() == before


def test_no_descriptor_is_ebadf(files: Files, me: Caller, memfd: int, tmp_path: Path) -> None:
    gone = os.dup(memfd)
    os.close(gone)
    (tmp_path / "file").touch()
    names = [os.open(path, os.O_PATH) for path in (f"/proc/self/fd/{memfd}", tmp_path / "file", "/dev/shm")]
    for fd in (-1, gone, 2**31 - 1, *names):
        fails(errno.EBADF, files.of, me, fd, True)
    for fd in names:
        os.close(fd)


def test_shared_memory_of_a_path(files: Files, me: Caller, shm: int) -> None:
    os.ftruncate(shm, PAGE)
    held(files, me, shm).write(0, b"shm")
    assert os.pread(shm, 3, 0) == b"shm"


def test_huge_pages(files: Files, me: Caller) -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_CLOEXEC)
        os.ftruncate(fd, 2 << 20)
        mapped = mmap.mmap(fd, 2 << 20)
    except OSError as error:
        pytest.skip(f"the machine has no huge page to give: {error.strerror}")
    memory = held(files, me, fd)
    memory.pin(PAGE, PAGE, True).write_from(1, memoryview(b"huge"))
    assert mapped[PAGE + 1 : PAGE + 5] == b"huge"
    os.close(fd)
    mapped.close()


def test_the_limits_of_a_context(
    files: Files, me: Caller, memfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    monkeypatch.setattr(filememory, "MAX_FILES", 2)
    keep = [held(files, me, memfd), held(files, me, memfd, write=False)]
    other = os.memfd_create("other")
    os.ftruncate(other, 1 << 41)
    fails(errno.ENOMEM, files.of, me, other, True)
    del keep
    gc.collect()
    memory = held(files, me, other)
    memory.write(1 << 30, b"sparse")
    memory.write((1 << 40) - 1, b"x")
    fails(errno.ENOMEM, memory.write, 1 << 40, b"x")
    fails(errno.ENOMEM, held(files, me, memfd).read, 0, 1)  # the room is taken
    del memory
    gc.collect()
    assert held(files, me, memfd).read(0, 1) == b"\0"
    os.close(other)
    assert descriptors() == before
