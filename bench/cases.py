# SPDX-License-Identifier: Apache-2.0
"""What is measured, as a table: each case is one question, put to vfsfuse, to its floor and to peers.

The words of a run are a command line that prints percentiles as bench/client.c does; a word in braces is a
place of bench/servers.py. Where one is missing (a peer that is not installed), the run is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OURS, FLOOR, KERNEL, LXCFS, UMOCKDEV = "vfsfuse", "C libfuse", "kernel sysfs", "lxcfs", "umockdev"
BARE, MEMCPY, VMREAD, EVENTFD, NOTHING = (
    "memfd",
    "memcpy",
    "process_vm_readv",
    "eventfd",
    "an ioctl without a struct",
)
MIB = 1 << 20
BAR2, CONFIG = 2 << 40, 7 << 40
HOOKED, PLAIN, COMMAND = 0x00, 0x10, 0x20
"""Registers of bench/model.py."""
MAPPINGS = 65_535
EVIOCGABS = 0x80184540
UMOCKDEV_NAME = "/sys/devices/pci0000:00/input/event0/name"
MOUNT = "{python} -m bench.drive mount 6 {folder}"
MOUNT_SH = "{python} -m bench.drive mount.sh 4 {folder}"
DMA_SIZES = (4096, 65536, MIB, 16 * MIB)


@dataclass(frozen=True, slots=True)
class Case:
    """`runs` by subject; `base` is the subject that ratios are to.

    A sample is `per` operations of `size` bytes each.
    """

    key: str
    title: str
    runs: Mapping[str, str]
    base: str | None = FLOOR
    per: int = 1
    size: int = 0


def _client(loop: str, calls: int, rest: str = "") -> str:
    return f"{{build}}/client {loop} {calls} {rest}"


def _access(key: str, title: str, offset: int, loop: str) -> Case:
    return Case(
        key,
        title,
        {
            OURS: _client(loop, 20000, f"{{device0}} {offset} 4"),
            FLOOR: _client(loop, 20000, "{floor}/reg 0 4"),
        },
    )


def _mapping(key: str, title: str, calls: int, **shape: int) -> Case:
    runs = {
        OURS: _client(key, calls, f"{{mappable}} {BAR2} {16 * MIB}"),
        BARE: _client(key, calls, f"memfd 0 {16 * MIB}"),
    }
    return Case(key, title, runs, BARE, **shape)


def _dma(kind: str, base: str, loop: str, direction: str, size: int) -> Case:
    calls = max(30, min(2000, (1 << 29) // size))
    shown = f"{size // MIB} MiB" if size >= MIB else f"{size // 1024} KiB"
    runs = {
        OURS: f"{{python}} -m bench.dma {kind} {direction} {calls} {size}",
        base: _client(loop, calls, str(size)),
    }
    return Case(
        f"dma-{kind}-{direction}-{size}", f"DMA {direction}, {kind} memory, {shown}", runs, base, size=size
    )


CASES: tuple[Case, ...] = (
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
            FLOOR: _client("attr-read", 4000, "{floor}/attr"),
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
            FLOOR: _client("attr-write", 4000, "{floor}/attr text"),
        },
    ),
    Case(
        "lookup",
        "lookup of a cold path",
        {OURS: _client("lookup", 10000, "{crowd}"), FLOOR: _client("lookup", 10000, "{floor}/many")},
    ),
    Case(
        "readdir",
        "listing of 10,000 entries",
        {OURS: _client("readdir", 3, "{crowd} 10000"), FLOOR: _client("readdir", 3, "{floor}/many 10000")},
    ),
    _mapping("load", "4-byte load from a mapped BAR", 3000, per=1000),
    _mapping("store", "4-byte store to a mapped BAR", 3000, per=1000),
    _mapping("memset", "memset of a mapped BAR of 16 MiB", 60, size=16 * MIB),
    *(_dma("shared", MEMCPY, "memcpy", how, size) for how in ("read", "write") for size in DMA_SIZES),
    *(_dma("private", VMREAD, "vmread", how, size) for how in ("read", "write") for size in DMA_SIZES),
    Case(
        "interrupt",
        "interrupt, device raise to client epoll",
        {
            OURS: _client("interrupt", 2000, f"{{board}} {COMMAND} {BAR2}"),
            EVENTFD: _client("eventfd", 2000),
        },
        EVENTFD,
    ),
    Case(
        "map",
        "MAP_DMA, to 65,535 mappings",
        {
            OURS: _client("map", MAPPINGS, "{container} {group}"),
            NOTHING: _client("ioctl-value", 20000, "{container}"),
        },
        NOTHING,
    ),
    Case(
        "unmap",
        "UNMAP_DMA, from 65,535 mappings",
        {
            OURS: _client("unmap", MAPPINGS, "{container} {group}"),
            NOTHING: _client("ioctl-value", 20000, "{container}"),
        },
        NOTHING,
    ),
    Case("create", "create and remove a vGPU", {OURS: "{python} -m bench.drive create 300 {lab}"}, None),
    Case(
        "mount",
        "vfsfuse mount, until the tree answers",
        {OURS: MOUNT},
        None,
    ),
    Case(
        "mount.sh",
        "./mount.sh, until it returns",
        {OURS: MOUNT_SH},
        None,
    ),
)

READS = 10_000
QUIET = "{{build}}/client quiet 800 {} 0 500"
BUSY = "{{build}}/client busy 1 {} 0"
READING = f"{{{{build}}}}/client read {READS} {{}} 0 4"
NEIGHBOURS: Mapping[str, str] = {OURS: "{{device{}}}", FLOOR: "{{floor}}/reg"}
"""The file that client number N of eight has."""
