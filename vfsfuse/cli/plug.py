# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse plug CARD`: put a card into its PCI slot.

Single-threaded; it is a write to the slot's attribute `plug`.
"""

from __future__ import annotations

import argparse

from vfsfuse.cli.slots import act, add_slot_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_slot_arguments(parser)


def main(args: argparse.Namespace) -> int:
    return act("plug", args.mount, args.card, "plug")
