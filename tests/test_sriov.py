# SPDX-License-Identifier: Apache-2.0
"""SR-IOV on a mount: virtual functions come and go by sysfs, take drivers, and look right to the tools."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import run, vfsfuse
from tests.labs import MountedLab
from tests.snapshot import snapshot
from tests.tool import need
from tests.vfio.client import fails
from tests.vfio.devices import give_back, opened, vfio_pci
from tests.waiting import comes_to

GPU = "0000:86:00.0"
PORT = "0000:00:01.0"
VFS = [f"0000:86:00.{number}" for number in (4, 5, 6, 7)]
ID, NO_ID = "1234 1111", b"\xff" * 4
MIB = 1 << 20
PF_FILES = {
    "sriov_totalvfs": "4",
    "sriov_numvfs": "0",
    "sriov_offset": "4",
    "sriov_stride": "1",
    "sriov_vf_device": "1111",
    "sriov_drivers_autoprobe": "1",
    "sriov_vf_total_msix": "0",
}


@pytest.fixture(autouse=True)
def as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the lab as it found it, also one that fails."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: MountedLab = request.getfixturevalue("lab")
    before = snapshot(lab.path)
    yield
    enable(lab, 0)
    comes_to(lambda: snapshot(lab.path), before)


def enable(lab: MountedLab, count: int) -> None:
    (lab.gpu / "sriov_numvfs").write_text(f"{count}\n")


def functions(lab: MountedLab) -> list[str]:
    """The GPU and its virtual functions."""
    port, *others = sorted(os.listdir(lab.path / "sys/bus/pci/devices"))
    assert port == PORT
    return others


def vf_dir(lab: MountedLab, name: str) -> Path:
    return lab.path / "sys/bus/pci/devices" / name


def driver(lab: MountedLab, name: str) -> str | None:
    link = vf_dir(lab, name) / "driver"
    return os.readlink(link).rsplit("/", 1)[1] if link.is_symlink() else None


def store(lab: MountedLab, place: str, text: str) -> None:
    (lab.path / "sys/bus/pci" / place).write_text(text)


@contextmanager
def stored(path: Path, text: str, back: str) -> Iterator[None]:
    """The attribute holds `text` for a while."""
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(back)


# ---- files ----


@pytest.mark.parametrize(("name", "value"), PF_FILES.items())
def test_the_physical_function_shows(lab: MountedLab, name: str, value: str) -> None:
    assert (lab.gpu / name).read_text() == f"{value}\n"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_virtual_functions_come_and_go(lab: MountedLab, count: int) -> None:
    enable(lab, count)
    assert functions(lab) == [GPU, *VFS[:count]]
    links = {name: os.readlink(lab.gpu / name) for name in os.listdir(lab.gpu) if name.startswith("virtfn")}
    assert links == {f"virtfn{index}": f"../{name}" for index, name in enumerate(VFS[:count])}
    assert (lab.gpu / "sriov_numvfs").read_text() == f"{count}\n"
    assert (lab.gpu / "vram_free").read_text() == f"{(256 - 64 * count) * MIB}\n"
    enable(lab, 0)
    assert functions(lab) == [GPU]
    assert not list(lab.gpu.glob("virtfn*"))


def test_a_virtual_function_shows(lab: MountedLab) -> None:
    enable(lab, 4)
    vf = vf_dir(lab, VFS[3])
    assert vf.resolve() == lab.gpu.resolve().parent / VFS[3]
    assert os.readlink(vf / "physfn") == f"../{GPU}"
    assert (vf / "iommu_group/devices" / VFS[3]).resolve() == vf.resolve()
    assert driver(lab, VFS[3]) is None
    assert (vf / "driver_override").read_text() == "(null)\n"
    assert "PCI_ID=1234:1111\n" in (vf / "uevent").read_text()
    assert f"PCI_SLOT_NAME={VFS[3]}\n" in (vf / "uevent").read_text()
    for name, value in (("vendor", "0x1234"), ("device", "0x1111"), ("class", "0x038000")):
        assert (vf / name).read_text() == f"{value}\n"
    assert not any((vf / name).exists() for name in (*PF_FILES, "vgpu_create", "virtfn0"))
    assert (vf / "resource0").stat().st_size == 64 * MIB
    assert (vf / "config").stat().st_size == 4096
    assert len({os.readlink(vf_dir(lab, name) / "iommu_group") for name in functions(lab)}) == 5


def test_bars_follow_each_other(lab: MountedLab) -> None:
    enable(lab, 4)
    rows = [
        [int(cell, 16) for cell in row.split()] for row in (lab.gpu / "resource").read_text().splitlines()
    ]
    for index, name in enumerate(VFS):
        start, end, flags = map(int, (vf_dir(lab, name) / "resource").read_text().split()[:3], [16] * 3)
        assert (start, end, flags) == (
            rows[7][0] + index * 64 * MIB,
            rows[7][0] + (index + 1) * 64 * MIB - 1,
            rows[7][2],
        )
    assert rows[7][1] - rows[7][0] + 1 == 4 * 64 * MIB


def test_memory_of_one_is_not_that_of_another(lab: MountedLab) -> None:
    enable(lab, 2)
    for name in VFS[:2]:
        with (vf_dir(lab, name) / "resource0").open("r+b", buffering=0) as file:
            file.write(name.encode())
    for name in VFS[:2]:
        with (vf_dir(lab, name) / "resource0").open("rb", buffering=0) as file:
            assert file.read(len(name)) == name.encode()
    enable(lab, 0)
    enable(lab, 1)
    with (vf_dir(lab, VFS[0]) / "resource0").open("rb", buffering=0) as file:
        assert file.read(16) == bytes(16)


def test_a_name_is_gone_at_once_that_was_just_looked_up(lab: MountedLab) -> None:
    """The kernel has cached it, and must have forgotten it when the store returns."""
    names = [vf_dir(lab, VFS[0]), lab.gpu.parent / VFS[0]]
    for _ in range(5):
        enable(lab, 1)
        for name in names:
            name.lstat()
        enable(lab, 0)
        for name in names:
            fails(errno.ENOENT, name.lstat)


def test_the_end_of_its_config_space(lab: MountedLab) -> None:
    enable(lab, 1)
    with (vf_dir(lab, VFS[0]) / "config").open("r+b", buffering=0) as file:
        fd = file.fileno()
        assert (os.pread(fd, 8, 0)[:4], len(os.pread(fd, 8, 4092)), os.pread(fd, 8, 4096)) == (NO_ID, 4, b"")
        assert os.pread(fd, 2, 3) == b"\xff\x00"  # the physical function has its memory decoded
        assert os.pwrite(fd, bytes(8), 4092) == 4
        fails(errno.EFBIG, os.pwrite, fd, bytes(1), 4096)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(
            (text, errno.EINVAL)
            for text in ("", "x", "-1", " 1", "1 ", "1.0", "1 2", "0x", "08", "1\n\n", "\n")
        ),
        *((text, errno.EINVAL) for text in ("65536", "0x10000", "4294967296", f"{2**64 + 1}")),
        *((text, errno.ERANGE) for text in ("5", "65535", "0x10", "010")),
    ],
)
def test_counts_that_cannot_be(lab: MountedLab, text: str, number: int) -> None:
    if text:
        fails(number, (lab.gpu / "sriov_numvfs").write_text, text)
    assert functions(lab) == [GPU]


@pytest.mark.parametrize("text", ["2", "2\n", "0x2", "02", "+2"])
def test_counts_in_all_spellings(lab: MountedLab, text: str) -> None:
    (lab.gpu / "sriov_numvfs").write_text(text)
    assert len(functions(lab)) == 3


def test_a_count_is_not_changed_but_by_way_of_zero(lab: MountedLab) -> None:
    enable(lab, 2)
    before = snapshot(lab.path)
    for count in (1, 3, 4):
        fails(errno.EBUSY, enable, lab, count)
    enable(lab, 2)
    assert snapshot(lab.path) == before


def test_memory_is_shared_with_vgpus(lab: MountedLab) -> None:
    with lab.create("vgpu-8"):
        before = snapshot(lab.path)
        fails(errno.ENOSPC, enable, lab, 4)
        assert snapshot(lab.path) == before
        enable(lab, 3)
        types = lab.gpu / "mdev_supported_types"
        assert (types / "vgpu-8/available_instances").read_text() == "1\n"
        assert (types / "vgpu-4/available_instances").read_text() == "0\n"
        enable(lab, 0)


def test_a_driver_that_leaves_takes_the_virtual_functions_with_it(lab: MountedLab) -> None:
    enable(lab, 2)
    store(lab, "drivers/vgpu/unbind", GPU)
    try:
        assert functions(lab) == [GPU]
        assert (lab.gpu / "sriov_numvfs").read_text() == "0\n"
        fails(errno.ENOENT, enable, lab, 1)
        fails(errno.ERANGE, enable, lab, 5)
        enable(lab, 0)
    finally:
        give_back(lab, GPU)


def test_vectors_are_not_shared_out(lab: MountedLab) -> None:
    enable(lab, 1)
    count = vf_dir(lab, VFS[0]) / "sriov_vf_msix_count"
    fails(errno.EOPNOTSUPP, count.write_text, "4")
    fails(errno.EINVAL, count.write_text, "-4")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("n", 0), ("off", 0), ("1", 1), ("Y", 1), ("x", None), ("", None)]
)
def test_autoprobe_is_a_truth_value(lab: MountedLab, text: str, value: int | None) -> None:
    path = lab.gpu / "sriov_drivers_autoprobe"
    if value is None:
        fails(errno.EINVAL, path.write_text, text or "\n")
    else:
        with stored(path, text, "1"):
            assert path.read_text() == f"{value}\n"


# ---- drivers ----


def bind_by_override(lab: MountedLab, name: str) -> None:
    (vf_dir(lab, name) / "driver_override").write_text("vfio-pci\n")
    store(lab, "drivers_probe", name)


def bind_by_bind(lab: MountedLab, name: str) -> None:
    (vf_dir(lab, name) / "driver_override").write_text("vfio-pci\n")
    store(lab, "drivers/vfio-pci/bind", name)


def bind_by_id(lab: MountedLab, name: str) -> None:
    store(lab, "drivers/vfio-pci/new_id", ID)
    store(lab, "drivers/vfio-pci/remove_id", ID)


@pytest.mark.parametrize("bind", [bind_by_override, bind_by_bind, bind_by_id])
def test_a_virtual_function_goes_to_vfio_pci(lab: MountedLab, bind: object) -> None:
    assert callable(bind)
    enable(lab, 1)
    vf = vf_dir(lab, VFS[0])
    number = os.readlink(vf / "iommu_group").rsplit("/", 1)[1]
    assert not (lab.path / "dev/vfio" / number).exists()
    bind(lab, VFS[0])
    assert driver(lab, VFS[0]) == "vfio-pci"
    assert (lab.path / "sys/bus/pci/drivers/vfio-pci" / VFS[0]).resolve() == vf.resolve()
    assert (lab.path / "dev/vfio" / number).exists()
    (cdev,) = os.listdir(vf / "vfio-dev")
    assert (lab.path / "dev/vfio/devices" / cdev).exists()
    assert "DRIVER=vfio-pci\n" in (vf / "uevent").read_text()
    store(lab, "drivers/vfio-pci/unbind", VFS[0])
    assert driver(lab, VFS[0]) is None
    assert not (lab.path / "dev/vfio" / number).exists()


def test_a_new_id_is_for_those_to_come_too(lab: MountedLab) -> None:
    enable(lab, 1)
    store(lab, "drivers/vfio-pci/new_id", "1234 1111 1af4 1100 038000 ffff00")
    try:
        fails(errno.EEXIST, store, lab, "drivers/vfio-pci/new_id", "1234 1111 1af4 1100 038000 ffff00")
        assert driver(lab, VFS[0]) == "vfio-pci"
        enable(lab, 0)
        enable(lab, 4)
        assert [driver(lab, name) for name in VFS] == ["vfio-pci"] * 4
        assert driver(lab, GPU) == "vgpu"
    finally:
        store(lab, "drivers/vfio-pci/remove_id", ID)
    fails(errno.ENODEV, store, lab, "drivers/vfio-pci/remove_id", ID)
    enable(lab, 0)
    enable(lab, 1)
    assert driver(lab, VFS[0]) is None


@pytest.mark.parametrize("text", ["\n", "1234", "x y", "1234:1111", "g 1"])
@pytest.mark.parametrize("file", ["new_id", "remove_id"])
def test_ids_that_are_none(lab: MountedLab, file: str, text: str) -> None:
    fails(errno.EINVAL, store, lab, f"drivers/vfio-pci/{file}", text)


@pytest.mark.parametrize("off", ["the bus", "the physical function"])
def test_who_is_not_probed_is_left_alone(lab: MountedLab, off: str) -> None:
    switch = {
        "the bus": lab.path / "sys/bus/pci/drivers_autoprobe",
        "the physical function": lab.gpu / "sriov_drivers_autoprobe",
    }[off]
    store(lab, "drivers/vfio-pci/new_id", ID)
    try:
        with stored(switch, "0", "1"):
            enable(lab, 1)
            assert driver(lab, VFS[0]) is None
            store(lab, "drivers_probe", VFS[0])
            assert driver(lab, VFS[0]) == ("vfio-pci" if off == "the bus" else None)
            enable(lab, 0)
    finally:
        store(lab, "drivers/vfio-pci/remove_id", ID)


@pytest.mark.parametrize(
    ("place", "text", "number"),
    [
        ("drivers/vfio-pci/bind", VFS[0], errno.ENODEV),
        ("drivers/vgpu/bind", VFS[0], errno.ENODEV),
        ("drivers/vfio-pci/bind", VFS[1], errno.ENODEV),
        ("drivers/vfio-pci/unbind", VFS[0], errno.ENODEV),
        ("drivers_probe", VFS[1], errno.ENODEV),
        ("drivers_probe", "virtfn0", errno.ENODEV),
        ("drivers/vgpu/uevent", "added", errno.EINVAL),
    ],
)
def test_what_drivers_refuse(lab: MountedLab, place: str, text: str, number: int) -> None:
    enable(lab, 1)
    before = snapshot(lab.path)
    fails(number, store, lab, place, text)
    store(lab, "drivers_probe", VFS[0])
    store(lab, "drivers/vgpu/uevent", "add")
    assert snapshot(lab.path) == before


def test_one_that_a_client_holds_keeps_all(lab: MountedLab) -> None:
    enable(lab, 3)
    bind_by_override(lab, VFS[1])
    number = os.readlink(vf_dir(lab, VFS[1]) / "iommu_group").rsplit("/", 1)[1]
    with opened(lab, number, VFS[1]):
        before = snapshot(lab.path)
        fails(errno.EBUSY, enable, lab, 0)
        fails(errno.EBUSY, store, lab, "drivers/vfio-pci/unbind", VFS[1])
        assert snapshot(lab.path) == before
    enable(lab, 0)
    assert functions(lab) == [GPU]


def test_vfio_pci_enables_some_if_its_module_may(lab: MountedLab) -> None:
    parameter = lab.path / "sys/module/vfio_pci/parameters/enable_sriov"
    assert parameter.read_text() == "N\n"
    fails(errno.EINVAL, parameter.write_text, "maybe")
    vfio_pci(lab, GPU)
    try:
        fails(errno.ENOENT, enable, lab, 1)
        with stored(parameter, "1", "0"):
            assert parameter.read_text() == "Y\n"
            enable(lab, 2)
            for name in VFS[:2]:
                assert driver(lab, name) == "vfio-pci"
                assert (vf_dir(lab, name) / "driver_override").read_text() == "vfio-pci\n"
        fails(errno.ENOENT, enable, lab, 0)
        store(lab, "drivers/vfio-pci/unbind", GPU)
        assert functions(lab) == [GPU]
    finally:
        give_back(lab, GPU)


# ---- tools ----


def pci(lab: MountedLab, program: str, *arguments: str) -> str:
    need(program, "pciutils")
    done = run([program, "-A", "linux-sysfs", "-O", f"sysfs.path={lab.path}/sys/bus/pci", *arguments])
    assert (done.returncode, re.sub(r".*libkmod.*\n", "", done.stderr)) == (0, "")
    return done.stdout


def test_lspci_decodes_the_physical_function(lab: MountedLab) -> None:
    enable(lab, 3)
    shown = pci(lab, "lspci", "-vvv", "-s", GPU)
    for line in (
        "Capabilities: [100 v1] Alternative Routing-ID Interpretation (ARI)",
        "Single Root I/O Virtualization (SR-IOV)",
        "IOVCtl:\tEnable+ Migration- Interrupt- MSE+ ARIHierarchy+",
        "Initial VFs: 4, Total VFs: 4, Number of VFs: 3, Function Dependency Link: 00",
        "VF offset: 4, stride: 1, Device ID: 1111",
        "Supported Page Size: 00000001, System Page Size: 00000001",
    ):
        assert line in shown
    place = int((lab.gpu / "resource").read_text().splitlines()[7].split()[0], 16)
    assert f"Region 0: Memory at {place:08x} (32-bit, prefetchable)" in shown
    assert "<chain broken>" not in shown and "Unknown" not in shown


def test_lspci_decodes_a_virtual_function(lab: MountedLab) -> None:
    enable(lab, 1)
    bind_by_override(lab, VFS[0])
    shown = pci(lab, "lspci", "-vvv", "-nn", "-s", VFS[0])
    for line in (
        "Display controller [0380]: Device [1234:1111]",
        "(32-bit, prefetchable) [virtual] [size=64M]",
        "Express (v2) Endpoint",
        "Alternative Routing-ID Interpretation (ARI)",
        "Kernel driver in use: vfio-pci",
    ):
        assert line in shown
    assert "Interrupt: pin" not in shown and "<chain broken>" not in shown
    assert pci(lab, "lspci", "-D", "-n").splitlines() == [
        f"{PORT} 0604: 1b36:000c",
        f"{GPU} 0300: 1234:86f0 (rev 01)",
        f"{VFS[0]} 0380: 1234:1111 (rev 02)",
    ]


def test_setpci_reads_what_the_hardware_has(lab: MountedLab) -> None:
    enable(lab, 1)
    registers = ["VENDOR_ID", "DEVICE_ID", "BASE_ADDRESS_0", "SUBSYSTEM_VENDOR_ID", "INTERRUPT_PIN"]
    assert pci(lab, "setpci", "-s", VFS[0], *registers).split() == ["ffff", "ffff", "00000000", "1af4", "00"]
    pci(lab, "setpci", "-s", VFS[0], "BASE_ADDRESS_0=ffffffff", "LATENCY_TIMER=20")
    assert pci(lab, "setpci", "-s", VFS[0], "BASE_ADDRESS_0", "LATENCY_TIMER").split() == ["00000000", "20"]
    assert pci(lab, "setpci", "-s", GPU, "ECAP_SRIOV+10.w").split() == ["0001"]
    pci(lab, "setpci", "-s", GPU, "ECAP_SRIOV+10.w=4")
    assert pci(lab, "setpci", "-s", GPU, "ECAP_SRIOV+10.w").split() == ["0001"]


def inside(lab: MountedLab, program: str, *arguments: str) -> str:
    """What an unmodified program prints under `vfsfuse run`; it has to succeed."""
    need(program)
    done = vfsfuse("run", "--mount", lab.path, "--", program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_driverctl_overrides_a_virtual_function(lab: MountedLab) -> None:
    enable(lab, 2)
    assert inside(lab, "driverctl", "list-devices").splitlines() == [
        f"{PORT} pcieport",
        f"{GPU} vgpu",
        *(f"{name} (none)" for name in VFS[:2]),
    ]
    inside(lab, "driverctl", "--nosave", "set-override", VFS[0], "vfio-pci")
    assert inside(lab, "driverctl", "list-overrides") == f"{VFS[0]} vfio-pci\n"
    assert driver(lab, VFS[0]) == "vfio-pci"
    done = vfsfuse("run", "--mount", lab.path, "--", "driverctl", "--nosave", "unset-override", VFS[0])
    try:  # newer versions of driverctl give vfio-pci the function's id, and no way to take it back
        (lab.path / "sys/bus/pci/drivers/vfio-pci/remove_id").write_text("1234 1111")
    except OSError as error:  # an older one finds no driver for it
        assert error.errno == errno.ENODEV
        assert done.stderr == f"driverctl: failed to bind device {VFS[0]} to driver \n"
        assert driver(lab, VFS[0]) is None
    else:
        assert (done.stderr, driver(lab, VFS[0])) == ("", "vfio-pci")
    assert (vf_dir(lab, VFS[0]) / "driver_override").read_text() == "(null)\n"


def test_udevadm_tells_of_a_virtual_function(lab: MountedLab) -> None:
    enable(lab, 1)
    told = inside(lab, "udevadm", "info", "--path", f"/sys/bus/pci/devices/{VFS[0]}", "--attribute-walk")
    for line in (
        f'KERNEL=="{VFS[0]}"',
        'SUBSYSTEM=="pci"',
        'DRIVER==""',
        'ATTR{vendor}=="0x1234"',
        'ATTR{device}=="0x1111"',
    ):
        assert line in told
    told = inside(lab, "udevadm", "info", "--query=property", f"--path=/sys/bus/pci/devices/{VFS[0]}")
    assert f"DEVPATH=/devices/pci0000:00/{PORT}/{VFS[0]}\n" in told
    assert f"PCI_SLOT_NAME={VFS[0]}\n" in told
