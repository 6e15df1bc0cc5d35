# SPDX-License-Identifier: Apache-2.0
"""RLIMIT_MEMLOCK: who pays for pinned memory, as OPTION_RLIMIT_MODE says, against a real mount.

The clients are processes of their own without CAP_IPC_LOCK, because a process that has it pays nothing. Each
one begins with what they share (PRELUDE).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, run
from tests.iommufd.client import OP_GET, OP_SET, RLIMIT_MODE, Iommufd, Option
from tests.iommufd.functions import FIRST, LAB, SECOND
from tests.labs import MountedLab, described
from tests.vfio.client import fails
from tests.vfio.devices import bound

MOUNT = """
[mount]
container = "iommufd"
"""
"""The open of dev/vfio/vfio is an iommufd, which charges processes from the start."""
WITHOUT_LOCK = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
RESOURCE = needs.capability("CAP_SYS_RESOURCE")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with (
        described(tmp_path_factory.mktemp("rlimit"), MOUNT + LAB) as mounted,
        bound(mounted, FIRST, SECOND),
    ):
        yield mounted


PRELUDE = f"""
import contextlib, ctypes, errno, os, resource, sys, time
from pathlib import Path
from tests.iommufd.client import *
from tests.iommufd.devices import in_another_process
from tests.iommufd.functions import FIRST, SECOND
from tests.vfio.client import PAGE, Memory, fails
from tests.vfio.devices import function_dir
MODE = {RLIMIT_MODE}

class Lab:
    path = Path(sys.argv[1])

def limit(pages):
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (pages * PAGE, most))

def context(by_process=False):
    return Iommufd(os.open(Lab.path / "dev/vfio/vfio", os.O_RDWR) if by_process else Lab.path)

def device(iommufd, function):
    (vfio,) = os.listdir(function_dir(Lab, function) / "vfio-dev")
    cdev = Cdev(Lab.path / "dev/vfio/devices" / vfio)
    cdev.bind(iommufd)
    return cdev

def attached(iommufd, function):
    # an IOAS to which the function is attached
    cdev, ioas = device(iommufd, function), iommufd.ioas()
    cdev.attach(ioas)
    return cdev, ioas

def room(iommufd, ioas, at, pages):
    # another process that has ended gives its pages back in a moment
    end = time.monotonic() + 60
    while True:
        try:
            return iommufd.map(ioas, memory.address, pages * PAGE, at)
        except OSError as error:
            if error.errno != errno.ENOMEM or time.monotonic() > end:
                raise
            time.sleep(0.01)

memory = Memory(64 * PAGE)
"""


def said(machine: MountedLab, script: str, *, privileged: bool = False) -> str:
    """What a client prints that runs the script."""
    prefix = WITHOUT_LOCK if needs.has_capability("CAP_IPC_LOCK") and not privileged else []
    command: list[str | Path] = [*prefix, sys.executable, "-c", PRELUDE + script, machine.path]
    done = run(command, PYTHONPATH=str(ROOT))
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_the_limit_of_a_user(machine: MountedLab) -> None:
    """Pages are pinned at attach and at map, and charged once for all copies. What the process has locked
    itself does not count."""
    said(
        machine,
        """
limit(8)
ctypes.CDLL(None).mlock(ctypes.c_void_p(memory.address), 4 * PAGE)
first = context()
cdev, ioas = device(first, FIRST), first.ioas()
first.map(ioas, memory.address, 9 * PAGE, 0)
fails(errno.ENOMEM, cdev.attach, ioas)
first.unmap(ioas)
first.map(ioas, memory.address, 4 * PAGE, 0)
cdev.attach(ioas)
fails(errno.ENOMEM, first.map, ioas, memory.address, 5 * PAGE, 0x10000)
first.map(ioas, memory.address, 4 * PAGE, 0x10000)
first.copy(ioas, ioas, 0, 4 * PAGE, 0x20000)
other = first.ioas()
hwpt = first.hwpt(1, other)
first.copy(other, ioas, 0, 4 * PAGE, 0)
fails(errno.ENOMEM, first.map, ioas, memory.address, PAGE, 0x30000)
first.unmap(ioas, 0, 4 * PAGE)
first.unmap(ioas, 0x20000, 4 * PAGE)
fails(errno.ENOMEM, first.map, ioas, memory.address, PAGE, 0x30000)
first.unmap(other)
first.map(ioas, memory.address, 4 * PAGE, 0x30000)
cdev.detach()
limit(4)
fails(errno.ENOMEM, cdev.attach, ioas)
""",
    )


def test_all_processes_and_contexts_of_a_user_pay_together(machine: MountedLab) -> None:
    said(
        machine,
        """
limit(8)
first = context()
cdev, ioas = attached(first, FIRST)
first.map(ioas, memory.address, 6 * PAGE, 0)

