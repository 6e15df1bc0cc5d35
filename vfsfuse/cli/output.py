# SPDX-License-Identifier: Apache-2.0
"""The output of commands besides their results: the line with the reason of a failure.  No state."""

from __future__ import annotations

import os
import sys

from vfsfuse.printable import printable


def complain(command: str, message: str) -> int:
    """Print the reason why `command` failed, in one line on stderr.  Returns its exit status, 1."""
    print(f"vfsfuse: {command}: {printable(message)}", file=sys.stderr)
    return 1


def explained(error: OSError, path: str) -> str:
    """The line about `error`, which concerns the file that it names or else `path`."""
    return f"{error.filename or path}: {error.strerror or error}"


def discard_stdout() -> None:
    """Discard the rest of standard output, also at exit.  For a BrokenPipeError: the reader, such as head(1),
    has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
