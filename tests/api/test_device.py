# SPDX-License-Identifier: Apache-2.0
"""The VFIO client: regions, interrupts, DMA and resets of a device that is opened on the bare mount."""

from __future__ import annotations

import array
import errno
import gc
import mmap
import os
import re
import select
import signal
import struct
from collections.abc import Callable

import pytest

from tests import needs
from tests.vfio.copiers import COPY, DONE, FAULT, GPU
from tests.waiting import wait_for
from vfsfuse import Device, DmaMemory, Interrupts, Lab, LabError

SOURCE, TARGET, SIZE, COMMAND, STATUS = 0, 8, 0x10, 0x14, 0x18


def start(device: Device, source: int, target: int, size: int) -> None:
    """Have the copier copy."""
    registers = device.regions[0]
    registers.write_int(SOURCE, source, 8)
    registers.write_int(TARGET, target, 8)
    registers.write_int(SIZE, size)
    registers.write_int(COMMAND, COPY)


def copy(device: Device, irqs: Interrupts, source: int, target: int, size: int) -> int:
    """Have it copy, and wait; its status, which is cleared."""
    start(device, source, target, size)
    assert irqs.wait() == 1
    status = device.regions[0].read_int(STATUS)
    device.regions[0].write_int(STATUS, status)
    return status


def fails(number: int, call: Callable[[], object]) -> OSError:
    with pytest.raises(OSError) as caught:
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]
    return caught.value


def test_regions(device: Device) -> None:
    assert [(region.index, region.size) for region in device.regions] == [(0, 4096), (4, 8192), (7, 256)]
    assert device.regions[7] is device.config and len(device.regions) == 9
    assert device.config.read(0, 4) == struct.pack("<HH", 0x1234, 0xC0F1)
    assert [device.config.read_int(0, width) for width in (1, 2, 4)] == [0x34, 0x1234, 0xC0F11234]
    registers = device.regions[0]
    assert (registers.can_read, registers.can_write, registers.can_map) == (True, True, False)
    registers.write(0, struct.pack("<QQI", 1, 2, 3))
    assert registers.read(0, 20) == struct.pack("<QQI", 1, 2, 3)
    assert registers.read_int(0, 8) == 1 and registers.read_int(8, 8) == 2
    registers.write_int(1, 0xFF, 1)
    assert registers.read_int(0, 8) == 0xFF01
    with pytest.raises(OverflowError):
        registers.write_int(0, 1 << 32)
    for index in (9, -1):
        with pytest.raises(IndexError):
            device.regions[index]
    error = fails(errno.EINVAL, lambda: registers.read(4096, 1))
    assert str(error.filename).endswith("/dev/vfio/devices/vfio0")
    fails(errno.EINVAL, lambda: registers.write(4092, bytes(8)))
    fails(errno.EINVAL, lambda: device.regions[8])


def test_no_offset_leads_into_another_region(device: Device) -> None:
    """The regions are in one file, which the client does not have to know."""
    config, registers = device.config, device.regions[0]
    for offset in (config._start - registers._start, registers.size + 1, -1, 1 << 62):
        fails(errno.EINVAL, lambda: registers.read(offset, 2))  # noqa: B023
        error = fails(errno.EINVAL, lambda: registers.write(offset, b"\0\0"))  # noqa: B023
        assert error.strerror == f"offset {offset:#x} is not in region 0, which has 0x1000 bytes"
    fails(errno.EINVAL, lambda: config.read(registers._start - config._start, 4))


def test_a_large_region(builtin: Lab) -> None:
    with builtin.create("vgpu-8") as vgpu, vgpu.open() as device:
        video, content = device.regions[0], os.urandom(4 << 20)
        video.write(4096, memoryview(array.array("I", content)))
        assert video.read(4096, len(content)) == content


@needs.passthrough
def test_a_region_is_mapped(builtin: Lab) -> None:
    with builtin.create("vgpu-8") as vgpu:
        with vgpu.open() as device:
            video = device.regions[0]
            assert video.can_map
            whole, part = video.map(), video.map(mmap.PAGESIZE, mmap.PAGESIZE)
            whole[mmap.PAGESIZE : mmap.PAGESIZE + 4] = b"abcd"
            assert video.read(mmap.PAGESIZE, 4) == part[:4] == b"abcd" and len(whole) == video.size
            kept = memoryview(part)
            fails(errno.ENODEV, device.regions[2].map)
            for place in (
                (video.size, mmap.PAGESIZE),
                (-mmap.PAGESIZE, mmap.PAGESIZE),
                (0, video.size + 1),
                (0, 0),
            ):
                fails(errno.EINVAL, lambda: video.map(*place))  # noqa: B023
        assert whole.closed and not part.closed and bytes(kept[:4]) == b"abcd"
        kept.release()
        part.close()


