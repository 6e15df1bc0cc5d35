# SPDX-License-Identifier: Apache-2.0
"""Calls that a listener holds up, of clients that make very many of them, are killed, or go on: they hold up
nobody else, and end when a signal comes, when they are released, and when the lab ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.commands import ROOT, VFSFUSE
from tests.hostile.conftest import LAB, PASSED, TYPE, Lab, Place
from tests.labs import MountedLab
from tests.needs import linux
from tests.vfio.devices import function_dir, vfio_pci
from tests.waiting import SECONDS, wait_for

MANY = 300
"""Calls that are held at once: more than CallThreads, pyfuse3 and trio have threads and tasks together."""


class Faults:
    """The file `faults` of a lab."""

    def __init__(self, lab: MountedLab) -> None:
        self._path = lab.path / "faults"

    def write(self, line: str) -> None:
        fd = os.open(self._path, os.O_RDWR)
        try:
            os.write(fd, line.encode())
        except OSError as error:
            raise AssertionError(f"{line}: {os.pread(fd, 4096, 0).decode()}") from error
        finally:
            os.close(fd)

    @property
    def held(self) -> int:
        """How many calls hang."""
        found = self._path.read_text().partition("# ")[2]
        return int(found.rpartition(", ")[2].split()[0]) if "held" in found else 0

    @property
    def hits(self) -> int:
        """How many calls the rule has hit."""
        return int(self._path.read_text().partition("# ")[2].split()[0])

    @contextmanager
    def rule(self, where: str, what: str = "hang=true") -> Iterator[None]:
        """A rule called `held` holds while the block runs."""
        self.write(f"add name=held {where} {what}")
        try:
            yield
        finally:
            self.write("clear held")


class Client:
    """tests.hostile.held_client under way."""

    def __init__(self, call: str, count: int, path: Path) -> None:
        command = [sys.executable, "-m", "tests.hostile.held_client", call, str(count), str(path)]
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT, bufsize=1)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        assert self._stdout.readline() == "ready\n"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def go(self) -> None:
        """Make the calls."""
        self._stdin.write("\n")
        self._stdin.flush()

    def outcomes(self) -> set[str]:
        """What the calls have returned."""
        line = self._stdout.readline()
        assert self.process.wait(60) == 0
        return set(json.loads(line))

    def kill(self) -> None:
        """SIGKILL it, and wait for its end."""
        self.process.kill()
        assert self.process.wait(60) == -signal.SIGKILL


@dataclass
class Held:
    """A call that a rule holds up: `where` says which, `result` is what it returns once it goes on."""

    where: str
    result: set[str]


VGPU = "device={name} "
CALLS = {
    "read": Held(VGPU + "region=BAR0 access=read", {"4"}),
    "write": Held(VGPU + "region=BAR0 access=write", {"4"}),
    "ioctl": Held(VGPU + "ioctl=VFIO_DEVICE_GET_INFO", {"0"}),
    "blocking ioctl": Held(VGPU + "ioctl=VFIO_DEVICE_BIND_IOMMUFD", {"0", "EINVAL"}),
    "open": Held("open=vfio/devices/{vfio}", {"0"}),
    "store": Held("store=control", {"2"}),
    "config": Held("device={name} region=config access=write", {"1"}),
}


def path_of(call: str, lab: MountedLab, place: Place) -> Path:
    """The file that a client makes the call on."""
    if call == "store":
        return lab.mdevs / place.name / "power/control"
    if call == "config":
        return lab.path / "sys/bus/pci/devices" / place.name / "config"
    return lab.path / "dev/vfio/devices" / place.vfio


def where(call: str, place: Place) -> str:
    """The rule's part that says which calls."""
    return CALLS[call].where.format(name=place.name, vfio=place.vfio)


def at_once(call: str, count: int) -> int:
    """How many of so many calls reach the lab.  Before Linux 6.2, one write to an inode at a time does."""
    return 1 if linux() < (6, 2) and call in ("write", "config") else count


def reached(faults: Faults, count: int) -> None:
    """Wait until so many calls hang."""
    end = time.monotonic() + SECONDS
    while (held := faults.held) != count:
        assert time.monotonic() < end, f"{held} calls hang, and not {count}"
        time.sleep(0.01)


@pytest.fixture
def chosen(request: pytest.FixtureRequest, hostile_lab: Lab) -> Place:
    """What the call of a test is made on: a vGPU of its own, or the physical function."""
    if request.getfixturevalue("call") == "config":
        return hostile_lab.function
    found: Place = request.getfixturevalue("vgpu")
    return found


@pytest.mark.parametrize("call", CALLS)
def test_many_held_calls_hold_up_nobody_else_and_end_by_sigkill(
    hostile_lab: Lab, chosen: Place, call: str
) -> None:
    lab, faults = hostile_lab.mounted, Faults(hostile_lab.mounted)
    with Client(call, MANY, path_of(call, lab, chosen)) as client, faults.rule(where(call, chosen)):
        client.go()
        reached(faults, at_once(call, MANY))
        stalled = hostile_lab.everybody.stalled()
        client.kill()
        wait_for(lambda: faults.held == 0)
    assert not stalled


