# SPDX-License-Identifier: Apache-2.0
"""PCI configuration space: layout, sizing, write masks, capabilities and hooks."""

import errno
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devmodel.device.pci import PciDevice, PciRegion
from devmodel.pci.address import PciAddress
from devmodel.pci.capability import Capability, msi, msix, power_management, vendor
from devmodel.pci.config import Aperture, ConfigSpace
from devmodel.pci.fields import Bar, Identity
from devmodel.pci.regs import CapId, Command, Reg
from devmodel.region.region import Memory, Rom
from devmodel.region.registers import Layout, Registers

IDENTITY = Identity(0x1234, 0x5678, 0x1AF4, 0x1100, class_code=0x030200, revision=7, irq_pin=1)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def io(size: int) -> Bar:
    return Bar(Registers(Layout(size, [])), io=True)


def memory(size: int, **kind: bool) -> Bar:
    return Bar(Memory(size), **kind)


BARS = {
    0: memory(16 * MIB, prefetch=True),
    1: io(8),
    2: memory(8 * GIB, mem64=True, prefetch=True),
    4: memory(4 * KIB),
    6: Bar(Rom(b"\x55\xaa", 64 * KIB)),
}


def config(capabilities: Sequence[Capability] = (), size: int = 256) -> ConfigSpace:
    return ConfigSpace(IDENTITY, BARS, capabilities, size)


def put(space: ConfigSpace, offset: int, width: int, value: int) -> int:
    """Write and read back."""
    space.write(offset, value.to_bytes(width, "little"))
    return space.value(offset, width)


def chain(space: ConfigSpace) -> Iterator[tuple[int, int]]:
    """(id, offset) of each capability, found as software finds them."""
    offset = space.value(Reg.CAPABILITY_LIST, 1)
    while offset:
        yield space.value(offset, 1), offset
        offset = space.value(offset + 1, 1)


def test_the_header_is_where_the_specification_puts_it() -> None:
    header = config().read(0, 64)
    assert header[0x00:0x04].hex() == "34127856"
    assert header[0x08:0x0C].hex() == "07000203"
    assert header[0x0E] == 0
    assert header[0x2C:0x30].hex() == "f41a0011"
    assert header[0x3D] == 1
    assert header[0x34] == 0 and not header[0x06] & 0x10


@pytest.mark.parametrize(
    ("index", "flags"), [(0, 0x8), (1, 0x1), (2, 0xC), (4, 0x0)], ids=["mem32 pref", "io", "mem64", "mem32"]
)
def test_sizing_with_all_ones_gives_the_size_and_keeps_the_flags(index: int, flags: int) -> None:
    space, bar = config(), BARS[index]
    width = 8 if bar.mem64 else 4
    assert space.bar_value(index) == flags
    for half in range(0, width, 4):
        put(space, Reg.BASE_ADDRESS_0 + 4 * index + half, 4, 0xFFFFFFFF)
    value = space.bar_value(index)
    low_bits = 0x3 if bar.io else 0xF
    assert value & low_bits == flags
    decoded = (~(value & ~low_bits) + 1) & ((1 << 8 * width) - 1)
    assert decoded == bar.size


def test_sizing_both_halves_of_a_64_bit_bar_separately() -> None:
    space = config()
    assert put(space, 0x18, 4, 0xFFFFFFFF) == 0x0000000C
    assert put(space, 0x1C, 4, 0xFFFFFFFF) == 0xFFFFFFFE


def test_rom_sizing_and_enable() -> None:
    space = config()
    assert put(space, Reg.ROM_ADDRESS, 4, 0xFFFFF800) == 0xFFFF0000
    assert put(space, Reg.ROM_ADDRESS, 4, 0xFFFFFFFF) == 0xFFFF0001
    assert space.bar_value(6) == 0xFFFF0001


def test_unused_bars_read_zero() -> None:
    assert put(config(), 0x24, 4, 0xFFFFFFFF) == 0


def test_command_has_its_bits_and_status_is_protected() -> None:
    space = config()
    assert put(space, Reg.COMMAND, 2, 0xFFFF) == 0x547
    assert space.command & Command.INTX_DISABLE
    assert put(space, Reg.STATUS, 2, 0xFFFF) == 0


def test_command_offers_only_what_the_function_decodes() -> None:
    bare = ConfigSpace(Identity(1, 2, 3, 4, 0), {0: io(8)})
    assert put(bare, Reg.COMMAND, 2, 0xFFFF) == Command.IO | Command.MASTER | Command.PARITY | Command.SERR


