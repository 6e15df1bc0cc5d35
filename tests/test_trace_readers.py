# SPDX-License-Identifier: Apache-2.0
"""Readers of the file `trace`: slow ones, many, killed ones, and how read, poll and write behave."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import select
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE
from tests.labs import MountedLab, described
from tests.tracefile import Reader, created, open_config, until
from tests.vfio.client import DEVICE_GET_REGION_INFO, RegionInfo, fails, with_caps
from tests.vfio.copiers import LAB
from tests.waiting import settled, wait_for
from vfsfuse.observe.tracefile import MOST_READERS
from vfsfuse.observe.tracer import LONG_SECONDS
from vfsfuse.trace.record import Record, from_line

CONFIG = 7 << 40
SLOW = """
import os, time
from devmodel.sdk import Bar, Identity, Layout, PciDevice, Register, Registers

class Slow(PciDevice):
    identity = Identity(0x1234, 0x0001, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self):
        return {0: Bar(Registers(LAYOUT, self))}

    def wait(self, value):
        while not os.path.exists("GO"):
            time.sleep(0.001)

LAYOUT = Layout(4096, [Register(0, 4, "WAIT", on_write=Slow.wait)])
"""
HAMMER = """
import os, sys
device = os.open(sys.argv[1], os.O_RDONLY)
print("begun", flush=True)
for _ in range(int(sys.argv[2])):
    os.pread(device, 4, 0)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("readers"), LAB) as mounted:
        yield mounted


@pytest.fixture
def config(machine: MountedLab) -> Iterator[int]:
    """The open configuration space of a copier."""
    with open_config(machine) as fd:
        yield fd


def reads(fd: int, count: int) -> None:
    for _ in range(count):
        os.pread(fd, 4, 0)


def threads_of(lab: MountedLab) -> int:
    return len(os.listdir(f"/proc/{lab.pid}/task"))


