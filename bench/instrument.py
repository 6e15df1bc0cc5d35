# SPDX-License-Identifier: Apache-2.0
"""Runs clients against a separate lab with an instrument in it (bench/profiled.py). The figures are never
measured with an instrument."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import Machine
from bench.measure import PINNED, modes, on
from bench.profiled import MARK
from bench.servers import LAB, ROOT, Server, lab_places, start_lab

MOST = 8
"""The number of lines of a table."""

BEGIN_SECONDS, IDLE_SECONDS = 20, 0.1

WAITING = {"<method 'poll' of 'select.epoll' objects>", "<method 'acquire' of '_thread.lock' objects>"}
_LIBRARY = re.compile(r".*/(?:site-packages|python3\.\d+)/")


class Call(NamedTuple):
    """A function, as cProfile saw it."""

    file: str
    line: int
    name: str
    calls: int
    seconds: float


def observed(machine: Machine, instrument: str, use: Callable[[Server], None]) -> Any:
    """The report of the instrument on a lab of bench/lab.toml, from the call of `begin` in `use` to the end
    of `use`."""
    report = _report(machine)
    report.unlink(missing_ok=True)
    program = [sys.executable, "-m", "bench.profiled", instrument, str(report)]
    with ExitStack() as stack:
        server = start_lab(machine.folder / "profiled", "--config", LAB, program=program)
        stack.callback(server.stop)
        use(server)
        os.kill(server.process.pid, MARK)
    return json.loads(report.read_text())


def _report(machine: Machine) -> Path:
    return machine.folder / "report.json"


def begin(machine: Machine, server: Server) -> None:
    """Start the instrument's count, once the server has nothing to do any more. After a vGPU was created, it
    looks for programs that watch the lab by inotify."""
    _wait(lambda: _is_idle(server.process.pid), "the server does not come to rest")
    os.kill(server.process.pid, MARK)
    _wait(_report(machine).exists, "the instrument does not begin")


def _wait(true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + BEGIN_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.01)


def _is_idle(pid: int) -> bool:
    """Whether a process uses less than a hundredth of a processor now."""
    before = _nanoseconds(pid)
    time.sleep(IDLE_SECONDS)
    return _nanoseconds(pid) - before < IDLE_SECONDS * 1e9 / 100


def _nanoseconds(pid: int) -> int:
    """The processor time of a process (Documentation/scheduler/sched-stats.rst)."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def client(machine: Machine, instrument: str, words: str, calls: int) -> Any:
    """The instrument's report on a client with these words and `calls` calls, on the same processor."""
    cpus = modes()[PINNED]

    def use(server: Server) -> None:
        places = machine.places | lab_places(server)
        server.pin(cpus)
        command = Machine(machine.folder, machine.stack, places, calls=calls).command(words)
        begin(machine, server)
        subprocess.run(on(cpus, command), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

    return observed(machine, instrument, use)


def place(file: str) -> str:
    """The name of a source file, without the place of this checkout or of Python."""
    path = Path(file)
    ours = path.is_relative_to(ROOT) and not path.relative_to(ROOT).parts[0].startswith(".")
    return str(path.relative_to(ROOT)) if ours else _LIBRARY.sub("", file)


def table(found: Iterable[Sequence[Any]], calls: int) -> list[Sequence[str]]:
    """The report of cProfile as lines: function, calls for each call of the client, share of Python's
    time."""
    seen = (Call(*one) for one in found)
    kept = [one for one in seen if one.calls >= 0.1 * calls and one.name not in WAITING]
    whole = sum(one.seconds for one in kept) or 1
    best = sorted(kept, key=lambda one: one.seconds, reverse=True)[:MOST]
    return [(_shown(one), f"{one.calls / calls:.1f}", f"{one.seconds / whole:.0%}") for one in best]


def _shown(call: Call) -> str:
    name = call.name.replace("|", "\\|")
    return f"`{name}`" if call.file == "~" else f"`{name}`, {place(call.file)}:{call.line}"