def test_what_cannot_be_mapped(device: Device) -> None:
    fails(errno.ENODEV, device.regions[0].map)


def test_dma_and_interrupts(device: Device) -> None:
    with device.interrupts("msix", 2) as irqs, device.map(2 * mmap.PAGESIZE) as memory:
        assert (len(irqs), irqs.index, irqs.take(), irqs.take(1)) == (2, 2, 0, 0)
        memory.write(0, memoryview(array.array("I", [1, 2])))
        memory.write(3, b"a text")
        assert copy(device, irqs, memory.iova + 3, memory.iova + mmap.PAGESIZE, 6) == DONE
        assert memory.read(mmap.PAGESIZE, 7) == b"a text\0"
        assert memory.buffer[mmap.PAGESIZE] == ord("a") and len(memory.read()) == memory.size
        assert copy(device, irqs, 1 << 40, memory.iova, 6) == FAULT
        for call in (
            lambda: memory.read(-1, 1),
            lambda: memory.read(0, 1 << 20),
            lambda: memory.write(8190, b"abc"),
        ):
            with pytest.raises(ValueError, match="are not within 8192"):
                call()


def test_memory_of_the_program(device: Device) -> None:
    irqs = device.interrupts()
    source, target = bytearray(b"123456"), array.array("I", [0] * 5000)
    mapped = device.map(source, write=False), device.map(memoryview(target).cast("B"))
    assert [each.size for each in mapped] == [6, 20000] and mapped[0].read() == b"123456"
    assert copy(device, irqs, mapped[0].iova, mapped[1].iova + 4 * 4000, 4) == DONE
    assert target[4000] == int.from_bytes(b"1234", "little")
    assert copy(device, irqs, mapped[1].iova, mapped[0].iova, 4) == FAULT  # it can only be read
    with pytest.raises(BufferError):
        source.append(0)
    for each in mapped:
        each.unmap()
        each.unmap()
    source.append(0)
    assert copy(device, irqs, mapped[1].iova, mapped[1].iova, 4) == FAULT
    with pytest.raises(ValueError, match="not mapped any more"):
        mapped[0].read()
    with pytest.raises(TypeError):
        device.map(b"cannot be written")  # type: ignore[arg-type]


@pytest.mark.parametrize("what", [0, -1, bytearray()])
def test_no_memory_cannot_be_mapped(device: Device, what: int | bytearray) -> None:
    with pytest.raises(ValueError, match=r"bytes cannot be mapped \(map one or more\)"):
        device.map(what)


def test_an_iova_of_choice(device: Device) -> None:
    with device.map(100, iova=0x10000) as memory:
        assert memory.iova == 0x10000 and memory.size == 100
        fails(errno.EEXIST, lambda: device.map(4096, iova=0x10000))
        fails(errno.EINVAL, lambda: device.map(4096, iova=0x20001))
    with device.map(4096, iova=0x10000) as again:
        assert repr(again) == "<DmaMemory 0x10000, 4096 bytes>"


def test_waiting_for_interrupts(device: Device) -> None:
    irqs = device.interrupts("msix")
    with pytest.raises(TimeoutError, match=r"vector 1 was not signalled within 0\.01 seconds"):
        irqs.wait(1, timeout=0.01)
    for _ in range(3):
        irqs.trigger(1)
    assert select.select([irqs.fileno(1)], [], [], 60)[0] and irqs.wait(1, timeout=None) == 3
    assert irqs.take(0) == irqs.take(1) == 0
    fails(errno.EINVAL, lambda: irqs.trigger(2))
    fails(errno.EINVAL, lambda: device.interrupts("intx"))
    irqs.close()
    irqs.close()
    fails(errno.EINVAL, lambda: device.interrupts("msix", 3))
    fails(errno.EINVAL, lambda: device.interrupts("msi", 1))
    with pytest.raises(KeyError, match=r"there are no interrupts nmi \(there is intx, msi, msix, err, req\)"):
        device.interrupts("nmi")


