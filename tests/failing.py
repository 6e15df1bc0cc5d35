# SPDX-License-Identifier: Apache-2.0
"""A lab of cards whose hooks fail, for tests of what is said then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.labs import MountedLab, described

MODEL = '''\
"""A card with a file for each way to fail."""
from devmodel.sdk import Bar, DeviceAttribute, Identity, Layout, PciDevice, Register, Registers


class Card(PciDevice):
    identity = Identity(0x1234, 0xC0F5, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self):
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}

    def divided(self):
        return self.quotient(0)

    def quotient(self, by):
        return 1 // by  # the failing line

    def speak(self):
        raise ValueError("first\\n\\x1b[31msecond")

    def command(self, value):
        self.start(self.task)

    async def task(self):
        raise LookupError("no such thing")


class Mute(Exception):
    def __str__(self):
        raise SystemExit(5)


def mute(card):
    raise Mute


LAYOUT = Layout(4096, [Register(0, 4, "VALUE", on_read=Card.divided, on_write=Card.command)])
Card.ATTRIBUTES = [
    DeviceAttribute("divided", Card.divided),
    DeviceAttribute("spoken", Card.speak),
    DeviceAttribute("mute", mute),
    DeviceAttribute("value", lambda card: card.registers["VALUE"]),
]
'''
LINE = next(number for number, line in enumerate(MODEL.splitlines(), 1) if "failing line" in line)
LAB = """\
[models]
card = "card.py:Card"

[parents.pool]
kind = "virtual"
driver = "card"
slots = 4
types.one = { description = "a card that fails" }
"""
DIVIDED = f"Card.divided raised ZeroDivisionError: integer division or modulo by zero (card.py:{LINE})"
"""What is said of a read of `divided`, behind the name of the device."""


def written(folder: Path) -> Path:
    """The lab file, beside its model in `folder`."""
    (folder / "card.py").write_text(MODEL)
    (folder / "lab.toml").write_text(LAB)
    return folder / "lab.toml"


@contextmanager
def failing_lab(folder: Path) -> Iterator[MountedLab]:
    """The lab, mounted.  It is to fail, so its log is not looked through."""
    written(folder)
    with described(folder, LAB) as lab:
        yield lab
        lab.log_path.write_text("")
