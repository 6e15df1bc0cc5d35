# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse unplug CARD`: take a card out of its PCI slot, as after a press of the attention button; with
--surprise, pull it out although programs have its functions open.

Single-threaded; it is a write to an attribute of the slot.
"""

from __future__ import annotations

import argparse

from vfsfuse.cli.slots import act, add_slot_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_slot_arguments(parser)
    parser.add_argument("--surprise", action="store_true", help="pull it out although programs have it open")


def main(args: argparse.Namespace) -> int:
    return act("unplug", args.mount, args.card, "surprise_unplug" if args.surprise else "unplug")
