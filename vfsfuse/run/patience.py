# SPDX-License-Identifier: Apache-2.0
"""Questions to a file system whose server may be stopped, asked by a process that must not wait for it.

A thread that waits for a FUSE server cannot always be woken, not even by SIGKILL.  So a child asks, and is
left behind when it gets no answer.  For processes with one thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Collection

ANSWER_SECONDS = 1.5
"""How long a lab may take to answer.  With the rest of a command it is less than two seconds."""

_TEXT_BYTES = 4096


def answer_of(question: Callable[[], str], seconds: float = ANSWER_SECONDS) -> str | None:
    """What `question` returns, a text of less than 4 KiB.  None when it does not return in time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            close_others((writer,))
            os.write(writer, question().encode() or b"\0")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        text = os.read(reader, _TEXT_BYTES) if ready else b""
    finally:
        os.close(reader)
    _let_go(child, patient=bool(text))
    return text.decode().strip("\0") if text else None


def close_others(keep: Collection[int]) -> None:
    """Close all descriptors of this process but `keep`."""
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - set(keep):
        with contextlib.suppress(OSError):  # the descriptor that listed them
            os.close(fd)


def _let_go(child: int, patient: bool) -> None:
    if not patient:
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # with SIGCHLD ignored there is no child to wait for
        os.waitpid(child, 0 if patient else os.WNOHANG)