def test_intx_is_masked_until_it_is_let_through(device: Device) -> None:
    with device.interrupts("intx") as irqs, device.map(4096) as memory:
        for _ in range(2):
            start(device, memory.iova, memory.iova, 4)
            assert irqs.wait() == 1
            device.regions[0].write_int(STATUS, DONE)
            irqs.unmask()
        irqs.mask()
        start(device, memory.iova, memory.iova, 4)
        wait_for(lambda: device.regions[0].read_int(STATUS))
        assert irqs.take() == 0
        irqs.unmask()
        assert irqs.wait() == 1


def test_a_reset(device: Device) -> None:
    device.regions[0].write_int(SOURCE, 5, 8)
    device.reset()
    assert device.regions[0].read_int(SOURCE, 8) == 0


def test_a_close_releases_all(copiers: Lab) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with copiers.create("copier-1") as vgpu:
        for _ in range(3):
            device = vgpu.open()
            irqs, memory, buffer = device.interrupts(), device.map(4096), bytearray(8)
            device.map(buffer)
            fails(errno.EINVAL, vgpu.open)
            fails(errno.EBUSY, vgpu.remove)
            registers = device.regions[0]
            device.close()
            device.close()
            buffer.append(0)
            memory.unmap()
            irqs.close()
            fails(errno.EBADF, lambda: registers.read(0, 4))  # noqa: B023
            fails(errno.EBADF, lambda: device.regions[7])  # noqa: B023
            fails(errno.EBADF, device.reset)
            assert device.fileno() == -1
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_device_that_is_forgotten_is_closed(copiers: Lab) -> None:
    with copiers.create("copier-1") as vgpu:
        vgpu.open().interrupts()
        gc.collect()
        vgpu.open().close()


def test_a_lab_that_ends_closes_its_devices() -> None:
    with Lab(strict=True) as lab:
        device = lab.create("vgpu-8").open()
    with pytest.raises(LabError, match="the server ended with status 0"):
        device.config.read(0, 4)


def test_a_device_that_is_pulled_out(copiers: Lab) -> None:
    vgpu = copiers.create("copier-1")
    with vgpu.open() as device, device.interrupts() as irqs:
        config = device.config
        vgpu.surprise_remove()
        assert config.read(0, 4) == b"\xff" * 4
        assert irqs.take() == 0
        fails(errno.ENODEV, lambda: device.regions[0])


def test_a_vgpu_that_cannot_be_removed_hides_no_exception(copiers: Lab) -> None:
    with pytest.raises(RuntimeError, match="of the program"), copiers.create("copier-1") as vgpu:
        device = vgpu.open()
        raise RuntimeError("of the program")
    device.close()
    vgpu.remove()


def test_a_server_that_is_killed() -> None:
    with Lab() as lab:
        device = lab.create("vgpu-8").open()
        irqs, memory = device.interrupts(), device.map(4096)
        pidfd = os.pidfd_open(lab.pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)
        with pytest.raises(LabError, match="was killed by SIGKILL"):
            irqs.wait(timeout=0.5)
        calls: list[Callable[[], object]] = [
            lambda: device.config.read(0, 4),
            lambda: device.config.write(0, b"a"),
            lambda: device.map(4096),
            lambda: device.regions[2],
            device.reset,
            memory.unmap,
            irqs.trigger,
        ]
        for call in calls:
            with pytest.raises(LabError, match="was killed by SIGKILL"):
                call()
        device.close()


def test_a_function(copiers: Lab) -> None:
    function = copiers.functions[GPU]
    assert fails(errno.ENODEV, function.open).filename == str(function.path)
    with function.bound(), function.open() as device:
        device.enable()
        with device.map(4096) as memory, device.interrupts() as irqs:
            memory.write(0, b"abc")
            assert copy(device, irqs, memory.iova, memory.iova + 8, 3) == DONE
            assert memory.read(8, 3) == b"abc"


def test_a_virtual_function_of_nvidias_framework(vendor: Lab) -> None:
    with vendor.parents[GPU].create("14") as vgpu, vgpu.open() as device:
        assert device.regions[0].size == 16 << 20
        fails(errno.EBUSY, vgpu.remove)


def test_representations(device: Device) -> None:
    assert re.fullmatch(r"<Device /.*/dev/vfio/devices/vfio\d+>", repr(device))
    assert repr(device.config) == "<Region 7, 256 bytes>"
    assert repr(device.interrupts()) == "<Interrupts 2, 2 vectors>"
    assert isinstance(device.map(1), DmaMemory)
