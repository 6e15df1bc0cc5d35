# SPDX-License-Identifier: Apache-2.0
"""What a model does with its port: bytes, and buffers of its own."""

import errno
import struct
import threading
from collections.abc import Sequence

import pytest
import trio

from devmodel.device.dma import DmaPort
from devmodel.device.tasks import Tasks
from devmodel.gpu.gtt import SYSTEM_BASE, VALID, Gtt
from devmodel.gpu.shadow import Shadow
from devmodel.iommu.api import PAGE_SIZE, DmaFault, Prot
from devmodel.iommu.dmaspace import DmaSpace, Piece, Pin
from devmodel.iommu.mappings import Mapping
from devmodel.iommu.type1 import Type1
from tests.unit.clients import Unhurried
from tests.unit.fakes import FakeClient, fails
from tests.unit.test_iommu import Driver

RW = Prot.READ | Prot.WRITE


@pytest.fixture
def port() -> DmaPort:
    iommu = Type1()
    iommu.map(FakeClient(), 0, 0x8000, 2 * PAGE_SIZE, RW)
    port = DmaPort(Tasks(), lambda: True)
    port.connect(iommu.space)
    return port


def test_bytes_and_buffers(port: DmaPort) -> None:
    async def use() -> None:
        await port.write(PAGE_SIZE - 2, b"abcd")
        assert await port.read(PAGE_SIZE - 3, 6) == b"\0abcd\0"
        buffer = bytearray(8)
        await port.read_into(PAGE_SIZE - 3, memoryview(buffer)[1:7])
        assert buffer == b"\0\0abcd\0\0"
        await port.write(0, memoryview(buffer)[2:6])
        await port.write(4, buffer[2:6])
        assert await port.read(0, 8) == b"abcdabcd"

    trio.run(use)


def test_what_is_refused_is_counted_and_leaves_the_buffer(port: DmaPort) -> None:
    buffer = bytearray(b"kept")
    with pytest.raises(DmaFault):
        port.read_into_now(2 * PAGE_SIZE - 2, buffer)
    with pytest.raises(DmaFault):
        port.write_now(2 * PAGE_SIZE - 2, buffer)
    assert bytes(buffer) == b"kept" and port.fault_count == 2


def test_without_a_container_there_is_no_dma() -> None:
    port = DmaPort(Tasks(), lambda: True)
    with pytest.raises(DmaFault, match="attached to no address space"):
        port.read_into_now(0, bytearray(4))
    assert port.fault_count == 1


def test_a_pin_that_a_stopped_task_waited_for_is_released() -> None:
    iommu, client = Type1(), Unhurried()
    Driver(iommu)
    iommu.map(client, 0, 0x8000, 2 * PAGE_SIZE, RW)
    port = DmaPort(Tasks(), lambda: True)
    listener = Listener(iommu.space)
    port.connect(listener)

    async def use() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(port.pin, 0, 2, RW)
            await trio.to_thread.run_sync(client.begun.wait, 60)
            nursery.cancel_scope.cancel()
        client.answer()
        with trio.fail_after(60):
            while "unpin 0x0 2" not in listener.heard or iommu.space.locked.of(client):
                await trio.sleep(0.01)

    client.hold("pin")
    trio.run(use)
    assert iommu.unmap(0, 2 * PAGE_SIZE) == 2 * PAGE_SIZE and not port.pinned_pages


