# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse surprise-remove VGPU`: remove a vGPU although clients have it open, as when a card is pulled out.

Single-threaded; it is a write to the vGPU's attribute `surprise_remove`.
"""

from __future__ import annotations

import argparse
import os

from vfsfuse.asking import NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import no_answer
from vfsfuse.cli.output import complain
from vfsfuse.cli.targets import add_vgpu_arguments, find, only_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_vgpu_arguments(parser)


def main(args: argparse.Namespace) -> int:
    lab = args.mount
    try:
        lab = os.path.join(os.getcwd(), lab or only_lab())
        Patience().ask(lambda: remove(lab, args.vgpu))
    except NoAnswer:
        return complain("surprise-remove", f"{no_answer(lab)}; {args.vgpu} may still be removed later")
    except Refusal as error:
        return complain("surprise-remove", str(error))
    except OSError as error:
        return complain("surprise-remove", f"{args.vgpu}: {error.strerror}")
    return 0


def remove(lab: str, vgpu: str) -> None:
    """Remove the vGPU.  Raises Refusal and OSError."""
    with open(f"{find(lab, vgpu)}/surprise_remove", "w", encoding="ascii") as file:
        file.write("1")
