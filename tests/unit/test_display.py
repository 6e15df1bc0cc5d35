# SPDX-License-Identifier: Apache-2.0
"""Displays without a mount: planes against every mode, also hostile ones, the DISPI interface, and EDIDs."""

import errno
import struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devmodel.device.display import MAX_EXTENT, Display, Plane
from devmodel.device.pci import PciDevice
from devmodel.models.bochs import BochsDisplay
from devmodel.models.gpu import PhysicalGpu, Vgpu
from devmodel.models.mbochs import Mbochs
from devmodel.models.mdpy import Mdpy
from devmodel.models.mtty import Mtty

MIB = 1 << 20
ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY_64K = range(11)
ENABLED, GETCAPS, LFB, NOCLEAR = 0x01, 0x02, 0x40, 0x80
EDID_REGION = 9
UP, DOWN = 1, 2
DEPTHS = {32: (b"XR24", 4), 24: (b"RG24", 3), 16: (b"RG16", 2), 15: (b"XR15", 2)}
BOCHS = (Vgpu, Mbochs)


def dispi(device: PciDevice, index: int) -> int:
    return int.from_bytes(device.read(2, 0x500 + 2 * index, 2), "little")


def set_dispi(device: PciDevice, index: int, value: int) -> None:
    device.write(2, 0x500 + 2 * index, struct.pack("<H", value))


def set_mode(device: PciDevice, width: int, height: int, bpp: int = 32, flags: int = 0) -> None:
    """As a guest driver sets it."""
    for index, value in ((ENABLE, 0), (XRES, width), (YRES, height), (BPP, bpp)):
        set_dispi(device, index, value)
    set_dispi(device, ENABLE, ENABLED | LFB | flags)


@pytest.fixture(params=BOCHS, ids=lambda model: model.__name__)
def bochs(request: pytest.FixtureRequest) -> BochsDisplay:
    model: type[BochsDisplay] = request.param
    return model("it", 16 * MIB)


# ---- planes ----


def test_only_displays_are_displays() -> None:
    assert all(issubclass(model, Display) for model in (*BOCHS, Mdpy))
    assert not any(issubclass(model, Display) for model in (PhysicalGpu, Mtty))


@pytest.mark.parametrize(("width", "height"), [(16, 16), (640, 480), (1001, 777), (1920, 1080), (8192, 16)])
def test_mdpy_always_shows_its_mode(width: int, height: int) -> None:
    plane = Mdpy("it", 0, {"width": width, "height": height}).plane()
    assert (plane.width, plane.height, plane.stride) == (width, height, 4 * width)
    assert (plane.region, plane.offset, plane.size) == (0, 0, 4 * width * height)
    assert int(plane.fourcc).to_bytes(4, "little") == b"XR24"


@pytest.mark.parametrize("bpp", DEPTHS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (640, 480), (1024, 768), (1919, 1079)])
def test_a_mode_is_shown_in_each_format(bochs: BochsDisplay, width: int, height: int, bpp: int) -> None:
    assert bochs.plane() is None
    set_mode(bochs, width, height, bpp)
    plane = bochs.plane()
    assert plane is not None
    fourcc, size = DEPTHS[bpp]
    assert int(plane.fourcc).to_bytes(4, "little") == fourcc
    assert (plane.width, plane.height, plane.stride) == (width, height, width * size)
    assert (plane.region, plane.offset, plane.size) == (0, 0, width * height * size)
    set_dispi(bochs, ENABLE, 0)
    assert bochs.plane() is None


@pytest.mark.parametrize("bpp", [0, 1, 4, 8, 31, 64, 0xFFFF])
def test_depths_without_a_format_show_nothing(bochs: BochsDisplay, bpp: int) -> None:
    set_mode(bochs, 640, 480, bpp)
    assert bochs.plane() is None
    set_dispi(bochs, BPP, 32)
    assert bochs.plane() is not None


