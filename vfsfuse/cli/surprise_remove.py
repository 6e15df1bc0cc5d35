# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse surprise-remove VGPU`: take a vGPU away from whoever has it, as when a card is pulled out.

Single-threaded; it is a write to the vGPU's attribute `surprise_remove`.
"""

from __future__ import annotations

import argparse
import sys

from vfsfuse.cli.targets import TargetError, find, only_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vgpu", metavar="VGPU", help="vgpu<N>, a UUID, or the name of its directory")
    parser.add_argument(
        "--mount", metavar="MNT", help="the lab mounted there (default: the only one there is)"
    )


def main(args: argparse.Namespace) -> int:
    try:
        directory = find(args.mount or only_lab(), args.vgpu)
        with open(f"{directory}/surprise_remove", "w", encoding="ascii") as file:
            file.write("1")
    except TargetError as error:
        print(f"vfsfuse: surprise-remove: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"vfsfuse: surprise-remove: {args.vgpu}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
