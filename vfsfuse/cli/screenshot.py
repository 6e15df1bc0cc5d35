# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse screenshot VGPU FILE`: save the present picture of a vGPU's display, read through the mount.

Single-threaded; it needs no Pillow, because the server makes the PNG (vfsfuse/sysfs/screen.py).
"""

from __future__ import annotations

import argparse
import errno
import sys

from vfsfuse.cli.output import complain, discard_stdout
from vfsfuse.cli.targets import TargetError, add_vgpu_arguments, find, only_lab

STDOUT = "-"
SCREEN = "screen.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_vgpu_arguments(parser)
    parser.add_argument("file", metavar="FILE", help="where the PNG goes; - is standard output")


class ScreenshotError(TargetError):
    """There is no screenshot.  str() is one line: the problem, its place, and a remedy."""


def main(args: argparse.Namespace) -> int:
    try:
        lab = args.mount or only_lab()
        write(args.file, read(find(lab, args.vgpu), args.vgpu))
    except TargetError as error:
        return complain("screenshot", str(error))
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        return complain("screenshot", f"{error.filename or args.file}: {error.strerror}")
    return 0


def read(directory: str, name: str) -> bytes:
    """The PNG.  Raises ScreenshotError when the display shows nothing, OSError as the file does."""
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
    """Write the file.  Raises OSError."""
    if path == STDOUT:
        sys.stdout.buffer.write(png)
        sys.stdout.buffer.flush()
        return
    with open(path, "wb") as out:
        out.write(png)