def test_a_big_endian_framebuffer_has_formats_only_with_whole_bytes_a_colour(bochs: BochsDisplay) -> None:
    set_mode(bochs, 640, 480)
    assert struct.unpack("<II", bochs.read(2, 0x600, 8)) == (8, 0x1E1E1E1E)
    bochs.write(2, 0x604, struct.pack("<I", 0xBEBEBEBE))
    shown = {}
    for bpp in DEPTHS:
        set_dispi(bochs, BPP, bpp)
        plane = bochs.plane()
        shown[bpp] = plane and int(plane.fourcc).to_bytes(4, "little")
    assert shown == {32: b"BX24", 24: b"RG24", 16: None, 15: None}
    bochs.write(2, 0x604, bytes(4))
    assert bochs.read(2, 0x604, 4) == b"\xbe" * 4
    bochs.reset()
    assert bochs.read(2, 0x604, 4) == b"\x1e" * 4


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [(2048, 2048, True), (2049, 2048, False), (2048, 2049, False), (0, 480, False), (640, 0, False)],
)
def test_a_picture_fits_to_the_last_byte_or_is_not_shown(
    bochs: BochsDisplay, width: int, height: int, fits: bool
) -> None:
    set_mode(bochs, width, height)
    assert (bochs.plane() is not None) == fits


def test_panning_moves_the_plane_until_it_would_leave_the_memory(bochs: BochsDisplay) -> None:
    set_mode(bochs, 1024, 768)
    set_dispi(bochs, VIRT_WIDTH, 2048)
    for x, y in ((0, 0), (1, 0), (0, 1), (1024, 2048 - 768)):
        set_dispi(bochs, X_OFFSET, x)
        set_dispi(bochs, Y_OFFSET, y)
        plane = bochs.plane()
        assert plane is not None and plane.stride == 8192 and plane.offset == 8192 * y + 4 * x
    assert plane is not None and plane.offset + plane.size == 16 * MIB
    set_dispi(bochs, X_OFFSET, 1025)
    assert bochs.plane() is None


WRITES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 0xFFFF) | st.sampled_from([1, 32, 640])))


@settings(deadline=None)
@given(memory=st.integers(20, 31), writes=WRITES, enable=st.integers(0, 0xFF))
def test_whatever_a_guest_writes_the_plane_lies_in_the_memory(
    memory: int, writes: list[tuple[int, int]], enable: int
) -> None:
    device = Mbochs("it", 1 << memory)
    set_dispi(device, BPP, 32)
    for index, value in writes:
        set_dispi(device, index, value)
        check_inside(device.plane(), device.memory)
    set_dispi(device, ENABLE, enable | NOCLEAR)
    check_inside(device.plane(), device.memory)
    device.close()


def check_inside(plane: Plane | None, memory: int) -> None:
    if plane is not None:
        assert 0 < plane.width <= MAX_EXTENT and 0 < plane.height <= MAX_EXTENT
        assert plane.width * plane.fourcc.pixel_size <= plane.stride
        assert plane.offset >= 0 and plane.offset + plane.size <= memory


# ---- DISPI ----


def test_versions_of_the_interface_are_negotiated(bochs: BochsDisplay) -> None:
    assert dispi(bochs, ID) == 0xB0C5
    for version in (*range(0xB0C0, 0xB0C6), 0xB0C2):
        set_dispi(bochs, ID, version)
        assert dispi(bochs, ID) == version
    for unknown in (0, 0xB0BF, 0xB0C6, 0xFFFF):
        set_dispi(bochs, ID, unknown)
        assert dispi(bochs, ID) == 0xB0C2


def test_capabilities_cover_the_mode_only_while_asked_for(bochs: BochsDisplay) -> None:
    set_mode(bochs, 640, 480, 16)
    for enable, seen in ((GETCAPS, [MAX_EXTENT, MAX_EXTENT, 32]), (ENABLED, [640, 480, 16])):
        set_dispi(bochs, ENABLE, enable)
        assert [dispi(bochs, index) for index in (XRES, YRES, BPP)] == seen


