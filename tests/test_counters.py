# SPDX-License-Identifier: Apache-2.0
"""The file `counters` of a mount: what clients did since it was opened, exactly."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devmodel.calls.call import Call, CallKind
from devmodel.calls.point import CallPoint
from ioctl_shim.callthreads import CallThreads
from ioctl_shim.lane import PendingRequest
from tests import needs
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier
from tests.labs import MountedLab, Vgpu, described
from tests.schemas import checked
from tests.vfio.copiers import LAB
from tests.waiting import wait_for
from vfsfuse.observe.counters import MOST_OPEN, NAMES, CountersFile, Counts

NOTHING = dict.fromkeys(NAMES, 0)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab of copiers."""
    with described(tmp_path_factory.mktemp("counters"), LAB) as mounted:
        yield mounted


@contextlib.contextmanager
def opened(lab: MountedLab) -> Iterator[int]:
    fd = os.open(lab.path / "counters", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def totals(fd: int, room: int = 1 << 20) -> dict[str, dict[str, int]]:
    """The counters of each device, read in parts of `room` bytes."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(fd, room)
    assert line.count(b"\n") == 1
    said = json.loads(line)
    assert said.keys() == {"seconds", "devices"} and said["seconds"] >= 0
    found: dict[str, dict[str, int]] = said["devices"]
    return found


def created(lab: MountedLab) -> Vgpu:
    return lab.create("copier-1", "copiers")


def test_counters_are_what_a_c_client_did(machine: MountedLab, compile_client: Callable[..., Path]) -> None:
    """tests/clients/copier_client.c makes each call once, in the order of its source."""
    client = compile_client("copier_client")
    with opened(machine) as before, created(machine) as vgpu:
        for times in (1, 2):
            done = run([*VFSFUSE, "run", "--mount", machine.path, "--", client, vgpu.group, vgpu.name])
            assert done.stdout == "status 1\nok\n", done.stderr
            expected = {
                **{"reads": 1, "read_bytes": 4, "writes": 6, "write_bytes": 30, "ioctls": 3},
                **{"dma_reads": 1, "dma_read_bytes": 100, "dma_writes": 1, "dma_write_bytes": 100},
                **{"interrupts": 1, "dma_faults": 0, "resets": 1, "failed": 0},
            }
            assert totals(before) == {vgpu.name: {key: times * value for key, value in expected.items()}}
        with opened(machine) as late:
            assert totals(late) == {}


def test_a_file_that_was_open_before_is_counted_and_faults_are_faults(machine: MountedLab) -> None:
    with contextlib.ExitStack() as stack:
        vgpu = stack.enter_context(created(machine))
        iommufd = stack.enter_context(Iommufd(machine.path))
        device = stack.enter_context(Copier(vgpu.cdev))
        device.ready(iommufd)
        device.attach(iommufd.ioas())
        fd = stack.enter_context(opened(machine))
        assert totals(fd) == {}
        for _ in range(5):
            os.pread(device.fd, 4, 0x18)
        assert totals(fd) == {vgpu.name: {**NOTHING, "reads": 5, "read_bytes": 20}}
        with pytest.raises(OSError, match="Invalid argument"):
            os.pread(device.fd, 4, 9 << 40)
        assert totals(fd)[vgpu.name]["failed"] == 1
        device.begin(1 << 20, 1 << 20, 8)  # nothing is mapped
        wait_for(lambda: totals(fd)[vgpu.name]["dma_faults"])
        assert totals(fd)[vgpu.name]["dma_read_bytes"] == 0
        assert totals(fd, room=7) == totals(fd)


def test_many_threads_lose_no_count(machine: MountedLab) -> None:
    with created(machine) as vgpu, opened(machine) as fd:
        device = vgpu.open()
        try:
            before = totals(fd)[vgpu.name]

            def read() -> None:
                for _ in range(500):
                    os.pread(device, 4, 0x18)

            threads = [threading.Thread(target=read) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            after = totals(fd)[vgpu.name]
            assert after["reads"] - before["reads"] == 2000
            assert after["read_bytes"] - before["read_bytes"] == 8000
        finally:
            os.close(device)


def test_top_shows_what_was_counted(machine: MountedLab) -> None:
    with created(machine) as vgpu:
        reading = """
import os, sys
from tests.iommufd.bound import open_bound
device = open_bound(sys.argv[1])
print(flush=True)
while True:
    os.pread(device, 4, 0x18)
"""
        command = [sys.executable, "-c", reading, str(vgpu.cdev)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as client:
            assert client.stdout is not None and client.stdout.readline() == b"\n"
            try:
                done = vfsfuse("top", "--json", "-n", "2", "-d", "2", "--mount", machine.path)
                text = vfsfuse("top", "-n", "1", "-d", "2", "--mount", machine.path).stdout
            finally:
                client.kill()
        for line in done.stdout.splitlines():
            (row,) = checked(line, "top")["devices"]
            assert row["device"] == vgpu.name and row["reads"] > 0
            assert row["calls"] == row["reads"] and row["writes"] == row["dma_read_bytes"] == 0
            assert [each["pid"] for each in row["clients"]] == [client.pid]
        assert f"({client.pid})" in text


def test_who_may_open_it_and_how(machine: MountedLab) -> None:
    path = machine.path / "counters"
    assert path.stat().st_mode & 0o7777 == 0o400
    with pytest.raises(PermissionError):
        os.open(path, os.O_RDWR)
    with opened(machine) as fd:
        for call in (lambda: os.lseek(fd, 0, os.SEEK_SET), lambda: os.pread(fd, 10, 0)):
            with pytest.raises(OSError) as raised:
                call()
            assert raised.value.errno == errno.ESPIPE
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_OPEN):
            stack.enter_context(opened(machine))
        with pytest.raises(OSError) as raised, opened(machine):
            pass
        assert raised.value.errno == errno.EMFILE
    wait_for(lambda: _opens(machine))


def _opens(lab: MountedLab) -> bool:
    try:
        with opened(lab):
            return True
    except OSError:
        return False


@needs.root("it becomes another user")
def test_other_users_are_told_why_there_are_no_rates() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        with MountedLab(Path(name)) as lab, lab.create():
            command = [sys.executable, "-m", "tests.ordinary_user", *VFSFUSE, "top", "--json", "-n", "1"]
            command += ["-d", "0.1", "--mount", str(lab.path)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            found = checked(done.stdout, "top")
            assert found["uncounted"] == "calls are counted for the lab's own user alone"
            assert [row["calls"] for row in found["devices"]] == [None]
            assert [row["dma_faults"] for row in found["devices"]] == [0]


# ---- without a mount ----


class _Device:
    def __init__(self, name: str) -> None:
        self.name = name


def counted(*calls: Call) -> dict[str, Any]:
    counts = Counts()
    for call in calls:
        counts.began(call)
        counts.ended(call)
    found: dict[str, Any] = json.loads(counts.line())["devices"]
    return {name: {key: count for key, count in each.items() if count} for name, each in found.items()}


def test_what_counts() -> None:
    device = _Device("one")
    fault = OSError(errno.EFAULT, "not mapped")
    calls = [
        Call(CallKind.DMA, "one", "read", {"size": 10}, device=device),
        Call(CallKind.DMA, "one", "write", {"size": 20}, device=device, error=fault),
        Call(CallKind.DMA, "one", "write", {"size": 20}, device=device, error=LookupError()),  # made again
        Call(CallKind.DMA, "one", "pin", {"count": 1}, device=device),
        Call(CallKind.INTERRUPT, "one", "MSIX", {"vector": 0}, device=device),
        Call(CallKind.INTERRUPT, "one", "MSIX", {"vector": 0}, device=device, error=fault),
        Call(CallKind.RESET, "one", "reset", device=device),
        Call(CallKind.IOCTL, "one", "VFIO_DEVICE_GET_INFO", device=device, error=fault),
        Call(CallKind.OPEN, "one", "open", device=device),
        Call(CallKind.IOCTL, "container", "VFIO_CHECK_EXTENSION"),
        Call(CallKind.STORE, "sys/x", "remove", {"data": b"1"}),
    ]
    assert counted(*calls) == {
        "one": {
            **{"dma_reads": 1, "dma_read_bytes": 10, "dma_faults": 1, "interrupts": 1, "resets": 1},
            **{"ioctls": 1, "failed": 1},
        }
    }


class _Read(PendingRequest):
    """A read that notes what answers it, and on which thread."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(unique=1, offset=0, size=1 << 20, tid=0, flags=0), {})
        self.answers: list[tuple[str, bytes]] = []

    def read(self, data: bytes) -> bool:
        self.answers.append((threading.current_thread().name, data))
        return True


def test_a_line_is_not_made_by_the_pump() -> None:
    """That of thousands of devices takes 40 ms."""
    pending = _Read()
    opened: set[CountersFile] = set()
    file = CountersFile(CallPoint(), CallThreads(), opened)
    file.begin_read(pending)
    wait_for(lambda: pending.answers)
    ((thread, line),) = pending.answers
    assert thread == "waiting-call" and json.loads(line)["devices"] == {}
    file.release()
    assert not opened
