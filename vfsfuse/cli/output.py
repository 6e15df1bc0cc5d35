# SPDX-License-Identifier: Apache-2.0
"""What commands write besides their results: the line that says why one failed.  No state."""

from __future__ import annotations

import os
import sys


def complain(command: str, message: str) -> int:
    """Say in one line on stderr why `command` failed.  Returns its exit status, 1."""
    print(f"vfsfuse: {command}: {message}", file=sys.stderr)
    return 1


def discard_stdout() -> None:
    """Let the rest of standard output go nowhere, also at exit.  For a BrokenPipeError: the reader, such as
    head(1), has had enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