def test_a_resolution_beyond_the_largest_is_the_largest(bochs: BochsDisplay) -> None:
    set_mode(bochs, 0xFFFF, MAX_EXTENT + 1)
    assert [dispi(bochs, XRES), dispi(bochs, YRES)] == [MAX_EXTENT, MAX_EXTENT]


def test_the_virtual_screen_is_as_wide_as_asked_and_as_high_as_memory_is(bochs: BochsDisplay) -> None:
    assert dispi(bochs, VIRT_HEIGHT) == 0
    set_mode(bochs, 1024, 768)
    assert [dispi(bochs, VIRT_WIDTH), dispi(bochs, VIRT_HEIGHT)] == [1024, 4096]
    set_dispi(bochs, VIRT_WIDTH, 2048)
    set_dispi(bochs, VIRT_HEIGHT, 7)
    assert [dispi(bochs, VIRT_WIDTH), dispi(bochs, VIRT_HEIGHT)] == [2048, 2048]
    set_dispi(bochs, VIRT_WIDTH, 100)
    assert dispi(bochs, VIRT_WIDTH) == 1024
    set_mode(bochs, 1, 1, 15)
    assert dispi(bochs, VIRT_HEIGHT) == 0xFFFF


def test_enabling_starts_at_the_origin_and_changing_a_flag_does_not(bochs: BochsDisplay) -> None:
    def moved() -> list[int]:
        return [dispi(bochs, index) for index in (VIRT_WIDTH, X_OFFSET, Y_OFFSET)]

    set_mode(bochs, 640, 480)
    for index, value in ((VIRT_WIDTH, 1000), (X_OFFSET, 10), (Y_OFFSET, 20)):
        set_dispi(bochs, index, value)
    set_dispi(bochs, ENABLE, ENABLED)
    assert moved() == [1000, 10, 20]
    set_mode(bochs, 640, 480)
    assert moved() == [640, 0, 0]


@pytest.mark.parametrize(("width", "height"), [(640, 480), (3, 5), (1000, 777)])
def test_enabling_clears_what_becomes_visible(bochs: BochsDisplay, width: int, height: int) -> None:
    size = 4 * width * height
    bochs.write(0, 0, b"\xaa" * (size + 4096))
    set_mode(bochs, width, height, flags=NOCLEAR)
    set_dispi(bochs, ENABLE, ENABLED)
    assert bochs.read(0, 0, size) == b"\xaa" * size
    set_mode(bochs, width, height)
    assert bochs.read(0, 0, size) == bytes(size)
    assert bochs.read(0, size, 4096) == b"\xaa" * 4096


def test_a_mode_that_does_not_fit_clears_nothing(bochs: BochsDisplay) -> None:
    bochs.write(0, 0, b"\xaa" * 4096)
    set_mode(bochs, 0xFFFF, 0xFFFF)
    assert bochs.read(0, 0, 4096) == b"\xaa" * 4096


def test_the_other_registers(bochs: BochsDisplay) -> None:
    assert dispi(bochs, MEMORY_64K) == 256
    set_dispi(bochs, MEMORY_64K, 1)
    set_dispi(bochs, ENABLE, 0xFFFE)
    set_dispi(bochs, BANK, 3)
    assert [dispi(bochs, MEMORY_64K), dispi(bochs, ENABLE), dispi(bochs, BANK)] == [256, 0xE2, 3]
    set_dispi(bochs, ENABLE, 0)
    assert bochs.read(2, 0x400, 0x20) == bytes(0x20)
    bochs.write(2, 0x400, b"\x20")  # 0x3c0: the attribute controller, unblank
    assert bochs.read(2, 0x400, 2) == b"\x20\x00"
    bochs.write(2, 0x502, struct.pack("<HH", 640, 480))  # two registers at once
    bochs.write(2, 0x503, b"\x04")  # half a register
    assert [dispi(bochs, XRES), dispi(bochs, YRES)] == [0x480, 480]


