# SPDX-License-Identifier: Apache-2.0
"""A user-space driver of a vGPU: it draws a picture by commands of the engine, and waits for the interrupt.

    vfsfuse run --mount MNT -- python3 examples/draw.py UUID

Nothing but the kernel's VFIO interface and what docs/vgpu.md says of the device; draw.c is the same in C.
"""

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys

API = ord(";") << 8 | 100
GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD, DEVICE_SET_IRQS = API + 4, API + 6, API + 10
SET_IOMMU, MAP_DMA, TYPE1V2 = API + 2, API + 13, 3
READ, WRITE = 1, 2
EVENTFD, TRIGGER, MSIX = 4, 32, 2
GTT, REGISTERS, CONFIG = 1 << 40, 2 << 40, 7 << 40
COMMAND, BUS_MASTER = CONFIG + 4, 4
DISPI, ENGINE = REGISTERS + 0x500, REGISTERS + 0x1000
CONTROL, STATUS, RING_BASE, RING_SIZE, RING_TAIL = (ENGINE + at for at in (0x04, 0x08, 0x20, 0x28, 0x30))
ENABLE, RESET, ERROR = 1, 2, 4
FILL, BLIT, FENCE = 1, 3, 4
SYSTEM = 1 << 40
WIDTH, HEIGHT, PITCH, SPRITE = 640, 480, 640 * 4, 64
IOVA, RING, FENCES, TEXTURE, SIZE = 1 << 30, 0, 4096, 8192, 8192 + 4 * SPRITE * SPRITE


def ioctl(fd: int, request: int, data: bytes) -> int:
    return fcntl.ioctl(fd, request, bytearray(data))


def opened(name: str) -> tuple[int, int]:
    """The container and the device: its group is where sysfs says."""
    number = os.readlink(f"/sys/bus/mdev/devices/{name}/iommu_group").rsplit("/", 1)[1]
    container, group = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(f"/dev/vfio/{number}", os.O_RDWR)
    ioctl(group, GROUP_SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, SET_IOMMU, TYPE1V2)
    return container, ioctl(group, GROUP_GET_DEVICE_FD, name.encode() + b"\0")


def write(device: int, offset: int, form: str, *values: int) -> None:
    os.pwrite(device, struct.pack("<" + form, *values), offset)


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


def main(name: str) -> str | None:
    container, device = opened(name)
    memory = mmap.mmap(-1, SIZE)
    vaddr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ioctl(container, MAP_DMA, struct.pack("IIQQQ", 32, READ | WRITE, vaddr, IOVA, SIZE))
    done = os.eventfd(0)
    ioctl(device, DEVICE_SET_IRQS, struct.pack("IIIIIi", 24, EVENTFD | TRIGGER, MSIX, 0, 1, done))
    write(device, COMMAND, "H", struct.unpack("<H", os.pread(device, 2, COMMAND))[0] | BUS_MASTER)
    write(device, GTT, f"{SIZE // 4096}Q", *(IOVA + page | 3 for page in range(0, SIZE, 4096)))
    write(device, DISPI + 2, "HHHH", WIDTH, HEIGHT, 32, 0x41)

    pixels = (4 * x << 16 | 4 * y << 8 | 128 for y in range(SPRITE) for x in range(SPRITE))
    memory[TEXTURE:] = struct.pack(f"<{SPRITE * SPRITE}I", *pixels)
    packets = b"".join(picture())
    memory[RING : RING + len(packets)] = packets
    write(device, CONTROL, "I", RESET)
    write(device, RING_BASE, "QI", SYSTEM + RING, 4096)
    write(device, CONTROL, "I", ENABLE)
    write(device, RING_TAIL, "I", len(packets))

    if not select.select([done], [], [], 10)[0] or memory[FENCES] != 1:
        status, code, address = struct.unpack("<IIQ", os.pread(device, 16, STATUS))
        return f"draw.py: the engine did not finish: status {status:#x}, error {code} at {address:#x}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