def another():
    limit(7)  # the limit is that of the process that maps
    second = context()
    cdev, ioas = attached(second, SECOND)
    fails(errno.ENOMEM, second.map, ioas, memory.address, 2 * PAGE, 0)
    second.map(ioas, memory.address, PAGE, 0)
    fails(errno.ENOMEM, first.map, ioas, memory.address, PAGE, 0x10000)
    limit(8)
    second.map(ioas, memory.address, PAGE, PAGE)

in_another_process(another)
room(first, ioas, 0x10000, 2)
fails(errno.ENOMEM, first.map, ioas, memory.address, PAGE, 0x20000)
cdev.close()
first.close()
""",
    )


def test_a_process_pays_for_itself(machine: MountedLab) -> None:
    """What it has locked by itself counts, too."""
    said(
        machine,
        """
limit(8)
first = context(by_process=True)
assert first.get_option(MODE) == 1
cdev, ioas = attached(first, FIRST)
first.map(ioas, memory.address, 6 * PAGE, 0)
fails(errno.ENOMEM, first.map, ioas, memory.address, 3 * PAGE, 0x10000)

def another():
    second = context(by_process=True)
    cdev, ioas = attached(second, SECOND)
    second.map(ioas, memory.address, 8 * PAGE, 0)

in_another_process(another)
ctypes.CDLL(None).mlock(ctypes.c_void_p(memory.address), PAGE)
fails(errno.ENOMEM, first.map, ioas, memory.address, 2 * PAGE, 0x10000)
first.map(ioas, memory.address, PAGE, 0x10000)
cdev.close()
""",
    )


def test_another_process_takes_the_memory_of_files_over(machine: MountedLab) -> None:
    said(
        machine,
        """
limit(4)
iommufd = context(by_process=True)
cdev, ioas = attached(iommufd, FIRST)
file = os.memfd_create("memory")
os.ftruncate(file, 4 * PAGE)
iommufd.map_file(ioas, file, 0, 4 * PAGE, 0)
fails(errno.ENOMEM, iommufd.map_file, ioas, file, 0, PAGE, 0x10000)

def another():
    limit(3)
    fails(errno.ENOMEM, iommufd.change_process)
    limit(5)
    iommufd.change_process()
    iommufd.map_file(ioas, file, 0, PAGE, 0x10000)
    fails(errno.ENOMEM, iommufd.map_file, ioas, file, 0, PAGE, 0x20000)

in_another_process(another)
iommufd.map_file(ioas, file, 0, 4 * PAGE, 0x20000)  # this process pays nothing any more
cdev.close()
""",
    )


@needs.capability("CAP_IPC_LOCK")
def test_a_process_with_the_capability_pays_nothing(machine: MountedLab) -> None:
    said(
        machine,
        """
limit(1)
first = context()
cdev, ioas = attached(first, FIRST)
first.map(ioas, memory.address, 64 * PAGE, 0)
""",
        privileged=True,
    )


# ---- the option itself ----


def test_the_mode_of_a_context(iommufd: Iommufd) -> None:
    assert iommufd.get_option(RLIMIT_MODE) == 0
    asked = Option(option_id=RLIMIT_MODE, op=OP_GET, val64=77)
    assert iommufd.call(asked) is asked and asked.val64 == 0
    for fields in ({"object_id": 1}, {"reserved": 1}, {"op": 2}, {"op": 2**16 - 1}):
        for op in (OP_SET, OP_GET):
            wrong = Option(**{"option_id": RLIMIT_MODE, "op": op, **fields})
            fails(errno.EOPNOTSUPP, iommufd.call, wrong)


@RESOURCE
def test_the_mode_is_set_before_anything_is_made(iommufd: Iommufd) -> None:
    iommufd.set_option(RLIMIT_MODE, 1)
    assert iommufd.get_option(RLIMIT_MODE) == 1
    for value in (2, 2**64 - 1):
        fails(errno.EINVAL, iommufd.set_option, RLIMIT_MODE, value)
    iommufd.set_option(RLIMIT_MODE, 0)
    ioas = iommufd.ioas()
    for value in (0, 1, 2):
        fails(errno.EBUSY, iommufd.set_option, RLIMIT_MODE, value)
    assert iommufd.get_option(RLIMIT_MODE) == 0
    iommufd.destroy(ioas)
    iommufd.set_option(RLIMIT_MODE, 1)


def test_the_mode_takes_a_capability(machine: MountedLab) -> None:
    script = """
made = context()
for value in (0, 1, 2):
    fails(errno.EPERM, made.set_option, MODE, value)
made.ioas()
fails(errno.EPERM, made.set_option, MODE, 1)
assert made.get_option(MODE) == 0
"""
    if not needs.has_capability("CAP_SYS_RESOURCE"):
        said(machine, script)
        return
    prefix = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    done = run([*prefix, sys.executable, "-c", PRELUDE + script, machine.path], PYTHONPATH=str(ROOT))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