@pytest.mark.parametrize("call", CALLS)
def test_many_held_calls_go_on_when_they_are_released(hostile_lab: Lab, chosen: Place, call: str) -> None:
    lab, faults = hostile_lab.mounted, Faults(hostile_lab.mounted)
    with Client(call, MANY, path_of(call, lab, chosen)) as client:
        with faults.rule(where(call, chosen)):
            client.go()
            reached(faults, at_once(call, MANY))
        assert client.outcomes() == CALLS[call].result


@pytest.mark.parametrize("call", CALLS)
def test_a_signal_ends_a_held_call(hostile_lab: Lab, chosen: Place, call: str) -> None:
    lab, faults = hostile_lab.mounted, Faults(hostile_lab.mounted)
    with Client(call, 1, path_of(call, lab, chosen)) as client, faults.rule(where(call, chosen)):
        client.go()
        wait_for(lambda: faults.held == 1)
        client.process.send_signal(signal.SIGUSR1)
        assert client.outcomes() == {"EINTR"}
        assert faults.held == 0


@pytest.mark.parametrize("call", CALLS)
def test_a_delayed_call_ends_by_sigkill(hostile_lab: Lab, chosen: Place, call: str) -> None:
    lab, faults = hostile_lab.mounted, Faults(hostile_lab.mounted)
    with Client(call, 4, path_of(call, lab, chosen)) as client:
        faults.write(f"add name=held {where(call, chosen)} delay=3600")
        client.go()
        wait_for(lambda: faults.hits == at_once(call, 4))
        client.kill()
        faults.write("clear held")


@pytest.mark.parametrize("end", ["SIGTERM", "umount --lazy"])
def test_a_lab_ends_although_calls_hang(tmp_path: Path, end: str) -> None:
    clients: list[Client] = []
    config = tmp_path / "lab.toml"
    config.write_text(LAB)
    with MountedLab(tmp_path, "--config", str(config), umount=False) as lab:
        vfio_pci(lab, PASSED)
        vgpus = {call: lab.create(TYPE) for call in CALLS if call != "config"}
        vfio = os.listdir(function_dir(lab, PASSED) / "vfio-dev")[0]
        places = {call: Place(each.group, each.vfio, each.name) for call, each in vgpus.items()}
        places["config"] = Place("", vfio, PASSED)
        faults = Faults(lab)
        for number, (call, place) in enumerate(places.items()):
            clients.append(Client(call, 20, path_of(call, lab, place)))
            faults.write(f"add name=held{number} {where(call, place)} hang=true")
        for client in clients:
            client.go()
        text = lab.path / "faults"
        wait_for(lambda: text.read_text().count("held\n") == len(CALLS))
        if end == "SIGTERM":
            os.kill(lab.pid, signal.SIGTERM)
        else:
            subprocess.run([*VFSFUSE, "umount", "--lazy", lab.path], check=True, capture_output=True)
        for client in clients:
            assert client.process.wait(60) is not None
            client.__exit__()


ASKING = """
import ctypes
import sys
from pathlib import Path
from tests.vfio.client import GROUP_GET_DEVICE_FD, Container, Group
lab, number, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
container, group = Container(lab), Group(lab, number)
group.set_container(container)
container.set_iommu()
print("ready", flush=True)
group.ioctl(GROUP_GET_DEVICE_FD, ctypes.create_string_buffer(name.encode()))
"""


def test_a_client_of_run_that_is_killed_while_its_call_hangs_leaves_nothing_in_use(
    hostile_lab: Lab, vgpu: Place
) -> None:
    """The supervisor makes the call for it, and has a copy of its group's file."""
    lab, faults = hostile_lab.mounted, Faults(hostile_lab.mounted)
    command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", sys.executable, "-c", ASKING]
    place = [str(lab.path), vgpu.group, vgpu.name]
    with (
        faults.rule(f"device={vgpu.name} ioctl=VFIO_GROUP_GET_DEVICE_FD"),
        Popen([*command, *place], stdout=PIPE, text=True, cwd=ROOT) as client,
    ):
        assert client.stdout is not None and client.stdout.readline() == "ready\n"
        wait_for(lambda: faults.held == 1)
        client.kill()
        assert client.wait(60) == -signal.SIGKILL
        wait_for(lambda: faults.held == 0)
        wait_for(lambda: is_free(lab.path / "dev/vfio" / vgpu.group))


def is_free(group: Path) -> bool:
    """Whether nobody has the group open."""
    try:
        os.close(os.open(group, os.O_RDWR))
    except OSError as error:
        assert error.errno == errno.EBUSY
        return False
    return True
