# SPDX-License-Identifier: Apache-2.0
"""Runs `vfsfuse trace` for tests, and reads what it has written."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.commands import ROOT, VFSFUSE
from tests.supervisors import command, parent
from vfsfuse.trace import courier

Line = dict[str, Any]
UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
CREATE = f"echo {UUID} > /sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/create"
REMOVE = f"echo 1 > /sys/bus/mdev/devices/{UUID}/remove"
COPIERS = "/sys/class/mdev_bus/copiers/mdev_supported_types/copier-1/create"


def started(name: str, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A command of vfsfuse that runs, with pipes."""
    pipe, words = subprocess.PIPE, [*prefix, *VFSFUSE, name, *map(str, arguments)]
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def lines_of(output: Path) -> list[Line]:
    """The records that `--json` has written so far."""
    return [json.loads(line) for line in output.read_text().splitlines()]


def names(lines: list[Line], *kinds: str) -> list[str]:
    """The names of the records of these kinds."""
    return [line["name"] for line in lines if line["kind"] in kinds]


def programs(tracer: subprocess.Popen[str]) -> list[int]:
    """The program of a tracer, while it is its child."""
    return [pid for pid in _children(tracer.pid) if not _is_courier(pid)]


def courier_of(tracer: subprocess.Popen[str]) -> int:
    """The process that reads the trace for a tracer."""
    return next(pid for pid in _children(tracer.pid) if _is_courier(pid))


def _children(pid: int) -> list[int]:
    found = (Path(f"/proc/{name}") for name in os.listdir("/proc") if name.isdecimal())
    return [int(path.name) for path in found if parent(path) == pid]


def _is_courier(pid: int) -> bool:
    return os.fsencode(courier.__file__) in command(Path(f"/proc/{pid}")).split(b"\0")
