# SPDX-License-Identifier: Apache-2.0
"""Who sees a lab: the mount namespaces in which it is mounted.  It lives as long as one of them has it.

A program of `vfsfuse run` has a namespace of its own.  So have containers and many services.  A run of
another lab has copies of all mounts that it found and could not remove; it does not count as one who sees
them.

Looking asks no file system but /proc.  Any thread; no state.  Source: mount_namespaces(7),
proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from vfsfuse import mounts
from vfsfuse.mounts import Mount

PLACE_OF_RUNS = "/sys"
SOURCE_OF_RUNS = "vfsfuse"
"""Source of the tmpfs that a run's supervisor has at PLACE_OF_RUNS.  The program has a lab there."""


class Viewer(NamedTuple):
    """The first process of a mount namespace that sees a lab, and where: at `path`."""

    pid: int
    comm: str
    path: str
    is_run: bool
    """Whether it is the program of a `vfsfuse run` in that lab."""
    is_here: bool
    """Whether it is in our own namespace."""

    def __str__(self) -> str:
        return f"{'the run of ' if self.is_run else ''}{self.comm} (pid {self.pid})"


class Sight(NamedTuple):
    """The namespaces that have a lab.  `others` counts the runs of other labs among them."""

    viewers: list[Viewer]
    others: int


def look(minor: int, source: str, server: int) -> Sight:
    """Who sees the lab on the device 0:`minor`, whatever the process `server` itself sees.

    The source of its mount tells it from a later one that the kernel gave the same number."""
    viewers, others = [], 0
    done: set[str] = set()
    for pid in sorted(_processes()):
        if pid == server:
            continue
        with contextlib.suppress(OSError):  # it has ended, or is about to
            namespace = _namespace(pid)
            if namespace in done:
                continue
            table = mounts.table(pid)
            if namespace:
                done.add(namespace)
            rows = [mount for mount in table if (mount.minor, mount.source) == (minor, source)]
            if rows and _is_of_another_run(table, minor):
                others += 1
            elif rows:
                viewers.append(_viewer(pid, namespace, rows))
    return Sight(viewers, others)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _namespace(pid: int | str) -> str:
    """The name of a process's mount namespace, empty when this user may not know."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except PermissionError:
        return ""


def _viewer(pid: int, namespace: str, rows: Sequence[Mount]) -> Viewer:
    with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as told:
        comm = told.read().removesuffix("\n")
    is_run = any(mount.path == PLACE_OF_RUNS for mount in rows)
    return Viewer(pid, comm, rows[-1].path, is_run, namespace == _namespace("self"))


def _is_of_another_run(table: Sequence[Mount], minor: int) -> bool:
    """Whether this is the namespace of a run, or of its supervisor, that shows another lab or none."""
    top = [mount for mount in table if mount.path == PLACE_OF_RUNS][-1:]
    return any(
        mount.minor != minor if mount.is_of_lab else (mount.kind, mount.source) == ("tmpfs", SOURCE_OF_RUNS)
        for mount in top
    )
