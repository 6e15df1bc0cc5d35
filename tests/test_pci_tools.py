# SPDX-License-Identifier: Apache-2.0
"""PCI functions under unmodified tools: lspci and setpci on the physical GPU; xxd, od, dd, cmp on a vGPU."""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run
from tests.labs import MountedLab, Vgpu

MIB = 1 << 20
CONFIG_SIZE, EXPRESS_CONFIG_SIZE = 256, 4096
GPU_MEMORY = 256 * MIB
READ_ONLY = (
    *("VENDOR_ID", "DEVICE_ID", "REVISION", "CLASS_DEVICE", "HEADER_TYPE", "SUBSYSTEM_VENDOR_ID"),
    *("SUBSYSTEM_ID", "INTERRUPT_PIN", "34.b", "40.w", "f0.l"),
)
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
NEEDED = {
    "lspci": "pciutils",
    "setpci": "pciutils",
    "xxd": "xxd",
    "od": "coreutils",
    "dd": "coreutils",
    "cmp": "diffutils",
}


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    missing = sorted({package for tool, package in NEEDED.items() if shutil.which(tool) is None})
    if missing:
        pytest.skip(f"not installed: apt-get install {' '.join(missing)}")


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    """A vGPU of 64 MiB."""
    with lab.create("vgpu-4") as made:
        yield made


