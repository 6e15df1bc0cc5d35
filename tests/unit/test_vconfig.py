# SPDX-License-Identifier: Apache-2.0
"""Configuration space and regions as a client of vfio-pci has them, without a mount."""

import errno
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.device.pci import PciRegion
from devmodel.lifecycle.physical import PhysicalFunction, VirtualFunction
from devmodel.models.plain import PlainSpec, plain_model
from devmodel.pci import regs
from devmodel.pci.regs import CapId, Command, Reg
from devmodel.vfio.pciaccess import FunctionAccess
from tests.unit.fakes import fails
from tests.unit.test_express import functions, spec, with_vfs
from tests.unit.test_plain import captured
from tests.vfio.models.wired import TABLE, VECTORS, Wired

CONFIG = PciRegion.CONFIG
WORD = st.tuples(st.integers(0, 0x100), st.binary(min_size=1, max_size=16))
MINE = frozenset(range(Reg.BASE_ADDRESS_0, Reg.BASE_ADDRESS_0 + 24)) | {0x30, 0x31, 0x32, 0x33, 0x3C}
"""Bytes of the header that are a client's own."""


def wired() -> PhysicalFunction:
    (function,) = functions(spec("0000:86:00.0", Wired))
    function.first_opened()
    return function


@pytest.fixture
def access() -> FunctionAccess:
    return wired().access


@pytest.fixture
def vf() -> Iterator[VirtualFunction]:
    lab, gpu = with_vfs()
    lab.sriov.set_count(gpu, 2)
    gpu.vfs[1].first_opened()
    yield gpu.vfs[1]
    lab.close()


@given(st.lists(WORD, max_size=20))
def test_no_client_writes_what_is_the_hosts(writes: list[tuple[int, bytes]]) -> None:
    function = wired()
    access, config = function.access, function.device.config
    before, seen = config.save(), access.read(CONFIG, 0, 256)
    for offset, data in writes:
        access.write(CONFIG, offset, data[: 256 - offset] if offset < 256 else b"")
    changed = {at for at, (old, new) in enumerate(zip(before, config.save(), strict=True)) if old != new}
    place = {each: config.find(each) for each in CapId}
    allowed = {0x04, 0x05, 0x0C, 0x0D}  # command, cache line size, latency
    allowed |= {place[CapId.PM] + 4, place[CapId.MSI] + 16}
    allowed |= {place[CapId.EXP] + at for at in (0x08, 0x09, 0x28)}
    assert changed <= allowed
    now = access.read(CONFIG, 0, 256)
    for at in set(range(64)) - MINE - allowed:
        assert now[at] == seen[at]
    assert not now[place[CapId.MSI] + 2] & regs.MSI_ENABLE
    function.last_closed()
    assert config.save() == before


@given(st.lists(WORD, max_size=8), st.integers(0, 255), st.integers(1, 64))
def test_the_front_ends_bytes_are_what_a_read_gives(
    writes: list[tuple[int, bytes]], offset: int, size: int
) -> None:
    access = wired().access
    for place, data in writes:
        access.write(CONFIG, place, data[: 256 - place] if place < 256 else b"")
    stored = access.stored(CONFIG)
    assert stored is not None and all(stored.plain)
    assert (
        access.read(CONFIG, offset, min(size, 256 - offset))
        == stored.data[offset : offset + size][: 256 - offset]
    )


def test_only_a_bus_master_in_d0_does_dma() -> None:
    function = wired()
    access, device = function.access, function.device
    power = device.config.find(CapId.PM) + regs.PM_CTRL
    assert not device.may_dma()
    access.write(CONFIG, Reg.COMMAND, b"\x06\x00")
    assert device.may_dma()
    access.write(CONFIG, power, b"\x03")
    assert not device.may_dma() and device.power_state == 3
    access.write(CONFIG, power, b"\x00")
    assert device.may_dma() and device.power_state == 0


def test_interrupts_of_the_hardware_show_at_once(access: FunctionAccess) -> None:
    function = wired()
    with function.device.lock:
        function.device.set_intx(True)
    assert function.access.read(CONFIG, Reg.STATUS, 2)[0] & regs.STATUS_INTERRUPT
    with function.device.lock:
        function.device.set_intx(False)
    assert not function.access.read(CONFIG, Reg.STATUS, 2)[0] & regs.STATUS_INTERRUPT