def test_a_reset_shows_nothing_and_keeps_the_memory(bochs: BochsDisplay) -> None:
    set_mode(bochs, 640, 480)
    set_dispi(bochs, ID, 0xB0C0)
    bochs.write(0, 100, b"picture")
    bochs.reset()
    assert bochs.plane() is None and dispi(bochs, ID) == 0xB0C5 and dispi(bochs, XRES) == 0
    assert bochs.read(0, 100, 7) == b"picture"
    set_dispi(bochs, ID, 0)
    assert dispi(bochs, ID) == 0xB0C5


# ---- EDID ----


class Timing(NamedTuple):
    """What a detailed timing of an EDID says: pixels, lines, and Hz."""

    width: int
    height: int
    refresh: float


def check_block(blob: bytes) -> None:
    assert blob[:8] == b"\x00\xff\xff\xff\xff\xff\xff\x00"
    assert sum(blob[:128]) % 256 == 0
    assert blob[18:20] == bytes([1, 4]) and blob[20] & 0x80 and not blob[126]


def preferred(blob: bytes) -> Timing:
    clock, *b = struct.unpack("<H16B", blob[54:72])
    width, h_blank = b[0] | (b[2] & 0xF0) << 4, b[1] | (b[2] & 0x0F) << 8
    height, v_blank = b[3] | (b[5] & 0xF0) << 4, b[4] | (b[5] & 0x0F) << 8
    h_front, h_sync = b[6] | (b[9] & 0xC0) << 2, b[7] | (b[9] & 0x30) << 4
    v_front, v_sync = b[8] >> 4 | (b[9] & 0x0C) << 2, b[8] & 15 | (b[9] & 0x03) << 4
    assert h_front + h_sync < h_blank and v_front + v_sync < v_blank
    return Timing(width, height, clock * 10_000 / ((width + h_blank) * (height + v_blank)))


def descriptor(blob: bytes, tag: int) -> bytes:
    found = [blob[at : at + 18] for at in range(54, 126, 18) if blob[at : at + 4] == bytes([0, 0, 0, tag])]
    assert len(found) == 1
    return found[0][5:].rstrip(b" ").removesuffix(b"\n")


@pytest.mark.parametrize(
    ("mib", "mode"),
    [
        (1, (400, 300)),
        (2, (512, 384)),
        (4, (800, 600)),
        (8, (1280, 800)),
        (16, (1920, 1080)),
        (32, (2560, 1600)),
        (64, (3840, 2160)),
        (2048, (3840, 2160)),
    ],
)
@pytest.mark.parametrize("model", BOCHS, ids=lambda model: model.__name__)
def test_the_monitor_prefers_the_largest_mode_that_fits_twice(
    model: type[BochsDisplay], mib: int, mode: tuple[int, int]
) -> None:
    blob = model("it", mib * MIB).read(2, 0, 0x400)
    check_block(blob)
    timing = preferred(blob)
    assert timing[:2] == mode and 59.5 < timing.refresh < 60.5
    assert blob[128:] == bytes(0x400 - 128)
    assert 2 * 4 * mode[0] * mode[1] <= mib * MIB


@pytest.mark.parametrize(("model", "name"), [(Vgpu, b"vgpu"), (Mbochs, b"mbochs")])
def test_monitors_have_names_and_serial_numbers_of_their_own(model: type[BochsDisplay], name: bytes) -> None:
    first, second = (model(each, 16 * MIB).read(2, 0, 128) for each in ("first", "second"))
    assert descriptor(first, 0xFC) == descriptor(second, 0xFC) == name
    assert first[12:16] != second[12:16]
    assert descriptor(first, 0xFF) == f"{int.from_bytes(first[12:16], 'little'):08x}".encode()


def test_standard_timings_are_no_larger_than_the_preferred_mode() -> None:
    blob = Mbochs("it", 4 * MIB).read(2, 0, 128)
    widths = [(blob[at] + 31) * 8 for at in range(38, 54, 2) if blob[at : at + 2] != b"\x01\x01"]
    assert widths == [800, 640]
    assert blob[35:38] == bytes([0x21, 0, 0])


