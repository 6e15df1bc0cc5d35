# SPDX-License-Identifier: Apache-2.0
"""The file `trace` of a mount as tests read it, and the devices of the lab of copiers that they trace."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator

from tests.labs import MountedLab, Vgpu
from tests.waiting import wait_for
from vfsfuse.trace.record import Record, from_line


class Reader:
    """An open file `trace`."""

    def __init__(self, lab: MountedLab, flags: int = os.O_NONBLOCK, **options: object) -> None:
        access = os.O_RDWR if options else os.O_RDONLY
        self.fd = os.open(lab.path / "trace", access | flags | os.O_CLOEXEC)
        if options:
            os.write(self.fd, json.dumps(options).encode())
        self.left = b""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, size: int = 1 << 16) -> list[Record]:
        """What there is now."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, size):
                assert data.endswith(b"\n")
                found += data
        return [from_line(line) for line in found.splitlines()]


def until(reader: Reader, enough: Callable[[list[Record]], object]) -> list[Record]:
    """The records up to the moment at which there are enough."""
    found: list[Record] = []

    def read() -> bool:
        found.extend(reader.read())
        return bool(enough(found))

    wait_for(read)
    return found


def created(lab: MountedLab, kind: str = "copier-1", parent: str = "copiers") -> Vgpu:
    """A new vGPU, by default a copier."""
    return lab.create(kind, parent)


@contextlib.contextmanager
def open_config(lab: MountedLab) -> Iterator[int]:
    """The open configuration space of a new copier."""
    with created(lab) as vgpu:
        fd = os.open(vgpu.path / "config", os.O_RDWR)
        try:
            yield fd
        finally:
            os.close(fd)