def test_an_access_ends_where_the_region_does(access: FunctionAccess) -> None:
    fails(errno.EFAULT, access.read, CONFIG, 4095, 2)
    fails(errno.EFAULT, access.write, CONFIG, 4096, b"1")
    fails(errno.EINVAL, access.read, 5, 0, 4)
    fails(errno.EINVAL, access.read, 0, 4096, 4)
    fails(errno.EINVAL, access.write, PciRegion.ROM, 0, b"1")
    assert len(access.read(0, 4092, 8)) == 4 and access.write(0, 4092, bytes(8)) == 4
    assert access.read(CONFIG, 256, 0) == b"" and access.write(CONFIG, 256, b"") == 0


def test_a_front_end_keeps_out_of_the_table(access: FunctionAccess) -> None:
    assert access.hole(0) == (TABLE, TABLE + 16 * VECTORS)
    assert access.hole(2) is access.hole(CONFIG) is None


def test_a_function_that_has_gone_is_enodev(access: FunctionAccess) -> None:
    function = wired()
    function.device.close()
    for index in (0, 2, CONFIG):
        fails(errno.ENODEV, function.access.read, index, 0, 4)
        fails(errno.ENODEV, function.access.write, index, 0, b"1234")


def test_a_function_that_vanishes_reads_all_ones() -> None:
    function = wired()
    function.device.vanish()
    for index in (0, 2, CONFIG):
        assert function.access.read(index, 0, 4) == b"\xff" * 4
        assert function.access.write(index, 0, b"1234") == 4


def test_a_virtual_functions_bars_and_decoding_are_made_up(vf: VirtualFunction) -> None:
    config = vf.device.config
    assert not config.command & Command.MEMORY
    assert vf.access.read(CONFIG, Reg.COMMAND, 2) == b"\x02\x00"
    vf.device.write(CONFIG, Reg.COMMAND, b"\x02")
    assert not config.command
    vf.access.write(CONFIG, Reg.COMMAND, bytes(2))
    assert vf.access.read(CONFIG, Reg.COMMAND, 2) == bytes(2)
    vf.access.write(0, 0, b"memory")
    assert vf.access.read(0, 0, 6) == b"memory"
    for index, bar in vf.device.bar_map.items():
        place = Reg.BASE_ADDRESS_0 + 4 * index
        assert int.from_bytes(vf.access.read(CONFIG, place, 4), "little") == bar.flags
        vf.access.write(CONFIG, place, b"\xff" * 4)
        sized = int.from_bytes(vf.access.read(CONFIG, place, 4), "little")
        assert (~(sized & ~0xF) + 1) & 0xFFFFFFFF == bar.size


def test_a_virtual_function_keeps_sizes_of_packets_for_its_client(vf: VirtualFunction) -> None:
    place = vf.device.config.find(CapId.EXP) + regs.EXP_DEVCTL
    vf.access.write(CONFIG, place, b"\x2f\x50")
    assert vf.access.read(CONFIG, place, 2) == b"\x20\x50"
    assert vf.device.config.value(place, 2) == 0


def test_msi_without_64_bits_ends_where_it_ends() -> None:
    """What is behind a short MSI capability is the next capability, and no register of MSI's."""
    image = captured()
    (function,) = functions(spec("0000:86:00.0", plain_model(PlainSpec(config=bytes(image)))))
    function.first_opened()
    access, behind = function.access, bytes(image[0x5A:0x70])
    access.write(CONFIG, 0x54, b"\xff" * 0x1C)
    assert access.read(CONFIG, 0x54, 6) == b"\xfc" + b"\xff" * 5
    assert access.read(CONFIG, 0x5A, 0x16) == behind[:9] + bytes([behind[9] & 0x7F]) + behind[10:]
    function.last_closed()


def test_a_client_reads_vital_product_data() -> None:
    model = plain_model(PlainSpec(capabilities=("vpd",), vpd=b"\x82\x04\0NAME\x78"))
    (function,) = functions(spec("0000:86:00.0", model))
    function.first_opened()
    place = function.device.config.find(CapId.VPD)
    function.access.write(CONFIG, place + regs.VPD_ADDR, b"\4\0")
    assert function.access.read(CONFIG, place + regs.VPD_ADDR, 6) == b"\4\x80" + b"AME\x78"
    function.last_closed()
