# SPDX-License-Identifier: Apache-2.0
"""What a guest's stock drivers do with the lab's devices: transfers on serial ports, pictures on displays."""

from __future__ import annotations

import io
import os
import random
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.labs import Vgpu
from tests.qemu.console import Console

SERIAL_BYTES = 64 << 10
SERIAL_SECONDS = 180
PICTURE_SECONDS = 300
"""For the guest's driver, which copies what was drawn to video memory in its own time."""
PIXEL = 4
_TILE_PIXELS = 3067
"""A prime, so that lines of a picture tiled with it all differ."""

SERIAL_SCRIPT = """\
exec 3<>{port}
stty raw -echo <&3
count() {{ sed -n 's/^ *[0-9]*: *\\([0-9]*\\) .*\\<{name}\\>.*/\\1/p' /proc/interrupts; }}
dd if=/dev/urandom of=/tmp/sent bs=1k count={kib} 2>/dev/null
before=$(count)
head -c {size} <&3 >/tmp/received &
cat /tmp/sent >&3
wait
echo $before $(count) $(sha256sum </tmp/sent) $(sha256sum </tmp/received)
exec 3>&-
"""


class Picture(NamedTuple):
    """A picture of `width` * `height` pixels of 3 bytes: red, green, blue."""

    width: int
    height: int
    pixels: bytes

    @classmethod
    def load(cls, path: Path) -> Picture:
        """Read an image file; screen.png has no size to trust, so it is read as a whole first."""
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return cls(*image.size, image.convert("RGB").tobytes())


def interrupts_of_transfer(console: Console, slot: int, size: int = SERIAL_BYTES) -> int:
    """Send random bytes through the looped-back serial port in slot `slot`; they have to come back intact.

    Returns how many interrupts the guest counted for that port meanwhile.
    """
    # Since Linux 6.5 there are two devices of the serial bus between a PCI function and its tty. The driver
    # makes the tty a moment after the link `driver` is there.
    function = f"/sys/bus/pci/devices/0000:00:{slot:02x}.0/"
    ports = f"find {function} -path '*/tty/ttyS*' -prune"
    console.check(f"until {ports} 2>/dev/null | grep -q .; do sleep 0.1; done")
    name = console.check(f"basename $({ports})").strip()
    script = SERIAL_SCRIPT.format(port=f"/dev/{name}", name=name, size=size, kib=size >> 10)
    before, after, sent, _, received, _ = console.check(script, SERIAL_SECONDS).split()
    assert sent == received, f"{size} bytes came back changed"
    return int(after) - int(before)


def framebuffer(console: Console, slot: int) -> str:
    """The framebuffer device of the display in PCI slot `slot`; loads its driver when it is not."""
    console.check("test -e /dev/fb0 || for module in $(cat /modules); do insmod /lib/$module || exit; done")
    path = f"/sys/bus/pci/devices/0000:00:{slot:02x}.0"
    assert console.check(f"basename $(readlink {path}/driver)").strip() == "bochs-drm"
    name = console.check(f"basename {path}/graphics/fb*").strip()
    console.check(f"echo 0 >/sys/class/graphics/{name}/blank")  # the second has no console to switch it on
    return name


def mode(console: Console, name: str) -> tuple[int, int]:
    """Width and height of a framebuffer device, which has 32 bits for a pixel and no gap between lines."""
    shown = console.check(f"cd /sys/class/graphics/{name}; cat bits_per_pixel stride virtual_size")
    bits, stride, size = shown.split()
    width, height = map(int, size.split(","))
    assert (int(bits), int(stride)) == (8 * PIXEL, PIXEL * width)
    return width, height


def draw_pattern(console: Console, name: str, seed: int) -> Picture:
    """Have the guest fill framebuffer device `name` with random pixels; returns the picture they make.

    It is written in one piece: Linux 6.1 loses the end of a line on its way to video memory when a write ends
    there and began elsewhere than at the start of a line.
    """
    width, height = mode(console, name)
    tile = random.Random(seed).randbytes(_TILE_PIXELS * PIXEL)
    size = width * height * PIXEL
    console.put("/tmp/tile", tile)
    console.check(f"yes /tmp/tile | head -n {size // len(tile) + 1} | xargs cat >/tmp/picture")
    console.check(f"dd if=/tmp/picture of=/dev/{name} bs={size} count=1")
    return Picture(width, height, _rgb((tile * (size // len(tile) + 1))[:size]))


def _rgb(pixels: bytes) -> bytes:
    """Red, green and blue of XRGB8888 pixels in memory order, which is blue, green, red, nothing."""
    rgb = bytearray(len(pixels) // PIXEL * 3)
    for channel in range(3):
        rgb[channel::3] = pixels[2 - channel :: PIXEL]
    return bytes(rgb)


def assert_shows(vgpu: Vgpu, expected: Picture) -> None:
    """Wait for the vGPU's screen.png to be `expected`, pixel by pixel."""
    assert_picture(vgpu.path / "screen.png", expected)


def assert_picture(screen: Path, expected: Picture) -> None:
    """The same of the screen.png at `screen`."""
    deadline = time.monotonic() + PICTURE_SECONDS
    while (shown := Picture.load(screen)) != expected:
        assert time.monotonic() < deadline, difference(shown, expected)
        time.sleep(0.2)


def assert_in_memory(function: Path, expected: Picture) -> None:
    """Wait for `expected` to be at the start of the video memory, BAR 0, of a PCI function."""
    deadline = time.monotonic() + PICTURE_SECONDS
    with (function / "resource0").open("rb", buffering=0) as memory:
        size = expected.width * expected.height * PIXEL
        while (shown := Picture(*expected[:2], _rgb(os.pread(memory.fileno(), size, 0)))) != expected:
            assert time.monotonic() < deadline, difference(shown, expected)
            time.sleep(0.2)


def difference(shown: Picture, expected: Picture) -> str:
    """Where two pictures differ first."""
    if shown[:2] != expected[:2]:
        return f"{shown.width}x{shown.height} instead of {expected.width}x{expected.height}"
    pairs = enumerate(zip(shown.pixels, expected.pixels, strict=True))
    wrong = [at // 3 for at, (got, wanted) in pairs if got != wanted]
    if not wrong:
        return "no difference"
    return f"{len(set(wrong))} pixels differ, the first at {divmod(wrong[0], shown.width)[::-1]}"


def assert_healthy(console: Console) -> None:
    """The guest's kernel has found no fault, in itself or in a device."""
    faults = "BUG|WARNING|Oops|Call Trace|irq [0-9]+: nobody cared|soft lockup|\\*ERROR\\*|blocked for more"
    output, status = console.run(f"dmesg | grep -E '{faults}'")
    assert status == 1, output
