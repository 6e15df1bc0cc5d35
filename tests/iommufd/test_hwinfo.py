# SPDX-License-Identifier: Apache-2.0
"""GET_HW_INFO on real mounts, of which each has IOMMUs of another kind."""

from __future__ import annotations

import ctypes
import errno
import mmap
import threading
from collections.abc import Iterator

import pytest

from tests import needs
from tests.iommufd.client import (
    CAP_ATS_NOT_SUPPORTED,
    CAP_DIRTY_TRACKING,
    HW_INFO_INPUT_TYPE,
    HW_INFO_INTEL_VTD,
    HW_INFO_NONE,
    HWPT_DIRTY_TRACKING,
    Cdev,
    HwInfo,
    Iommufd,
    VtdInfo,
)
from tests.iommufd.functions import LAB, NO_IOMMU, Function, memory, opened, without_iommu
from tests.labs import MountedLab, described
from tests.vfio.client import PAGE, fails
from tests.vfio.gpu_client import StoppedMemory
from tests.waiting import wait_for

DATA = ctypes.sizeof(VtdInfo)
NO_ATS = CAP_ATS_NOT_SUPPORTED
TRACKING = CAP_DIRTY_TRACKING | NO_ATS
VTD = '[iommu]\nhw_info = "intel-vtd"\n'
PLAIN = "[iommu]\ndirty_tracking = false\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("hwinfo"), LAB) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def vtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("vtd"), LAB + VTD) as mounted:
        yield mounted


@pytest.fixture
def function(machine: MountedLab, iommufd: Iommufd) -> Iterator[Function]:
    with opened(machine, iommufd) as found:
        yield found


def registers(machine: MountedLab) -> tuple[int, int]:
    intel = machine.path / "sys/class/iommu/dmar0/intel-iommu"
    return int((intel / "cap").read_text(), 16), int((intel / "ecap").read_text(), 16)


@pytest.mark.parametrize("room", [0, 1, 64])
def test_an_iommu_without_data_zeroes_the_room(iommufd: Iommufd, function: Function, room: int) -> None:
    for flags, wanted in ((0, 0), (0, 7), (HW_INFO_INPUT_TYPE, HW_INFO_INTEL_VTD)):
        info, data = iommufd.hw_info(
            function.id, room, flags, out_data_type=wanted, out_max_pasid_log2=9, out_capabilities=99
        )
        assert (info.out_data_type, info.data_len, info.out_max_pasid_log2) == (HW_INFO_NONE, 0, 0)
        assert info.out_capabilities == TRACKING and data == bytes(room)


def test_the_first_struct_has_no_capabilities(iommufd: Iommufd, function: Function) -> None:
    info, _ = iommufd.hw_info(function.id, size=32, out_capabilities=99)
    assert info.out_capabilities == 99


@pytest.mark.parametrize("room", [0, 1, 16, DATA, DATA + 1, 9 * PAGE, (1 << 20) + PAGE])
def test_vtd_gives_what_fits_and_says_how_much_there_is(vtd: MountedLab, room: int) -> None:
    with Iommufd(vtd.path) as iommufd, opened(vtd, iommufd) as function:
        for flags, wanted in ((0, 0), (0, 2), (HW_INFO_INPUT_TYPE, 0), (HW_INFO_INPUT_TYPE, 1)):
            info, data = iommufd.hw_info(function.id, room, flags, out_data_type=wanted)
            assert (info.out_data_type, info.data_len) == (HW_INFO_INTEL_VTD, DATA)
            assert (info.out_max_pasid_log2, info.out_capabilities) == (0, TRACKING)
            cap, ecap = registers(vtd)
            assert data == bytes(VtdInfo(cap_reg=cap, ecap_reg=ecap))[:room].ljust(room, b"\0")
        for wanted in (2, 3, 4, 99):
            fails(
                errno.EOPNOTSUPP,
                iommufd.hw_info,
                function.id,
                0,
                HW_INFO_INPUT_TYPE,
                out_data_type=wanted,
            )


def test_a_room_that_cannot_be_written(vtd: MountedLab) -> None:
    with Iommufd(vtd.path) as iommufd, opened(vtd, iommufd) as function, memory(3 * PAGE) as pages:
        end = pages.address + 2 * PAGE
        with memory(PAGE, prot=mmap.PROT_READ, address=end):
            for address, room in (
                (end, 1),
                (end - 8, DATA),
                (end - DATA, DATA + 1),
                (pages.address, 2 * PAGE + 1),
                (0, DATA),
                (2**64 - 8, DATA),
                (2**64 - 1, 1),
                (pages.address, 2**32 - 1),
            ):
                wrong = HwInfo(dev_id=function.id, data_len=room, data_uptr=address)
                fails(errno.EFAULT, iommufd.call, wrong)
                assert (wrong.data_len, wrong.out_data_type) == (room, 0)
            iommufd.call(HwInfo(dev_id=function.id, data_len=DATA, data_uptr=end - DATA))
            iommufd.call(HwInfo(dev_id=function.id, data_len=0, data_uptr=2**64 - 1))


@needs.userfaultfd
@pytest.mark.parametrize("room", [DATA, 2 * PAGE])
def test_a_room_that_waits_holds_up_nobody(vtd: MountedLab, room: int) -> None:
    with Iommufd(vtd.path) as iommufd, opened(vtd, iommufd) as function, StoppedMemory(2 * PAGE) as data:
        asked = HwInfo(dev_id=function.id, data_len=room, data_uptr=data.address)
        held = threading.Thread(target=iommufd.call, args=(asked,))
        held.start()
        wait_for(lambda: data.touched)
        assert iommufd.hw_info(function.id, DATA)[0].data_len == DATA
        data.let_go()
        held.join()
        assert asked.data_len == DATA and data.read(16, 8) == registers(vtd)[1].to_bytes(8, "little")


def test_errors(machine: MountedLab, iommufd: Iommufd, function: Function) -> None:
    for flags in (2, 3, 1 << 31):
        fails(errno.EOPNOTSUPP, iommufd.hw_info, 99, flags=flags)
    for index in range(3):
        wrong = HwInfo(dev_id=99)
        wrong.reserved[index] = 1
        fails(errno.EOPNOTSUPP, iommufd.call, wrong)
    for number in (0, 99, iommufd.ioas(), 2**32 - 1):
        fails(errno.ENOENT, iommufd.hw_info, number)
    with machine.create("copier-1", "copiers") as vgpu, Cdev(vgpu.cdev) as mediated:
        fails(errno.ENOENT, iommufd.hw_info, mediated.bind(iommufd))


@needs.capability("CAP_SYS_RAWIO")
def test_a_function_without_an_iommu(machine: MountedLab, iommufd: Iommufd) -> None:
    with without_iommu(machine), opened(machine, iommufd, NO_IOMMU) as function:
        info, data = iommufd.hw_info(function.id, 8)
        assert (info.out_data_type, info.data_len, info.out_capabilities, data) == (0, 0, NO_ATS, bytes(8))


def test_an_iommu_without_dirty_tracking(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        described(tmp_path_factory.mktemp("plain"), LAB + PLAIN) as plain,
        Iommufd(plain.path) as iommufd,
        opened(plain, iommufd) as function,
    ):
        info, _ = iommufd.hw_info(function.id)
        assert info.out_capabilities == NO_ATS
        fails(errno.EOPNOTSUPP, iommufd.hwpt, function.id, iommufd.ioas(), HWPT_DIRTY_TRACKING)
        assert registers(plain)[1] >> 43 & 0b1101 == 0
        assert (plain.path / "sys/class/iommu/dmar0/intel-iommu/version").read_text() == "1:0\n"
