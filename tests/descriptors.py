# SPDX-License-Identifier: Apache-2.0
"""The descriptors and mappings that a process has, as /proc shows them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vfsfuse.ownfolder import SUFFIX


def descriptors(pid: int) -> Iterator[str]:
    """What the descriptors of a process lead to, without the folder of a lab on disk: the first `vfsfuse run`
    of a lab makes it."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if not (link := os.readlink(entry)).endswith(SUFFIX):
                yield link


def open_files(pid: int) -> int:
    """How many descriptors a server has, without those of its pumps: of these there are more while many
    clients call."""
    return sum(link != "/dev/fuse" for link in descriptors(pid))


def mappings(pid: int) -> tuple[int, int]:
    """How many mappings a server has of files, and how many in all.

    There are more of the others with more threads: a second pump comes when the first one is held up, if only
    by a busy machine, and stays."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("/" in line for line in lines), len(lines)
