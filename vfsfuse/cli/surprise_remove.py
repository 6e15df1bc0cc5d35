# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse surprise-remove VGPU`: remove a vGPU although clients have it open, as when a card is pulled out.

Single-threaded; it is a write to the vGPU's attribute `surprise_remove`.
"""

from __future__ import annotations

import argparse

from vfsfuse.cli.output import complain
from vfsfuse.cli.targets import TargetError, add_vgpu_arguments, find, only_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_vgpu_arguments(parser)


def main(args: argparse.Namespace) -> int:
    try:
        directory = find(args.mount or only_lab(), args.vgpu)
        with open(f"{directory}/surprise_remove", "w", encoding="ascii") as file:
            file.write("1")
    except TargetError as error:
        return complain("surprise-remove", str(error))
    except OSError as error:
        return complain("surprise-remove", f"{args.vgpu}: {error.strerror}")
    return 0