def test_the_edid_is_read_byte_by_byte_and_cannot_be_written(bochs: BochsDisplay) -> None:
    whole = bochs.read(2, 0, 128)
    bochs.write(2, 0, bytes(256))
    assert b"".join(bochs.read(2, at, 1) for at in range(128)) == whole
    set_dispi(bochs, XRES, 0x1234)
    assert bochs.read(2, 0x3FE, 0x106)[-2:] == b"\x34\x12"


# ---- the EDID as a region of VFIO ----


@pytest.fixture
def mbochs() -> Mbochs:
    return Mbochs("it", 16 * MIB)


def gfx(device: PciDevice) -> list[int]:
    """edid_offset, edid_max_size, edid_size, max_xres, max_yres, link_state"""
    return list(struct.unpack("<6I", device.read(EDID_REGION, 0, 24)))


def set_gfx(device: PciDevice, offset: int, value: int) -> None:
    device.write(EDID_REGION, offset, struct.pack("<I", value))


SIZE, LINK = 8, 20


def test_only_mbochs_has_the_region_and_it_says_what_fits(mbochs: Mbochs) -> None:
    assert len(Vgpu("it", 16 * MIB).regions) == EDID_REGION
    assert [(own.type, own.subtype) for own in mbochs.own_regions] == [(1, 1)]
    offset, most, size, *rest = gfx(mbochs)
    assert rest == [1920, 1080, UP] and size == 128
    assert offset + most == mbochs.region(EDID_REGION).size
    assert mbochs.read(EDID_REGION, offset, size) == mbochs.read(2, 0, size)


def test_the_guest_sees_a_clients_edid_once_the_link_is_up(mbochs: Mbochs) -> None:
    offset = gfx(mbochs)[0]
    before, blob = mbochs.read(2, 0, 0x400), bytes(range(256))
    set_gfx(mbochs, LINK, DOWN)
    assert mbochs.read(2, 0, 0x400) == bytes(0x400)
    set_gfx(mbochs, SIZE, len(blob))
    mbochs.write(EDID_REGION, offset, blob)
    assert mbochs.read(2, 0, 0x400) == bytes(0x400)
    set_gfx(mbochs, LINK, UP)
    assert mbochs.read(2, 0, 0x400) == blob + bytes(0x400 - 256) != before
    mbochs.write(EDID_REGION, offset, b"torn")
    assert mbochs.read(2, 0, 4) == blob[:4]
    mbochs.reset()
    assert mbochs.read(2, 0, 256) == blob


@pytest.mark.parametrize(
    ("offset", "value"), [(SIZE, 0x401), (SIZE, 0xFFFFFFFF), (LINK, 0), (LINK, 3), (LINK, 0xFFFFFFFF)]
)
def test_what_cannot_be_is_refused_and_changes_nothing(mbochs: Mbochs, offset: int, value: int) -> None:
    before, seen = gfx(mbochs), mbochs.read(2, 0, 128)
    with pytest.raises(OSError) as caught:
        set_gfx(mbochs, offset, value)
    assert caught.value.errno == errno.EINVAL
    assert gfx(mbochs) == before and mbochs.read(2, 0, 128) == seen


@pytest.mark.parametrize("offset", [0, 4, 12, 16])
def test_read_only_fields_stay(mbochs: Mbochs, offset: int) -> None:
    before = gfx(mbochs)
    set_gfx(mbochs, offset, 0x80)
    assert gfx(mbochs) == before
    set_gfx(mbochs, SIZE, 0x400)
    assert gfx(mbochs)[2] == 0x400


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x7FF), st.binary(min_size=1, max_size=32))))
def test_any_writes_leave_a_valid_region(writes: list[tuple[int, bytes]]) -> None:
    device = Mbochs("it", 4 * MIB)
    for offset, data in writes:
        try:
            device.write(EDID_REGION, offset, data)
        except OSError as error:
            assert error.errno == errno.EINVAL
    fields = gfx(device)
    assert [*fields[:2], *fields[3:5]] == [0x400, 0x400, 800, 600]
    assert fields[2] <= 0x400 and fields[5] in (UP, DOWN)
    assert len(device.guest_edid()) <= 0x400
