# SPDX-License-Identifier: Apache-2.0
"""The lab of the hostile clients, everybody else in it, and the check that each row of a table makes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.commands import VFSFUSE
from tests.hostile.clients import SETTLE, Bystander, Hostile, Leaks
from tests.iommufd.bound import open_bound
from tests.labs import MountedLab, Vgpu, described
from tests.ordinary_user import UID
from tests.vfio.devices import INTX, TRIGGER, UNMASK, Device, bound, eventfd, function_dir

PARENT, TYPE, PASSED = "0000:86:00.0", "slice", "0000:87:00.0"
LAB = f"""\
[mount]
device_mode = "0666"

[parents."{PARENT}"]
kind = "gpu"
driver = "vgpu"
memory = "512M"
types.{TYPE} = {{ memory = "4M", description = "a vGPU" }}

[parents."{PASSED}"]
kind = "gpu"
driver = "vgpu"
memory = "16M"
options = {{ vectors = 16 }}
types.none = {{ memory = "1M", description = "of the function that is passed through" }}
"""


@dataclass
class Place:
    """What a client opens: the number of a group, the name in dev/vfio/devices, and that of the device."""

    group: str
    vfio: str
    name: str


NOWHERE = Place("-", "-", "")
Maker = Callable[..., Hostile]


@dataclass
class Clients:
    """Hostile clients of a lab.  `folder` is one that everybody may pass."""

    mounted: MountedLab
    program: Path
    folder: Path

    def hostile(
        self, place: Place, call: str, *options: str, user: bool = False, run: bool = False
    ) -> Hostile:
        """A hostile client.  `user`: an ordinary user's.  `run`: under `vfsfuse run`, where its device comes
        through GET_DEVICE_FD."""
        ordinary = os.geteuid() != 0
        fd, file = tempfile.mkstemp(prefix="held-", dir=self.folder)
        os.close(fd)
        if user and not ordinary:
            os.chown(file, UID, UID)
        how = ["-u" if run else "-f"] if user or ordinary else []
        command = [*VFSFUSE, "run", "--mount", str(self.mounted.path), "--"] if run else []
        command += [str(self.program), *(["-p", place.name] if run else []), *options, *how, file, call]
        command += [str(self.mounted.path / "dev/vfio"), place.group, "-" if run else place.vfio]
        return Hostile(command, UID if user and not ordinary else None)


@dataclass
class Lab(Clients):
    """A lab with everybody else in it."""

    control: MountedLab
    everybody: Bystander
    function: Place
    """A physical function, which vfio-pci has."""
    leaks: Leaks = field(init=False)

    def __post_init__(self) -> None:
        warm_up(self.mounted.path / "dev/vfio/devices" / self.function.vfio)
        self.everybody.stalled(0.5)
        self.leaks = Leaks(self.mounted.pid)

    def check(
        self, client: Hostile, *expected: str, meanwhile: Callable[[Hostile], None] = lambda _: None
    ) -> Hostile:
        """While `client` is held nobody else waits; then it gets one of the `expected` outcomes.  `meanwhile`
        is called while it is held."""
        with client:
            client.wait_for_call()
            stalled = self.everybody.stalled()
            meanwhile(client)
            outcome = client.release()
        assert not stalled, (
            f"{', '.join(client.held)} is held, and so are these calls of others (s): {stalled}"
        )
        assert outcome in expected, f"{outcome}, held {client.held}"
        assert "differs" not in client.said
        return client


@pytest.fixture(scope="package")
def hostile_lab(compile_client: Callable[..., Path]) -> Iterator[Lab]:
    """A lab that others can reach, mounted for all tests of this folder."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        for folder in folders:
            folder.chmod(0o755)
        lab, control = (stack.enter_context(described(folder, LAB)) for folder in folders)
        everybody = Bystander(lab, control, PARENT, TYPE)
        stack.callback(everybody.close)
        group = stack.enter_context(bound(lab, PASSED))[0]
        vfio = os.listdir(function_dir(lab, PASSED) / "vfio-dev")[0]
        program = reachable(compile_client("hostile_fuse"), folders[0])
        yield Lab(lab, program, folders[0], control, everybody, Place(group, vfio, PASSED))


def warm_up(path: Path) -> None:
    """Start what the server starts once and keeps: the thread that waits for eventfds."""
    with Device(open_bound(path)) as device, eventfd() as event:
        device.eventfds(INTX, TRIGGER, 0, event)
        device.eventfds(INTX, UNMASK, 0, event)


def reachable(program: Path, folder: Path) -> Path:
    """A copy of the program in a folder that everybody may pass."""
    copy = folder / program.name
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o755)
    return copy


def remove(vgpu: Vgpu) -> None:
    """Remove the vGPU as soon as its last client has closed it."""
    end = time.monotonic() + SETTLE
    while True:
        try:
            vgpu.remove()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@pytest.fixture
def vgpu(hostile_lab: Lab) -> Iterator[Place]:
    """A new vGPU.  When it is removed again, nothing of it and of its clients is left in the server."""
    made = hostile_lab.mounted.create(TYPE)
    (made.path / "engine_timeout_ms").write_text("200")
    yield Place(made.group, made.vfio, made.name)
    remove(made)
    hostile_lab.leaks.check()


@pytest.fixture
def place(request: pytest.FixtureRequest, hostile_lab: Lab) -> Callable[[str], Place]:
    """place("vgpu"), place("function") or place("nothing"): what a row of a table is about."""

    def chosen(what: str) -> Place:
        if what == "nothing":
            return NOWHERE
        return hostile_lab.function if what == "function" else request.getfixturevalue("vgpu")

    return chosen