def pci(lab: MountedLab, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = run([program, "-A", "linux-sysfs", "-O", f"sysfs.path={lab.path}/sys/bus/pci", *arguments])
    done.stderr = done.stderr.replace(f"{program}: Unable to load libkmod resources: error -2\n", "")
    return done


def lspci(lab: MountedLab, *arguments: str) -> str:
    done = pci(lab, "lspci", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def setpci(lab: MountedLab, *registers: str) -> list[str]:
    done = pci(lab, "setpci", "-s", "86:00.0", *registers)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def shell(command: str) -> str:
    done = run(["sh", "-c", command])
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- lspci and setpci on the physical GPU ----


def test_lspci_lists_the_gpu_and_the_port_above_it(lab: MountedLab, vgpu: Vgpu) -> None:
    assert lspci(lab, "-n", "-D").splitlines() == [
        "0000:00:01.0 0604: 1b36:000c",
        "0000:86:00.0 0300: 1234:86f0 (rev 01)",
    ]


def test_lspci_shows_all_of_the_gpu(lab: MountedLab) -> None:
    shown = lspci(lab, "-s", "86:", "-vvv", "-nn")
    for line in (
        "[1234:86f0] (rev 01) (prog-if 00 [VGA controller])",
        "Subsystem: Red Hat, Inc. Device [1af4:1100]",
        "Mem+ BusMaster+",
        "Interrupt: pin A",
        "IOMMU group: 0",
        "(64-bit, prefetchable) [size=256M]",
        "(32-bit, non-prefetchable) [size=4K]",
        "Capabilities: [40] Power Management version 3",
        "Status: D0 NoSoftRst+",
        "MSI: Enable- Count=1/1 Maskable+ 64bit+",
        "DevCap:\tMaxPayload 256 bytes",
        "RBE+ FLReset+",
        "LnkCap:\tPort #0, Speed 16GT/s, Width x16",
        "LnkSta:\tSpeed 16GT/s, Width x16\n",
        "LnkCap2: Supported Link Speeds: 2.5-16GT/s",
        "Kernel driver in use: vgpu",
    ):
        assert line in shown
    # pciutils 3.13 calls the number of the message by another name
    assert "Express (v2) Endpoint, MSI 00" in shown or "Express (v2) Endpoint, IntMsgNum 0" in shown
    for complaint in ("<access denied>", "Unknown", "unknown", "disabled", "downgraded"):
        assert complaint not in shown


def test_lspci_dumps_what_the_config_file_holds(lab: MountedLab) -> None:
    for option, size in (("-xxx", CONFIG_SIZE), ("-xxxx", EXPRESS_CONFIG_SIZE)):
        dump = re.findall(r"(?m)^[0-9a-f]+0: (.*)$", lspci(lab, "-s", "86:", option))
        assert bytes.fromhex("".join(dump)) == (lab.gpu / "config").read_bytes()[:size]
        assert len(dump) == size // 16


def test_a_dump_of_lspci_reads_as_the_same_device(lab: MountedLab, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(lspci(lab, "-xxxx"))
    names = [run(["lspci", "-F", dump, "-mm", "-n"]).stdout, lspci(lab, "-mm", "-n")]
    assert names[0] == names[1] != ""


@needs.root("only root's mount is open to other users")
def test_lspci_as_another_user_sees_the_header(lab: MountedLab) -> None:
    bus = "sys/bus/pci"
    command = f"cd {lab.path} && exec {' '.join(NOBODY)} lspci -A linux-sysfs -O sysfs.path={bus} -vv -n"
    done = run(["sh", "-c", command])
    assert "1234:86f0" in done.stdout and "Capabilities: <access denied>" in done.stdout


@pytest.mark.parametrize(
    ("register", "value", "expected"),
    [
        ("LATENCY_TIMER", "a8", "a8"),
        ("INTERRUPT_LINE", "0b", "0b"),
        ("CACHE_LINE_SIZE", "10", "10"),
        ("COMMAND", "0002", "0002"),
        ("COMMAND", "ffff", "0546"),
        ("BASE_ADDRESS_2", "fedc0123", "fedc0000"),
        ("BASE_ADDRESS_2", "ffffffff", "fffff000"),
        ("BASE_ADDRESS_0", "ffffffff", "f000000c"),
    ],
)
def test_setpci_writes_what_can_be_written(lab: MountedLab, register: str, value: str, expected: str) -> None:
    (before,) = setpci(lab, register)
    try:
        assert setpci(lab, f"{register}={value}", register) == [expected]
        assert setpci(lab, register) == [expected]
    finally:
        setpci(lab, f"{register}={before}")
    assert setpci(lab, register) == [before]


@pytest.mark.parametrize("register", READ_ONLY)
def test_setpci_does_not_change_what_the_device_is(lab: MountedLab, register: str) -> None:
    before = (lab.gpu / "config").read_bytes()
    (value,) = setpci(lab, register)
    other = f"{~int(value, 16) & (1 << 4 * len(value)) - 1:0{len(value)}x}"
    assert setpci(lab, f"{register}={other}", register) == [value]
    assert (lab.gpu / "config").read_bytes() == before


def test_setpci_finds_capabilities(lab: MountedLab) -> None:
    assert setpci(lab, "CAP_PM+2.w", "CAP_MSI+0.b") == ["0003", "05"]
    (before,) = setpci(lab, "CAP_MSI+2.w")
    try:
        assert (
            int(setpci(lab, f"CAP_MSI+2.w={int(before, 16) | 1:04x}", "CAP_MSI+2.w")[0], 16)
            == int(before, 16) | 1
        )
        assert "MSI: Enable+" in lspci(lab, "-vv")
    finally:
        setpci(lab, f"CAP_MSI+2.w={before}")


def test_setpci_resets_by_the_bit_of_device_control(lab: MountedLab) -> None:
    assert setpci(lab, "CAP_EXP+8.w") == ["2910"]
    with (lab.gpu / "resource2").open("r+b", buffering=0) as registers:
        os.pwrite(registers.fileno(), b"mine", 0x0C)
        assert setpci(lab, "CAP_EXP+8.w=a91f", "CAP_EXP+8.w") == ["2910"]
        assert os.pread(registers.fileno(), 4, 0x0C) == bytes(4)
        assert setpci(lab, "CAP_EXP+8.w=291f", "CAP_EXP+8.w=2910", "CAP_EXP+8.w") == ["2910"]


def test_setpci_changes_the_power_state(lab: MountedLab) -> None:
    with (lab.gpu / "resource2").open("rb", buffering=0) as registers:
        magic = os.pread(registers.fileno(), 4, 0)
        try:
            assert setpci(lab, "CAP_PM+4.w=1", "CAP_PM+4.w") == ["0008"]
            assert setpci(lab, "CAP_PM+4.w=3", "CAP_PM+4.w") == ["000b"]
            assert "Status: D3 NoSoftRst+" in lspci(lab, "-vv")
            assert os.pread(registers.fileno(), 4, 0) == b"\xff" * 4 != magic
        finally:
            assert setpci(lab, "CAP_PM+4.w=0", "CAP_PM+4.w") == ["0008"]
        assert os.pread(registers.fileno(), 4, 0) == magic == b"VGPU"


def test_the_attributes_say_what_the_config_says(lab: MountedLab, vgpu: Vgpu) -> None:
    for folder in (lab.gpu, vgpu.path):
        config = (folder / "config").read_bytes()
        for name, offset, size in (("vendor", 0, 2), ("device", 2, 2), ("revision", 8, 1), ("class", 9, 3)):
            assert int((folder / name).read_text(), 16) == int.from_bytes(
                config[offset : offset + size], "little"
            )
        rows = [
            [int(cell, 16) for cell in row.split()] for row in (folder / "resource").read_text().splitlines()
        ]
        assert len(rows) == 13 and all(len(row) == 3 for row in rows)
        for index in (0, 2):
            assert rows[index][1] - rows[index][0] + 1 == (folder / f"resource{index}").stat().st_size


# ---- a vGPU's files ----


def test_sizes_are_those_of_the_regions(lab: MountedLab, vgpu: Vgpu) -> None:
    sizes = {name: (vgpu.path / name).stat().st_size for name in ("config", "resource0", "resource2")}
    assert sizes == {"config": CONFIG_SIZE, "resource0": 64 * MIB, "resource2": 8192}
    assert (lab.gpu / "resource0").stat().st_size == GPU_MEMORY


def test_xxd_od_and_cmp_read_config(vgpu: Vgpu, tmp_path: Path) -> None:
    config = vgpu.path / "config"
    dump = shell(f"xxd -p -c 256 {config}").strip()
    assert len(dump) == 2 * CONFIG_SIZE and dump.startswith("34121111")
    words = shell(f"od -An -v -tx1 -w256 {config}").split()
    assert "".join(words) == dump
    assert shell(f"od -An -tx2 -j2 -N2 {config}").split() == ["1111"]
    shell(f"xxd -r -p > {tmp_path}/copy <<E\n{dump}\nE\ncmp {tmp_path}/copy {config}")


def test_dd_writes_config_in_place(vgpu: Vgpu) -> None:
    config = vgpu.path / "config"
    before = config.read_bytes()
    shell(f"printf '\\300' | dd of={config} bs=1 seek=13 conv=notrunc status=none")  # the latency timer
    shell(f"printf '\\377' | dd of={config} bs=1 seek=0 conv=notrunc status=none")  # the vendor
    assert config.read_bytes() == before[:13] + b"\xc0" + before[14:]


def test_dd_fills_the_memory_and_cmp_finds_it_there(vgpu: Vgpu, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(MIB) * 64)
    shell(f"dd if={source} of={vgpu.path}/resource0 bs=1M conv=notrunc status=none")
    shell(f"cmp {source} {vgpu.path}/resource0")
    shell(f"dd if={vgpu.path}/resource0 bs=1M skip=63 status=none | cmp - {source} -n {MIB}")
    shell(f"cp {vgpu.path}/resource0 {tmp_path}/copy && cmp {source} {tmp_path}/copy")
    done = run(["dd", f"if={source}", f"of={vgpu.path}/resource0", "bs=1M", "seek=1", "conv=notrunc"])
    assert done.returncode == 1 and "File too large" in done.stderr


@pytest.mark.parametrize("size", [1, 3, 4, 4095, 4096, 4097, 131073, 1048577, 3 * MIB + 5])
def test_any_size_at_any_offset(vgpu: Vgpu, size: int) -> None:
    data = os.urandom(size)
    fd = os.open(vgpu.path / "resource0", os.O_RDWR)
    try:
        for offset in (0, 1, 4093, 7 * MIB - 1, 64 * MIB - size):
            assert os.pwrite(fd, data, offset) == size
            assert os.pread(fd, size, offset) == data
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["config", "resource0", "resource2"])
def test_the_end_of_a_region_is_the_end_of_its_file(vgpu: Vgpu, name: str) -> None:
    size = (vgpu.path / name).stat().st_size
    fd = os.open(vgpu.path / name, os.O_RDWR)
    try:
        assert len(os.pread(fd, 8, size - 4)) == 4
        assert [os.pread(fd, 8, offset) for offset in (size, size + 1, 1 << 40, 1 << 62)] == [b""] * 4
        assert os.pwrite(fd, bytes(8), size - 4) == 4
        for offset in (size, size + 1, 1 << 40, 1 << 62):
            with pytest.raises(OSError) as caught:
                os.pwrite(fd, b"1234", offset)
            assert caught.value.errno == errno.EFBIG
    finally:
        os.close(fd)


def test_files_of_one_region_show_the_same_bytes(vgpu: Vgpu) -> None:
    """The device's own file, resource0, and a mapping of it."""
    with (
        open(vgpu.open(), "r+b", buffering=0) as device,
        (vgpu.path / "resource0").open("r+b", buffering=0) as file,
    ):
        os.pwrite(device.fileno(), b"by the device", 0)
        assert os.pread(file.fileno(), 13, 0) == b"by the device"
        os.pwrite(file.fileno(), b"by the file", 63 * MIB)
        assert os.pread(device.fileno(), 11, 63 * MIB) == b"by the file"


def test_memory_that_cannot_be_mapped_is_enodev(vgpu: Vgpu) -> None:
    with (vgpu.path / "resource0").open("r+b", buffering=0) as file:
        if needs.NO_PASSTHROUGH:
            with pytest.raises(OSError) as caught:
                mmap.mmap(file.fileno(), 64 * MIB)
            assert caught.value.errno == errno.ENODEV
        else:
            mmap.mmap(file.fileno(), 64 * MIB).close()


@needs.passthrough
def test_a_mapping_of_the_memory_is_the_memory(vgpu: Vgpu) -> None:
    with (
        (vgpu.path / "resource0").open("r+b", buffering=0) as file,
        mmap.mmap(file.fileno(), 64 * MIB) as mapping,
    ):
        mapping[5 * MIB : 5 * MIB + 6] = b"mapped"
        assert os.pread(file.fileno(), 6, 5 * MIB) == b"mapped"
        os.pwrite(file.fileno(), b"written", 64 * MIB - 7)
        assert mapping[-7:] == b"written"
        shell(f"printf dd | dd of={vgpu.path}/resource0 bs=1 seek=4096 conv=notrunc status=none")
        assert mapping[4096:4098] == b"dd"
        with mmap.mmap(file.fileno(), 4096, offset=5 * MIB) as other:
            assert other[:6] == b"mapped"


@needs.passthrough
def test_a_mapping_outlives_its_vgpu_and_shows_no_other(lab: MountedLab) -> None:
    vgpu = lab.create("vgpu-4")
    with (vgpu.path / "resource0").open("r+b", buffering=0) as file:
        mapping = mmap.mmap(file.fileno(), 4096)
    with mapping:
        mapping[:3] = b"old"
        vgpu.remove()
        with lab.create("vgpu-4") as after:
            with (after.path / "resource0").open("r+b", buffering=0) as file:
                assert os.pread(file.fileno(), 3, 0) == bytes(3)
                file.write(b"new")
            assert mapping[:3] == b"old"


@pytest.mark.parametrize("name", ["config", "resource2"])
def test_registers_cannot_be_mapped(vgpu: Vgpu, name: str) -> None:
    with (vgpu.path / name).open("r+b") as file, pytest.raises(OSError) as caught:
        mmap.mmap(file.fileno(), min(4096, (vgpu.path / name).stat().st_size))
    assert caught.value.errno == errno.ENODEV


def test_registers_are_read_and_written_as_registers(vgpu: Vgpu) -> None:
    """The bochs display: id at 0x500, and the horizontal resolution after it."""
    registers = vgpu.path / "resource2"
    assert shell(f"od -An -tx2 -j1280 -N2 {registers}").split() == ["b0c5"]
    shell(f"printf '\\200\\002' | dd of={registers} bs=2 seek=641 conv=notrunc status=none")
    assert shell(f"xxd -p -s 1282 -l 2 {registers}").strip() == "8002"


@needs.root("only root's mount is open to other users")
@pytest.mark.parametrize(("uid", "size"), [(0, EXPRESS_CONFIG_SIZE), (65534, 64)])
def test_others_read_the_header_of_config_alone(lab: MountedLab, vgpu: Vgpu, uid: int, size: int) -> None:
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    for folder in (lab.gpu, vgpu.path):
        done = subprocess.run([*user, "cat", "config"], cwd=folder, capture_output=True, check=True)
        assert done.stdout == (folder / "config").read_bytes()[:size]


def test_a_real_gpus_memory_is_large_and_sparse(lab: MountedLab) -> None:
    fd = os.open(lab.gpu / "resource0", os.O_RDWR)
    try:
        assert os.pwrite(fd, b"far", GPU_MEMORY - 3) == 3
        assert os.pread(fd, 8, GPU_MEMORY - 8) == bytes(5) + b"far"
        assert os.pwrite(fd, bytes(3), GPU_MEMORY - 3) == 3
    finally:
        os.close(fd)
