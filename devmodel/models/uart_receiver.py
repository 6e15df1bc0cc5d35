# SPDX-License-Identifier: Apache-2.0
"""The receiving half of a 16550: its FIFO, and the errors that came with each character.

State: under the lock of the device that has the port. Source: the PC16550D data sheet (the line status
register, FIFO interrupt mode operation).
"""

from collections import deque

from devmodel.models.uart_line import Character
from devmodel.models.uart_regs import FIFO_SIZE, LSR_DR, LSR_FIFOE, LSR_OE


class Receiver:
    """RBR and the FIFO behind it. There is no timing here: a FIFO below its trigger level has timed out as
    soon as no more characters come."""

    __slots__ = ("_characters", "_errors", "_fifo", "trigger")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Master reset: empty, and no FIFO."""
        self._characters: deque[Character] = deque()
        self._errors = 0
        self._fifo = False
        self.trigger = 1
        """The number of characters at which it interrupts, 1 without FIFO."""

    @property
    def fifo(self) -> bool:
        """Whether the FIFO is on. Switching it empties it."""
        return self._fifo

    @fifo.setter
    def fifo(self, on: bool) -> None:
        if on is not self._fifo:
            self.clear()
        self._fifo = on

    @property
    def room(self) -> int:
        """The number of characters that it has room for."""
        return (FIFO_SIZE if self._fifo else 1) - len(self._characters)

    @property
    def ready(self) -> bool:
        """Whether it interrupts for its data: the trigger level is reached."""
        return len(self._characters) >= self.trigger

    @property
    def timed_out(self) -> bool:
        """Whether it interrupts for characters below the trigger level."""
        return 0 < len(self._characters) < self.trigger

    @property
    def failed(self) -> bool:
        """Whether it interrupts for an overrun, or for an error of the character on top."""
        return bool(self._errors)

    def put(self, character: Character) -> None:
        """Receive a character. A full FIFO loses this character, a full lone register the one before."""
        if self.room:
            self._characters.append(character)
        else:
            self._errors |= LSR_OE
            if not self._fifo:
                self._characters[0] = character
        if len(self._characters) == 1:
            self._show()

    def get(self) -> int:
        """Take the byte on top, 0 when there is none. The errors of the next one show from now on."""
        if not self._characters:
            return 0
        byte, _ = self._characters.popleft()
        if self._characters:
            self._show()
        return byte

    def status(self) -> int:
        """The receiver's part of LSR. A read clears the error bits."""
        errors, self._errors = self._errors, 0
        marked = self._fifo and (errors & ~LSR_OE or any(flags for _, flags in self._characters))
        return errors | (LSR_DR if self._characters else 0) | (LSR_FIFOE if marked else 0)

    def clear(self) -> None:
        """Empty the receiver. Errors that show already stay until LSR is read."""
        self._characters.clear()

    def _show(self) -> None:
        """Move the errors of the character on top to LSR."""
        byte, flags = self._characters[0]
        if flags:
            self._errors |= flags
            self._characters[0] = (byte, 0)
