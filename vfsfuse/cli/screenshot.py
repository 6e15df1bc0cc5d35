# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse screenshot VGPU FILE`: save the present picture of a vGPU's display, read through the mount.

Single-threaded; it needs no Pillow, because the server makes the PNG (vfsfuse/sysfs/screen.py).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys

from vfsfuse.asking import SECONDS, NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import answers, no_answer
from vfsfuse.cli.output import complain, discard_stdout, explained
from vfsfuse.cli.targets import add_vgpu_arguments, find, only_lab
from vfsfuse.sticky import open_file

STDOUT = "-"
SCREEN = "screen.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_vgpu_arguments(parser)
    parser.add_argument("file", metavar="FILE", help="where the PNG goes; - is standard output")


def main(args: argparse.Namespace) -> int:
    lab = args.mount
    try:
        lab = os.path.join(os.getcwd(), lab or only_lab())
        patience = Patience(SECONDS / 2)
        write(
            args.file,
            patience.ask(
                lambda: read(find(lab, args.vgpu, functions=True), args.vgpu),
                lambda: answers(lab, SECONDS / 2),
            ),
        )
    except NoAnswer:
        return complain("screenshot", no_answer(lab))
    except Refusal as error:
        return complain("screenshot", str(error))
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        return complain("screenshot", explained(error, args.file))
    return 0


def read(directory: str, name: str) -> bytes:
    """The PNG.  Raises Refusal when the display shows nothing, OSError as the file does."""
    try:
        with open(f"{directory}/{SCREEN}", "rb") as screen:
            return screen.read()
    except FileNotFoundError:
        raise Refusal(f"{name}: it has no display") from None
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        raise Refusal(f"{name}: it shows nothing (its guest has set no mode that it can show)") from None


def write(path: str, png: bytes) -> None:
    """Write the file.  Raises OSError."""
    if path == STDOUT:
        sys.stdout.buffer.write(png)
        sys.stdout.buffer.flush()
        return
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as out:
        out.write(png)
