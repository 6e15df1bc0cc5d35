# SPDX-License-Identifier: Apache-2.0
"""Device memory on a host that has no page left, or whose file became shorter: an error of each access that
needs a page, and of no other. The kernel raises SIGBUS in the server then.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tests.commands
from tests import needs
from tests.labs import MountedLab, Vgpu, described
from tests.vfio.client import PAGE, fails
from tests.vfio.gpu_client import (
    DMA,
    ENGINE_LAB,
    NO_MEMORY,
    VIDEO,
    Gpu,
    copy,
    fence,
    fill,
    gpu,
    wait,
)
from vfsfuse.trace.record import from_line

ROOM = 512 * PAGE
MSIX_MEMORY = (4 << 40) + PAGE
DISPI = (2 << 40) + 0x500
ENABLE, ENABLED = DISPI + 8, b"\x41\0"


@dataclass
class Host:
    """A vGPU with its engine, the first page of video memory written, and no page left."""

    lab: MountedLab
    vgpu: Vgpu
    engine: Gpu
    folder: Path

    @property
    def fd(self) -> int:
        return self.engine.fd

    def take_pages(self) -> None:
        """All that are left."""
        with (self.folder / "filler").open("ab", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(PAGE))

    def give_pages(self) -> None:
        (self.folder / "filler").unlink()

    def shorten(self) -> None:
        for file in self.folder.iterdir():
            os.truncate(file, 0)

    def set_mode(self, width: int, height: int) -> None:
        for register, value in ((1, width), (2, height), (3, 32)):
            os.pwrite(self.fd, value.to_bytes(2, "little"), DISPI + 2 * register)

    def still_serves(self) -> None:
        assert (self.lab.gpu / "vendor").read_text() == "0x1234\n"
        assert self.engine.read("MAGIC") == int.from_bytes(b"ENG1", "little")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    needs.be_root("mounting a small tmpfs takes root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tests", folder], check=True)
    monkeypatch.setenv("SMALL", str(folder))
    monkeypatch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-m", "tests.small_server"])
    try:
        with described(tmp_path, ENGINE_LAB) as lab, lab.create("even") as vgpu, gpu(lab, vgpu) as engine:
            engine.finish(fill(0, PAGE, 0x01010101))
            made = Host(lab, vgpu, engine, folder)
            made.take_pages()
            yield made
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


SIZES = [1, 4, 8, 13, 64, 65, PAGE, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
def test_an_access_of_a_hole_is_eio(host: Host, size: int) -> None:
    hole = 16 * PAGE
    fails(errno.EIO, os.pwrite, host.fd, bytes(size), hole)
    fails(errno.EIO, os.pread, host.fd, size, hole)
    fails(errno.EIO, os.pwrite, host.fd, b"12", PAGE - 1)
    host.still_serves()
    assert os.pwrite(host.fd, b"there", 8) == 5 and os.pread(host.fd, 5, 8) == b"there"
    host.give_pages()
    assert os.pwrite(host.fd, b"\1" * size, hole) == size
    assert os.pread(host.fd, size, hole) == b"\1" * size


def test_a_traced_access_of_a_hole_is_eio_too(host: Host) -> None:
    hole, sizes = 16 * PAGE, SIZES[:-1]  # the kernel divides the last one
    trace = os.open(host.lab.path / "trace", os.O_RDONLY | os.O_NONBLOCK)
    for size in sizes:
        fails(errno.EIO, os.pwrite, host.fd, bytes(size), hole)
        fails(errno.EIO, os.pread, host.fd, size, hole)
    told = [from_line(line) for line in os.read(trace, 1 << 16).splitlines()]
    os.close(trace)
    asked = [(name, size) for size in sizes for name in ("write", "read")]
    assert [(each.name, each.arguments["size"]) for each in told] == asked
    assert {(each.errno, each.result) for each in told} == {(errno.EIO, None)}
    host.give_pages()
    assert os.pread(host.fd, 4, hole) == bytes(4)


def test_the_regions_that_python_answers(host: Host) -> None:
    fails(errno.EIO, os.pwrite, host.fd, bytes(4), MSIX_MEMORY)
    assert os.pread(host.fd, 4, MSIX_MEMORY) == bytes(4)
    host.still_serves()
    host.give_pages()
    assert os.pwrite(host.fd, b"here", MSIX_MEMORY) == 4 and os.pread(host.fd, 4, MSIX_MEMORY) == b"here"


def test_the_engine_reports_it_and_goes_on(host: Host) -> None:
    engine, hole = host.engine, 32 * PAGE
    for packet in (
        fill(hole, 64, 0),
        fill(hole, PAGE, 0, height=2, pitch=2 * PAGE),
        copy(hole, 0, 64),
        copy(hole, 0, PAGE),
        copy(engine.base, hole, PAGE),
        copy(hole, engine.base, PAGE),
    ):
        code, address = engine.fails(packet)
        assert code in (NO_MEMORY, DMA) and address in (hole, engine.base)
        host.still_serves()
        engine.finish(fill(0, PAGE, 0x02020202), copy(engine.base, 0, PAGE))
        assert engine.system(0, PAGE) == b"\2" * PAGE
    host.give_pages()
    engine.finish(fill(hole, PAGE, 0x03030303), copy(engine.base, hole, PAGE))
    assert engine.system(0, PAGE) == b"\3" * PAGE


def test_the_engine_waits_and_fences_in_video_memory(host: Host) -> None:
    engine, hole = host.engine, 32 * PAGE
    assert engine.fails(fence(hole, 1)) == (NO_MEMORY, hole)
    assert engine.fails(wait(hole, 1)) == (NO_MEMORY, hole)
    engine.finish(fence(64, 7), wait(64, 7))
    assert os.pread(host.fd, 8, 64) == (7).to_bytes(8, "little")


def test_a_mode_that_clears_the_memory_is_eio_for_who_sets_it(host: Host) -> None:
    host.set_mode(1024, 768)
    os.pwrite(host.fd, ENABLED, ENABLE)  # whole pages are given back
    os.pwrite(host.fd, bytes(2), ENABLE)
    host.take_pages()
    host.set_mode(1023, 767)
    fails(errno.EIO, os.pwrite, host.fd, ENABLED, ENABLE)
    host.still_serves()
    assert b"PNG" in (host.vgpu.path / "screen.png").read_bytes()[:8]


def test_a_file_that_became_shorter(host: Host) -> None:
    engine = host.engine
    host.set_mode(640, 480)
    os.pwrite(host.fd, ENABLED, ENABLE)
    assert (host.vgpu.path / "screen.png").read_bytes()
    host.shorten()
    for size in SIZES:
        fails(errno.EIO, os.pwrite, host.fd, bytes(size), 0)
        fails(errno.EIO, os.pread, host.fd, size, 0)
    assert engine.fails(fill(0, PAGE, 0)) == (NO_MEMORY, 0)
    assert engine.fails(copy(0, VIDEO // 2, PAGE)) == (NO_MEMORY, 0)
    fails(errno.EIO, (host.vgpu.path / "screen.png").read_bytes)
    host.still_serves()
