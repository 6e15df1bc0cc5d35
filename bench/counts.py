# SPDX-License-Identifier: Apache-2.0
"""The system calls that a server makes for one call of the client, counted by strace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from bench.cases import CASES, FLOOR, OURS
from bench.machine import Machine
from bench.servers import say

CALLS = 1000
COUNTED = ("read-hook", "read-plain", "ioctl-struct", "ioctl-value", "attr-read", "attr-write", "interrupt")
ATTACH_SECONDS = 5
_ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)
Counts = dict[tuple[str, str], str]


def system_calls(machine: Machine, only: Collection[str]) -> Counts:
    """The system calls by case and subject, as text: "read 1.0, writev 1.0". Empty if strace is missing or
    has no permission."""
    found: Counts = {}
    if shutil.which("strace") is None:
        say("strace is not here: the results go without counts of system calls")
        return found
    machine = replace(machine, calls=CALLS)
    for case in CASES:
        for subject, place in ((OURS, "lab"), (FLOOR, "floor")):
            words = case.runs.get(subject, "")
            if case.key in COUNTED and (not only or case.key in only) and words and machine.has(words):
                say(f"counting system calls: {case.key}, {subject}")
                counted = _count(_pid(machine, place), machine.command(words))
                if counted is None:
                    say("strace may not look at it: the results go without counts of system calls")
                    return found
                found[case.key, subject] = counted
    return found


def _pid(machine: Machine, place: str) -> int:
    return next(one.process.pid for one in machine.servers if str(one.mountpoint) == machine.places[place])


def _traced(pid: int) -> bool:
    """Whether all threads of the process are traced."""
    states = [Path(f"/proc/{pid}/task/{thread}/status") for thread in os.listdir(f"/proc/{pid}/task")]
    return not any("\nTracerPid:\t0\n" in state.read_text() for state in states)


def _count(pid: int, command: list[str]) -> str | None:
    strace = subprocess.Popen(
        ["strace", "-f", "-c", "-qq", "-p", str(pid)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + ATTACH_SECONDS
    while not _traced(pid) and strace.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)  # strace does not report that it has attached
    if strace.poll() is None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        strace.send_signal(signal.SIGINT)
    table = strace.communicate()[1]
    if strace.returncode not in (0, -signal.SIGINT):
        return None
    counts = sorted(
        ((int(count) / CALLS, name) for count, name in _ROW.findall(table) if name != "total"), reverse=True
    )
    return ", ".join(f"{name} {count:.1f}" for count, name in counts if count >= 0.05)
