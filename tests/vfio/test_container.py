# SPDX-License-Identifier: Apache-2.0
"""Every ioctl of a container on a real mount: the good call, and each way to get it wrong."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests import needs
from tests.commands import ROOT, run
from tests.labs import MountedLab, Vgpu
from tests.vfio import client
from tests.vfio.client import PAGE, Container, DmaMap, DmaUnmap, Group, Memory, buffer, fails

BASE = 0x100000
TOP = 2**64

SIZED = 0x80045430
"""TIOCGPTN: an ioctl whose number has a size, which the kernel copies."""


@pytest.fixture(scope="module")
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with lab.create("mdpy-vga", "mdpy") as vgpu:  # not of the GPU, which is bound to vfio-pci at times
        yield vgpu


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory(16 * PAGE)
    yield memory
    memory.close()


@contextmanager
def in_container(lab: MountedLab, group: str, kind: int = client.TYPE1V2) -> Iterator[Container]:
    """A container with an IOMMU of `kind` and the group in it."""
    with Container(lab.path) as container, Group(lab.path, group) as member:
        member.set_container(container)
        container.set_iommu(kind)
        yield container


@pytest.fixture
def container(lab: MountedLab, vgpu: Vgpu) -> Iterator[Container]:
    with in_container(lab, vgpu.group) as container:
        yield container


@pytest.fixture
def v1(lab: MountedLab, vgpu: Vgpu) -> Iterator[Container]:
    with in_container(lab, vgpu.group, client.TYPE1) as container:
        yield container


@pytest.fixture
def pf_group(lab: MountedLab) -> Iterator[str]:
    """The group of the physical GPU, which vfio-pci has for the time."""
    name = lab.gpu.name
    drivers = lab.path / "sys/bus/pci/drivers"
    host = os.path.basename(os.readlink(lab.gpu / "driver"))
    (lab.gpu / "driver/unbind").write_text(name)
    (lab.gpu / "driver_override").write_text("vfio-pci")
    (drivers / "vfio-pci/bind").write_text(name)
    yield os.path.basename(os.readlink(lab.gpu / "iommu_group"))
    (drivers / "vfio-pci/unbind").write_text(name)
    (lab.gpu / "driver_override").write_text("\n")
    (drivers / host / "bind").write_text(name)


@pytest.fixture
def physical(lab: MountedLab, pf_group: str) -> Iterator[Container]:
    """A container with the physical GPU."""
    with in_container(lab, pf_group) as container:
        yield container


def dma_map(memory: Memory, **changes: int) -> DmaMap:
    good = {"flags": client.READ | client.WRITE, "vaddr": memory.address, "iova": BASE, "size": PAGE}
    return DmaMap(**{**good, **changes})


# ---- extensions, SET_IOMMU ----


def extensions(container: Container) -> set[int]:
    return {number for number in range(32) if container.check_extension(number)}


def test_extensions_by_state(lab: MountedLab, vgpu: Vgpu, container: Container) -> None:
    with Container(lab.path) as fresh:
        assert fresh.by_value(client.API_VERSION) == 0
        assert extensions(fresh) == {client.TYPE1, client.TYPE1V2, client.UNMAP_ALL}
    assert extensions(container) == {client.TYPE1, client.TYPE1V2, client.UNMAP_ALL, client.DMA_CC}


def test_update_vaddr_is_for_containers_without_mediated_groups(physical: Container) -> None:
    assert physical.check_extension(client.UPDATE_VADDR) == 1


def test_set_iommu_needs_a_group_and_a_kind_that_is_one(lab: MountedLab, vgpu: Vgpu) -> None:
    with Container(lab.path) as container:
        fails(errno.EINVAL, container.set_iommu)
        with Group(lab.path, vgpu.group) as group:
            group.set_container(container)
            for kind in (0, 2, client.DMA_CC, client.NESTING, client.NOIOMMU, client.UPDATE_VADDR, 99):
                fails(errno.ENODEV, container.set_iommu, kind)
            fails(errno.EINVAL, container.set_iommu, client.UNMAP_ALL)
            container.set_iommu()
            fails(errno.EINVAL, container.set_iommu)


@pytest.mark.parametrize(
    "cmd",
    [
        *(client.IOMMU_GET_INFO, client.IOMMU_MAP_DMA, client.IOMMU_UNMAP_DMA, client.IOMMU_DIRTY_PAGES),
        *(0x3BFF, SIZED),
    ],
)
def test_without_an_iommu_everything_is_einval(lab: MountedLab, cmd: int) -> None:
    with Container(lab.path) as container:
        fails(errno.EINVAL, container.ioctl, cmd, ctypes.create_string_buffer(4) if cmd == SIZED else 0)


# ---- the argsz handshake, for every ioctl with a struct ----

STRUCTS: list[tuple[int, Callable[[Memory], client.Struct], int]] = [
    (client.IOMMU_GET_INFO, lambda memory: client.IommuInfo(), 16),
    (client.IOMMU_MAP_DMA, dma_map, 32),
    (client.IOMMU_UNMAP_DMA, lambda memory: DmaUnmap(iova=BASE, size=PAGE), 24),
    (client.IOMMU_DIRTY_PAGES, lambda memory: client.DirtyBitmap(flags=client.DIRTY_STOP), 8),
]
IDS = ["GET_INFO", "MAP_DMA", "UNMAP_DMA", "DIRTY_PAGES"]


@pytest.mark.parametrize(("cmd", "make", "minsz"), STRUCTS, ids=IDS)
def test_argsz(
    container: Container, memory: Memory, cmd: int, make: Callable[[Memory], client.Struct], minsz: int
) -> None:
    for short in (0, minsz - 1):
        argument = make(memory)
        argument.argsz = short
        fails(errno.EINVAL, container.ioctl, cmd, argument)
    argument = make(memory)
    argument.argsz = 2**32 - 1  # says more than there is: only what belongs to the struct is touched
    behind = buffer(argument, b"\xa5" * 512)
    assert container.ioctl(cmd, behind) == 0
    if cmd != client.IOMMU_GET_INFO:
        assert behind.raw[ctypes.sizeof(argument) :].startswith(b"\xa5" * 512)


@pytest.mark.parametrize(("cmd", "make", "minsz"), STRUCTS, ids=IDS)
def test_pointers(
    container: Container, memory: Memory, cmd: int, make: Callable[[Memory], client.Struct], minsz: int
) -> None:
    for address in (0, 8, client.unmapped_address(), 2**47, 2**63, TOP - 8):
        fails(errno.EFAULT, container.ioctl, cmd, address)


@pytest.mark.parametrize(
    ("cmd", "make"),
    [
        (client.IOMMU_MAP_DMA, lambda memory: dma_map(memory, flags=8 | client.READ)),
        (client.IOMMU_MAP_DMA, lambda memory: dma_map(memory, flags=client.READ | client.VADDR)),
        (client.IOMMU_MAP_DMA, lambda memory: dma_map(memory, flags=0)),
        (client.IOMMU_UNMAP_DMA, lambda memory: DmaUnmap(flags=8, iova=BASE, size=PAGE)),
        (client.IOMMU_UNMAP_DMA, lambda memory: client.DmaUnmapDirty(flags=3)),
        (client.IOMMU_UNMAP_DMA, lambda memory: client.DmaUnmapDirty(flags=5)),
        (client.IOMMU_UNMAP_DMA, lambda memory: DmaUnmap(flags=1, iova=BASE, size=PAGE)),
        (client.IOMMU_DIRTY_PAGES, lambda memory: client.DirtyBitmap(flags=0)),
        (client.IOMMU_DIRTY_PAGES, lambda memory: client.DirtyBitmap(flags=3)),
        (client.IOMMU_DIRTY_PAGES, lambda memory: client.DirtyBitmap(flags=8)),
        (client.IOMMU_DIRTY_PAGES, lambda memory: client.DirtyBitmap(flags=4)),
    ],
)
def test_bad_flags(container: Container, memory: Memory, cmd: int, make: Callable[[Memory], object]) -> None:
    fails(errno.EINVAL, container.ioctl, cmd, make(memory))


def test_unknown_ioctls_and_other_kinds_numbers(container: Container) -> None:
    for cmd in (
        client.IOMMU_ENABLE,
        client.IOMMU_DISABLE,
        client.GROUP_GET_STATUS,
        client.request(99),
        0x5401,
    ):
        fails(errno.ENOTTY, container.ioctl, cmd, 0)
    fails(errno.ENOTTY, container.ioctl, SIZED, ctypes.create_string_buffer(4))


# ---- MAP_DMA, UNMAP_DMA ----


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"size": 0}, errno.EINVAL),
        ({"size": 100}, errno.EINVAL),
        ({"iova": BASE + 1}, errno.EINVAL),
        ({"vaddr": 1}, errno.EINVAL),
        ({"iova": TOP - PAGE, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"vaddr": TOP - PAGE, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"iova": 0, "size": TOP - PAGE}, errno.EOVERFLOW),
        ({"iova": BASE + 0x10000}, errno.EEXIST),
        ({"flags": client.VADDR}, errno.ENOENT),
        ({"flags": client.VADDR, "iova": BASE + 0x10000}, errno.EINVAL),
    ],
)
def test_map_errors(container: Container, memory: Memory, changes: dict[str, int], number: int) -> None:
    container.map(BASE + 0x10000, memory.address, PAGE)
    fails(number, container.ioctl, client.IOMMU_MAP_DMA, dma_map(memory, **changes))
    assert container.dma_avail == 65534


def test_a_mediated_group_maps_what_is_not_there(container: Container) -> None:
    container.map(BASE, client.unmapped_address(), PAGE)
    assert container.unmap(BASE, PAGE) == PAGE


def test_v2_refuses_to_split_and_v1_takes_whole_mappings(lab: MountedLab, vgpu: Vgpu, memory: Memory) -> None:
    with in_container(lab, vgpu.group) as v2:
        v2.map(BASE, memory.address, 4 * PAGE)
        for iova, size in ((BASE, PAGE), (BASE + PAGE, PAGE), (BASE + 3 * PAGE, 4 * PAGE), (0, BASE + PAGE)):
            fails(errno.EINVAL, v2.unmap, iova, size)
        assert v2.unmap(0, 2 * BASE) == 4 * PAGE
    with in_container(lab, vgpu.group, client.TYPE1) as v1:
        v1.map(BASE, memory.address, 4 * PAGE)
        assert v1.unmap(BASE + PAGE, PAGE) == 0
        assert v1.unmap(BASE, PAGE) == 4 * PAGE


@pytest.mark.parametrize(
    ("iova", "size", "flags", "number"),
    [
        (BASE, 0, 0, errno.EINVAL),
        (BASE, 5, 0, errno.EINVAL),
        (BASE + 5, PAGE, 0, errno.EINVAL),
        (TOP - PAGE, 2 * PAGE, 0, errno.EOVERFLOW),
        (0, TOP - PAGE + 1, 0, errno.EINVAL),
        (0, PAGE, client.UNMAP_EVERYTHING, errno.EINVAL),
        (PAGE, 0, client.UNMAP_EVERYTHING, errno.EINVAL),
        (BASE, PAGE, client.UNMAP_VADDR, errno.EBUSY),
    ],
)
def test_unmap_errors(container: Container, iova: int, size: int, flags: int, number: int) -> None:
    fails(number, container.unmap, iova, size, flags)


def test_unmap_all(container: Container, memory: Memory) -> None:
    for page in range(5):
        container.map(BASE + 2 * page * PAGE, memory.address, PAGE)
    container.map(TOP - PAGE, memory.address, PAGE)
    assert container.unmap(0, 0, client.UNMAP_EVERYTHING) == 6 * PAGE
    assert container.unmap(0, 0, client.UNMAP_EVERYTHING) == 0
    assert container.dma_avail == 65535


def test_the_limit_is_enospc(container: Container, memory: Memory) -> None:
    argument = dma_map(memory)
    for number in range(65535):
        argument.iova = number * PAGE
        container.ioctl(client.IOMMU_MAP_DMA, argument)
    assert container.dma_avail == 0
    fails(errno.ENOSPC, container.map, 2**40, memory.address, PAGE)
    fails(errno.EEXIST, container.map, 0, memory.address, PAGE)
    assert container.unmap(0, 65535 * PAGE) == 65535 * PAGE


# ---- IOMMU_GET_INFO ----


def test_info_of_a_mediated_container(container: Container) -> None:
    info, caps = container.info()
    assert info.flags == 3 and info.iova_pgsizes == TOP - PAGE
    assert list(caps) == [2, 3]  # MIGRATION, DMA_AVAIL; no IOVA_RANGE, as nothing limits them
    assert caps[2] == (1, bytes(8) + PAGE.to_bytes(8, "little") + (1 << 28).to_bytes(8, "little"))
    assert caps[3] == (1, (65535).to_bytes(4, "little") + bytes(4))


def test_info_of_a_pinning_container(physical: Container) -> None:
    info, caps = physical.info()
    assert info.iova_pgsizes == 1 << 12 | 1 << 21 | 1 << 30
    assert list(caps) == [2, 3, 1]
    version, body = caps[1]
    words = [int.from_bytes(body[at : at + 8], "little") for at in range(0, len(body), 8)]
    assert version == 1 and words == [2, 0, 0xFEDFFFFF, 0xFEF00000, 2**48 - 1]


@pytest.mark.parametrize("argsz", [16, 20, 24, 71, 72, 79])
def test_info_says_how_much_room_the_chain_takes(container: Container, argsz: int) -> None:
    whole = buffer(client.IommuInfo(argsz=argsz, cap_offset=7), b"\xa5" * 512)
    container.ioctl(client.IOMMU_GET_INFO, whole)
    info = client.IommuInfo.from_buffer_copy(whole.raw)
    chain = 32 + 16
    if argsz < 24 + chain:
        assert info.argsz == 24 + chain and info.flags == 3
        assert whole.raw[24:] == b"\xa5" * 512
        assert info.cap_offset == (0 if argsz >= 20 else 7)
    else:
        assert info.argsz == argsz and info.cap_offset == 24
        assert whole.raw[24 + chain :] == b"\xa5" * (512 - chain)


# ---- vfio_iommu_type1's dma_entry_limit ----

LIMIT = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit"


@pytest.fixture
def limit(lab: MountedLab) -> Iterator[Callable[[str], int]]:
    """Writes the parameter; returns what it is then."""
    file = lab.path / LIMIT
    before = file.read_text()

    def write(text: str) -> int:
        fd = os.open(file, os.O_WRONLY)
        try:
            assert os.write(fd, text.encode()) == len(text)
        finally:
            os.close(fd)
        return int(file.read_text())

    yield write
    file.write_text(before)


def test_a_container_takes_the_limit_at_set_iommu(
    lab: MountedLab, vgpu: Vgpu, memory: Memory, limit: Callable[[str], int]
) -> None:
    assert limit("3\n") == 3
    with in_container(lab, vgpu.group) as container:
        assert limit("0x12345678") == 0x12345678
        for page in range(3):
            container.map(page * PAGE, memory.address, PAGE)
        assert container.dma_avail == 0
        fails(errno.ENOSPC, container.map, 3 * PAGE, memory.address, PAGE)
        container.unmap(0, PAGE)
        container.map(3 * PAGE, memory.address, PAGE)
    with in_container(lab, vgpu.group) as container:
        assert container.dma_avail == 0x12345678
    assert limit("0") == 0
    with in_container(lab, vgpu.group) as container:
        fails(errno.ENOSPC, container.map, 0, memory.address, PAGE)


def test_the_limit_is_an_unsigned_int(limit: Callable[[str], int]) -> None:
    for text, value in (("+5", 5), ("017", 15), ("0XfF\n", 255), (str(2**32 - 1), 2**32 - 1)):
        assert limit(text) == value
    for text in ("4294967296", "0x100000000", "9" * 4000, "0" + "7" * 4000):
        fails(errno.ERANGE, limit, text)
    for text in ("\n", "-1", " 1", "1 ", "0x", "08", "1\n\n", "1k", "y"):
        fails(errno.EINVAL, limit, text)


# ---- dirty pages ----


def get_dirty(container: Container, bitmap: Memory, **changes: int) -> bytes:
    good = {"iova": BASE, "size": 4 * PAGE, "bitmap_pgsize": PAGE, "bitmap_size": 8}
    fields = {**good, "bitmap_data": bitmap.address, **changes}
    container.ioctl(client.IOMMU_DIRTY_PAGES, client.DirtyBitmapGet(flags=client.DIRTY_GET, **fields))
    return bitmap.read(0, fields["bitmap_size"])


@pytest.fixture
def tracked(container: Container, memory: Memory) -> Container:
    container.map(BASE, memory.address, 4 * PAGE)
    container.ioctl(client.IOMMU_DIRTY_PAGES, client.DirtyBitmap(flags=client.DIRTY_START))
    return container


def test_nothing_is_dirty_that_no_device_wrote(tracked: Container) -> None:
    bitmap = Memory(PAGE)
    bitmap.write(b"\xff" * 16)
    assert get_dirty(tracked, bitmap) == bytes(8)
    assert bitmap.read(8, 8) == b"\xff" * 8
    tracked.ioctl(client.IOMMU_DIRTY_PAGES, client.DirtyBitmap(flags=client.DIRTY_START))
    tracked.ioctl(client.IOMMU_DIRTY_PAGES, client.DirtyBitmap(flags=client.DIRTY_STOP))
    fails(errno.EINVAL, get_dirty, tracked, bitmap)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"iova": BASE + 1}, errno.EINVAL),
        ({"size": 0}, errno.EINVAL),
        ({"size": PAGE // 2}, errno.EINVAL),
        ({"size": 2 * PAGE}, errno.EINVAL),
        ({"iova": BASE + PAGE}, errno.EINVAL),
        ({"bitmap_pgsize": 0}, errno.EINVAL),
        ({"bitmap_pgsize": 2 * PAGE}, errno.EINVAL),
        ({"bitmap_size": 0}, errno.EINVAL),
        ({"bitmap_size": 7}, errno.EINVAL),
        ({"bitmap_size": (1 << 28) + 8}, errno.EINVAL),
        ({"bitmap_size": 2**63}, errno.EINVAL),
        ({"size": 2**62}, errno.EINVAL),
        ({"iova": TOP - PAGE, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"bitmap_data": 0}, errno.EFAULT),
        ({"bitmap_data": 2**63}, errno.EINVAL),
    ],
)
def test_dirty_bitmap_errors(tracked: Container, changes: dict[str, int], number: int) -> None:
    bitmap = Memory(PAGE)
    fails(number, get_dirty, tracked, bitmap, **changes)
    assert bitmap.read() == bytes(PAGE)
    bitmap.close()


def test_dirty_argsz_must_have_room_for_the_range(tracked: Container) -> None:
    fails(errno.EINVAL, tracked.ioctl, client.IOMMU_DIRTY_PAGES, client.DirtyBitmapGet(argsz=47, flags=4))


def test_v1_tracks_no_dirty_pages(v1: Container) -> None:
    for flags in (client.DIRTY_START, client.DIRTY_STOP, client.DIRTY_GET, 8):
        fails(errno.EACCES, v1.ioctl, client.IOMMU_DIRTY_PAGES, client.DirtyBitmap(flags=flags))
    fails(errno.EACCES, v1.ioctl, client.IOMMU_DIRTY_PAGES, client.DirtyBitmap(argsz=4))
    fails(errno.EACCES, v1.ioctl, client.IOMMU_DIRTY_PAGES, 0)


def unmap_dirty(container: Container, bitmap: Memory, **changes: int) -> int:
    good = {"iova": BASE, "size": 4 * PAGE, "bitmap_pgsize": PAGE, "bitmap_size": 8}
    fields = {**good, "bitmap_data": bitmap.address, **changes}
    argument = client.DmaUnmapDirty(**{"flags": client.UNMAP_DIRTY, **fields})
    container.ioctl(client.IOMMU_UNMAP_DMA, argument)
    return int(argument.size)


def test_unmap_with_a_bitmap(tracked: Container) -> None:
    bitmap = Memory(PAGE)
    bitmap.write(b"\xff" * 8)
    for changes, number in (
        ({"argsz": 47}, errno.EINVAL),
        ({"bitmap_size": 7}, errno.EINVAL),
        ({"bitmap_pgsize": 512}, errno.EINVAL),
        ({"bitmap_data": 0}, errno.EFAULT),
    ):
        fails(number, unmap_dirty, tracked, bitmap, **changes)
    assert unmap_dirty(tracked, bitmap) == 4 * PAGE
    assert bitmap.read(0, 8) == bytes(8)
    tracked.ioctl(client.IOMMU_DIRTY_PAGES, client.DirtyBitmap(flags=client.DIRTY_STOP))
    fails(errno.EINVAL, unmap_dirty, tracked, bitmap)


# ---- physical functions: pinning ----


def test_a_physical_function_pins_at_once(physical: Container, memory: Memory) -> None:
    fails(errno.EFAULT, physical.map, BASE, client.unmapped_address(), PAGE)
    fails(errno.EFAULT, physical.map, 2**32, memory.address, memory.size + 2**40)
    readonly = Memory(PAGE, prot=1, private=True)
    fails(errno.EFAULT, physical.map, BASE, readonly.address, PAGE)
    physical.map(BASE, readonly.address, PAGE, client.READ)
    for iova in (0xFEE00000, 0xFED00000, 2**48):
        fails(errno.EINVAL, physical.map, iova, memory.address, 0x200000)
    assert physical.dma_avail == 65534


def test_all_that_a_physical_function_reaches_is_dirty(physical: Container, memory: Memory) -> None:
    physical.map(BASE, memory.address, 4 * PAGE)
    physical.ioctl(client.IOMMU_DIRTY_PAGES, client.DirtyBitmap(flags=client.DIRTY_START))
    bitmap = Memory(PAGE)
    for _ in range(2):
        assert get_dirty(physical, bitmap) == bytes([0b1111, *bytes(7)])
    bitmap.write(bytes(8))
    assert unmap_dirty(physical, bitmap) == 4 * PAGE
    assert bitmap.read(0, 8) == bytes([0b1111, *bytes(7)])
    bitmap.close()


def test_update_vaddr(physical: Container, memory: Memory) -> None:
    physical.map(BASE, memory.address, 2 * PAGE)
    physical.map(BASE + 4 * PAGE, memory.address, PAGE)
    assert physical.unmap(BASE, 2 * PAGE, client.UNMAP_VADDR) == 2 * PAGE
    fails(errno.EINVAL, physical.unmap, BASE, 8 * PAGE, client.UNMAP_VADDR)
    assert physical.unmap(BASE + 4 * PAGE, PAGE, client.UNMAP_VADDR) == PAGE
    fails(errno.EINVAL, physical.map, BASE, memory.address, PAGE, client.VADDR)
    fails(errno.ENOENT, physical.map, BASE + 2 * PAGE, memory.address, PAGE, client.VADDR)
    physical.map(BASE, memory.address, 2 * PAGE, client.VADDR)
    fails(errno.EINVAL, physical.map, BASE, memory.address, 2 * PAGE, client.VADDR)
    physical.map(BASE + 4 * PAGE, memory.address, PAGE, client.VADDR)
    assert physical.unmap(0, 0, client.UNMAP_EVERYTHING | client.UNMAP_VADDR) == 3 * PAGE
    assert physical.unmap(0, 0, client.UNMAP_EVERYTHING) == 3 * PAGE


LIMITED = """
import errno, resource, sys
from tests.vfio.client import *
container, group = Container(sys.argv[1]), Group(sys.argv[1], sys.argv[2])
group.set_container(container)
container.set_iommu()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * PAGE, 8 * PAGE))
memory = Memory(16 * PAGE, private=True)
try:
    container.map(0, memory.address, 16 * PAGE)
    print("all")
