# SPDX-License-Identifier: Apache-2.0
"""The guest: Debian's newest installed kernel, and an initramfs of busybox and some of that kernel's modules.

The initramfs is kept in tests/qemu/.cache under a name that says what is in it, so that what changes gets a
new one and test runs side by side cannot disturb each other. Sources: the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst (newc cpio), kmod's modules.dep(5).
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

BOOT = Path("/boot")
LIBRARY = Path("/lib/modules")
BUSYBOX = Path("/bin/busybox")
CACHE = Path(__file__).parent / ".cache"

MODULES = ("bochs",)
"""What the image carries, with all it depends on; the 8250 drivers are part of Debian's kernel."""

INIT = """\
#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
echo guest is up
exec sh /dev/ttyS0
"""
"""PID 1 becomes a shell whose script is QEMU's own serial port (tests.qemu.console): it does not prompt or
edit lines, as one would whose standard input is a terminal."""


class Guest(NamedTuple):
    """What QEMU boots."""

    kernel: Path
    initramfs: Path


class Entry(NamedTuple):
    """A file of an initramfs: its path in there, its mode with its type, its content; major and minor of a
    device."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(modules: Sequence[str] = MODULES) -> Guest:
    """The guest of this machine; its initramfs is made when the cache does not have it."""
    version = newest_kernel()
    entries = list(contents(LIBRARY / version, modules))
    image = archive(entries)
    path = CACHE / f"initramfs-{version}-{hashlib.sha256(image).hexdigest()[:16]}"
    if not path.exists():
        store(path, image)
    return Guest(BOOT / f"vmlinuz-{version}", path)


def newest_kernel() -> str:
    """The version of the newest kernel in /boot that has its modules installed."""
    versions = [path.name.removeprefix("vmlinuz-") for path in BOOT.glob("vmlinuz-*")]
    complete = [version for version in versions if (LIBRARY / version / "modules.dep").exists()]
    if not complete:
        pytest.skip("no kernel in /boot has its modules: apt-get install linux-image-amd64")
    return max(complete, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])


def contents(library: Path, modules: Sequence[str] = MODULES) -> Iterator[Entry]:
    """All that the initramfs holds; /modules lists the modules in the order to load them."""
    yield from (Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "lib"))
    yield Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield Entry("bin/busybox", stat.S_IFREG | 0o755, static_busybox())
    yield Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    yield Entry("init", stat.S_IFREG | 0o755, INIT.encode())
    names = []
    for module in load_order(library, modules):
        name, content = plain_module(library / module)
        names.append(name)
        yield Entry(f"lib/{name}", stat.S_IFREG | 0o644, content)
    yield Entry("modules", stat.S_IFREG | 0o644, "\n".join([*names, ""]).encode())


def static_busybox() -> bytes:
    """Debian's busybox that needs no libraries; the package busybox has one at the same place that does."""
    content = BUSYBOX.read_bytes() if BUSYBOX.exists() else b""
    if not content or b"/ld-linux" in content:
        pytest.skip(f"{BUSYBOX} is missing or not static: apt-get install busybox-static")
    return content


def load_order(library: Path, wanted: Sequence[str]) -> list[str]:
    """The paths below `library` of `wanted` and what they depend on, dependencies first."""
    needs: dict[str, list[str]] = {}
    for line in (library / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        needs[path] = dependencies.split()
    order: list[str] = []
    for module, first in needs.items():
        if Path(module).name.split(".")[0] in wanted:
            order += [*reversed(first), module]
    return list(dict.fromkeys(order))


def plain_module(path: Path) -> tuple[str, bytes]:
    """A module's name and content, decompressed: busybox' insmod hands the kernel the file as it is."""
    content = path.read_bytes()
    name = path.name.split(".")[0] + ".ko"
    if path.suffix == ".ko":
        return name, content
    if path.suffix == ".xz":
        return name, lzma.decompress(content)
    decompressor = {".zst": "zstd", ".gz": "gzip"}[path.suffix]
    return name, subprocess.run([decompressor, "-dc", path], capture_output=True, check=True).stdout


def archive(entries: Sequence[Entry]) -> bytes:
    """`entries` as a newc cpio archive, the same bytes for the same entries."""
    last = Entry("TRAILER!!!", 0)
    return b"".join(record(number, entry) for number, entry in enumerate([*entries, last], 1))


def record(number: int, entry: Entry) -> bytes:
    """One file of a newc archive: a header of hexadecimal fields, the name, the content, each padded to 4."""
    name = entry.path.encode() + b"\0"
    fields = [number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, *entry.device, len(name), 0]
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return padded(header + name) + padded(entry.content)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def store(path: Path, content: bytes) -> None:
    """Write a file that others see whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