READ_ONLY = [(0x00, 4), (0x06, 2), (0x08, 4), (0x0E, 2), (0x28, 8), (0x34, 1), (0x35, 7), (0x3D, 3)]


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(min_size=1, max_size=16)), max_size=30))
def test_no_sequence_of_writes_changes_a_read_only_field(writes: list[tuple[int, bytes]]) -> None:
    space = config(capabilities=[vendor(b"payload")])
    before = [space.read(*field) for field in READ_ONLY] + [space.read(0x40, 192)]
    for offset, data in writes:
        space.write(offset, data[: 256 - offset])
    assert [space.read(*field) for field in READ_ONLY] + [space.read(0x40, 192)] == before
    assert space.bar_value(0) & 0xF == 0x8 and space.bar_value(1) & 0x3 == 0x1
    space.reset()
    assert space.read(0, 256) == config(capabilities=[vendor(b"payload")]).read(0, 256)


def test_line_and_latency_are_the_drivers_to_keep() -> None:
    space = config()
    assert put(space, Reg.INTERRUPT_LINE, 1, 11) == 11
    assert put(space, Reg.CACHE_LINE_SIZE, 2, 0x2010) == 0x2010


def test_capabilities_form_a_list_of_aligned_entries() -> None:
    space = config(capabilities=[vendor(b"12345"), power_management(), msi(4), msix(3, (4, 0), (4, 2048))])
    found = list(chain(space))
    assert [ident for ident, _ in found] == [CapId.VNDR, CapId.PM, CapId.MSI, CapId.MSIX]
    assert all(offset % 4 == 0 for _, offset in found)
    assert space.value(Reg.STATUS, 2) & 0x10
    assert space.read(found[0][1] + 2, 6) == b"\x0812345"


def test_power_states_can_be_entered_and_nothing_else_written() -> None:
    space = config(capabilities=[power_management()])
    assert put(space, 0x40, 2, 0xFFFF) == CapId.PM
    assert put(space, 0x42, 2, 0xFFFF) == 0x0003
    assert put(space, 0x44, 2, 0xFFFF) == 0x000B


def test_msi_fields() -> None:
    space = config(capabilities=[msi(4)])
    assert space.value(0x42, 2) == 0x0184  # 64-bit, maskable, 4 vectors
    assert put(space, 0x42, 2, 0xFFFF) == 0x01F5
    assert put(space, 0x44, 4, 0xFFFFFFFF) == 0xFFFFFFFC
    assert put(space, 0x48, 4, 0xFFFFFFFF) == 0xFFFFFFFF
    assert put(space, 0x4C, 4, 0xFFFFFFFF) == 0x0000FFFF
    assert put(space, 0x50, 4, 0xFFFFFFFF) == 0xF
    assert put(space, 0x54, 4, 0xFFFFFFFF) == 0


def test_msix_fields() -> None:
    space = config(capabilities=[msix(2048, (4, 0x100), (4, 0x800))])
    assert space.value(0x42, 2) == 0x7FF
    assert put(space, 0x42, 2, 0xFFFF) == 0xC7FF
    assert put(space, 0x44, 8, 2**64 - 1) == 0x0000_0804_0000_0104