class Listener(DmaSpace):
    """In front of an address space: names each access, and passes it on."""

    def __init__(self, space: DmaSpace) -> None:
        self.space = space
        self.heard: list[str] = []

    def dma_read(self, iova: int, size: int) -> bytes:
        self.heard.append(f"read {iova:#x} {size}")
        return self.space.dma_read(iova, size)

    def dma_write(self, iova: int, data: bytes) -> None:
        self.heard.append(f"write {iova:#x} {len(data)}")
        self.space.dma_write(iova, data)

    def dma_rw(self, iova: int, buffer: bytes | bytearray | memoryview, write: bool) -> None:
        self.heard.append(f"{'write' if write else 'read'} {iova:#x} {len(buffer)}")
        self.space.dma_rw(iova, buffer, write)

    def mapping_at(self, iova: int, write: bool) -> Mapping:
        return self.space.mapping_at(iova, write)

    def dma_pieces(self, pieces: Sequence[Piece], buffer: bytearray | memoryview, write: bool) -> None:
        self.heard.append(f"{'write' if write else 'read'} {len(pieces)} pieces")
        self.space.dma_pieces(pieces, buffer, write)

    def pin_pages(self, iova: int, count: int, prot: Prot) -> Pin:
        self.heard.append(f"pin {iova:#x} {count}")
        pin = self.space.pin_pages(iova, count, prot)
        return Pin(self, pin.iova, pin.size, pin.prot, pin.segments)

    def unpin_pages(self, iova: int, count: int) -> None:
        self.heard.append(f"unpin {iova:#x} {count}")
        self.space.unpin_pages(iova, count)

    def read_pinned(self, pin: Pin, offset: int, size: int) -> bytes:
        self.heard.append(f"read pinned {pin.iova + offset:#x} {size}")
        return self.space.read_pinned(pin, offset, size)

    def write_pinned(self, pin: Pin, offset: int, data: bytes) -> None:
        self.heard.append(f"write pinned {pin.iova + offset:#x} {len(data)}")
        self.space.write_pinned(pin, offset, data)


def test_what_is_put_in_front_of_the_space_sees_every_access() -> None:
    iommu = Type1()
    Driver(iommu)
    iommu.map(FakeClient(), 0, 0x8000, 2 * PAGE_SIZE, RW)
    port, listener = DmaPort(Tasks(), lambda: True), Listener(iommu.space)
    port.connect(listener)

    async def use() -> None:
        await port.write(8, b"abcd")
        await port.write(16, bytearray(b"efgh"))
        assert await port.read(8, 4) == b"abcd"
        await port.read_into(16, buffer)
        pin = await port.pin(PAGE_SIZE, 1, RW)
        pin.write(0, b"held")
        assert pin.read(0, 4) == b"held" and port.pinned_pages == 1
        pin.release()
        for access in (lambda: pin.read(0, 1), lambda: pin.write(0, b"x")):
            with pytest.raises(DmaFault, match="not pinned so"):
                access()

    buffer = bytearray(4)
    trio.run(use)
    gtt = Gtt()
    gtt.write(0, struct.pack("<Q", VALID))
    Shadow(gtt).transfer(port.space(), [(SYSTEM_BASE + 16, 4)], buffer, False)
    assert buffer == b"efgh"
    assert listener.heard == [
        "write 0x8 4",
        "write 0x10 4",
        "read 0x8 4",
        "read 0x10 4",
        "pin 0x1000 1",
        "write pinned 0x1000 4",
        "read pinned 0x1000 4",
        "unpin 0x1000 1",
        "read pinned 0x1000 1",
        "write pinned 0x1000 1",
        "read 1 pieces",
    ]


# ---- a port that is connected to something else ----


def test_settling_waits_for_what_has_begun(port: DmaPort) -> None:
    begun, go_on, settled = threading.Event(), threading.Event(), threading.Event()

    def dma() -> None:
        with port.under_way():
            begun.set()
            go_on.wait(60)

    def settle() -> None:
        port.settle()
        settled.set()

    threads = [threading.Thread(target=each) for each in (dma, settle)]
    threads[0].start()
    begun.wait(60)
    threads[1].start()
    port.write_now(0, b"later")  # what begins meanwhile is not waited for, and wakes the one who waits
    with port.under_way():
        assert not settled.wait(0.05)
        go_on.set()
        assert settled.wait(60)
    for thread in threads:
        thread.join()
    assert not port.active and not port.waiting
    port.settle()


def test_settling_ends(port: DmaPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devmodel.device.dma.DRAIN_SECONDS", 0.02)
    with port.under_way():
        fails(errno.EBUSY, port.settle)
    assert not port.waiting


def test_a_use_of_pinned_pages_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devmodel.device.dma.DRAIN_SECONDS", 0.02)
    iommu = Type1()
    Driver(iommu)
    iommu.map(FakeClient(), 0, 0x8000, PAGE_SIZE, RW)
    port = DmaPort(Tasks(), lambda: True)
    port.connect(iommu.space)

    async def use() -> None:
        pin = await port.pin(0, 1, RW)
        with pin.within():
            fails(errno.EBUSY, port.settle)
        pin.write(0, b"x")
        pin.release()

    trio.run(use)
    assert not port.active
