# SPDX-License-Identifier: Apache-2.0
"""The measured cases, as a table. Each case compares one operation of vfsfuse, of its floor and of peers.

The words of a run are a command line that prints percentiles as bench/client.c does. A word in braces is a
place of bench/machine.py. If a place is missing (a peer that is not installed), the run is left out. In
`{calls}20`, 20 is the number of calls, unless --calls gives one for all cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OURS, FLOOR, KERNEL, LXCFS, UMOCKDEV = "vfsfuse", "C libfuse", "kernel sysfs", "lxcfs", "umockdev"
BARE, EVENTFD, NOTHING = "memfd", "eventfd", "an ioctl without a struct"
OUTSIDE = "outside of run"
"""The same program, without `vfsfuse run`."""
RULELESS = "without a rule"
"""The same lab, while it has no fault rule."""
UNTRACED = "untraced"
"""The same lab, while nobody reads its trace."""
MEMCPY, MEMREAD, MEMWRITE = "memcpy", "pread of /proc/PID/mem", "pwrite of /proc/PID/mem"
PEERS = (KERNEL, LXCFS, UMOCKDEV)
"""Subjects that may be missing on this machine, or may not run there."""
MIB = 1 << 20
BAR2, CONFIG = 2 << 40, 7 << 40
HOOKED, PLAIN, COMMAND = 0x00, 0x10, 0x20
"""Registers of bench/model.py."""
MAPPINGS = 65_535
CROWD = 10_000
"""Idle vGPUs, and entries of the floor's directory."""

FUNCTIONS = 10_240
"""PCI functions of bench/functions.toml."""

LOOKUPS = 1200
"""Look-ups in a run, each of a name that is not cached. All runs together have only CROWD names."""

EVIOCGABS = 0x80184540
DEEP = "d/d/d/d/d/d/d"
"""The floor's path has as many directories as an attribute's. The time for them is not vfsfuse's."""

UMOCKDEV_NAME = "/sys/devices/pci0000:00/input/event0/name"
MOUNT = "{python} -m bench.drive mount {calls}6 {folder}"
MOUNT_FUNCTIONS = "{python} -m bench.drive mount-functions {calls}4 {folder}"
MOUNT_SH = "{python} -m bench.drive mount.sh {calls}4 {folder}"
CREATE = "{python} -m bench.drive create {calls}300 {lab}"
DMA_SIZES = (4096, 65536, MIB, 16 * MIB)


@dataclass(frozen=True, slots=True)
class Case:
    """The runs of a case by subject. `base` is the subject that ratios compare with.

    A sample is `per` operations of `size` bytes each. A case that is not `pinned` is measured only with all
    processors.
    """

    key: str
    title: str
    runs: Mapping[str, str]
    base: str | None = FLOOR
    per: int = 1
    size: int = 0
    pinned: bool = True


def _client(loop: str, calls: int, rest: str = "") -> str:
    return f"{{build}}/client {loop} {{calls}}{calls} {rest}"


def _access(key: str, title: str, offset: int, loop: str) -> Case:
    return Case(
        key,
        title,
        {
            OURS: _client(loop, 20000, f"{{device0}} {offset} 4"),
            FLOOR: _client(loop, 20000, "{floor}/reg 0 4"),
        },
    )


def _mapping(key: str, title: str, calls: int, per: int = 1, size: int = 0) -> Case:
    runs = {
        OURS: _client(key, calls, f"{{mappable}} {BAR2} {16 * MIB}"),
        BARE: _client(key, calls, f"memfd 0 {16 * MIB}"),
    }
    return Case(key, title, runs, BARE, per=per, size=size)


DMA_BASES = {
    ("shared", "read"): (MEMCPY, "memcpy-read"),
    ("shared", "write"): (MEMCPY, "memcpy-write"),
    ("private", "read"): (MEMREAD, "memread"),
    ("private", "write"): (MEMWRITE, "memwrite"),
}
"""The subject that DMA is compared with, and the loop of bench/client.c for it."""