@pytest.mark.parametrize(
    "declare",
    [
        lambda: msi(3),
        lambda: msi(64),
        lambda: msix(0, (0, 0), (0, 8)),
        lambda: msix(2049, (0, 0), (0, 8)),
        lambda: msix(1, (6, 0), (0, 8)),
        lambda: msix(1, (0, 4), (0, 8)),
        lambda: ConfigSpace(IDENTITY, {}, [vendor(bytes(200))]),
        lambda: ConfigSpace(IDENTITY, {5: memory(4096, mem64=True)}),
        lambda: ConfigSpace(IDENTITY, {0: memory(4096, mem64=True), 1: memory(4096)}),
        lambda: ConfigSpace(IDENTITY, {0: memory(3 * 4096)}),
        lambda: ConfigSpace(IDENTITY, {0: io(2)}),
        lambda: ConfigSpace(IDENTITY, {7: memory(4096)}),
        lambda: ConfigSpace(IDENTITY, {6: Bar(Rom(b"", 1024))}),
    ],
)
def test_contradictory_declarations_are_refused(declare: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        declare()


def test_hooks_see_each_write_that_touches_their_field() -> None:
    space = config()
    seen: list[int] = []
    space.watch(Reg.COMMAND, 2, seen.append)
    space.write(Reg.COMMAND, b"\x06\x00")
    space.write(Reg.COMMAND + 1, b"\x04")
    space.write(0x00, b"\xff" * 8)
    space.write(Reg.CACHE_LINE_SIZE, b"\x10")
    space.write(0x00, b"\xff" * 4)
    assert seen == [0x006, 0x406, 0x547]


def test_extended_space_is_4096_bytes_and_read_only_beyond_the_list() -> None:
    space = config(size=4096)
    space.write(0x100, b"\xff" * 16)
    assert space.size == 4096 and space.read(0x100, 16) == bytes(16)


class Card(PciDevice):
    """A function with one of everything."""

    __slots__ = ()
    identity = IDENTITY

    def bars(self) -> dict[int, Bar]:
        return BARS

    def capabilities(self) -> list[Capability]:
        return [msi(8), msix(5, (4, 0), (4, 2048))]


def test_a_pci_device_has_the_indexes_of_vfio_pci() -> None:
    card = Card("card")
    assert len(card.regions) == 9 and len(card.irqs) == 5
    assert card.region(PciRegion.CONFIG) is card.config
    assert [index for index, region in enumerate(card.regions) if region is None] == [3, 5, 8]
    counts = [irq.count if irq else None for irq in card.irqs]
    assert counts == [1, 8, 5, None, 1]
    intx, message = card.irqs[0], card.irqs[1]
    assert intx and intx.automasked and intx.maskable and not intx.noresize
    assert message and message.noresize and not message.maskable


def test_config_is_read_and_written_as_a_region() -> None:
    card = Card("card")
    assert card.read(PciRegion.CONFIG, 0, 4).hex() == "34127856"
    assert len(card.read(PciRegion.CONFIG, 0, 256)) == 256
    assert card.write(PciRegion.CONFIG, Reg.INTERRUPT_LINE, b"\x0b") == 1
    card.reset()
    assert card.config.value(Reg.INTERRUPT_LINE, 1) == 0
    for offset, size in ((256, 1), (0, 257), (254, 4)):
        with pytest.raises(OSError) as caught:
            card.read(PciRegion.CONFIG, offset, size)
        assert caught.value.errno == errno.EFAULT


def test_firmware_places_bars_without_overlap_and_resources_say_where() -> None:
    aperture = Aperture()
    cards = [Card("one", aperture=aperture), Card("two", aperture=aperture)]
    taken: list[range] = []
    for card in cards:
        rows = card.resource_rows()
        assert len(rows) == 13
        assert card.config.command == Command.IO | Command.MEMORY | Command.MASTER
        for index, bar in BARS.items():
            start, end, flags = rows[index]
            assert end - start + 1 == bar.size and start % bar.size == 0
            assert not flags & 0x20000000
            assert card.config.bar_value(index) & ~(bar.size - 1) == start
            space = range(start, end + 1)
            assert all(space.start >= other.stop or space.stop <= other.start for other in taken)
            taken.append(space)
        assert [rows[index] for index in (3, 5, *range(7, 13))] == [(0, 0, 0)] * 8


def test_resource_flags_are_the_kernels() -> None:
    rows = Card("card", aperture=Aperture()).resource_rows()
    assert [rows[index].flags for index in (0, 1, 2, 4)] == [0x42208, 0x40101, 0x14220C, 0x40200]


def test_firmwares_choice_survives_a_reset_and_a_write_does_not() -> None:
    card = Card("card", aperture=Aperture())
    before = card.config.read(0, 64)
    card.write(PciRegion.CONFIG, 0x10, b"\xff" * 24)
    assert card.config.read(0, 64) != before
    card.reset()
    assert card.config.read(0, 64) == before


def test_unplaced_bars_are_zero_and_unset() -> None:
    card = Card("card")
    assert (
        card.config.bar_value(2) & ~(BARS[2].size - 1) == 0
        and card.config.command == Command.IO | Command.MEMORY
    )
    assert card.resource_rows()[0] == (0, 16 * MIB - 1, 0x20042208)


# ---- addresses ----


@pytest.mark.parametrize(
    ("name", "address", "rid"),
    [
        ("0000:86:00.0", (0, 0x86, 0), 0x8600),
        ("ffff:00:1f.7", (0xFFFF, 0, 0xFF), 0x00FF),
        ("0001:a0:02.3", (1, 0xA0, 0x13), 0xA013),
    ],
)
def test_an_address_is_read_as_it_is_spelled(name: str, address: tuple[int, ...], rid: int) -> None:
    read = PciAddress.parse(name)
    assert (read, str(read), read.rid, read.bus_name) == (address, name, rid, name[:7])


@pytest.mark.parametrize(
    "name",
    [
        *("", "86:00.0", "0000:86:00", "0000:86:00.8", "0000:86:20.0", "0000:86:00.0\n", " 0000:86:00.0"),
        *("0000:86:0.0", "00000:86:00.0", "0000:86:00.00", "0000:AB:00.0", "0000:+6:00.0", "0000:٨6:00.0"),
    ],
)
def test_no_other_spelling_is_an_address(name: str) -> None:
    with pytest.raises(ValueError, match="not a PCI address"):
        PciAddress.parse(name)


def test_routing_ids_go_on_over_functions_and_buses_to_the_end_of_the_segment() -> None:
    first = PciAddress.parse("0002:86:1f.6")
    assert [str(first.after(distance)) for distance in range(3)] == [
        *("0002:86:1f.6", "0002:86:1f.7", "0002:87:00.0"),
    ]
    assert str(first.after(0x7901)) == "0002:ff:1f.7"
    with pytest.raises(ValueError, match="no routing id"):
        first.after(0x7902)
