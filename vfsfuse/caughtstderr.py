# SPDX-License-Identifier: Apache-2.0
"""What C code writes on stderr, caught so that it can be told in one line.

libfuse and fusermount3 say there why they cannot mount.  For a process with one thread.  Source: dup2(2),
memfd_create(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_STDERR = 2


class CaughtStderr:
    """`line` is what was written within the block, as one line; it is there after the block."""

    def __init__(self) -> None:
        self.line = ""


@contextlib.contextmanager
def caught_stderr() -> Iterator[CaughtStderr]:
    """Catch what this process and its children write on stderr within the block.

    If the block raises nothing, it is passed on afterwards."""
    result = CaughtStderr()
    real, caught = os.dup(_STDERR), os.memfd_create("stderr")
    os.dup2(caught, _STDERR)
    failed = True
    try:
        yield result
        failed = False
    finally:
        os.dup2(real, _STDERR)
        os.close(real)
        text = os.pread(caught, 1 << 16, 0)
        os.close(caught)
        result.line = "; ".join(filter(None, map(str.strip, text.decode(errors="replace").splitlines())))
        if not failed and text:
            with contextlib.suppress(OSError):
                os.write(_STDERR, text)
