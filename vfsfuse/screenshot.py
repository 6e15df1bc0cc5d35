# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse screenshot VGPU FILE`: save what a vGPU's display shows now, read through the mount.

Single-threaded; it needs no Pillow, because the server makes the PNG (vfsfuse/screen.py).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterator

from vfsfuse.mountpoint import labs

STDOUT = "-"
SCREEN = "screen.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vgpu", metavar="VGPU", help="vgpu<N>, a UUID, or the name of its directory")
    parser.add_argument("file", metavar="FILE", help="where the PNG goes; - is standard output")
    parser.add_argument(
        "--mount", metavar="MNT", help="the lab mounted there (default: the only one there is)"
    )


class ScreenshotError(Exception):
    """There is no screenshot; str() is one line: what, where and how to mend it."""


def main(args: argparse.Namespace) -> int:
    try:
        lab = args.mount or only_lab()
        write(args.file, read(find(lab, args.vgpu), args.vgpu))
    except ScreenshotError as error:
        print(f"vfsfuse: screenshot: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of standard output has enough: the rest goes nowhere, at exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        print(f"vfsfuse: screenshot: {error.filename or args.file}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def only_lab() -> str:
    """Where the lab is mounted that there is only one of.  Raises ScreenshotError."""
    found = labs()
    if len(found) != 1:
        what = f"labs are mounted at {', '.join(found)}" if found else "no lab is mounted"
        raise ScreenshotError(f"{what} (say which with --mount)")
    return found[0]


def find(lab: str, name: str) -> str:
    """The directory of the vGPU that `name` means.  Raises ScreenshotError unless it means exactly one."""
    if not os.path.isdir(f"{lab}/sys/class/vgpu"):
        raise ScreenshotError(f"{lab}: no lab is mounted there (vfsfuse mount {lab})")
    found = sorted({os.path.realpath(path) for path in places(lab, name)})
    if len(found) > 1:
        names = ", ".join(map(os.path.basename, found))
        raise ScreenshotError(f"{name}: there are {names} (name one of them)")
    if not found:
        raise ScreenshotError(
            f"{name}: there is no such vGPU in {lab} (vfsfuse tree {lab} shows what there is)"
        )
    return found[0]


def places(lab: str, name: str) -> Iterator[str]:
    """The paths of the vGPUs that have this name: a number, a directory, or a UUID with any instance."""
    if "/" in name or not name.strip("."):
        return
    classes = f"{lab}/sys/class/vgpu"
    for vendor in os.listdir(classes):
        if os.path.isdir(f"{classes}/{vendor}/{name}"):
            yield f"{classes}/{vendor}/{name}"
    devices = f"{lab}/sys/bus/mdev/devices"
    for device in os.listdir(devices):
        if name.lower() in (device, uuid_of(f"{devices}/{device}")):
            yield f"{devices}/{device}"


def uuid_of(directory: str) -> str:
    """The UUID of a vGPU, empty when it is just being removed."""
    try:
        with open(f"{directory}/vgpu_uuid", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def read(directory: str, name: str) -> bytes:
    """The PNG.  Raises ScreenshotError when nothing is shown, OSError as the file does."""
    try:
        with open(f"{directory}/{SCREEN}", "rb") as screen:
            return screen.read()
    except FileNotFoundError:
        raise ScreenshotError(f"{name}: it has no display") from None
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        raise ScreenshotError(
            f"{name}: it shows nothing (its guest has set no mode that it can show)"
        ) from None


def write(path: str, png: bytes) -> None:
    """Raises OSError."""
    if path == STDOUT:
        sys.stdout.buffer.write(png)
        sys.stdout.buffer.flush()
        return
    with open(path, "wb") as out:
        out.write(png)
