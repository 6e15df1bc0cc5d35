# SPDX-License-Identifier: Apache-2.0
"""A shell in the guest, driven through QEMU's own serial port; and files passed to it."""

from __future__ import annotations

import base64
from typing import NamedTuple

from tests.qemu.channel import Stream

UP = b"guest is up\n"
BOOT_SECONDS = 180
"""For a boot, which takes ten to twenty seconds on an idle machine."""
RUN_SECONDS = 300
_PIECE = 24 << 10
"""Bytes of a file in one command: in base64 well within what the guest's terminal keeps for its reader."""


class Result(NamedTuple):
    """What a command printed, and its exit status."""

    output: str
    status: int


class Console:
    """Commands for the shell that tests.qemu.guest.INIT starts; one at a time."""

    def __init__(self, channel: Stream) -> None:
        self._channel = channel
        self._number = 0

    def wait_up(self) -> None:
        """Wait until the guest has booted."""
        self._channel.read_until(UP, BOOT_SECONDS)

    def run(self, command: str, seconds: float = RUN_SECONDS) -> Result:
        """The output (both streams) and status of `command`, which may have several lines."""
        self._number += 1
        mark = f"\n<{self._number}> "
        line = f"{{\n{command}\n}} </dev/null 2>&1; printf '\\n<%d> %d\\n' {self._number} $?\n"
        self._channel.send(line.encode(), seconds)
        output = self._channel.read_until(mark.encode(), seconds)
        return Result(output.decode(errors="replace"), int(self._channel.read_until(b"\n", seconds)))

    def check(self, command: str, seconds: float = RUN_SECONDS) -> str:
        """What `command` printed; it has to succeed."""
        output, status = self.run(command, seconds)
        assert status == 0, f"{command!r} ended with {status}:\n{output}"
        return output

    def put(self, path: str, content: bytes) -> None:
        """Make a file in the guest."""
        self.check(f": >{path}")
        for start in range(0, len(content), _PIECE):
            text = base64.b64encode(content[start : start + _PIECE]).decode()
            self.check(f"echo {text} | base64 -d >>{path}")