def resident(lab: MountedLab) -> int:
    """Bytes of memory of the server."""
    pages = int(Path(f"/proc/{lab.pid}/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


# ---- slow, many and killed readers ----


def test_a_slow_reader_loses_what_it_is_told_and_nothing_else(machine: MountedLab, config: int) -> None:
    with Reader(machine, kinds=["region"], keep=10) as slow, Reader(machine, kinds=["region"]) as fast:
        reads(config, 100)
        found = until(fast, lambda records: len(records) == 100)
        lost, *kept = slow.read()
        assert (lost.kind, lost.arguments, lost.number) == ("lost", {"count": 90}, 0)
        assert kept == found[90:]
        reads(config, 5)
        assert [each.kind for each in until(slow, lambda records: len(records) == 5)] == ["region"] * 5


def test_a_reader_that_never_reads_takes_what_it_may_keep(machine: MountedLab, config: int) -> None:
    with Reader(machine, keep=1000):
        reads(config, 2000)
        before = resident(machine)
        reads(config, 30000)
        assert resident(machine) - before < 8 << 20


def test_readers_have_filters_of_their_own(machine: MountedLab, config: int) -> None:
    everybody = Reader(machine)
    with everybody, created(machine) as vgpu, contextlib.ExitStack() as opened:

        def reader(**options: list[str] | list[int]) -> Reader:
            return opened.enter_context(Reader(machine, os.O_NONBLOCK, **options))

        mine = reader(devices=[vgpu.name.upper()])
        stores = reader(kinds=["store", "lifecycle"])
        nobody = reader(pids=[os.getpid() + 1])
        ours = reader(pids=[os.getpid()], kinds=["region"])
        other = os.open(vgpu.path / "config", os.O_RDONLY)
        reads(config, 3)
        reads(other, 2)
        (vgpu.path / "power/control").write_text("on")
        os.close(other)
        everything = until(everybody, lambda records: [each for each in records if each.name == "close"])
        assert [each.name for each in mine.read()] == ["open", "read", "read", "control", "close"]
        assert [(each.kind, each.name) for each in stores.read()] == [("store", "control")]
        assert nobody.read() == []
        assert [each.kind for each in ours.read()] == ["region"] * 5
    assert sum(each.kind == "region" for each in everything) == 5


def test_a_reader_that_is_killed_leaves_nothing(machine: MountedLab, config: int) -> None:
    before = settled(lambda: threads_of(machine))
    trace = str(machine.path / "trace")
    for how in (["cat", trace], [sys.executable, "-c", f"open({trace!r}, 'rb').peek(); input()"]):
        with subprocess.Popen(how, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reading:
            wait_for(lambda: threads_of(machine) > before)
            reads(config, 10)
            reading.kill()
    wait_for(lambda: threads_of(machine) <= before)
    with Reader(machine) as reader:
        reads(config, 1)
        assert [each.name for each in until(reader, bool)] == ["read"]


def test_clients_hammer_while_readers_come_and_go(machine: MountedLab) -> None:
    with created(machine) as first, created(machine) as second, Reader(machine, kinds=["region"]) as whole:
        command = [sys.executable, "-c", HAMMER]
        clients = [
            subprocess.Popen([*command, str(vgpu.path / "config"), "4000"], stdout=subprocess.PIPE)
            for vgpu in (first, second)
        ]
        for client in clients:
            assert client.stdout is not None and client.stdout.readline() == b"begun\n"
        came = 0
        while any(client.poll() is None for client in clients):
            with Reader(machine, keep=100) as reader, Reader(machine, os.O_NONBLOCK):
                with contextlib.suppress(BlockingIOError):
                    os.read(reader.fd, 1 << 12 if came % 2 else 1 << 16)
                came += 1
        found = until(whole, lambda records: len(records) >= 8000)
        for client in clients:
            assert client.wait() == 0
            assert client.stdout is not None
            client.stdout.close()
    assert came > 3 and len(found) == 8000, (came, len(found))
    assert len({each.number for each in found}) == 8000
    assert {each.pid for each in found} == {client.pid for client in clients}


def test_there_are_as_many_readers_as_there_may_be(machine: MountedLab) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(MOST_READERS):
            opened.enter_context(Reader(machine))
        fails(errno.EMFILE, Reader, machine)
    wait_for(lambda: _can_be_opened(machine))


def _can_be_opened(machine: MountedLab) -> bool:
    with contextlib.suppress(OSError), Reader(machine):
        return True
    return False


# ---- read, poll, write ----


def test_the_file_is_its_users_alone(machine: MountedLab) -> None:
    found = (machine.path / "trace").stat()
    assert (stat.filemode(found.st_mode), found.st_uid) == ("-rw-------", os.geteuid())
    fails(errno.EACCES, os.open, machine.path / "trace", os.O_WRONLY)
    with Reader(machine) as reader:
        for call in (lambda: os.lseek(reader.fd, 0, 0), lambda: os.pread(reader.fd, 1, 0)):
            fails(errno.ESPIPE, call)
        fails(errno.EBADF, os.write, reader.fd, b"{}")


def test_a_waiting_read_gets_the_next_call(machine: MountedLab, config: int) -> None:
    with Reader(machine, 0) as reader:
        found: list[bytes] = []
        waiting = threading.Thread(target=lambda: found.append(os.read(reader.fd, 1 << 16)))
        waiting.start()
        reads(config, 1)
        waiting.join()
    assert from_line(found[0].splitlines()[0]).name == "read"


def test_a_signal_ends_a_waiting_read(machine: MountedLab) -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "os.read(os.open(sys.argv[1], os.O_RDONLY), 4096)\n"
    )
    command = [sys.executable, "-c", program, str(machine.path / "trace")]
    assert subprocess.run(command, check=False).returncode == 7


def test_poll_says_when_there_is_something(machine: MountedLab, config: int) -> None:
    with Reader(machine, pids=[os.getpid()]) as reader, Reader(machine, pids=[1]) as nobody:
        poll = select.poll()
        poll.register(reader.fd, select.POLLIN)
        poll.register(nobody.fd, select.POLLIN)
        assert poll.poll(0) == []
        fails(errno.EAGAIN, os.read, reader.fd, 4096)
        timer = threading.Timer(0.05, reads, (config, 1))
        timer.start()
        assert poll.poll() == [(reader.fd, select.POLLIN)]
        assert len(reader.read()) == 1
        assert poll.poll(0) == []
        poll.modify(reader.fd, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(reader.fd, select.POLLOUT)]
        timer.join()


def test_a_read_gives_whole_lines_and_a_long_line_in_parts(machine: MountedLab, config: int) -> None:
    with Reader(machine) as whole, Reader(machine) as parts, Reader(machine) as bytewise:
        reads(config, 20)
        expected = until(whole, lambda records: len(records) == 20)
        room = max(len(each.to_line()) for each in expected) + 20
        found: list[Record] = []
        while len(found) < 20:
            data = os.read(parts.fd, room)
            assert data.count(b"\n") == 1 and data.endswith(b"\n")
            found.append(from_line(data))
        assert [each.number for each in found] == [each.number for each in expected]
        small = b""
        while small.count(b"\n") < 20:
            data = os.read(bytewise.fd, 7)
            assert 0 < len(data) <= 7
            small += data
        assert [from_line(line) for line in small.splitlines()] == found


@pytest.mark.parametrize("line", [b"{", b'{"kinds": ["all"]}', b"{}\n{}", b'{"keep": -1}', b"[" * 50000])
def test_wrong_options_are_refused_and_change_nothing(machine: MountedLab, config: int, line: bytes) -> None:
    with Reader(machine, kinds=["region"]) as reader:
        fails(errno.EINVAL, os.write, reader.fd, line)
        reads(config, 1)
        assert len(until(reader, bool)) == 1
        fails(errno.EBUSY, os.write, reader.fd, b"{}")


def test_options_begin_anew(machine: MountedLab, config: int) -> None:
    with Reader(machine, keep=2) as reader:
        reads(config, 5)
        os.write(reader.fd, json.dumps({"kinds": ["region"]}).encode() + b"\n")
        reads(config, 3)
        assert [each.kind for each in until(reader, lambda records: len(records) == 3)] == ["region"] * 3


# ---- what takes long, and who it is ----


def test_a_call_that_takes_long_is_told_before_its_end(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW.replace("GO", str(go := tmp_path / "go")))
    text = f'[models]\nslow = "{tmp_path}/slow.py:Slow"\n[parents.slow]\nkind = "virtual"\ndriver = "slow"\n'
    text += 'slots = 1\ntypes.slow-1 = { description = "takes its time" }\n'
    with described(tmp_path, text) as lab, created(lab, "slow-1", "slow") as vgpu:
        device = vgpu.open()
        with Reader(lab, kinds=["region"]) as reader, ThreadPoolExecutor(1) as pool:
            writing = pool.submit(os.pwrite, device, bytes(4), 0)
            try:
                (first,) = until(reader, bool)
                assert not writing.done()
            finally:
                go.touch()
            writing.result()
            os.pwrite(device, bytes(4), 0)
            last, short = until(reader, lambda records: len(records) == 2)
        os.close(device)
    assert first.number == last.number and first.time == last.time and short.number == first.number + 1
    assert (first.duration, first.result, first.arguments) == (None, None, last.arguments)
    assert last.duration is not None and last.duration >= LONG_SECONDS and last.result == 4


def test_a_process_that_takes_another_name_is_told_by_it(machine: MountedLab, config: int) -> None:
    own = Path("/proc/self/comm")
    before = own.read_text().strip()
    with Reader(machine, kinds=["region"]) as reader:

        def name() -> str:
            reads(config, 1)
            return until(reader, bool)[-1].comm

        assert name() == before
        try:
            own.write_text("another")
            wait_for(lambda: name() == "another")
        finally:
            own.write_text(before)


# ---- mappings ----


@needs.passthrough
def test_a_mapping_is_told_once_for_each_process_and_region(machine: MountedLab, lab: MountedLab) -> None:
    with lab.create() as vgpu, Reader(lab) as reader:
        device = vgpu.open()
        info, _ = with_caps(device, DEVICE_GET_REGION_INFO, RegionInfo, index=0)
        with mmap.mmap(device, 1 << 20, offset=0), mmap.mmap(device, 1 << 16, offset=1 << 16):
            found = until(reader, lambda records: [each for each in records if each.kind == "mmap"])
            (mapped,) = [each for each in found if each.kind == "mmap"]
            assert mapped.subject == vgpu.name and mapped.pid == os.getpid()
            assert mapped.arguments["region"] == 0 and mapped.arguments["size"] in (1 << 20, 1 << 16)
            assert info.flags & 4
            with_caps(device, DEVICE_GET_REGION_INFO, RegionInfo, index=0)
            time.sleep(0.3)  # for two more looks
            assert not [each for each in reader.read() if each.kind == "mmap"]
        os.close(device)


@needs.passthrough
def test_a_mapping_of_a_resource_file_is_told(lab: MountedLab) -> None:
    with Reader(lab) as reader:
        resource = os.open(lab.gpu / "resource0", os.O_RDWR)
        with mmap.mmap(resource, 1 << 20):
            os.close(resource)
            found = until(reader, lambda records: [each for each in records if each.kind == "mmap"])
    (mapped,) = [each for each in found if each.kind == "mmap"]
    assert (mapped.subject, mapped.arguments) == (lab.gpu.name, {"region": 0, "size": 1 << 20})


@needs.passthrough
def test_a_mapping_of_a_device_that_run_has_opened_is_told(lab: MountedLab, tmp_path: Path) -> None:
    program = tmp_path / "maps.py"
    program.write_text(
        "import mmap, sys\n"
        "from tests.vfio.client import Container, Group, DEVICE_GET_REGION_INFO, RegionInfo, with_caps\n"
        "root, number, name = sys.argv[1:]\n"
        "with Container('/') as container, Group('/', number) as group:\n"
        "    group.set_container(container)\n"
        "    container.set_iommu()\n"
        "    device = group.device_fd(name)\n"
        "    with_caps(device, DEVICE_GET_REGION_INFO, RegionInfo, index=0)\n"
        "    memory = mmap.mmap(device, 4096)\n"
        "    print('mapped', flush=True)\n"
        "    input()\n"
    )
    with lab.create() as vgpu, Reader(lab, kinds=["mmap"]) as reader:
        client_of = [sys.executable, str(program), "/", vgpu.group, vgpu.name]
        command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", *client_of]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
        ) as client:
            (mapped,) = until(reader, bool)
            client.communicate(b"\n")
    assert (mapped.subject, mapped.arguments) == (vgpu.name, {"region": 0, "size": 4096})