def _dma(kind: str, direction: str, size: int) -> Case:
    base, loop = DMA_BASES[kind, direction]
    calls = max(30, min(2000, (1 << 29) // size))
    shown = f"{size // MIB} MiB" if size >= MIB else f"{size // 1024} KiB"
    runs = {
        OURS: f"{{python}} -m bench.dma {kind} {direction} {{calls}}{calls} {size}",
        base: _client(loop, calls, str(size)),
    }
    return Case(
        f"dma-{kind}-{direction}-{size}", f"DMA {direction}, {kind} memory, {shown}", runs, base, size=size
    )


TYPE1, IOAS = "{container} {group}", "{iommu} {device1}"
"""What a loop of the IOMMU uses: a container with a group, or an iommufd with a device."""


def _iommu(key: str, title: str, loop: str, calls: int, uses: str) -> Case:
    runs = {OURS: _client(loop, calls, uses), NOTHING: _client("ioctl-value", 20000, "{container}")}
    return Case(key, title, runs, NOTHING)


def _traced(case: Case) -> Case:
    """The same calls while a program reads the trace of the lab."""
    words = case.runs[OURS]
    runs = {OURS: f"{{python}} -m bench.drive traced {{lab}} {words}", UNTRACED: words}
    return Case(f"traced-{case.key}", f"{case.title}, while traced", runs, UNTRACED)


def _ruled(case: Case) -> Case:
    """The same calls while the lab has a fault rule about another device."""
    words = case.runs[OURS]
    runs = {OURS: f"{{python}} -m bench.drive ruled {{lab}} {words}", RULELESS: words}
    return Case(f"ruled-{case.key}", f"{case.title}, beside a fault rule", runs, RULELESS)


RUN = "{python} -m vfsfuse run --mount {lab} --"


def _under_run(key: str, title: str, client: str, per: int = 1) -> Case:
    """The same program under `vfsfuse run` and outside of it."""
    return Case(key, f"{title}, under run", {OURS: f"{RUN} {client}", OUTSIDE: client}, OUTSIDE, per=per)


_PLAIN_CASES: tuple[Case, ...] = (
    _access("read-hook", "trapped 4-byte read, Python hook", HOOKED, "read"),
    _access("write-hook", "trapped 4-byte write, Python hook", HOOKED, "write"),
    _access("read-plain", "4-byte read of a plain register", PLAIN, "read"),
    _access("write-plain", "4-byte write of a plain register", PLAIN, "write"),
    _access("read-memory", "4-byte read of a memory region by pread", BAR2, "read"),
    _access("read-config", "4-byte read of config space", CONFIG, "read"),
    _access("write-config", "4-byte write of config space", CONFIG + 0x10, "write"),
    Case(
        "ioctl-struct",
        "ioctl with a 32-byte struct (GET_REGION_INFO)",
        {
            OURS: _client("ioctl-struct", 20000, "{device0}"),
            FLOOR: _client("ioctl-struct", 20000, "{floor}/reg"),
            UMOCKDEV: f"{{umockdev}} {_client('raw-ioctl', 3000, f'/dev/input/event0 {EVIOCGABS}')}",
        },
    ),
    Case(
        "ioctl-value",
        "ioctl without a struct (CHECK_EXTENSION)",
        {
            OURS: _client("ioctl-value", 20000, "{container}"),
            FLOOR: _client("ioctl-value", 20000, "{floor}/reg"),
        },
    ),
    Case(
        "attr-read",
        "attribute open+read+close",
        {
            OURS: _client("attr-read", 4000, "{attribute}"),
            FLOOR: _client("attr-read", 4000, f"{{floor}}/{DEEP}/attr"),
            KERNEL: _client("attr-read", 10000, "/sys/devices/system/cpu/online"),
            LXCFS: _client("attr-read", 4000, "{lxcfs}/sys/devices/system/cpu/online"),
            UMOCKDEV: f"{{umockdev}} {_client('attr-read', 4000, UMOCKDEV_NAME)}",
        },
    ),
    Case(
        "attr-write",
        "attribute open+write+close",
        {
            OURS: _client("attr-write", 4000, "{note} text"),
            FLOOR: _client("attr-write", 4000, f"{{floor}}/{DEEP}/attr text"),
        },
    ),
    Case(
        "lookup",
        "lookup of a cold path",
        {
            OURS: _client("lookup", LOOKUPS, "{crowd} {crowd-names}"),
            FLOOR: _client("lookup", LOOKUPS, "{floor}/cold {floor-names}"),
        },
    ),
    Case(
        "lookup-function",
        f"lookup of one of {FUNCTIONS:,} PCI functions, cold",
        {OURS: _client("lookup", LOOKUPS, "{functions} {functions-names}")},
        None,
    ),
    Case(
        "readdir",
        f"listing of {CROWD:,} entries",
        {
            OURS: _client("readdir", 11, f"{{crowd-parent}} {CROWD}"),
            FLOOR: _client("readdir", 11, f"{{floor}}/many {CROWD}"),
        },
    ),
    Case(
        "readdir-functions",
        f"listing of {FUNCTIONS:,} PCI functions and the ports above them",
        {OURS: _client("readdir", 11, f"{{functions}} {FUNCTIONS}")},
        None,
    ),
    _mapping("load", "4-byte load from a mapped BAR", 3000, per=1000),
    _mapping("store", "4-byte store to a mapped BAR", 3000, per=1000),
    _mapping("memset", "memset of a mapped BAR of 16 MiB", 60, size=16 * MIB),
    *(_dma(kind, direction, size) for kind, direction in DMA_BASES for size in DMA_SIZES),
    Case(
        "interrupt",
        "interrupt, device raise to client epoll",
        {
            OURS: _client("interrupt", 2000, f"{{board}} {COMMAND} {BAR2}"),
            EVENTFD: _client("eventfd", 2000),
        },
        EVENTFD,
    ),
    _iommu("map", "MAP_DMA, to 65,535 mappings", "map", MAPPINGS, TYPE1),
    _iommu("ioas-map", "IOAS_MAP, to 65,535 areas", "map", MAPPINGS, IOAS),
    _iommu("unmap", "UNMAP_DMA, from 65,535 mappings", "unmap", MAPPINGS, TYPE1),
    _iommu("ioas-unmap", "IOAS_UNMAP, from 65,535 areas", "unmap", MAPPINGS, IOAS),
    _iommu("map-few", "MAP_DMA, beside 16 mappings", "map-few", 20000, TYPE1),
    _iommu("ioas-map-few", "IOAS_MAP, beside 16 areas", "map-few", 20000, IOAS),
    _iommu("unmap-few", "UNMAP_DMA, beside 16 mappings", "unmap-few", 20000, TYPE1),
    _iommu("ioas-unmap-few", "IOAS_UNMAP, beside 16 areas", "unmap-few", 20000, IOAS),
    _under_run("run-getppid", "getppid", _client("getppid", 3000), per=1000),
    _under_run("run-fstat", "fstat of a file of the machine", _client("fstat", 20000, "/etc/passwd")),
    _under_run("run-fstat-node", "fstat of a node of the lab", _client("fstat", 20000, "{container}")),
    _under_run("run-python", "start and end of python3", _client("python", 30, "{python}")),
    Case(
        "run-device-fd",
        "VFIO_GROUP_GET_DEVICE_FD, under run",
        {OURS: f"{RUN} {_client('device-fd', 2000, f'{TYPE1} {{grouped}}')}"},
        None,
    ),
    Case("create", "create and remove a vGPU", {OURS: CREATE}, None),
    Case("mount", "vfsfuse mount, until the tree answers", {OURS: MOUNT}, None, pinned=False),
    Case(
        "mount-functions",
        f"vfsfuse mount of {FUNCTIONS:,} PCI functions, until the tree answers",
        {OURS: MOUNT_FUNCTIONS},
        None,
        pinned=False,
    ),
    Case("mount.sh", "./mount.sh, until it returns", {OURS: MOUNT_SH}, None, pinned=False),
)
TRACED = (
    *("read-hook", "read-plain", "read-memory", "ioctl-struct", "map-few", "unmap-few"),
    *("attr-write", "interrupt"),
)
"""The cases that are measured once more while the lab is traced."""
RULED = ("read-hook", "read-memory", "ioctl-struct", "attr-read", "attr-write", "interrupt")
"""The cases that are measured once more while there is a fault rule about another device."""
CASES = (
    *_PLAIN_CASES,
    *(_traced(case) for case in _PLAIN_CASES if case.key in TRACED),
    *(_ruled(case) for case in _PLAIN_CASES if case.key in RULED),
)
BY_KEY: Mapping[str, Case] = {case.key: case for case in CASES}

CLIENTS = "clients"
"""The key for measurements of several clients at once. Its runs are not those of a Case."""

ALONE, AMONG, ONE, EIGHT = "quiet-alone", "quiet-among-7", "one-client", "eight-clients"
DEVICES = 8
QUIET = "{{build}}/client quiet {{calls}}2000 {} 0 500"
BUSY = "{{build}}/client busy 1 {} 0"
WINDOW_MS = 150
READING = f"{{{{build}}}}/client during {{{{calls}}}}200000 {{}} 0 {{{{start}}}} {WINDOW_MS}"
"""All clients run at the same time, from {start} on."""
NEIGHBOURS: Mapping[str, str] = {OURS: "{{device{}}}", FLOOR: "{{floor}}/reg"}
"""The file of client number N of eight."""
