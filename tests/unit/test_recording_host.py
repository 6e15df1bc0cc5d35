# SPDX-License-Identifier: Apache-2.0
"""What the recorder of a real machine knows by itself: numbers of system calls, its filter, what it hides."""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from ioctl_shim.abi import Kind
from vfsfuse.recording.host.description import Layout
from vfsfuse.recording.host.dialogue import CALLS
from vfsfuse.recording.host.files import file_of_path
from vfsfuse.recording.host.hiding import without_mmap
from vfsfuse.recording.host.syscalls import MACHINES, program

GENERIC = Path("/usr/include/asm-generic/unistd.h")
"""The numbers of arm64, and of every newer architecture."""
SPARSE, TYPE = 1, 2
"""Ids of capabilities."""
TRACE, ALLOW = 0x7FF00000, 0x7FFF0000


def test_the_numbers_of_x86_64_are_those_of_the_header(tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("this machine is no x86-64")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed (apt-get install gcc libc6-dev)")
    numbers = MACHINES["x86_64"].numbers
    source = "".join(f"{name} __NR_{name}\n" for name in numbers)
    command = ["gcc", "-E", "-P", "-include", "sys/syscall.h", "-xc", "-"]
    said = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    found = dict(line.split() for line in said.splitlines() if line.split()[0] in numbers and " " in line)
    assert {name: int(number) for name, number in found.items() if number.isdecimal()} == numbers


def test_the_numbers_of_arm64_are_those_of_the_header() -> None:
    if not GENERIC.exists():
        pytest.skip("linux-libc-dev is not installed (apt-get install linux-libc-dev)")
    rows = re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", GENERIC.read_text(), re.MULTILINE)
    header = {name: int(number) for name, number in rows}
    numbers = MACHINES["aarch64"].numbers
    assert {name: header[name] for name in numbers} == numbers


@pytest.mark.parametrize("name", MACHINES)
def test_each_call_that_stops_is_known(name: str) -> None:
    assert set(MACHINES[name].named().values()) <= set(CALLS)


def verdict(code: bytes, nr: int, audit: int, second: int = 0) -> int:
    """What a filter returns for a call: a run of its statements."""
    data = struct.pack("=2I7Q", nr, audit, 0, 0, second, 0, 0, 0, 0)
    statements = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        kind, equal, other, value = statements[at]
        at += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x15:
            at += equal if accumulator == value else other
        else:
            assert kind == 0x06
            return int(value)


@pytest.mark.parametrize("name", MACHINES)
def test_the_filter_stops_at_these_calls_and_no_others(name: str) -> None:
    machine = MACHINES[name]
    code, ioctl = program(machine), machine.numbers["ioctl"]
    stops = {nr for nr in range(600) if verdict(code, nr, machine.audit) == TRACE}
    assert stops == set(machine.named()) - {ioctl}
    assert verdict(code, ioctl, machine.audit, 0x3B64) == verdict(code, ioctl, machine.audit, 0x3B95) == TRACE
    for number in (0x5401, 0xC0203B64, 0x3A64, 0):
        assert verdict(code, ioctl, machine.audit, number) == ALLOW
    for nr in machine.named():
        assert verdict(code, nr, 0x40000003) == ALLOW  # a 32-bit program
        assert verdict(code, nr | 1 << 30, machine.audit, 0x3B64) == ALLOW  # x32


def capabilities(*ids: int) -> bytes:
    """A chain of capabilities of 24 bytes each, as it is behind struct vfio_region_info."""
    made = b""
    for number, kind in enumerate(ids, start=1):
        made += struct.pack("=2HI", kind, 1, 32 + number * 24 if number < len(ids) else 0) + bytes(
            [kind] * 16
        )
    return made


def info(argsz: int, flags: int = 0, first: int = 0, behind: bytes = b"") -> bytes:
    return struct.pack("=4I2Q", argsz, flags, 4, first, 0x2000, 4 << 40) + behind


CHAINS = [([], []), ([SPARSE], []), ([TYPE, SPARSE], [TYPE]), ([SPARSE, TYPE, SPARSE, 3], [TYPE, 3])]


@pytest.mark.parametrize(("ids", "left"), CHAINS)
def test_sparse_mmap_is_hidden_wherever_it_is(ids: list[int], left: list[int]) -> None:
    room = b"\xaa" * 200
    chain, kept = capabilities(*ids), capabilities(*left)
    after = info(232, 7 | 8 * bool(ids), 32 * bool(ids), chain + room[len(chain) :])
    shown = without_mmap(info(232, behind=room), after, chain)
    assert shown == info(232, 3 | 8 * bool(left), 32 * bool(left), kept + room[len(kept) :])


@pytest.mark.parametrize(("ids", "left"), CHAINS)
def test_an_answer_without_room_says_how_much_is_needed(ids: list[int], left: list[int]) -> None:
    chain = capabilities(*ids)
    shown = without_mmap(info(32), info(32 + len(chain), 7 | 8 * bool(ids)), chain)
    assert shown == info(32 + 24 * len(left), 3 | 8 * bool(left))


@pytest.mark.parametrize("at", [1, 31, 32, 39, 48, 2**32 - 1])
def test_a_chain_that_leads_anywhere(at: int) -> None:
    chain = struct.pack("=2HI", TYPE, 1, at) + bytes(15)
    shown = without_mmap(info(200, behind=bytes(168)), info(200, 15, 32, chain + bytes(145)), chain)
    assert len(shown) == 200 and struct.unpack_from("=I", shown, 4)[0] & 4 == 0


def test_a_short_answer_is_left_alone() -> None:
    assert without_mmap(b"", b"", b"") == b"" and without_mmap(bytes(31), bytes(31), b"") == bytes(31)


@pytest.mark.parametrize(
    ("path", "kind", "where"),
    [
        ("/dev/vfio/vfio", Kind.CONTAINER, "/dev/vfio/vfio"),
        ("/dev/iommu", Kind.IOMMUFD, "/dev/iommu"),
        ("/dev/vfio/12", Kind.GROUP, "/dev/vfio/12"),
        ("/dev/vfio/noiommu-0", Kind.GROUP, "/dev/vfio/noiommu-0"),
        ("/mnt/lab/dev/vfio/devices/vfio3", Kind.DEVICE, "/dev/vfio/devices/vfio3"),
    ],
)
def test_files_by_their_paths(path: str, kind: Kind, where: str) -> None:
    file = file_of_path(path)
    assert file is not None and (file.kind, file.path) == (kind, where)


@pytest.mark.parametrize(
    "path", ["/dev/vfio", "/dev/vfio/devices/x", "/dev/null", "/dev/vfio/vfio (deleted)"]
)
def test_other_paths_are_none_of_vfio(path: str) -> None:
    assert file_of_path(path) is None


def test_the_place_of_an_access() -> None:
    layout = Layout()
    for index in (0, 7, 1):
        layout.add(index, index << 40)
    assert layout.place(0x18) == (0, 0x18)
    assert layout.place((7 << 40) + 4) == (7, 4)
    assert layout.place((9 << 40) + 8) == (9, 8)
    assert Layout().place(5) == (0, 5)
