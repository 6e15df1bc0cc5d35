# SPDX-License-Identifier: Apache-2.0
"""The C programs of the campaigns: compiled once a run, started with a page that shows how far they are.

Used on the main thread only: a program ends with the thread that started it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = Path(__file__).parent
NAMES = ("bystander", "engine", "fuzz_device", "fuzz_path", "kills")
CALL_SECONDS = 10.0
"""How long one call of a program may take before it counts as hung."""


class Progress(ctypes.Structure):
    """struct progress of stress.h."""

    _fields_ = (
        ("calls", ctypes.c_uint64),
        ("begun", ctypes.c_uint64),
        ("doing", ctypes.c_char * 48),
        ("details", ctypes.c_uint64 * 4),
    )


@dataclass
class Report:
    """What programs said: counts add up, of figures the largest stays."""

    counts: Counter[str] = field(default_factory=Counter)
    most: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def read(self, line: str) -> None:
        """Take one line that a program printed."""
        kind, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        if kind == "count":
            self.counts[name] += int(value)
        elif kind == "most":
            self.most[name] = max(self.most.get(name, 0), int(value))
        elif line:
            self.faults.append(rest if kind == "fault" else f"unexpected output: {line}")


def compile_programs(folder: Path) -> None:
    """Build all programs into `folder`. They are static, so that no preloaded library gets into them."""
    for name in NAMES:
        source = SOURCES / f"{name}.c"
        flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-static"]
        subprocess.run(["gcc", *flags, "-o", folder / name, source, "-lpthread"], check=True)


class Program:
    """A started program. `prefix` is the command that runs it, such as `vfsfuse run --`."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *arguments: object,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        label: str = "",
    ) -> None:
        self.label = label or name
        self._page = folder / f"progress-{time.monotonic_ns()}"
        with open(self._page, "w+b") as page:
            page.truncate(mmap.PAGESIZE)
            os.fchmod(page.fileno(), 0o666)
            self._map = mmap.mmap(page.fileno(), mmap.PAGESIZE)
        self.progress = Progress.from_buffer(self._map)
        self._output = (folder / f"output-{time.monotonic_ns()}").open("w+", errors="backslashreplace")
        command = [*prefix, str(folder / name), str(self._page), *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            cwd=SOURCES.parent.parent,
        )

    @property
    def calls(self) -> int:
        return int(self.progress.calls)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def waiting(self) -> float:
        """Seconds since the call began that is under way; 0 between two calls."""
        begun = int(self.progress.begun)
        return max(time.monotonic() - begun / 1e9, 0.0) if begun else 0.0

    @property
    def doing(self) -> str:
        details = ", ".join(f"{value:#x}" for value in self.progress.details)
        return f"{self.label}: call {self.calls}, {self.progress.doing.decode(errors='replace')} ({details})"

    def hang(self) -> str | None:
        """What the program waits for, if that takes too long."""
        return self.doing if self.running and self.waiting > CALL_SECONDS else None

    def end(self, signal: int, seconds: float = CALL_SECONDS) -> bool:
        """Send the signal; whether the program ended in time."""
        if self.running:
            self.process.send_signal(signal)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def report(self, into: Report) -> None:
        """Add what the program printed, and how it ended, to a report."""
        status = self.process.poll()
        self._output.seek(0)
        lines = self._output.read().splitlines()
        before = len(into.faults)
        for line in lines:
            into.read(line)
        into.faults[before:] = [f"{self.label}: {fault}" for fault in into.faults[before:]]
        if status and len(into.faults) == before:
            into.faults.append(f"{self.label}: ended with {status}")

    def close(self) -> None:
        """Kill it if it runs, and let go of its files."""
        self.process.kill()
        self.process.wait()
        del self.progress
        self._map.close()
        self._output.close()
        self._page.unlink(missing_ok=True)
        Path(self._output.name).unlink(missing_ok=True)
