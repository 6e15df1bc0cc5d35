# SPDX-License-Identifier: Apache-2.0
"""HWPTs on a real mount: HWPT_ALLOC, the automatic ones of attachments, their references, and the ioctls of
hardware that the emulated IOMMU does not have."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.commands import one_write
from tests.iommufd.client import (
    DATA_VTD_S1,
    HWPT_DIRTY_TRACKING,
    HWPT_FAULT_ID_VALID,
    HWPT_NEST_PARENT,
    HWPT_PASID,
    Cdev,
    FaultQueueAlloc,
    HwptAlloc,
    HwptInvalidate,
    HwQueueAlloc,
    Iommufd,
    VeventqAlloc,
    ViommuAlloc,
)
from tests.iommufd.functions import (
    FAR,
    FIRST,
    LAB,
    NO_IOMMU,
    SECOND,
    Function,
    memory,
    opened,
    without_iommu,
)
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, Memory, fails, ioctl
from tests.vfio.copiers import DONE, FAULT
from tests.vfio.devices import function_dir
from tests.waiting import wait_for

IOVA = 0x40000
APERTURE = 2**48


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("hwpt"), LAB) as mounted:
        yield mounted


@pytest.fixture
def function(machine: MountedLab, iommufd: Iommufd) -> Iterator[Function]:
    with opened(machine, iommufd) as found:
        yield found


@pytest.fixture
def mediated(machine: MountedLab, iommufd: Iommufd) -> Iterator[Cdev]:
    with machine.create("copier-1", "copiers") as vgpu, Cdev(vgpu.cdev) as cdev:
        yield cdev


def gone(iommufd: Iommufd, number: int) -> bool:
    """Whether there is no such object. It is destroyed if there is one that nothing refers to."""
    try:
        iommufd.destroy(number)
    except OSError as error:
        return error.errno == errno.ENOENT
    raise AssertionError(f"object {number} was there")


# ---- automatic ones ----


def test_an_attachment_makes_one_that_goes_with_the_detachment(iommufd: Iommufd, function: Function) -> None:
    ioas = iommufd.ioas()
    hwpt = function.cdev.attach(ioas)
    assert hwpt not in (ioas, function.id)
    fails(errno.EBUSY, iommufd.destroy, hwpt)
    fails(errno.EBUSY, iommufd.destroy, ioas)
    function.cdev.detach()
    assert gone(iommufd, hwpt)
    assert function.cdev.attach(ioas) == hwpt, "the lowest free id"
    function.cdev.detach()
    iommufd.destroy(ioas)


def test_functions_share_the_automatic_one(iommufd: Iommufd, machine: MountedLab, function: Function) -> None:
    """Those behind IOMMUs of one kind, also of another PCI domain. It goes with the last."""
    ioas = iommufd.ioas()
    with (
        opened(machine, iommufd, SECOND) as second,
        opened(machine, iommufd, FAR) as far,
        memory(2 * PAGE) as pages,
    ):
        iommufd.map(ioas, pages.address, 2 * PAGE, IOVA)
        pages.write(b"abc")
        hwpt = function.cdev.attach(ioas)
        assert second.cdev.attach(ioas) == far.cdev.attach(ioas) == hwpt
        assert far.copy(IOVA, IOVA + PAGE, 3) == DONE and pages.read(PAGE, 3) == b"abc"
        function.cdev.detach()
        second.cdev.detach()
        fails(errno.EBUSY, iommufd.destroy, hwpt)
        assert far.copy(IOVA, IOVA + PAGE + 3, 3) == DONE
    assert gone(iommufd, hwpt), "the file of the last one is closed"
    iommufd.destroy(ioas)


def test_each_ioas_has_its_own(iommufd: Iommufd, machine: MountedLab, function: Function) -> None:
    with opened(machine, iommufd, SECOND) as second:
        first = function.cdev.attach(iommufd.ioas())
        assert second.cdev.attach(iommufd.ioas()) != first


def test_domains_are_counted(iommufd: Iommufd, machine: MountedLab) -> None:
    """One for each function with its own default domain or HWPT, and none while DMA is blocked."""
    used = machine.path / "sys/class/iommu/dmar0/intel-iommu/domains_used"
    before = int(used.read_text())
    with opened(machine, iommufd) as first, opened(machine, iommufd, SECOND) as second:
        ioas = iommufd.ioas()
        assert int(used.read_text()) == before - 2
        first.cdev.attach(ioas)
        second.cdev.attach(ioas)
        assert int(used.read_text()) == before - 1
        hwpt = iommufd.hwpt(second.id, ioas)
        assert int(used.read_text()) == before - 1, "nothing is attached to it"
        second.cdev.attach(hwpt)
        assert int(used.read_text()) == before
        first.cdev.detach()
        assert int(used.read_text()) == before - 1
    wait_for(lambda: int(used.read_text()) == before)


def is_written(path: Path, text: str) -> bool:
    try:
        one_write(path, text)
    except PermissionError:
        return False
    return True


def test_the_default_domain_of_a_bound_function_does_not_change(
    iommufd: Iommufd, machine: MountedLab, function: Function
) -> None:
    kind = function_dir(machine, FIRST) / "iommu_group/type"
    fails(errno.EPERM, kind.write_text, "identity")
    function.cdev.attach(iommufd.ioas())
    fails(errno.EPERM, kind.write_text, "identity")
    function.cdev.close()
    wait_for(lambda: is_written(kind, "identity"))  # the server hears of the close a moment later
    kind.write_text("auto")


# ---- explicit ones ----


def test_one_is_made_attached_and_destroyed(iommufd: Iommufd, function: Function) -> None:
    ioas = iommufd.ioas()
    with memory(2 * PAGE) as pages:
        iommufd.map(ioas, pages.address, 2 * PAGE, IOVA)
        pages.write(b"abc")
        hwpt = iommufd.hwpt(function.id, ioas)
        assert function.copy(IOVA, IOVA + PAGE, 3) == FAULT, "it is made for a device, but not attached to it"
        fails(errno.EBUSY, iommufd.destroy, ioas)
        assert function.cdev.attach(hwpt) == hwpt
        assert function.copy(IOVA, IOVA + PAGE, 3) == DONE and pages.read(PAGE, 3) == b"abc"
        fails(errno.EBUSY, iommufd.destroy, hwpt)
        automatic = function.cdev.attach(ioas)
        assert automatic != hwpt, "an explicit one is not taken for an IOAS"
        iommufd.destroy(hwpt)
        function.cdev.detach()
        iommufd.destroy(ioas)


def test_one_has_the_lowest_free_id(iommufd: Iommufd, function: Function) -> None:
    ioas, other = iommufd.ioas(), iommufd.ioas()
    iommufd.destroy(ioas)
    assert iommufd.hwpt(function.id, other) == ioas


@pytest.mark.parametrize("size", [24, 28, 40, 48, 56])
def test_sizes_of_the_struct(iommufd: Iommufd, function: Function, size: int) -> None:
    """The first one ended before the data."""
    made = HwptAlloc(size=size, dev_id=function.id, pt_id=iommufd.ioas())
    buffer = ctypes.create_string_buffer(bytes(made), 64)
    ioctl(iommufd.fd, HwptAlloc.cmd(), buffer)
    answer = HwptAlloc.from_buffer(buffer)
    assert answer.size == size
    iommufd.destroy(answer.out_hwpt_id)


def test_one_is_taken_back_when_its_id_cannot_be_told(iommufd: Iommufd, function: Function) -> None:
    ioas = iommufd.ioas()
    with memory(PAGE) as pages:
        pages.write(bytes(HwptAlloc(dev_id=function.id, pt_id=ioas)))
        protect(pages, mmap.PROT_READ)
        fails(errno.EFAULT, ioctl, iommufd.fd, HwptAlloc.cmd(), pages.address)
    iommufd.destroy(ioas)
    assert iommufd.ioas() == ioas


def protect(pages: Memory, prot: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.mprotect(ctypes.c_void_p(pages.address), ctypes.c_size_t(pages.size), prot)


def test_one_pins_what_is_mapped_and_reserves_what_it_cannot_reach(
    iommufd: Iommufd, function: Function
) -> None:
    ioas = iommufd.ioas()
    with memory(PAGE, prot=0) as pages:
        iommufd.map(ioas, pages.address, PAGE, IOVA)
        fails(errno.EFAULT, iommufd.hwpt, function.id, ioas)
        fails(errno.EFAULT, function.cdev.attach, ioas)
        assert iommufd.ranges(ioas) == ([(0, 2**64 - 1)], 1)
        protect(pages, mmap.PROT_READ | mmap.PROT_WRITE)
        hwpt = iommufd.hwpt(function.id, ioas)
        assert iommufd.ranges(ioas) == ([(0, APERTURE - 1)], PAGE), "without the MSI window of a device"
        fails(errno.EINVAL, iommufd.map, ioas, pages.address, PAGE, APERTURE)
        iommufd.destroy(hwpt)
        assert iommufd.ranges(ioas) == ([(0, 2**64 - 1)], 1)
    iommufd.unmap(ioas)


def test_one_does_not_fit_what_is_mapped(iommufd: Iommufd, function: Function) -> None:
    with memory(PAGE) as pages:
        for iova, address, length in (
            (APERTURE, pages.address, PAGE),
            (IOVA + 1, pages.address + 1, PAGE - 1),
            (IOVA, pages.address + 512, 512),
        ):
            ioas = iommufd.ioas()
            iommufd.map(ioas, address, length, iova)
            fails(errno.EADDRINUSE, iommufd.hwpt, function.id, ioas)
            iommufd.destroy(ioas)


Make = Callable[[Iommufd, Function, int], dict[str, int]]


def auto(function: Function, ioas: int) -> int:
    return function.cdev.attach(ioas)


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        (lambda i, f, ioas: {"reserved": 1, "data_type": 1, "dev_id": 99}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"data_type": DATA_VTD_S1, "dev_id": 99}, errno.EINVAL),
        (lambda i, f, ioas: {"data_len": 8, "dev_id": 99}, errno.EINVAL),
        (lambda i, f, ioas: {"dev_id": 99, "pt_id": 98, "flags": 16}, errno.ENOENT),
        (lambda i, f, ioas: {"dev_id": 0}, errno.ENOENT),
        (lambda i, f, ioas: {"dev_id": ioas}, errno.ENOENT),
        (lambda i, f, ioas: {"dev_id": i.hwpt(f.id, ioas)}, errno.ENOENT),
        (lambda i, f, ioas: {"pt_id": 0, "flags": 16}, errno.EINVAL),
        (lambda i, f, ioas: {"pt_id": 98, "flags": 16}, errno.EINVAL),
        (lambda i, f, ioas: {"pt_id": f.id}, errno.EINVAL),
        (lambda i, f, ioas: {"flags": 16}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"flags": 1 << 31 | HWPT_FAULT_ID_VALID}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"flags": HWPT_NEST_PARENT}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"flags": HWPT_NEST_PARENT | HWPT_DIRTY_TRACKING}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"data_type": DATA_VTD_S1, "data_len": 24}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"data_type": 99, "data_len": 1}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"flags": HWPT_FAULT_ID_VALID, "fault_id": ioas}, errno.ENOENT),
        (lambda i, f, ioas: {"pt_id": i.hwpt(f.id, ioas)}, errno.EOPNOTSUPP),
        (lambda i, f, ioas: {"pt_id": auto(f, ioas)}, errno.EOPNOTSUPP),
        (
            lambda i, f, ioas: {"pt_id": i.hwpt(f.id, ioas), "data_type": DATA_VTD_S1, "data_len": 24},
            errno.EINVAL,
        ),
        (
            lambda i, f, ioas: {"pt_id": auto(f, ioas), "data_type": 1, "data_len": 24, "flags": 2},
            errno.EOPNOTSUPP,
        ),
    ],
)
def test_errors_in_the_kernels_order(iommufd: Iommufd, function: Function, fields: Make, number: int) -> None:
    ioas = iommufd.ioas()
    asked = {"dev_id": function.id, "pt_id": ioas, **fields(iommufd, function, ioas)}
    free = iommufd.ioas()
    iommufd.destroy(free)
    wrong = HwptAlloc(**asked)
    fails(number, iommufd.call, wrong)
    assert wrong.out_hwpt_id == 0
    assert iommufd.ioas() == free, "nothing was made"


@pytest.mark.parametrize("flags", [0, HWPT_DIRTY_TRACKING, HWPT_PASID, HWPT_DIRTY_TRACKING | HWPT_PASID])
def test_flags_that_the_iommu_has(iommufd: Iommufd, function: Function, flags: int) -> None:
    made = HwptAlloc(dev_id=function.id, pt_id=iommufd.ioas(), flags=flags, fault_id=99, reserved2=1)
    iommufd.call(made)
    assert function.cdev.attach(made.out_hwpt_id) == made.out_hwpt_id


def test_a_mediated_device_has_no_iommu(iommufd: Iommufd, mediated: Cdev, function: Function) -> None:
    access, ioas = mediated.bind(iommufd), iommufd.ioas()
    fails(errno.ENOENT, iommufd.hwpt, access, ioas)
    fails(errno.EINVAL, iommufd.hwpt, function.id, access)
    assert mediated.attach(ioas) == ioas
    hwpt = iommufd.hwpt(function.id, ioas)
    fails(errno.ENOENT, mediated.attach, hwpt)


@needs.capability("CAP_SYS_RAWIO")
def test_a_function_without_an_iommu(machine: MountedLab, iommufd: Iommufd, function: Function) -> None:
    with without_iommu(machine), opened(machine, iommufd, NO_IOMMU) as bare:
        ioas = iommufd.ioas()
        for flags in (HWPT_DIRTY_TRACKING, HWPT_PASID, HWPT_NEST_PARENT):
            fails(errno.EOPNOTSUPP, iommufd.hwpt, bare.id, ioas, flags)
        hwpt = iommufd.hwpt(bare.id, ioas)
        assert iommufd.ranges(ioas) == ([(0, 2**64 - 1)], PAGE)
        fails(errno.EINVAL, function.cdev.attach, hwpt)
        assert bare.cdev.attach(hwpt) == hwpt


def test_the_end_of_the_iommufd_ends_all(machine: MountedLab, iommufd: Iommufd) -> None:
    with memory(PAGE) as pages, opened(machine, iommufd) as function:
        ioas = iommufd.ioas()
        iommufd.map(ioas, pages.address, PAGE, IOVA)
        iommufd.hwpt(function.id, ioas)
        function.cdev.attach(iommufd.hwpt(function.id, ioas, HWPT_DIRTY_TRACKING))
        iommufd.close()
        assert function.copy(IOVA, IOVA, 1) == DONE, "the device keeps it"
    with Iommufd(machine.path) as again, opened(machine, again) as function:
        assert function.id == 1


# ---- hardware that there is not ----


def refused(iommufd: Iommufd, number: int, struct: Any) -> None:
    fails(number, iommufd.call, struct)


def test_invalidations(iommufd: Iommufd, function: Function) -> None:
    """The struct says that no entry was handled, whatever is wrong."""
    ioas = iommufd.ioas()
    hwpt = iommufd.hwpt(function.id, ioas)
    data = ctypes.create_string_buffer(16)
    good = {"data_uptr": ctypes.addressof(data), "entry_len": 16, "entry_num": 1}
    for number, fields in (
        (errno.EOPNOTSUPP, {"hwpt_id": 99, **good, "reserved": 1}),
        (errno.EINVAL, {"hwpt_id": 99, **good, "data_uptr": 0}),
        (errno.EINVAL, {"hwpt_id": 99, **good, "entry_len": 0}),
        (errno.EINVAL, {"hwpt_id": 99, **good, "entry_len": 4097}),
        (errno.EINVAL, {"hwpt_id": 99, **good, "entry_num": 2**19 + 1}),
        (errno.ENOENT, {"hwpt_id": 99, **good}),
        (errno.ENOENT, {"hwpt_id": 0}),
        (errno.EINVAL, {"hwpt_id": hwpt, **good}),
        (errno.EINVAL, {"hwpt_id": hwpt}),
        (errno.EINVAL, {"hwpt_id": ioas, **good}),
        (errno.EINVAL, {"hwpt_id": function.id, **good}),
    ):
        asked = HwptInvalidate(**{"entry_num": 7, "entry_len": 1, "data_uptr": 1, **fields})
        refused(iommufd, number, asked)
        assert asked.entry_num == 0
    with memory(PAGE) as pages:
        pages.write(bytes(HwptInvalidate(hwpt_id=hwpt)))
        protect(pages, mmap.PROT_READ)
        fails(errno.EFAULT, ioctl, iommufd.fd, HwptInvalidate.cmd(), pages.address)


def test_fault_queues(iommufd: Iommufd) -> None:
    for flags in (0, 1):
        asked = FaultQueueAlloc(flags=flags, out_fault_fd=7)
        refused(iommufd, errno.EOPNOTSUPP, asked)
        assert (asked.out_fault_id, asked.out_fault_fd) == (0, 7)


def test_virtual_iommus(iommufd: Iommufd, function: Function) -> None:
    hwpt = iommufd.hwpt(function.id, iommufd.ioas())
    for number, fields in (
        (errno.EOPNOTSUPP, {"flags": 1, "type": 1, "dev_id": 99}),
        (errno.EOPNOTSUPP, {"type": 0, "dev_id": 99}),
        (errno.ENOENT, {"type": 1, "dev_id": 99}),
        (errno.ENOENT, {"type": 1, "dev_id": hwpt}),
        (errno.EOPNOTSUPP, {"type": 1, "dev_id": function.id, "hwpt_id": hwpt}),
        (errno.EOPNOTSUPP, {"type": 2, "dev_id": function.id, "hwpt_id": 99}),
        (errno.EOPNOTSUPP, {"type": 99, "dev_id": function.id, "size": 24}),
    ):
        refused(iommufd, number, ViommuAlloc(**fields))


def test_virtual_devices(iommufd: Iommufd, function: Function) -> None:
    hwpt = iommufd.hwpt(function.id, iommufd.ioas())
    for viommu in (0, 99, hwpt):
        for device in (99, function.id):
            fails(errno.ENOENT, iommufd.vdevice, viommu, device)


def test_event_queues(iommufd: Iommufd) -> None:
    for number, fields in (
        (errno.EOPNOTSUPP, {"flags": 1}),
        (errno.EOPNOTSUPP, {"reserved": 1}),
        (errno.EOPNOTSUPP, {"type": 0, "veventq_depth": 0}),
        (errno.EINVAL, {"veventq_depth": 0}),
        (errno.ENOENT, {}),
        (errno.ENOENT, {"viommu_id": iommufd.ioas()}),
        (errno.ENOENT, {"size": 28}),
    ):
        refused(iommufd, number, VeventqAlloc(**{"type": 1, "veventq_depth": 1, "viommu_id": 99, **fields}))


def test_hardware_queues(iommufd: Iommufd) -> None:
    good = {"type": 1, "viommu_id": 99, "nesting_parent_iova": 0, "length": PAGE}
    for number, fields in (
        (errno.EOPNOTSUPP, {"flags": 1, "length": 0}),
        (errno.EOPNOTSUPP, {"type": 0, "length": 0}),
        (errno.EINVAL, {"length": 0}),
        (errno.EOVERFLOW, {"nesting_parent_iova": 2**64 - PAGE, "length": PAGE + 1}),
        (errno.ENOENT, {"nesting_parent_iova": 2**64 - PAGE}),
        (errno.ENOENT, {}),
    ):
        refused(iommufd, number, HwQueueAlloc(**{**good, **fields}))
