# SPDX-License-Identifier: Apache-2.0
"""QUERY_GFX_PLANE and the EDID region on a real mount: good calls, and every refusal with its errno."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
import sys
from collections.abc import Iterator

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run
from tests.labs import MountedLab
from tests.vfio.client import (
    DEVICE_GET_REGION_INFO,
    PAGE,
    U32,
    U64,
    DeviceInfo,
    Memory,
    RegionInfo,
    Struct,
    fails,
    ioctl,
    request,
    unmapped_address,
    with_caps,
)
from tests.vfio.devices import GPU, Device, Opened, bound, mdev, opened

QUERY_PLANE, GET_DMABUF = request(14), request(15)
PROBE, DMABUF, REGION = 1, 2, 4
OVERLAY, PRIMARY, CURSOR = 0, 1, 2
LEAST = 60
NO_HOTSPOT = 0xFFFFFFFF
BAR2, EDID = 2 << 40, 9 << 40
EDID_SIZE, LINK, UP, DOWN = 8, 20, 1, 2


class Plane(Struct):
    """struct vfio_device_gfx_plane_info; its union is region_index here."""

    _fields_ = (
        ("argsz", U32),
        ("flags", U32),
        ("drm_plane_type", U32),
        ("drm_format", U32),
        ("drm_format_mod", U64),
        ("width", U32),
        ("height", U32),
        ("stride", U32),
        ("size", U32),
        ("x_pos", U32),
        ("y_pos", U32),
        ("x_hot", U32),
        ("y_hot", U32),
        ("region_index", U32),
    )


def query(device: Device, flags: int = REGION, kind: int = PRIMARY) -> Plane:
    plane = Plane(flags=flags, drm_plane_type=kind)
    assert device.ioctl(QUERY_PLANE, plane) == 0
    return plane


def shape(plane: Plane) -> tuple[bytes, int, int, int, int]:
    fourcc = int(plane.drm_format).to_bytes(4, "little")
    return fourcc, plane.width, plane.height, plane.stride, plane.size


def set_mode(device: Device, width: int, height: int, bpp: int) -> None:
    os.pwrite(device.fd, bytes(2), BAR2 + 0x508)
    os.pwrite(device.fd, struct.pack("<4H", width, height, bpp, 0x41), BAR2 + 0x502)


@pytest.fixture(scope="module")
def mbochs(lab: MountedLab) -> Iterator[Opened]:
    with mdev(lab, "mbochs-small", "mbochs") as found:
        yield found


@pytest.fixture(
    params=[("mbochs-small", "mbochs"), ("vgpu-8", GPU), ("mdpy-vga", "mdpy")], ids=lambda p: p[0]
)
def display(request: pytest.FixtureRequest, lab: MountedLab) -> Iterator[Opened]:
    with mdev(lab, *request.param) as found:
        yield found


NOTHING = (bytes(4), 0, 0, 0, 0)


def test_what_can_be_shown_is_probed(display: Opened) -> None:
    """As QEMU does for display=on: DMABUF must fail, REGION must do if the region can be mapped."""
    device = display.device
    fails(errno.EINVAL, query, device, PROBE | DMABUF)
    region, caps = with_caps(device.fd, DEVICE_GET_REGION_INFO, RegionInfo, index=0)
    if needs.NO_PASSTHROUGH:
        assert not region.flags & 4
        fails(errno.EINVAL, query, device, PROBE | REGION)
    else:
        assert region.flags & 4 and not [cap for cap in caps if cap[0] == 1]
        assert device.ioctl(QUERY_PLANE, Plane(flags=PROBE | REGION)) == 0


@pytest.mark.parametrize(
    "flags", [0, PROBE, DMABUF, DMABUF | REGION, PROBE | DMABUF | REGION, 8, REGION | 8, 1 << 31 | REGION]
)
def test_other_flags_are_refused(display: Opened, flags: int) -> None:
    fails(errno.EINVAL, query, display.device, flags)


def test_a_probe_changes_nothing_of_the_clients(mbochs: Opened) -> None:
    plane = Plane(flags=PROBE | REGION, drm_plane_type=7, width=8, region_index=9)
    before = bytes(plane)
    with contextlib.suppress(OSError):  # EINVAL where memory cannot be mapped
        assert mbochs.device.ioctl(QUERY_PLANE, plane) == 0
    assert bytes(plane) == before


def test_mdpy_has_its_plane_from_the_start(lab: MountedLab) -> None:
    with mdev(lab, "mdpy-xga", "mdpy") as found:
        plane = query(found.device)
        assert shape(plane) == (b"XR24", 1024, 768, 4096, 4096 * 768)
        assert (plane.region_index, plane.drm_format_mod, plane.x_hot) == (0, 0, NO_HOTSPOT)


@pytest.mark.parametrize(("bpp", "fourcc", "size"), [(32, b"XR24", 4), (24, b"RG24", 3), (16, b"RG16", 2)])
def test_a_bochs_display_has_the_plane_its_guest_has_set(
    mbochs: Opened, bpp: int, fourcc: bytes, size: int
) -> None:
    device = mbochs.device
    set_mode(device, 801, 600, bpp)
    used = 801 * size * 600
    assert shape(query(device)) == (fourcc, 801, 600, 801 * size, -(-used // PAGE) * PAGE)
    os.pwrite(device.fd, bytes(2), BAR2 + 0x508)
    plane = query(device)
    assert shape(plane) == NOTHING
    assert (plane.x_hot, plane.y_hot) == (NO_HOTSPOT, NO_HOTSPOT)


@pytest.mark.parametrize(("kind", "shown"), [(OVERLAY, 1), (PRIMARY, 1), (CURSOR, 0), (3, 0), (2**32 - 1, 0)])
def test_only_the_picture_itself_is_a_plane(mbochs: Opened, kind: int, shown: int) -> None:
    """QEMU leaves drm_plane_type 0 when it asks for a region."""
    set_mode(mbochs.device, 640, 480, 32)
    plane = query(mbochs.device, kind=kind)
    assert shape(plane) == ((b"XR24", 640, 480, 2560, 2560 * 480) if shown else NOTHING)


def test_a_mode_beyond_the_memory_is_no_plane(mbochs: Opened) -> None:
    set_mode(mbochs.device, 16000, 12000, 32)
    assert shape(query(mbochs.device)) == NOTHING


@needs.passthrough
def test_the_plane_is_what_a_client_maps(display: Opened) -> None:
    if "1b36" not in f"{display.device.config(0):04x}":
        set_mode(display.device, 640, 480, 32)
    plane = query(display.device)
    with mmap.mmap(display.device.fd, plane.size, offset=plane.region_index << 40) as pixels:
        pixels[-4:] = b"last"
        assert os.pread(display.device.fd, 4, plane.size - 4) == b"last"


@pytest.mark.parametrize(("argsz", "number"), [(0, errno.EINVAL), (LEAST - 1, errno.EINVAL)])
def test_a_short_argsz_is_refused(mbochs: Opened, argsz: int, number: int) -> None:
    fails(number, mbochs.device.ioctl, QUERY_PLANE, Plane(argsz=argsz, flags=REGION))


@pytest.mark.parametrize("argsz", [LEAST, 64, 4096])
def test_no_more_is_written_than_the_struct(mbochs: Opened, argsz: int) -> None:
    set_mode(mbochs.device, 640, 480, 32)
    call = ctypes.create_string_buffer(struct.pack("=III", argsz, REGION, PRIMARY), 4096)
    ctypes.memset(ctypes.addressof(call) + LEAST, 0xAA, 4096 - LEAST)
    assert ioctl(mbochs.device.fd, QUERY_PLANE, call) == 0
    answer = Plane.from_buffer_copy(call.raw)
    assert (answer.width, answer.argsz) == (640, argsz)
    assert call.raw[64:] == b"\xaa" * (4096 - 64)
    assert call.raw[LEAST:64] in (b"\xaa" * 4, bytes(4))


def test_bad_pointers(mbochs: Opened) -> None:
    for address in (0, unmapped_address(), 2**63):
        fails(errno.EFAULT, ioctl, mbochs.device.fd, QUERY_PLANE, address)
    page = Memory(PAGE)
    page.write(bytes(Plane(flags=REGION)))
    read_only = Memory(PAGE, prot=mmap.PROT_READ)
    fails(errno.EINVAL, ioctl, mbochs.device.fd, QUERY_PLANE, read_only.address)  # an argsz of 0
    assert ioctl(mbochs.device.fd, QUERY_PLANE, page.address) == 0
    page.close()
    read_only.close()


def test_devices_without_a_display(lab: MountedLab) -> None:
    with mdev(lab, "mtty-1", "mtty") as serial:
        fails(errno.ENOTTY, query, serial.device, PROBE | REGION)
        fails(errno.ENOTTY, serial.device.ioctl, QUERY_PLANE, Plane(argsz=4, flags=REGION))
        fails(errno.ENOTTY, ioctl, serial.device.fd, QUERY_PLANE, 8)
    with bound(lab, GPU) as groups, opened(lab, groups[0], GPU) as function:
        fails(errno.ENOTTY, query, function.device, PROBE | REGION)


def test_there_are_no_dma_bufs(display: Opened) -> None:
    fails(errno.ENOTTY, ioctl, display.device.fd, GET_DMABUF, ctypes.c_uint32(0))


# ---- the EDID region ----


def test_the_edid_region_is_found_by_its_type(mbochs: Opened) -> None:
    info = DeviceInfo()
    mbochs.device.ioctl(request(7), info)
    assert info.num_regions == 10
    region, caps = with_caps(mbochs.device.fd, DEVICE_GET_REGION_INFO, RegionInfo, index=9)
    assert [(identity, struct.unpack("<II", body)) for identity, _, body in caps] == [(2, (1, 1))]
    assert (region.flags & 7, region.offset, region.size) == (3, EDID, 0x800)


def test_a_client_chooses_the_monitor_the_guest_sees(lab: MountedLab) -> None:
    """Field by field, as QEMU reads and writes it."""
    with mdev(lab, "mbochs-medium", "mbochs") as found:
        fd = found.device.fd
        offset, most, size, *largest, link = struct.unpack("<6I", os.pread(fd, 24, EDID))
        assert (most, largest, link) == (0x400, [1920, 1080], UP)
        own = os.pread(fd, size, BAR2)
        assert os.pread(fd, size, EDID + offset) == own and own[:4] == b"\0\xff\xff\xff"
        blob = bytes(range(256))
        for field, value in ((LINK, DOWN), (EDID_SIZE, len(blob))):
            assert os.pwrite(fd, struct.pack("<I", value), EDID + field) == 4
        assert os.pwrite(fd, blob, EDID + offset) == len(blob)
        assert os.pread(fd, 256, BAR2) == bytes(256)
        assert os.pwrite(fd, struct.pack("<I", UP), EDID + LINK) == 4
        assert os.pread(fd, 256, BAR2) == blob
        fails(errno.EINVAL, os.pwrite, fd, struct.pack("<I", most + 1), EDID + EDID_SIZE)
        fails(errno.EINVAL, os.pwrite, fd, struct.pack("<I", 3), EDID + LINK)
        assert os.pread(fd, 256, BAR2) == blob


# ---- without the right to map ----

ROOTLESS = """
import glob, os, struct, sys, uuid
from tests.iommufd.bound import open_bound
from tests.vfio.client import ioctl, fails
from tests.vfio.test_gfx import *
create = "/sys/class/mdev_bus/mbochs/mdev_supported_types/mbochs-small/create"
with open(create, "w") as file:
    file.write(str(uuid.uuid4()))
device = Device(open_bound(glob.glob("/dev/vfio/devices/vfio*")[0]))
fails(errno.EINVAL, query, device, PROBE | REGION)
set_mode(device, 640, 480, 32)
assert shape(query(device)) == (b"XR24", 640, 480, 2560, 2560 * 480)
screen = glob.glob("/sys/class/vgpu/*/vgpu0/screen.png")[0]
with open(screen, "rb") as file:
    assert file.read(4) == b"\\x89PNG"
print("ok")
"""


def test_where_memory_cannot_be_mapped_the_region_is_no_way_to_show_it() -> None:
    """In a user namespace nobody may have the kernel map a memfd through FUSE; QEMU then says so."""
    command = ["unshare", "-Ur", *VFSFUSE, "run", "--", sys.executable, "-c", ROOTLESS]
    done = run(command, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
