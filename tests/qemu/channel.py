# SPDX-License-Identifier: Apache-2.0
"""A stream to QEMU, read by pieces that end with a known mark, with deadlines and an account of failures."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

SHOWN = 4000
"""How much of what came a failure shows, in bytes."""


class Stream:
    """A connected socket; `explain` is what to add to the account of a failure."""

    def __init__(self, connected: socket.socket, explain: Callable[[], str]) -> None:
        self._socket = connected
        self._explain = explain
        self._pending = b""
        self._seen = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes, seconds: float) -> None:
        """Write all of `data`; raises AssertionError when QEMU does not take it within `seconds`."""
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise AssertionError(self._account(f"{error} while sending {data[:100]!r}")) from None

    def send_descriptor(self, descriptor: int, seconds: float) -> None:
        """Send a copy of `descriptor`, with a space that means nothing to QEMU."""
        self._socket.settimeout(seconds)
        socket.send_fds(self._socket, [b" "], [descriptor])

    def read_until(self, mark: bytes, seconds: float) -> bytes:
        """What comes before `mark`, which is taken away; raises AssertionError when it does not come."""
        deadline = time.monotonic() + seconds
        while mark not in self._pending:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                piece = self._socket.recv(65536)
            except TimeoutError:
                raise AssertionError(self._account(f"no {mark!r} in {seconds} seconds")) from None
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise AssertionError(self._account(f"QEMU ended before {mark!r}"))
            self._pending += piece
            self._seen = (self._seen + piece)[-SHOWN:]
        found, self._pending = self._pending.split(mark, 1)
        return found

    def _account(self, what: str) -> str:
        return f"{what}; the last that came:\n{self._seen.decode(errors='replace')}\n{self._explain()}"


class Channel(Stream):
    """One end of a socket pair whose other end a QEMU has."""

    def __init__(self, explain: Callable[[], str]) -> None:
        ours, self.peer = socket.socketpair()
        super().__init__(ours, explain)

    def handed_over(self) -> None:
        """QEMU has its end: close ours of it, so that its death is the end of the stream."""
        self.peer.close()

    def close(self) -> None:
        self.peer.close()
        super().close()
