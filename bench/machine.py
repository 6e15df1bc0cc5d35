# SPDX-License-Identifier: Apache-2.0
"""The servers that run during a measurement, and the places that the words of cases name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.cases import CROWD
from bench.cases import FUNCTIONS as FUNCTION_COUNT
from bench.servers import FUNCTIONS, LAB, Server, create_idle, lab_places, say, start_lab, start_mounted

CALLS = "calls"
EMPTY, CROWDED = "resident memory, empty lab", "resident memory, 10,000 idle vGPUs"
EACH = "resident memory of each idle vGPU"
EACH_FUNCTION = "resident memory of each idle PCI function"


@dataclass
class Machine:
    """The servers that run during a measurement, and the words that cases use for them."""

    folder: Path
    stack: ExitStack
    places: dict[str, str] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    calls: int | None = None
    """The number of calls of each client. None: the number in its case."""

    def keep(self, server: Server) -> Server:
        self.servers.append(server)
        self.stack.callback(server.stop)
        return server

    def pin(self, cpus: Collection[int]) -> None:
        for server in self.servers:
            server.pin(cpus)

    def has(self, words: str) -> bool:
        """Whether all places that a case's words name are present."""
        return all(
            word[1:].partition("}")[0] in {CALLS, *self.places}
            for word in words.split()
            if word.startswith("{")
        )

    def command(self, words: str) -> list[str]:
        """A case's words as a command line."""
        return [part for word in words.split() for part in self._replace(word)]

    def _replace(self, word: str) -> Sequence[str]:
        name, _, rest = word.removeprefix("{").partition("}")
        if not word.startswith("{"):
            return [word]
        if name == CALLS:
            return [str(self.calls or rest)]
        value = self.places[name]
        return value.split("\0") if "\0" in value else [value + rest]


def _start_floor(machine: Machine) -> None:
    build = Path(machine.places["build"])
    server = machine.keep(start_mounted([build / "floor"], machine.folder / "floor"))
    machine.places["floor"] = str(server.mountpoint)
    machine.places["floor-names"] = _names(machine, "floor", [f"e{number:05}" for number in range(CROWD)])


def _names(machine: Machine, whose: str, names: Iterable[str]) -> str:
    """A file of names to look up, for bench/client.c."""
    path = machine.folder / f"{whose}-names"
    path.write_text("".join(f"{name}\n" for name in names))
    return str(path)


def _start_lab(machine: Machine) -> None:
    server = machine.keep(start_lab(machine.folder / "lab", "--config", LAB))
    machine.places |= lab_places(server)


def _start_crowd(machine: Machine) -> None:
    """Start a lab with 10,000 idle vGPUs, and note their cost."""
    empty = start_lab(machine.folder / "empty")
    machine.facts[EMPTY] = empty.resident
    empty.stop()
    server = machine.keep(start_lab(machine.folder / "crowd", "--config", LAB))
    before = server.resident
    names = create_idle(server, CROWD)
    machine.facts[CROWDED] = server.resident
    machine.facts[EACH] = (server.resident - before) / CROWD
    machine.places |= {
        "crowd": str(server.mountpoint / "sys/bus/mdev/devices"),
        "crowd-names": _names(machine, "crowd", names),
        "crowd-parent": str((server.mountpoint / "sys/class/mdev_bus/many").resolve()),
    }


def _start_functions(machine: Machine) -> None:
    """Start a lab with 10,240 PCI functions, and note their cost."""
    empty = start_lab(machine.folder / "no-functions")
    before = empty.resident
    empty.stop()
    server = machine.keep(start_lab(machine.folder / "functions", "--config", FUNCTIONS))
    used = server.resident
    buses = range(0x10, 0x10 + FUNCTION_COUNT // 256)
    names = [f"0000:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}" for bus in buses for devfn in range(256)]
    machine.facts[EACH_FUNCTION] = (used - before) / len(names)
    machine.places |= {
        "functions": str(server.mountpoint / "sys/bus/pci/devices"),
        "functions-names": _names(machine, "functions", names),
    }


def _start_lxcfs(machine: Machine) -> None:
    if shutil.which("lxcfs") is None or os.geteuid():
        say("lxcfs is not here or not ours to start: going on without it")
        return
    server = machine.keep(start_mounted(["lxcfs", "-f"], machine.folder / "lxcfs"))
    machine.places["lxcfs"] = str(server.mountpoint)


UMOCKDEV = """\
P: /devices/pci0000:00/input/event0
N: input/event0
E: SUBSYSTEM=input
E: DEVNAME=/dev/input/event0
A: name=bench\\n
"""
UMOCKDEV_IOCTL = f"EVIOCGABS(0) 0 {'00' * 24}\n"


def _start_umockdev(machine: Machine) -> None:
    if shutil.which("umockdev-run") is None:
        say("umockdev is not here: going on without it")
        return
    device, ioctl = machine.folder / "event0.umockdev", machine.folder / "event0.ioctl"
    device.write_text(UMOCKDEV)
    ioctl.write_text(UMOCKDEV_IOCTL)
    parts = ["umockdev-run", "--device", str(device), "--ioctl", f"/dev/input/event0={ioctl}", "--"]
    machine.places["umockdev"] = "\0".join(parts)


STARTS: Mapping[str, Callable[[Machine], None]] = {
    "floor": _start_floor,
    "lxcfs": _start_lxcfs,
    "umockdev": _start_umockdev,
    "lab": _start_lab,
    "crowd": _start_crowd,
    "functions": _start_functions,
}
"""The functions that start servers, by a place that each makes. A function may make other places too."""


def start_all(machine: Machine, places: Collection[str] = STARTS) -> None:
    for place, start in STARTS.items():
        if place in places:
            say(f"starting {place}")
            start(machine)
