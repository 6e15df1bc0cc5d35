# SPDX-License-Identifier: Apache-2.0
"""screen.png and `vfsfuse screenshot` on a real mount: what a client draws is what people see."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import select
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing
from PIL import Image

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import PAGE, Container, Group, Memory, fails
from vfsfuse.kernfs.operations import AT_ONCE, MOST_WAITING, Snapshots

Colour = tuple[int, int, int]
BAR2 = 2 << 40
ENABLE, VIRT_WIDTH, X_OFFSET = 0x508, 0x50C, 0x510
WIDTH, HEIGHT = 203, 97


def colour(x: int, y: int) -> Colour:
    """A gradient in which no two neighbours are alike, whatever is mistaken for a colour or a line."""
    return x % 256, y * 2 % 256, (x * 7 + y * 13) % 256


def wide(red: int, green: int, blue: int) -> bytes:
    return bytes([blue, green, red, 0x5A])


def big_endian(red: int, green: int, blue: int) -> bytes:
    return bytes([0x5A, red, green, blue])


def packed(red: int, green: int, blue: int) -> bytes:
    return bytes([blue, green, red])


def high(red: int, green: int, blue: int) -> bytes:
    return struct.pack("<H", red >> 3 << 11 | green >> 2 << 5 | blue >> 3)


def high_15(red: int, green: int, blue: int) -> bytes:
    return struct.pack("<H", 0x8000 | red >> 3 << 10 | green >> 3 << 5 | blue >> 3)


def reduced(bits: Colour) -> Callable[[Colour], Colour]:
    """What is left of a colour of which so many bits are kept."""

    def reduce(given: Colour) -> Colour:
        red, green, blue = ((each >> 8 - n) * 255 // (2**n - 1) for each, n in zip(given, bits, strict=True))
        return red, green, blue

    return reduce


FORMATS: dict[int, tuple[Callable[..., bytes], Callable[[Colour], Colour]]] = {
    32: (wide, lambda given: given),
    24: (packed, lambda given: given),
    16: (high, reduced((5, 6, 5))),
    15: (high_15, reduced((5, 5, 5))),
}
"""By bits per pixel: the bytes of a pixel, and what is seen of it."""


def drawing(width: int, height: int, encode: Callable[..., bytes], gap: bytes = b"") -> bytes:
    """The gradient, with `gap` behind each line."""
    lines = (b"".join(encode(*colour(x, y)) for x in range(width)) for y in range(height))
    return gap.join(lines)


def pixels(png: bytes) -> tuple[tuple[int, int], list[Colour]]:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        raw = image.tobytes()
        return image.size, list(zip(raw[::3], raw[1::3], raw[2::3], strict=True))


def expected(width: int, height: int, seen: Callable[[Colour], Colour] = lambda given: given) -> list[Colour]:
    return [seen(colour(x, y)) for y in range(height) for x in range(width)]


class Screen:
    """A vGPU with a display, its device open."""

    def __init__(self, vgpu: Vgpu) -> None:
        self.vgpu, self.path = vgpu, vgpu.path / "screen.png"
        self.fd = vgpu.open()

    def register(self, offset: int, value: int) -> None:
        os.pwrite(self.fd, struct.pack("<H", value), BAR2 + offset)

    def mode(self, width: int, height: int, bpp: int = 32) -> None:
        self.register(ENABLE, 0)
        os.pwrite(self.fd, struct.pack("<4H", width, height, bpp, 0x41), BAR2 + 0x502)

    def draw(self, data: bytes, offset: int = 0) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)

    def read(self) -> tuple[tuple[int, int], list[Colour]]:
        return pixels(self.path.read_bytes())


@contextlib.contextmanager
def screen(lab: MountedLab, type_name: str = "mbochs-small", parent: str = "mbochs") -> Iterator[Screen]:
    with lab.create(type_name, parent) as vgpu:
        made = Screen(vgpu)
        try:
            yield made
        finally:
            os.close(made.fd)


BOCHS = [("mbochs-small", "mbochs"), ("vgpu-8", "0000:86:00.0")]


@pytest.fixture(params=BOCHS, ids=lambda pair: pair[0])
def bochs(request: pytest.FixtureRequest, lab: MountedLab) -> Iterator[Screen]:
    with screen(lab, *request.param) as made:
        yield made


@pytest.fixture
def shown(lab: MountedLab) -> Iterator[Screen]:
    """A display that shows the gradient."""
    with screen(lab) as made:
        made.mode(WIDTH, HEIGHT)
        made.draw(drawing(WIDTH, HEIGHT, wide))
        yield made


# ---- pixels ----


@pytest.mark.parametrize("bpp", FORMATS)
def test_what_is_written_is_seen(bochs: Screen, bpp: int) -> None:
    encode, seen = FORMATS[bpp]
    bochs.mode(WIDTH, HEIGHT, bpp)
    bochs.draw(drawing(WIDTH, HEIGHT, encode))
    assert bochs.read() == ((WIDTH, HEIGHT), expected(WIDTH, HEIGHT, seen))


@needs.passthrough
@pytest.mark.parametrize("bpp", FORMATS)
def test_what_is_drawn_in_mapped_memory_is_seen(bochs: Screen, bpp: int) -> None:
    encode, seen = FORMATS[bpp]
    bochs.mode(WIDTH, HEIGHT, bpp)
    data = drawing(WIDTH, HEIGHT, encode)
    with mmap.mmap(bochs.fd, 1 << 20) as memory:
        memory[: len(data)] = data
        assert bochs.read() == ((WIDTH, HEIGHT), expected(WIDTH, HEIGHT, seen))


def test_a_big_endian_framebuffer(bochs: Screen) -> None:
    bochs.mode(WIDTH, HEIGHT)
    os.pwrite(bochs.fd, b"\xbe" * 4, BAR2 + 0x604)
    bochs.draw(drawing(WIDTH, HEIGHT, big_endian))
    assert bochs.read() == ((WIDTH, HEIGHT), expected(WIDTH, HEIGHT))


@pytest.mark.parametrize(("type_name", "size"), [("mdpy-vga", (640, 480)), ("mdpy-xga", (1024, 768))])
def test_mdpy_is_black_until_something_is_drawn(
    lab: MountedLab, type_name: str, size: tuple[int, int]
) -> None:
    with screen(lab, type_name, "mdpy") as mdpy:
        assert mdpy.read() == (size, [(0, 0, 0)] * (size[0] * size[1]))
        mdpy.draw(drawing(*size, wide))
        assert mdpy.read() == (size, expected(*size))


def test_the_picture_follows_the_mode(bochs: Screen) -> None:
    for width, height in ((1, 1), (WIDTH, HEIGHT), (31, 1000), (800, 600)):
        bochs.mode(width, height)
        bochs.draw(drawing(width, height, wide))
        assert bochs.read() == ((width, height), expected(width, height))
    bochs.register(ENABLE, 0)
    fails(errno.ENODATA, bochs.path.read_bytes)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (5, 0), (0, 7), (100, 50)])
@pytest.mark.parametrize("bpp", [32, 16])
def test_panning(bochs: Screen, bpp: int, x: int, y: int) -> None:
    """A window of 60 by 40 pixels on a virtual screen that has gaps between the drawn lines."""
    encode, seen = FORMATS[bpp]
    bochs.mode(60, 40, bpp)
    bochs.register(VIRT_WIDTH, WIDTH + 10)
    bochs.draw(drawing(WIDTH, HEIGHT, encode, gap=encode(1, 2, 3) * 10))
    os.pwrite(bochs.fd, struct.pack("<HH", x, y), BAR2 + X_OFFSET)
    assert bochs.read() == ((60, 40), [seen(colour(x + i, y + j)) for j in range(40) for i in range(60)])


def test_lines_far_apart(bochs: Screen) -> None:
    """A quarter of a MiB from a line to the next, more than is read at once, to the end of the memory."""
    bochs.mode(3, 16)
    bochs.register(VIRT_WIDTH, 0xFFFF)
    for y in range(16):
        bochs.draw(b"".join(wide(*colour(x, y)) for x in range(3)), y * 4 * 0xFFFF)
    assert bochs.read() == ((3, 16), expected(3, 16))


@pytest.mark.parametrize(("width", "height", "bpp"), [(0, 0, 32), (16384, 16384, 32), (640, 480, 8)])
def test_what_cannot_be_shown_is_no_data(bochs: Screen, width: int, height: int, bpp: int) -> None:
    fails(errno.ENODATA, bochs.path.read_bytes)
    bochs.mode(width, height, bpp)
    fails(errno.ENODATA, bochs.path.read_bytes)


def test_each_display_shows_its_own(lab: MountedLab) -> None:
    with screen(lab) as one, screen(lab) as other:
        for made, value in ((one, 0x11), (other, 0x22)):
            made.mode(8, 8)
            made.draw(bytes([value]) * 256)
        assert [made.read()[1][0] for made in (one, other)] == [(0x11,) * 3, (0x22,) * 3]


# ---- the file ----


def test_only_displays_have_a_screen(lab: MountedLab, shown: Screen) -> None:
    assert "screen.png" in os.listdir(shown.vgpu.path)
    found = shown.path.stat()
    assert (found.st_mode & 0o7777, found.st_size, found.st_nlink) == (0o444, 0, 1)
    with lab.create("mtty-1", "mtty") as serial:
        for folder in (serial.path, lab.gpu):
            assert "screen.png" not in os.listdir(folder)
            fails(errno.ENOENT, (folder / "screen.png").stat)


def test_an_open_file_keeps_its_picture(shown: Screen) -> None:
    before = shown.path.read_bytes()
    with shown.path.open("rb", buffering=0) as first:
        shown.draw(bytes(4 * WIDTH * HEIGHT))
        with shown.path.open("rb", buffering=0) as second:
            pieces = []
            while piece := first.read(1000):
                pieces.append(piece)
                second.read(7)
            assert b"".join(pieces) == before
            assert os.pread(second.fileno(), 1 << 20, 0) == shown.path.read_bytes() != before
        assert os.pread(first.fileno(), 10, 3) == before[3:13]
        assert os.pread(first.fileno(), 10, len(before)) == b""


@pytest.mark.parametrize("command", [["cat"], ["dd", "bs=100", "status=none"], ["head", "-c", "1000000"]])
def test_tools_read_it(shown: Screen, command: list[str]) -> None:
    with shown.path.open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, check=True)
    assert done.stdout == shown.path.read_bytes()


def test_it_is_copied_whole(shown: Screen, tmp_path: Path) -> None:
    subprocess.run(["cp", shown.path, tmp_path / "copy.png"], check=True)
    assert (tmp_path / "copy.png").read_bytes() == shown.path.read_bytes()


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_TRUNC])
def test_nobody_writes_it(shown: Screen, flags: int) -> None:
    fails(errno.EACCES, os.open, shown.path, flags)


def test_it_is_a_file_like_an_attribute(shown: Screen) -> None:
    truncate = os.O_TRUNC if os.access(shown.path, os.W_OK) else 0
    if not truncate:
        fails(errno.EACCES, os.open, shown.path, os.O_RDONLY | os.O_TRUNC)  # mode 0444
    fd = os.open(shown.path, os.O_RDONLY | truncate)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        assert poller.poll(5000) == [(fd, select.POLLIN)]
        assert os.pread(fd, 4, 0) == b"\x89PNG"
        fails(errno.EBADF, os.write, fd, b"x")
        os.fsync(fd)
    finally:
        os.close(fd)


@needs.passthrough
@pytest.mark.parametrize("private", [True, False], ids=["private", "shared"])
def test_it_cannot_be_mapped_so_the_pump_never_waits_for_itself(
    lab: MountedLab, shown: Screen, private: bool
) -> None:
    """With a page of it for an argument, an ioctl would have the pump read a page that it serves itself."""
    fd = os.open(shown.path, os.O_RDONLY)
    try:
        fails(errno.ENODEV, Memory, PAGE, fd, private=private, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    assert shown.read()[0] == (WIDTH, HEIGHT)


def test_it_is_no_container(lab: MountedLab, shown: Screen) -> None:
    """SET_CONTAINER asks the mount which file a descriptor is, with an ioctl that only device files know."""
    fd = os.open(shown.path, os.O_RDONLY)
    try:
        with lab.create("mtty-1", "mtty") as other, Group(lab.path, other.group) as group:
            fails(errno.EBADFD, group.set_container, fd)
            with Container(lab.path) as container:
                group.set_container(container)
    finally:
        os.close(fd)


def test_an_open_picture_outlives_its_display(lab: MountedLab) -> None:
    with lab.create("mdpy-vga", "mdpy") as vgpu:
        path = vgpu.path / "screen.png"
        before = path.read_bytes()
        file = path.open("rb", buffering=0)
    with file:
        assert file.readall() == before
        fails(errno.ENOENT, path.open)


def test_many_readers_at_once(shown: Screen) -> None:
    with ThreadPoolExecutor(24) as pool:
        pictures = list(pool.map(lambda _: shown.path.read_bytes(), range(96)))
    assert {pixels(png)[0] for png in pictures} == {(WIDTH, HEIGHT)}
    assert len(set(pictures)) == 1


def test_readers_while_displays_come_and_go(lab: MountedLab) -> None:
    """Whatever they hit, it is a picture or one of three errors."""
    done = threading.Event()
    expected_errors = {errno.ENOENT, errno.ENODEV, errno.ENODATA}

    def look() -> int:
        pictures = 0
        while not done.is_set():
            for path in lab.mdevs.glob("*/screen.png"):
                try:
                    assert path.read_bytes()[:4] == b"\x89PNG"
                    pictures += 1
                except OSError as error:
                    assert error.errno in expected_errors, error
        return pictures

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(look) for _ in range(3)]
        for _ in range(30):
            with lab.create("mdpy-vga", "mdpy") as vgpu:
                assert (vgpu.path / "screen.png").read_bytes()[:4] == b"\x89PNG"
        done.set()
        assert sum(reader.result() for reader in readers) > 0


def test_the_lab_answers_while_a_large_picture_is_made(lab: MountedLab) -> None:
    with screen(lab, "vgpu-1", "0000:86:00.0") as large:
        large.mode(8000, 8000)
        with ThreadPoolExecutor(1) as pool:
            picture = pool.submit(large.path.read_bytes)
            answers = 0
            while not picture.done():
                assert (large.vgpu.path / "vgpu_uuid").read_text()
                assert os.pread(large.fd, 2, BAR2 + 0x502) == struct.pack("<H", 8000)
                answers += 1
        with Image.open(io.BytesIO(picture.result())) as image:
            assert image.size == (8000, 8000)
        assert answers > 10


def test_pictures_wait_for_each_other_but_not_without_end() -> None:
    """Two are made at once, 64 opens wait, and who comes then is told to come again."""
    go, began = threading.Event(), threading.Semaphore(0)

    def make() -> bytes:
        began.release()
        assert go.wait(60)
        return b"picture"

    async def crowd() -> None:
        snapshots = Snapshots()
        handles: list[int] = []

        async def reader() -> None:
            handles.append(await snapshots.open(make))

        async with trio.open_nursery() as nursery:
            for _ in range(MOST_WAITING):
                nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):  # EAGAIN
                await snapshots.open(make)
            assert [began.acquire(timeout=60) for _ in range(AT_ONCE)] == [True] * AT_ONCE
            assert not began.acquire(blocking=False)
            go.set()
        assert len(set(handles)) == MOST_WAITING
        assert {snapshots.get(handle) for handle in handles} == {b"picture"}
        snapshots.release(handles[0])
        assert snapshots.get(handles[0]) is None
        assert snapshots.get(await snapshots.open(make)) == b"picture"

    trio.run(crowd)


def test_a_lab_starts_without_pillow() -> None:
    code = "import sys, vfsfuse.server; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ---- vfsfuse screenshot ----


def shoot(lab: MountedLab, name: str, file: Path | str) -> tuple[int, str]:
    done = vfsfuse("screenshot", name, file, "--mount", lab.path)
    assert done.stdout == "" and done.stderr.count("\n") == (done.returncode != 0)
    return done.returncode, done.stderr.removeprefix("vfsfuse: screenshot: ")


def test_screenshots_by_every_name(lab: MountedLab, tmp_path: Path) -> None:
    identity = str(uuid.uuid4())
    (lab.gpu / "vgpu_create").write_text(f"{identity}:3:vgpu-8")
    vgpu = Vgpu(lab, f"{identity}-3")
    try:
        picture = Screen(vgpu)
        picture.mode(WIDTH, HEIGHT)
        picture.draw(drawing(WIDTH, HEIGHT, wide))
        os.close(picture.fd)
        number = next(
            path.name for path in (lab.path / "sys/class/vgpu").glob("*/vgpu*") if path.resolve() == vgpu.path
        )
        for name in (number, identity, identity.upper(), vgpu.name):
            out = tmp_path / f"{name}.png"
            assert shoot(lab, name, out) == (0, "")
            assert pixels(out.read_bytes()) == ((WIDTH, HEIGHT), expected(WIDTH, HEIGHT))
    finally:
        vgpu.remove()


def test_a_screenshot_on_standard_output(lab: MountedLab, shown: Screen) -> None:
    command = [*VFSFUSE, "screenshot", shown.vgpu.name, "-", "--mount", str(lab.path)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (shown.path.read_bytes(), b"")
    closed = subprocess.run(f"{' '.join(command)} | true", shell=True, capture_output=True, check=True)
    assert closed.stderr == b""


def test_what_is_no_screenshot_is_said_in_a_line(lab: MountedLab, shown: Screen, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    for name in ("vgpu77", str(uuid.uuid4()), "..", "../..", f"../devices/{shown.vgpu.name}"):
        status, said = shoot(lab, name, out)
        assert status == 1 and said.startswith(f"{name}: there is no such vGPU in {lab.path} (")
    assert shoot(lab, "", out) == (2, "an argument is empty\n")
    with lab.create("mtty-1", "mtty") as serial:
        assert shoot(lab, serial.name, out) == (1, f"{serial.name}: it has no display\n")
    shown.register(ENABLE, 0)
    status, said = shoot(lab, shown.vgpu.name, out)
    assert status == 1 and said.startswith(f"{shown.vgpu.name}: it shows nothing (")
    assert not out.exists()


def test_a_screenshot_that_cannot_be_written(lab: MountedLab, shown: Screen, tmp_path: Path) -> None:
    status, said = shoot(lab, shown.vgpu.name, tmp_path / "none/out.png")
    assert (status, said) == (1, f"{tmp_path}/none/out.png: No such file or directory\n")


def test_a_uuid_of_two_instances_is_ambiguous(lab: MountedLab, tmp_path: Path) -> None:
    identity = str(uuid.uuid4())
    for instance in (0, 1):
        (lab.gpu / "vgpu_create").write_text(f"{identity}:{instance}:vgpu-8")
    vgpus = [Vgpu(lab, f"{identity}-{instance}") for instance in (0, 1)]
    try:
        status, said = shoot(lab, identity, tmp_path / "out.png")
        assert (status, said) == (1, f"{identity}: there are {identity}-0, {identity}-1 (name one of them)\n")
    finally:
        for vgpu in vgpus:
            vgpu.remove()


def test_the_lab_is_named_when_it_is_not_the_only_one(lab: MountedLab, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with MountedLab(folder) as other:
        done = vfsfuse("screenshot", "vgpu0", "-")
        assert done.returncode == 1 and "(say which with --mount)" in done.stderr
        assert str(lab.path) in done.stderr and str(other.path) in done.stderr
    done = vfsfuse("screenshot", "vgpu0", "-", "--mount", tmp_path)
    said = f"vfsfuse: screenshot: {tmp_path}: no lab is mounted there (vfsfuse mount {tmp_path})\n"
    assert (done.returncode, done.stderr) == (1, said)


@needs.root("only root may unmount in a mount namespace of its own")
def test_the_only_lab_need_not_be_named(lab: MountedLab, shown: Screen) -> None:
    """In a mount namespace in which other labs, of tests that run beside this one, are unmounted."""
    labs = "awk '$3 == \"fuse.vfsfuse\" {print $2}' /proc/self/mounts"
    others = f"for m in $({labs}); do test $m = {lab.path} || umount -l $m; done"
    script = f"{others}; exec {' '.join(VFSFUSE)} screenshot {shown.vgpu.name} -"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, check=True)
    assert done.stdout == shown.path.read_bytes()
    none = subprocess.run(
        ["unshare", "-m", "sh", "-c", script.replace(f"test $m = {lab.path} ||", "")],
        capture_output=True,
        check=False,
    )
    assert (none.returncode, none.stdout) == (1, b"")
    said = "no lab of yours or of root is mounted (mount one with: vfsfuse mount MNT)"
    assert none.stderr.decode() == f"vfsfuse: screenshot: {said}\n"
