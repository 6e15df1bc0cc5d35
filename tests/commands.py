# SPDX-License-Identifier: Apache-2.0
"""Programs that tests run: the command line of vfsfuse, and others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

VFSFUSE = [sys.executable, "-m", "vfsfuse"]
ROOT = Path(__file__).parent.parent
SECONDS = 300
"""A deadline that ends a hang and nothing else: lspci of 10,000 functions may take a minute."""


def vfsfuse(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line; output is captured as text."""
    command = [*VFSFUSE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=ROOT)


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an unmodified program; output is captured as text."""
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env={**os.environ, **environment},
    )


def one_write(path: Path, text: str) -> None:
    """One write(2); write_text() tries again what fails when it closes the file."""
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.write(fd, text.encode()) == len(text)
    finally:
        os.close(fd)
