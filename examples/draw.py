# SPDX-License-Identifier: Apache-2.0
"""A user-space driver of a vGPU: it draws a picture by commands of the engine, and waits for the interrupt.

    python3 examples/draw.py UUID [MNT]

MNT is where a lab is mounted. Without it the driver uses /dev and /sys, as on a machine with such a GPU, or
under `vfsfuse run`. It needs nothing but the kernel's VFIO and iommufd, and what docs/vgpu.md says of the
device. draw.c is the same in C.
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys

VFIO, IOMMUFD = ord(";") << 8 | 100, ord(";") << 8 | 0x80
GET_REGION_INFO, SET_IRQS, BIND_IOMMUFD, ATTACH_IOMMUFD_PT = VFIO + 8, VFIO + 10, VFIO + 18, VFIO + 19
IOAS_ALLOC, IOAS_MAP = IOMMUFD + 1, IOMMUFD + 5
FIXED_IOVA, WRITEABLE, READABLE = 1, 2, 4
CAN_MMAP = 4
EVENTFD, TRIGGER, MSIX = 4, 32, 2
BAR0, BAR1, BAR2, CONFIG = 0, 1, 2, 7
COMMAND, BUS_MASTER = 4, 4
DISPI, ENGINE = 0x500, 0x1000
CONTROL, STATUS, RING_BASE, RING_SIZE, RING_TAIL = (ENGINE + at for at in (0x04, 0x08, 0x20, 0x28, 0x30))
ENABLE, RESET, ERROR = 1, 2, 4
FILL, BLIT, FENCE = 1, 3, 4
SYSTEM = 1 << 40
WIDTH, HEIGHT, PITCH, SPRITE, BORDER = 640, 480, 640 * 4, 64, 8
IOVA, RING, FENCES, TEXTURE, SIZE = 1 << 30, 0, 4096, 8192, 8192 + 4 * SPRITE * SPRITE


def ioctl(fd: int, request: int, form: str, *values: int) -> tuple[int, ...]:
    """The members of a struct whose first one is its size, as the kernel leaves them."""
    data = bytearray(struct.pack("I" + form, struct.calcsize("I" + form), *values))
    fcntl.ioctl(fd, request, data)
    return struct.unpack("I" + form, data)


def opened(name: str, root: str) -> tuple[int, int, int]:
    """The iommufd, an address space in it (an IOAS), and the device, whose DMA goes there."""
    (vfio,) = os.listdir(f"{root}/sys/bus/mdev/devices/{name}/vfio-dev")
    iommufd, device = (os.open(f"{root}/dev/{node}", os.O_RDWR) for node in ("iommu", f"vfio/devices/{vfio}"))
    ioctl(device, BIND_IOMMUFD, "IiI", 0, iommufd, 0)
    ioas = ioctl(iommufd, IOAS_ALLOC, "II", 0, 0)[2]
    ioctl(device, ATTACH_IOMMUFD_PT, "II", 0, ioas)
    return iommufd, ioas, device


class Region:
    """A BAR or the configuration space of a device, at its offset in the device's file."""

    def __init__(self, device: int, index: int) -> None:
        self.device = device
        _, self.flags, _, _, self.size, self.offset = ioctl(
            device, GET_REGION_INFO, "IIIQQ", 0, index, 0, 0, 0
        )

    def write(self, at: int, form: str, *values: int) -> None:
        os.pwrite(self.device, struct.pack("<" + form, *values), self.offset + at)

    def read(self, at: int, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, os.pread(self.device, struct.calcsize("<" + form), self.offset + at))


def packet(opcode: int, form: str, *fields: int, flags: int = 0) -> bytes:
    return struct.pack("<II" + form, opcode, flags, *fields).ljust(64, b"\0")


def at(x: int, y: int) -> int:
    """Graphics address of a pixel: the picture is at the start of video memory."""
    return y * PITCH + 4 * x


def picture() -> list[bytes]:
    return [
        packet(FILL, "QIIII", 0, PITCH, 4 * WIDTH, HEIGHT, 0x204060),
        packet(FILL, "QIIII", at(40, 30), PITCH, 4 * 200, 100, 0xFFCC00),
        packet(BLIT, "QQIIII", at(60, 50), at(40, 30), PITCH, PITCH, 4 * 200, 100),  # over a part of itself
        packet(BLIT, "QQIIII", at(300, 200), SYSTEM + TEXTURE, PITCH, 4 * SPRITE, 4 * SPRITE, SPRITE),
        packet(BLIT, "QQIIII", at(500, 400), at(300, 200), PITCH, PITCH, 4 * SPRITE, SPRITE),
        packet(FENCE, "QQ", SYSTEM + FENCES, 1, flags=1),
    ]


def border(video: Region) -> None:
    """White lines at the top, by the processor: in the mapped video memory where it can be mapped."""
    white = b"\xff" * (BORDER * PITCH)
    if video.flags & CAN_MMAP:
        with mmap.mmap(video.device, video.size, offset=video.offset) as pixels:
            pixels[: len(white)] = white
    else:
        os.pwrite(video.device, white, video.offset)


def main(name: str, root: str = "") -> str | None:
    iommufd, ioas, device = opened(name, root)
    video, gtt, registers, config = (Region(device, index) for index in (BAR0, BAR1, BAR2, CONFIG))
    memory = mmap.mmap(-1, SIZE)
    vaddr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ioctl(iommufd, IOAS_MAP, "IIIQQQ", FIXED_IOVA | WRITEABLE | READABLE, ioas, 0, vaddr, SIZE, IOVA)
    done = os.eventfd(0)
    ioctl(device, SET_IRQS, "IIIIi", EVENTFD | TRIGGER, MSIX, 0, 1, done)
    config.write(COMMAND, "H", config.read(COMMAND, "H")[0] | BUS_MASTER)
    gtt.write(0, f"{SIZE // 4096}Q", *(IOVA + page | 3 for page in range(0, SIZE, 4096)))
    registers.write(DISPI + 2, "HHHH", WIDTH, HEIGHT, 32, 0x41)

    pixels = (4 * x << 16 | 4 * y << 8 | 128 for y in range(SPRITE) for x in range(SPRITE))
    memory[TEXTURE:] = struct.pack(f"<{SPRITE * SPRITE}I", *pixels)
    packets = b"".join(picture())
    memory[RING : RING + len(packets)] = packets
    registers.write(CONTROL, "I", RESET)
    registers.write(RING_BASE, "QI", SYSTEM + RING, 4096)
    registers.write(CONTROL, "I", ENABLE)
    registers.write(RING_TAIL, "I", len(packets))

    if not select.select([done], [], [], 10)[0] or memory[FENCES] != 1:
        status, code, address = registers.read(STATUS, "IIQ")
        return f"draw.py: the engine did not finish: status {status:#x}, error {code} at {address:#x}"
    border(video)
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
