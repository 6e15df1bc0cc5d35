# SPDX-License-Identifier: Apache-2.0
"""ATTACH_IOMMUFD_PT and DETACH_IOMMUFD_PT, against a real mount: where the DMA of a device goes, and every
wrong size, flag, id and state."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.iommufd.client import (
    DEVICE_ATTACH,
    DEVICE_DETACH,
    MAP_READABLE,
    AttachPt,
    Cdev,
    DetachPt,
    Iommufd,
)
from tests.iommufd.devices import LAB, MSI_WINDOW, NEIGHBOUR, Copier, Holder, cdev_of
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, Memory, buffer, fails, ioctl, unmapped_address
from tests.vfio.copiers import DONE, FAULT, PIN, STORE
from tests.vfio.devices import bound
from tests.waiting import wait_for

IOVA = 0x10_0000


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("attach"), LAB) as mounted:
        yield mounted


def mapped(iommufd: Iommufd, ioas: int) -> Memory:
    """Two pages of this process, mapped at IOVA."""
    memory = Memory(2 * PAGE)
    iommufd.map(ioas, memory.address, memory.size, IOVA)
    return memory


# ---- the DMA of a device ----


def test_dma_goes_where_the_device_is_attached(either: Copier, iommufd: Iommufd) -> None:
    first, second = iommufd.ioas(), iommufd.ioas()
    here, there = mapped(iommufd, first), mapped(iommufd, second)
    assert either.copy(IOVA, IOVA + PAGE, 8) == FAULT
    either.attach(first)
    assert either.reaches(IOVA, here)
    either.attach(second)
    assert either.reaches(IOVA, there) and not either.reaches(IOVA, here)
    either.detach()
    assert either.copy(IOVA, IOVA + PAGE, 8) == FAULT
    either.detach()
    either.attach(first)
    assert either.reaches(IOVA, here)
    iommufd.unmap(first)
    assert either.copy(IOVA, IOVA + PAGE, 8) == FAULT


def test_a_mapping_may_come_after_the_device(either: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    either.attach(ioas)
    memory = mapped(iommufd, ioas)
    assert either.reaches(IOVA, memory)
    rom = Memory(PAGE)
    iommufd.map(ioas, rom.address, PAGE, 2 * IOVA, flags=MAP_READABLE)
    assert either.copy(2 * IOVA, IOVA, 8) == DONE
    assert either.copy(IOVA, 2 * IOVA, 8) == FAULT


def test_registers_answer_without_an_attachment(either: Copier, iommufd: Iommufd) -> None:
    assert either.config(0) == 0x1234
    ioas = iommufd.ioas()
    either.attach(ioas)
    either.detach()
    assert either.config(0) == 0x1234
    iommufd.destroy(ioas)


def test_an_ioas_in_use_is_not_destroyed(either: Copier, iommufd: Iommufd) -> None:
    first, second = iommufd.ioas(), iommufd.ioas()
    either.attach(first)
    fails(errno.EBUSY, iommufd.destroy, first)
    either.attach(second)
    iommufd.destroy(first)
    fails(errno.EBUSY, iommufd.destroy, second)
    either.close()
    iommufd.destroy(second)


def test_devices_share_an_ioas(machine: MountedLab, iommufd: Iommufd, gpu: Copier, copier: Copier) -> None:
    ioas = iommufd.ioas()
    memory = mapped(iommufd, ioas)
    gpu.attach(ioas)
    copier.attach(ioas)
    assert gpu.reaches(IOVA, memory) and copier.reaches(IOVA, memory)
    gpu.detach()
    assert gpu.copy(IOVA, IOVA + PAGE, 8) == FAULT and copier.reaches(IOVA, memory)


def test_attachments_race(machine: MountedLab, iommufd: Iommufd, gpu: Copier, copier: Copier) -> None:
    """Of two devices by four threads, while they copy: each call succeeds, and in the end nothing refers to
    anything."""
    spaces = [iommufd.ioas(), iommufd.ioas()]
    memories = [mapped(iommufd, ioas) for ioas in spaces]
    end, unexpected = time.monotonic() + 1.5, []

    def change(device: Copier, mine: int) -> None:
        for number in itertools.count():
            if time.monotonic() > end:
                return
            try:
                if number % 3 < 2:
                    device.attach(spaces[(number + mine) % 2])
                else:
                    device.detach()
                device.begin(IOVA, IOVA + PAGE, 64)
            except OSError as error:
                unexpected.append(error)

    pairs = itertools.product((gpu, copier), (0, 1))
    threads = [threading.Thread(target=change, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    for device in (gpu, copier):
        device.attach(spaces[0])
        wait_for(partial(device.reaches, IOVA, memories[0]))  # when it has done what it had begun
        device.detach()
    for ioas in spaces:
        iommufd.destroy(ioas)
    assert iommufd.ioas() == 3


# ---- a mediated device ----


def test_a_mediated_device_attaches_to_an_ioas_alone(
    copier: Copier, gpu: Copier, iommufd: Iommufd, machine: MountedLab
) -> None:
    ioas = iommufd.ioas()
    memory = mapped(iommufd, ioas)
    assert copier.attach(ioas) == ioas
    assert copier.attach(ioas) == ioas
    hwpt = gpu.attach(ioas)
    for wrong in (0, 1, 2, hwpt, 99, 2**32 - 1):
        fails(errno.ENOENT, copier.attach, wrong)
        assert copier.reaches(IOVA, memory)


def test_it_needs_whole_pages(copier: Copier, iommufd: Iommufd) -> None:
    ioas, memory = iommufd.ioas(), Memory(PAGE)
    assert iommufd.ranges(ioas) == ([(0, 2**64 - 1)], 1)
    iommufd.map(ioas, memory.address, 1, IOVA)
    fails(errno.EADDRINUSE, copier.attach, ioas)
    iommufd.unmap(ioas)
    copier.attach(ioas)
    assert iommufd.ranges(ioas) == ([(0, 2**64 - 1)], PAGE)
    fails(errno.EINVAL, iommufd.map, ioas, memory.address, 1, IOVA)
    copier.detach()
    assert iommufd.ranges(ioas) == ([(0, 2**64 - 1)], 1)


def test_pins_go_with_the_attachment(machine: MountedLab, iommufd: Iommufd) -> None:
    first, second = iommufd.ioas(), iommufd.ioas()
    here, there = mapped(iommufd, first), mapped(iommufd, second)
    with machine.create("holder-1", "holders") as vgpu, Holder(vgpu.cdev) as holder:
        holder.ready(iommufd)
        assert holder.command(PIN, IOVA)
        holder.attach(first)
        assert not holder.command(PIN, IOVA) and not holder.command(STORE, IOVA)
        assert here.read(0, 4) == b"held"
        holder.attach(first)
        assert holder.let_go == 0
        holder.attach(second)
        assert holder.let_go == 1
        assert not holder.command(PIN, IOVA) and not holder.command(STORE, IOVA)
        assert there.read(0, 4) == b"held"
        holder.detach()
        assert holder.let_go == 2 and holder.command(PIN, IOVA)
        holder.attach(second)
        assert not holder.command(PIN, IOVA)
        iommufd.unmap(second, IOVA, 2 * PAGE)
        assert holder.let_go == 3


# ---- a physical function ----


def test_a_function_is_given_an_automatic_hwpt(gpu: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    assert ioas == 2
    hwpt = gpu.attach(ioas)
    assert hwpt == 3
    fails(errno.EBUSY, iommufd.destroy, hwpt)
    assert gpu.attach(ioas) == hwpt
    assert gpu.attach(hwpt) == hwpt
    gpu.detach()
    fails(errno.ENOENT, iommufd.destroy, hwpt)
    assert gpu.attach(ioas) == hwpt


def test_functions_share_it(machine: MountedLab, gpu: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    with bound(machine, NEIGHBOUR), Copier(cdev_of(machine, NEIGHBOUR)) as neighbour:
        neighbour.ready(iommufd)
        hwpt = gpu.attach(ioas)
        assert neighbour.attach(ioas) == hwpt
        gpu.detach()
        fails(errno.EBUSY, iommufd.destroy, hwpt)
        neighbour.close()
        fails(errno.ENOENT, iommufd.destroy, hwpt)


def test_a_function_attaches_to_a_hwpt_of_its_client(gpu: Copier, iommufd: Iommufd) -> None:
    ioas, other = iommufd.ioas(), iommufd.ioas()
    memory = mapped(iommufd, ioas)
    hwpt = iommufd.hwpt(1, ioas)
    assert gpu.attach(hwpt) == hwpt
    assert gpu.reaches(IOVA, memory)
    automatic = gpu.attach(ioas)
    assert automatic != hwpt and gpu.reaches(IOVA, memory)
    assert gpu.attach(other) not in (hwpt, automatic)
    assert gpu.attach(hwpt) == hwpt and gpu.reaches(IOVA, memory)
    gpu.detach()
    iommufd.destroy(hwpt)
    iommufd.destroy(ioas)


def test_ids_that_a_function_cannot_attach_to(gpu: Copier, copier: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    memory = mapped(iommufd, ioas)
    gpu.attach(ioas)
    for unknown in (0, 99, 2**32 - 1):
        fails(errno.ENOENT, gpu.attach, unknown)
    for bound_device in (1, 2):
        fails(errno.EINVAL, gpu.attach, bound_device)
    assert gpu.reaches(IOVA, memory)


def test_iovas_that_a_function_cannot_use(gpu: Copier, iommufd: Iommufd) -> None:
    ioas, memory = iommufd.ioas(), Memory(2 * PAGE)
    gpu.attach(ioas)
    first, last = MSI_WINDOW
    assert iommufd.ranges(ioas) == ([(0, first - 1), (last + 1, 2**48 - 1)], PAGE)
    fails(errno.EINVAL, iommufd.map, ioas, memory.address, PAGE, first)
    gpu.detach()
    assert iommufd.ranges(ioas) == ([(0, 2**64 - 1)], 1)
    good = iommufd.ioas()
    reachable = mapped(iommufd, good)
    gpu.attach(good)
    for iova in (first, last + 1 - PAGE, 2**48):
        iommufd.map(ioas, memory.address, PAGE, iova)
        fails(errno.EADDRINUSE, gpu.attach, ioas)
        assert gpu.reaches(IOVA, reachable)
        iommufd.unmap(ioas)
    iommufd.allow(ioas, (first, last))
    fails(errno.EADDRINUSE, gpu.attach, ioas)
    iommufd.allow(ioas)
    gpu.attach(ioas)


def test_memory_that_cannot_be_pinned(gpu: Copier, iommufd: Iommufd) -> None:
    good, bad = iommufd.ioas(), iommufd.ioas()
    memory = mapped(iommufd, good)
    gpu.attach(good)
    iommufd.map(bad, unmapped_address(), PAGE, IOVA)
    fails(errno.EFAULT, gpu.attach, bad)
    assert gpu.reaches(IOVA, memory)
    iommufd.destroy(bad)


# ---- wrong sizes, flags and states ----


def test_sizes(either: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()

    def attach(argsz: int, data: bytes = b"") -> None:
        ioctl(either.fd, DEVICE_ATTACH, buffer(AttachPt(argsz=argsz, pt_id=ioas), data))

    def detach(argsz: int) -> None:
        ioctl(either.fd, DEVICE_DETACH, DetachPt(argsz=argsz))

    for argsz in (0, 8, 11):
        fails(errno.EINVAL, attach, argsz)
    for argsz in (0, 4, 7):
        fails(errno.EINVAL, detach, argsz)
    for cmd in (DEVICE_ATTACH, DEVICE_DETACH):
        fails(errno.EFAULT, ioctl, either.fd, cmd, 0)
        fails(errno.EFAULT, ioctl, either.fd, cmd, unmapped_address())
    attach(12)
    attach(16)
    attach(24, b"\xff" * 8)
    detach(8)
    detach(64)


def test_the_smallest_struct_is_enough(either: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    raw = ctypes.create_string_buffer(bytes(AttachPt(argsz=12, pt_id=ioas))[:12], 12)
    either.ioctl(DEVICE_ATTACH, raw)
    assert int.from_bytes(raw.raw[8:], "little") in (ioas, ioas + 1)
    either.ioctl(DEVICE_DETACH, ctypes.create_string_buffer(bytes(DetachPt(argsz=8))[:8], 8))
    iommufd.destroy(ioas)


def test_flags(either: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    fails(errno.EOPNOTSUPP, either.attach, ioas, flags=1)
    fails(errno.EOPNOTSUPP, either.detach, flags=1)
    for flags in (2, 3, 1 << 31):
        fails(errno.EINVAL, either.attach, ioas, flags=flags)
        fails(errno.EINVAL, either.detach, flags=flags)
    iommufd.destroy(ioas)


def test_what_is_not_bound_has_no_attachment(machine: MountedLab, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    with machine.create("copier-1", "copiers") as vgpu, Cdev(vgpu.cdev) as cdev:
        fails(errno.EINVAL, cdev.attach, ioas)
        fails(errno.EINVAL, cdev.detach)
        with Cdev(vgpu.cdev) as beside:
            beside.bind(iommufd)
            fails(errno.EINVAL, cdev.attach, ioas)
            beside.attach(ioas)


def test_an_id_that_cannot_be_written_undoes_it(either: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    memory = Memory(PAGE)
    memory.write(bytes(AttachPt(pt_id=ioas)))
    libc = ctypes.CDLL(None)
    libc.mprotect(ctypes.c_void_p(memory.address), ctypes.c_size_t(PAGE), 1)
    fails(errno.EFAULT, ioctl, either.fd, DEVICE_ATTACH, memory.address)
    iommufd.destroy(ioas)
    memory.close()


def test_another_context_has_other_ids(either: Copier, iommufd: Iommufd, machine: MountedLab) -> None:
    with Iommufd(machine.path) as other:
        theirs = [other.ioas() for _ in range(8)][-1]
        fails(errno.ENOENT, either.attach, theirs)


def test_a_context_lives_as_long_as_its_device(either: Copier, iommufd: Iommufd) -> None:
    ioas = iommufd.ioas()
    memory = mapped(iommufd, ioas)
    either.attach(ioas)
    iommufd.close()
    assert either.reaches(IOVA, memory)
    either.attach(ioas)
    either.detach()
    either.attach(ioas)
    assert either.reaches(IOVA, memory)
    assert os.pread(either.fd, 2, 7 << 40) == b"\x34\x12"
