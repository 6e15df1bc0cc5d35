# SPDX-License-Identifier: Apache-2.0
"""What a model does with its port: bytes, and buffers of its own."""

import pytest
import trio

from devmodel.device.dma import DmaPort
from devmodel.device.tasks import Tasks
from devmodel.iommu.api import PAGE_SIZE, DmaFault, Prot
from devmodel.iommu.type1 import Type1
from tests.unit.fakes import FakeClient

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
    with pytest.raises(DmaFault, match="no container"):
        port.read_into_now(0, bytearray(4))
    assert port.fault_count == 1
