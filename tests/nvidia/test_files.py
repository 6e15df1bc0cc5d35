# SPDX-License-Identifier: Apache-2.0
"""The files of the directory nvidia: what reading gives, what writing does, and what it refuses."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.commands import one_write
from tests.nvidia.host import ALL, HEADER, LAB, SLOT, SLOTS, Host, Vf, catalogue, host_of
from tests.vfio.client import fails

FILES = {
    "creatable_vgpu_types": 0o444,
    "current_vgpu_type": 0o644,
    "gpu_instance_id": 0o644,
    "placement_id": 0o644,
    "vgpu_params": 0o644,
    "warm_update": 0o644,
}


def test_the_directory_has_six_files(vfs: list[Vf]) -> None:
    for vf in vfs:
        assert sorted(os.listdir(vf.nvidia)) == list(FILES)
        modes = {name: stat.S_IMODE(os.stat(vf.nvidia / name).st_mode) for name in FILES}
        assert modes == FILES
        assert {os.stat(vf.nvidia / name).st_size for name in FILES} == {4096}
        assert stat.filemode(os.stat(vf.nvidia).st_mode) == "drwxr-xr-x"


def test_a_virtual_function_without_a_type(vfs: list[Vf]) -> None:
    vf = vfs[0]
    assert (vf.type, vf.creatable, vf.read("vgpu_params"), vf.read("warm_update")) == (0, ALL, "\n", "0\n")
    for name in ("gpu_instance_id", "placement_id"):
        fails(errno.ENXIO, (vf.nvidia / name).read_text)
    for name, text in {"vgpu_params": "x=1", "gpu_instance_id": "0", "placement_id": "0"}.items():
        fails(errno.ENXIO, vf.write, name, text)


def test_a_type_is_written_and_taken_away(host: Host, vfs: list[Vf]) -> None:
    vf, other = vfs[:2]
    vf.set(14)
    assert (vf.type, vf.creatable) == (14, HEADER)
    assert (vf.read("placement_id"), vf.read("gpu_instance_id")) == ("Not Applicable\n", "Not Applicable\n")
    assert other.creatable == catalogue(14, 24)
    assert (host.vgpus, host.free) == (1, (SLOTS - 4) * SLOT)
    vf.set(0)
    assert (vf.type, vf.creatable, other.creatable) == (0, ALL, ALL)


def test_the_catalogue_shrinks_until_it_is_its_header(vfs: list[Vf]) -> None:
    for number, vf in enumerate(vfs[:4]):
        assert vfs[7].creatable == (catalogue(14, 24) if number else ALL)
        vf.set((14, 24)[number % 2])
    assert {vf.creatable for vf in vfs} == {HEADER}
    fails(errno.EIO, vfs[7].set, 14)
    vfs[2].set(0)
    assert vfs[7].creatable == catalogue(14, 24)
    vfs[7].set(24)
    assert [vf.type for vf in vfs] == [14, 24, 0, 24, 0, 0, 0, 24]


@pytest.mark.parametrize("text", ["14", "14\n", "+14", "0014"])
def test_texts_that_are_the_number_of_a_type(vfs: list[Vf], text: str) -> None:
    one_write(vfs[0].nvidia / "current_vgpu_type", text)
    assert vfs[0].type == 14


WRONG = {
    "": errno.EINVAL,
    "\n": errno.EINVAL,
    "abc": errno.EINVAL,
    "0x0e": errno.EINVAL,
    " 14": errno.EINVAL,
    "14 ": errno.EINVAL,
    "14\n\n": errno.EINVAL,
    "14\n15": errno.EINVAL,
    "1 4": errno.EINVAL,
    "--14": errno.EINVAL,
    "\u0661\u0664": errno.EINVAL,
    "14\0 15": errno.EINVAL,
    "9" * 19: errno.ERANGE,
    "9" * 4000: errno.ERANGE,
    "-" + "9" * 30: errno.ERANGE,
    "9" * 5000: errno.ERANGE,
    "7": errno.EIO,
    "-14": errno.EIO,
    "65550": errno.EIO,
    str(2**63 - 1): errno.EIO,
    str(2**32 + 14): errno.EIO,
    "0": errno.EPERM,
    "-0": errno.EPERM,
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_refused_changes_nothing(host: Host, vfs: list[Vf], text: str) -> None:
    fd = os.open(vfs[0].nvidia / "current_vgpu_type", os.O_WRONLY)
    try:
        if text:
            fails(WRONG[text], os.write, fd, text.encode())
    finally:
        os.close(fd)
    assert (vfs[0].type, vfs[0].creatable, host.vgpus) == (0, ALL, 0)


def test_a_second_type_is_refused(vfs: list[Vf]) -> None:
    vfs[0].set(14)
    for number in (14, 24, 11, 7):
        fails(errno.EPERM, vfs[0].set, number)
    assert vfs[0].type == 14
    fails(errno.EIO, vfs[1].set, 11)  # another size
    assert vfs[1].type == 0


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC | os.O_SYNC, os.O_RDWR]
)
def test_the_flags_with_which_tools_open_it(vfs: list[Vf], flags: int) -> None:
    fd = os.open(vfs[0].nvidia / "current_vgpu_type", flags, 0o644)
    assert os.write(fd, b"14") == 2
    os.close(fd)
    assert vfs[0].type == 14


def test_the_catalogue_is_read_only(vfs: list[Vf]) -> None:
    fails(errno.EACCES, os.open, vfs[0].nvidia / "creatable_vgpu_types", os.O_WRONLY)
    fails(errno.EPERM, os.mkdir, vfs[0].nvidia / "new")
    fails(errno.EPERM, os.unlink, vfs[0].nvidia / "current_vgpu_type")


def test_parameters_are_kept_as_they_are(vfs: list[Vf]) -> None:
    vf = vfs[0]
    vf.set(14)
    for text in ("frame_rate_limiter=0,disable_vnc=1", "frame_rate_limiter=1 disable_vnc=1", "x" * 1024):
        vf.write("vgpu_params", text)
        assert vf.read("vgpu_params") == f"{text}\n"
    fails(errno.E2BIG, vf.write, "vgpu_params", "x" * 1025)
    assert vf.read("vgpu_params") == f"{'x' * 1024}\n"
    vf.write("vgpu_params", " ")
    assert vf.read("vgpu_params") == "\n"
    vf.write("vgpu_params", "a=1")
    vf.write("warm_update", "1")
    vf.set(0)
    vf.set(14)
    assert (vf.read("vgpu_params"), vf.read("warm_update")) == ("\n", "0\n")


def test_warm_update_and_instances(vfs: list[Vf]) -> None:
    vf = vfs[0]
    vf.write("warm_update", "1")
    assert vf.read("warm_update") == "1\n"
    vf.write("warm_update", "0")
    for text in ("2", "-1", "y", ""):
        fails(errno.EINVAL, vf.write, "warm_update", text)
    vf.set(14)
    fails(errno.EINVAL, vf.write, "gpu_instance_id", "0")
    fails(errno.EINVAL, vf.write, "placement_id", "4")
    assert vf.read("warm_update") == "0\n"


def test_the_host_sees_the_same_function_whatever_its_type(vfs: list[Vf]) -> None:
    def identity() -> dict[str, str | bytes]:
        names = ("vendor", "device", "class", "subsystem_vendor", "subsystem_device", "resource", "uevent")
        shown: dict[str, str | bytes] = {name: (vfs[0].path / name).read_text() for name in names}
        return shown | {"config": (vfs[0].path / "config").read_bytes()}

    before = identity()
    assert (before["vendor"], before["device"], before["class"]) == ("0x10de\n", "0x2ab0\n", "0x030000\n")
    vfs[0].set(14)
    assert identity() == before


# ---- heterogeneous placement, and the other settings ----


def test_places_of_different_sizes(tmp_path: Path) -> None:
    with host_of(tmp_path, text=f'{LAB}placement = "heterogeneous"\n') as host:
        vfs = [host.vf(index) for index in range(8)]
        vfs[0].set(18)
        assert vfs[1].creatable == catalogue(11, 14, 24, 18)
        vfs[1].set(14)
        vfs[2].set(11)
        assert [vf.read("placement_id") for vf in vfs[:3]] == ["0\n", "8\n", "12\n"]
        assert vfs[3].creatable == catalogue(11)
        fails(errno.EIO, vfs[3].set, 14)
        for slot, error in ((3, errno.EINVAL), (-1, errno.EINVAL), (99, errno.EINVAL), (0, errno.EBUSY)):
            fails(error, vfs[1].write, "placement_id", str(slot))
        fails(errno.EINVAL, vfs[1].write, "placement_id", "x")
        vfs[2].write("placement_id", "13")
        assert vfs[2].read("placement_id") == "13\n" and vfs[1].read("placement_id") == "8\n"
        vfs[0].set(0)
        vfs[1].write("placement_id", "0")
        assert (vfs[1].read("placement_id"), vfs[3].creatable) == ("0\n", catalogue(11, 14, 24))


def test_the_mode_is_changed_while_there_is_no_vgpu(host: Host, vfs: list[Vf]) -> None:
    control = host.pf / "vgpu_placement"
    assert control.read_text() == "homogeneous\n"
    vfs[0].set(14)
    fails(errno.EBUSY, one_write, control, "heterogeneous")
    vfs[0].set(0)
    fails(errno.EINVAL, one_write, control, "mixed")
    one_write(control, "heterogeneous\n")
    vfs[0].set(14)
    assert vfs[0].read("placement_id") == "0\n" and vfs[1].creatable == catalogue(11, 14, 24, 18)
    vfs[0].set(0)
    one_write(control, "homogeneous")


def test_the_first_drivers_have_two_files(tmp_path: Path) -> None:
    with host_of(
        tmp_path, text=f"{LAB}nvidia = {{ files = 2, physical_catalogue = true }}\n", count=2
    ) as host:
        vf = host.vf(0)
        assert sorted(os.listdir(vf.nvidia)) == ["creatable_vgpu_types", "current_vgpu_type"]
        fails(errno.ENOENT, os.stat, vf.nvidia / "vgpu_params")
        physical = host.pf / "nvidia"
        assert os.listdir(physical) == ["creatable_vgpu_types"]
        assert (physical / "creatable_vgpu_types").read_text() == ALL
        vf.set(14)
        assert (physical / "creatable_vgpu_types").read_text() == catalogue(14, 24)


def test_the_physical_function_has_no_such_directory(host: Host, vfs: list[Vf]) -> None:
    assert vfs and not (host.pf / "nvidia").exists()
    for name in ("mdev_supported_types", "vgpu_create", "vgpu_destroy", "vgpu_supported_types"):
        assert not (host.pf / name).exists()
    assert os.listdir(host.lab.path / "sys/class/mdev_bus") == []
    assert os.listdir(host.lab.path / "sys/bus/mdev/devices") == []
