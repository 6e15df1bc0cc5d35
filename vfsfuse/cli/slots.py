# SPDX-License-Identifier: Apache-2.0
"""What `plug` and `unplug` share: the slot that the command line names, and the write that moves its card.

Single-threaded. `find_slot` asks the lab's server, so it is called as a question (vfsfuse.asking).
"""

from __future__ import annotations

import argparse
import errno
import os

from vfsfuse.asking import SECONDS, NoAnswer, Patience, Refusal
from vfsfuse.cli.mountpoint import answers, no_answer
from vfsfuse.cli.output import complain
from vfsfuse.cli.targets import add_mount, check_lab, only_lab, text_of

MEANINGS = {
    ("plug", errno.ENOENT): "nothing can be put into this slot (its port has no hot-plug)",
    ("unplug", errno.ENOENT): "nothing can be taken out of this slot (its port has no hot-plug)",
    ("plug", errno.EBUSY): "the card is in its slot already",
    ("plug", errno.ENODEV): "the lab has no card for this slot (describe one in the lab file)",
    ("unplug", errno.EBUSY): "a program has one of its functions open (end it, or unplug --surprise)",
    ("unplug", errno.ENODEV): "the slot is empty",
}
"""What the errors of the commands mean."""


def add_slot_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a command that acts on one slot: CARD and --mount."""
    parser.add_argument(
        "card", metavar="CARD", help="the address of one of its functions, or the name of its slot"
    )
    add_mount(parser)


def act(command: str, mount: str | None, card: str, attribute: str) -> int:
    """Write 1 to an attribute of the card's slot.  Returns the exit status, after one line on stderr for a
    failure.  A write that waits for a program to let go takes its time, as long as the lab answers."""
    lab = mount or ""
    try:
        lab = os.path.join(os.getcwd(), mount or only_lab())
        patience = Patience(SECONDS / 2)
        slot = patience.ask(lambda: find_slot(lab, card))
        patience.ask(lambda: _write(f"{slot}/{attribute}"), lambda: answers(lab, SECONDS / 2))
    except NoAnswer:
        return complain(command, f"{no_answer(lab)}; {card} may still be moved later")
    except Refusal as error:
        return complain(command, str(error))
    except OSError as error:
        why = MEANINGS.get((command, error.errno or 0), error.strerror)
        return complain(command, f"{card}: {why}")
    return 0


def find_slot(lab: str, card: str) -> str:
    """The directory of the slot with this name, or in which the function with this address is or can be: the
    one nearest above it.  Raises Refusal when there is none."""
    slots = f"{lab}/sys/bus/pci/slots"
    check_lab(lab)
    there = {name: text_of(f"{slots}/{name}/address") for name in sorted(os.listdir(slots))}
    if card in there:
        return f"{slots}/{card}"
    path = os.path.realpath(f"{lab}/sys/bus/pci/devices/{card}") if "/" not in card else card
    for function in reversed(path.split("/")):
        for name, address in there.items():
            if address and function.rpartition(".")[0] == address:
                return f"{slots}/{name}"
    listed = ", ".join(f"{name} at {address}" for name, address in there.items())
    raise Refusal(
        f"{card}: is in no slot of {lab} ({f'its slots are {listed}' if listed else 'it has none'})"
    )


def _write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # not open(), which would create it
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)
