# SPDX-License-Identifier: Apache-2.0
"""Why a figure is what it is: the system calls that the server makes for one call of the client (strace)."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable

from bench.cases import FLOOR, OURS, Case
from bench.servers import Machine, say

CALLS = 1000
EXPLAINED = ("read-hook", "read-plain", "ioctl-struct", "ioctl-value", "attr-read", "attr-write", "interrupt")
_ROW = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)


def system_calls(machine: Machine, cases: Iterable[Case]) -> dict[tuple[str, str], str]:
    """By case and subject, as text: "read 1.0, writev 1.0". Empty without strace."""
    if shutil.which("strace") is None:
        say("strace is not here: the results go without counts of system calls")
        return {}
    found = {}
    pids = {OURS: "lab", FLOOR: "floor"}
    for case in cases:
        for subject, place in pids.items():
            words = case.runs.get(subject, "")
            if case.key in EXPLAINED and words and machine.has(words):
                say(f"counting system calls: {case.key}, {subject}")
                found[case.key, subject] = _count(machine, _pid(machine, place), words)
    return found


def _pid(machine: Machine, place: str) -> int:
    return next(one.process.pid for one in machine.servers if str(one.mountpoint) == machine.places[place])


def _count(machine: Machine, pid: int, words: str) -> str:
    parts = words.split()
    parts[2] = str(CALLS)
    strace = subprocess.Popen(
        ["strace", "-f", "-c", "-qq", "-p", str(pid)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    time.sleep(0.5)  # strace says nothing when it has attached
    subprocess.run(machine.command(" ".join(parts)), check=True, stdout=subprocess.DEVNULL)
    strace.send_signal(signal.SIGINT)
    table = strace.communicate()[1]
    counts = sorted(
        ((int(count) / CALLS, name) for count, name in _ROW.findall(table) if name != "total"), reverse=True
    )
    return ", ".join(f"{name} {count:.1f}" for count, name in counts if count >= 0.05)