except OSError as error:
    print(errno.errorcode[error.errno])
    container.map(0, memory.address, 8 * PAGE)
    fails(errno.ENOMEM, container.map, 8 * PAGE, memory.address, PAGE)
    assert container.unmap(0, 8 * PAGE) == 8 * PAGE
    container.map(8 * PAGE, memory.address, 8 * PAGE)
"""


@pytest.mark.parametrize(
    ("prefix", "said"),
    [(["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"], "ENOMEM"), ([], "all")],
    ids=["limited", "CAP_IPC_LOCK"],
)
@needs.capability("CAP_IPC_LOCK")
def test_memlock(lab: MountedLab, pf_group: str, prefix: list[str], said: str) -> None:
    done = run([*prefix, sys.executable, "-c", LIMITED, lab.path, pf_group], PYTHONPATH=str(ROOT))
    assert (done.stdout, done.stderr, done.returncode) == (f"{said}\n", "", 0)


def test_one_container_serves_both_kinds(lab: MountedLab, vgpu: Vgpu, pf_group: str, memory: Memory) -> None:
    with in_container(lab, vgpu.group) as container, Group(lab.path, pf_group) as group:
        container.map(BASE, client.unmapped_address(), PAGE)
        fails(errno.EFAULT, group.set_container, container)
        assert container.unmap(BASE, PAGE) == PAGE
        container.map(0xFEE00000, memory.address, PAGE)
        fails(errno.EINVAL, group.set_container, container)
        assert container.unmap(0xFEE00000, PAGE) == PAGE
        container.map(BASE, memory.address, PAGE)
        group.set_container(container)
        assert list(container.info()[1]) == [2, 3, 1]
        assert container.check_extension(client.UPDATE_VADDR) == 0
        fails(errno.EFAULT, container.map, 2 * BASE, client.unmapped_address(), PAGE)
        group.unset_container()
        container.map(2 * BASE, client.unmapped_address(), PAGE)
        assert container.dma_avail == 65533
        assert list(container.info()[1]) == [2, 3]


def test_an_unmapped_group_and_a_killed_client_leave_nothing(
    lab: MountedLab, vgpu: Vgpu, memory: Memory
) -> None:
    with in_container(lab, vgpu.group) as container:
        container.map(BASE, memory.address, PAGE)
    with in_container(lab, vgpu.group) as container:
        assert container.dma_avail == 65535


SECOND = """
import sys
from tests.vfio.client import *
container = Container.__new__(Container)
container.fd = int(sys.argv[1])
memory = Memory(PAGE)
container.map(int(sys.argv[2]), memory.address, PAGE)
print(container.dma_avail)
"""


def test_another_process_maps_its_own_memory(container: Container) -> None:
    command = [sys.executable, "-c", SECOND, str(container.fd), str(BASE)]
    os.set_inheritable(container.fd, True)
    done = subprocess.run(command, capture_output=True, text=True, close_fds=False, cwd=ROOT, check=True)
    assert done.stdout == "65534\n"
    assert container.dma_avail == 65534


@needs.passthrough
def test_lab_files_as_dma_memory(lab: MountedLab, vgpu: Vgpu, pf_group: str) -> None:
    """The server must not wait for itself: an attribute cannot be mapped; a BAR can, and is memory."""
    attribute, resource = (
        os.open(lab.gpu / "vendor", os.O_RDONLY),
        os.open(vgpu.path / "resource0", os.O_RDWR),
    )
    fails(errno.ENODEV, Memory, PAGE, attribute, private=True, prot=1)
    bar = Memory(PAGE, resource)
    with in_container(lab, pf_group) as physical, in_container(lab, vgpu.group) as mediated:
        for container in (physical, mediated):
            container.map(2 * BASE, bar.address, PAGE)
            assert container.unmap(2 * BASE, PAGE) == PAGE
    bar.close()
    os.close(attribute)
    os.close(resource)
    assert (lab.gpu / "vendor").read_text().startswith("0x")
