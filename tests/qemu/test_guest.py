# SPDX-License-Identifier: Apache-2.0
"""The guest's image itself: cpio(1) reads it, compressed modules are made plain, what is missing is named."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.qemu import guest, machine, programs

pytestmark = pytest.mark.qemu

DEPENDENCIES = "kernel/a/bochs.ko.xz: kernel/b/helper.ko.xz kernel/b/drm.ko.xz\nkernel/b/drm.ko.xz:\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The modules of a kernel that compresses them, as Debian 13 does."""
    (tmp_path / "kernel/a").mkdir(parents=True)
    (tmp_path / "kernel/b").mkdir()
    for name in ("a/bochs", "b/helper", "b/drm"):
        (tmp_path / f"kernel/{name}.ko.xz").write_bytes(lzma.compress(f"module {name}".encode()))
    (tmp_path / "modules.dep").write_text(DEPENDENCIES)
    return tmp_path


def test_cpio_reads_the_image(library: Path, tmp_path: Path) -> None:
    """All but the device node, which only root can make."""
    if shutil.which("cpio") is None:
        pytest.skip("cpio is missing: apt-get install cpio")
    entries = list(guest.contents(library))
    target = tmp_path / "unpacked"
    target.mkdir()
    plain = [entry for entry in entries if entry.path != "dev/console"]
    command = ["cpio", "--extract", "--quiet", "--preserve-modification-time"]
    subprocess.run(command, input=guest.archive(plain), cwd=target, check=True)
    assert (target / "modules").read_text() == "drm.ko\nhelper.ko\nbochs.ko\n"
    assert (target / "lib/bochs.ko").read_text() == "module a/bochs"
    assert (target / "init").read_text() == guest.INIT
    assert (target / "init").stat().st_mode == 0o100755
    assert (target / "bin/sh").readlink() == Path("busybox")
    assert (target / "bin/busybox").read_bytes() == guest.BUSYBOX.read_bytes()
    listing = subprocess.run(
        ["cpio", "--list", "--verbose", "--quiet"],
        input=guest.archive(entries),
        capture_output=True,
        check=True,
    )
    console = next(line for line in listing.stdout.decode().splitlines() if line.endswith("dev/console"))
    assert console.startswith("crw-------")
    assert "5,   1" in console


def test_the_image_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest, "CACHE", tmp_path / "cache")
    first = guest.build()
    made = first.initramfs.stat()
    assert guest.build() == first
    assert first.initramfs.stat().st_ino == made.st_ino
    monkeypatch.setattr(guest, "INIT", "#!/bin/sh\n")
    assert guest.build().initramfs != first.initramfs
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_newest_kernel_with_modules_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest, "BOOT", tmp_path)
    monkeypatch.setattr(guest, "LIBRARY", tmp_path)
    for version in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.1-amd64"):
        (tmp_path / f"vmlinuz-{version}").touch()
        (tmp_path / version).mkdir()
    for version in ("6.1.0-9-amd64", "6.1.0-56-amd64"):
        (tmp_path / version / "modules.dep").touch()
    assert guest.newest_kernel() == "6.1.0-56-amd64"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the one line that says which package to install."""
    monkeypatch.setattr(guest, "BOOT", tmp_path)
    monkeypatch.setattr(guest, "BUSYBOX", tmp_path / "busybox")
    monkeypatch.setattr(programs, "SYSTEM", "no-such-qemu")
    with pytest.raises(pytest.skip.Exception, match=r"^[^\n]*apt-get install linux-image-amd64$"):
        guest.build()
    for content in (None, b"\x7fELF /lib64/ld-linux-x86-64.so.2"):
        if content:
            guest.BUSYBOX.write_bytes(content)
        with pytest.raises(pytest.skip.Exception, match=r"^[^\n]*apt-get install busybox-static$"):
            guest.static_busybox()
    with pytest.raises(pytest.skip.Exception, match=r"^[^\n]*apt-get install qemu-system-x86$"):
        machine.Machine([], [])
