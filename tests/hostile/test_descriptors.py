# SPDX-License-Identifier: Apache-2.0
"""A descriptor that is not what it should be, wherever VFIO takes one.

It is a file that answers nothing, a file of the lab itself, or another kind of file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs
from tests.commands import run, vfsfuse
from tests.hostile.clients import Hostile
from tests.hostile.conftest import Lab, Place
from tests.labs import MountedLab

HOSTILE = {
    "trigger of INTx": ("function", ["set-irqs", "-i", "0"], "EINVAL"),
    "trigger of MSI": ("function", ["set-irqs", "-i", "1"], "EINVAL"),
    "trigger of MSI-X": ("vgpu", ["set-irqs", "-i", "2"], "EINVAL"),
    "trigger of ERR": ("function", ["set-irqs", "-i", "3"], "EINVAL"),
    "trigger of REQ": ("vgpu", ["set-irqs", "-i", "4"], "EINVAL"),
    "one of three vectors": ("vgpu", ["set-irqs", "-i", "2", "-n", "3"], "EINVAL"),
    "unmask": ("function", ["unmask"], "EINVAL"),
    "ioeventfd": ("function", ["ioeventfd"], "EINVAL"),
    "wake-up eventfd": ("function", ["wake-up"], "EINVAL"),
    "container": ("vgpu", ["set-container"], "EBADFD"),
    "container, seen in mountinfo": ("vgpu", ["set-container", "-k"], "EBADFD"),
    "iommufd": ("vgpu", ["bind"], "EBADFD"),
    "iommufd of a function": ("function", ["bind"], "EBADFD"),
    "O_PATH as iommufd": ("vgpu", ["bind", "-d", "hostile-path"], "EBADF"),
    "O_PATH as eventfd": ("vgpu", ["set-irqs", "-d", "hostile-path"], "EBADF"),
    "O_PATH as container": ("vgpu", ["set-container", "-d", "hostile-path"], "EBADF"),
}
USERS = ["trigger of MSI-X", "one of three vectors", "container", "iommufd"]


@pytest.mark.parametrize("row", HOSTILE)
def test_a_file_that_answers_nothing(hostile_lab: Lab, place: Callable[[str], Place], row: str) -> None:
    what, (call, *options), outcome = HOSTILE[row]
    hostile_lab.check(hostile_lab.hostile(place(what), call, *options), outcome)


@pytest.mark.parametrize("row", USERS)
@needs.root("the other tests run as an ordinary user already")
def test_a_file_of_an_ordinary_user(hostile_lab: Lab, place: Callable[[str], Place], row: str) -> None:
    what, (call, *options), outcome = HOSTILE[row]
    hostile_lab.check(hostile_lab.hostile(place(what), call, *options, user=True), outcome)


@pytest.mark.parametrize("count", ["1", "2"])
def test_groups_of_a_hot_reset(hostile_lab: Lab, count: str) -> None:
    """More groups than functions on the bus are refused before anybody looks at them."""
    hostile_lab.check(hostile_lab.hostile(hostile_lab.function, "hot-reset", "-n", count, run=True), "EINVAL")


KINDS = {
    "device": ("EINVAL", "EBADFD", "EBADFD"),
    "device-path": ("EBADF", "EBADF", "EBADF"),
    "group": ("EINVAL", "EBADFD", "EBADFD"),
    "group-path": ("EBADF", "EBADF", "EBADF"),
    "container": ("EINVAL", "0", "EBADFD"),
    "container-path": ("EBADF", "EBADF", "EBADF"),
    "iommufd": ("EINVAL", "0", "0"),
    "iommufd-path": ("EBADF", "EBADF", "EBADF"),
    "eventfd": ("0", "EBADFD", "EBADFD"),
    "eventfd-path": ("EBADF", "EBADF", "EBADF"),
    "semaphore": ("0", "EBADFD", "EBADFD"),
    "full": ("0", "EBADFD", "EBADFD"),
    "directory": ("EINVAL", "EBADFD", "EBADFD"),
    "socket": ("EINVAL", "EBADFD", "EBADFD"),
    "pidfd": ("EINVAL", "EBADFD", "EBADFD"),
    "memfd": ("EINVAL", "EBADFD", "EBADFD"),
}
"""What each kind of file gives in place of an eventfd, of a container, and of an iommufd."""


def outcomes(client: Callable[..., Hostile], calls: dict[str, str], *options: str) -> dict[str, str]:
    """What calls that nothing holds up return, by their names."""
    found = {}
    for call in calls:
        with client(call, *options) as made:
            made.wait(lambda made=made: made.returned, f"{call} does not return")  # type: ignore[misc]
            found[call] = made.release()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files(hostile_lab: Lab, vgpu: Place, kind: str) -> None:
    """The group that is handed in with a call on a device is another's, as nobody opens a bound device's."""
    eventfd, container, iommufd = KINDS[kind]
    function, wanted = hostile_lab.function, {"set-container": container}
    assert outcomes(lambda *row: hostile_lab.hostile(vgpu, *row), wanted, "-d", kind) == wanted
    on_vgpu, on_function = replace(vgpu, group=function.group), replace(function, group=vgpu.group)
    wanted = {"set-irqs": eventfd, "bind": iommufd}
    assert outcomes(lambda *row: hostile_lab.hostile(on_vgpu, *row), wanted, "-d", kind) == wanted
    wanted = {"ioeventfd": eventfd, "unmask": eventfd, "wake-up": eventfd, "bind": iommufd}
    assert outcomes(lambda *row: hostile_lab.hostile(on_function, *row), wanted, "-d", kind) == wanted
    assert not hostile_lab.everybody.stalled(0.05)


def test_files_of_the_lab_and_of_another(hostile_lab: Lab, vgpu: Place) -> None:
    for lab in (hostile_lab.mounted, hostile_lab.control):
        for path in (lab.gpu / "mdev_supported_types", lab.gpu / "vendor", lab.gpu / "config"):
            row = ["-d", "path", "-p", str(path)]
            wanted = {"set-irqs": "EINVAL", "set-container": "EBADFD"}
            assert outcomes(lambda *call: hostile_lab.hostile(vgpu, *call), wanted, *row) == wanted
    row = ["-d", "path", "-p", str(hostile_lab.control.path / "dev/vfio/vfio")]
    assert outcomes(lambda *call: hostile_lab.hostile(vgpu, *call), wanted, *row) == wanted
    assert not hostile_lab.everybody.stalled(0.05)


@pytest.mark.parametrize("signalled", ["full", "semaphore"])
def test_an_interrupt_waits_for_no_counter(hostile_lab: Lab, vgpu: Place, signalled: str) -> None:
    hostile_lab.check(hostile_lab.hostile(vgpu, "trigger", "-d", signalled), "0")


CREATE = """\
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
os.write(fd, b"0fb1e1d2-7c0d-4c1e-8a53-5a7d1b2c3d4e")
print("made", flush=True)
sys.stdin.read()
"""


def test_a_device_as_its_own_eventfd(fresh_lab: MountedLab, compile_client: Callable[..., Path]) -> None:
    """On a mount where no descriptor was closed yet, so that the kernel would still send FLUSH."""
    types, dev, pipe = fresh_lab.gpu / "mdev_supported_types", fresh_lab.path / "dev/vfio", subprocess.PIPE
    command = [sys.executable, "-c", CREATE, str(types / "vgpu-8/create")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as creator:
        assert creator.stdout is not None
        assert creator.stdout.readline() == "made\n"
        (vfio,) = os.listdir(dev / "devices")
        held = fresh_lab.path.parent / "held"
        held.touch()
        options = ["-f"] if os.geteuid() else []
        call = ["-d", "device", str(held), "set-irqs", str(dev), "-", vfio]
        with Hostile([str(compile_client("hostile_fuse")), *options, *call]) as client, ended(fresh_lab):
            client.wait_for_call()
            assert client.returned == "EINVAL"
            assert client.release() == "EINVAL"


@contextlib.contextmanager
def ended(lab: MountedLab) -> Iterator[None]:
    """End the server when the test fails: it waits for itself, and so would everybody else."""
    try:
        yield
    except BaseException:
        assert lab.server is not None
        lab.server.kill()
        run(["umount", "--force", lab.path])  # this aborts what waits, but does not unmount
        vfsfuse("umount", "--lazy", lab.path)
        raise
