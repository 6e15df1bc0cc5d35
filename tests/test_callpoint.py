# SPDX-License-Identifier: Apache-2.0
"""A listener and observers on a mounted lab: they see a C client's whole dialogue, and the listener may delay
or refuse any of it."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Any, TypeVar

import pytest

import tests.commands
from tests import needs
from tests.commands import ROOT, VFSFUSE, run
from tests.descriptors import open_files
from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier
from tests.labs import MountedLab
from tests.test_ended_clients import closing, group_file, left_behind
from tests.vfio.bystander import bystander
from tests.vfio.client import DEVICE_GET_INFO, DeviceInfo, DmaMap, DmaUnmap, Group, Memory, fails
from tests.vfio.gpu_client import StoppedMemory
from tests.vfio.test_held_lane import result
from tests.waiting import settled, wait_for

CLIENT = ROOT / "tests/clients/copier_client.c"
IOVA, PAGE, SIZE = 1 << 20, 4096, 100
MOST_TOLD = 1024
DELAY = 0.1
MOST_SECONDS = 600.0
Line = dict[str, Any]
T = TypeVar("T")


class ListenedLab:
    """A lab of copiers whose calls are told to a listener, with what it was told."""

    def __init__(self, lab: MountedLab, account: Path, client: Path) -> None:
        self.lab, self._account, self._client = lab, account, client
        self.name = str(uuid.uuid4())

    def lines(self, of: int = 0) -> list[Line]:
        """Every call that is over, in the order in which they began, as told to listener or observer `of`."""
        return self.accounts().get(of, [])

    def accounts(self) -> dict[int, list[Line]]:
        """The same for all of them. 0 is the listener."""
        accounts: dict[int, list[Line]] = {}
        for text in self._account.read_text().splitlines():
            line = json.loads(text)
            accounts.setdefault(line["of"], []).append(line)
        for lines in accounts.values():
            lines.sort(key=lambda line: int(line["number"]))
        return accounts

    def create(self) -> None:
        types = self.lab.path / "sys/class/mdev_bus/copiers/mdev_supported_types"
        (types / "copier-1/create").write_text(self.name)

    def remove(self) -> None:
        (self.lab.mdevs / self.name / "remove").write_text("1")

    def drive(self) -> subprocess.CompletedProcess[str]:
        """Run the C client on the copier."""
        return run(self._command)

    @contextmanager
    def going_round(self) -> Iterator[IO[str]]:
        """Have the C client make rounds of calls while the block runs. It checks each result. Gives its
        output."""
        command = [*self._command, "again"]
        with Popen(command, stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as client:
            assert client.stdin is not None and client.stdout is not None
            assert client.stdout.readline() == "1\n"
            yield client.stdout
            client.communicate(timeout=60)
        assert client.returncode == 0

    @property
    def _command(self) -> list[str]:
        group = (self.lab.mdevs / self.name / "iommu_group").resolve().name
        command = [*VFSFUSE, "run", "--mount", self.lab.path, "--", self._client, group, self.name]
        return list(map(str, command))

    def observe(self, on: bool) -> None:
        """Add an observer, or remove the last one. It takes effect a moment later."""
        os.kill(self.lab.pid, signal.SIGUSR1 if on else signal.SIGUSR2)

    def held(self, count: int) -> None:
        """Wait until so many calls have been held up."""
        held = self._account.with_name(self._account.name + ".held")
        wait_for(lambda: held.exists() and held.stat().st_size == count)

    def release(self) -> None:
        """Let calls go on that are held up. It takes effect a moment later."""
        os.kill(self.lab.pid, signal.SIGRTMIN)

    @property
    def told(self) -> int:
        """Bytes of all that was told so far."""
        return self._account.stat().st_size

    def is_told_much(self) -> bool:
        """Whether many observers were told, and many calls."""
        said = re.findall(rb'(?m)^{"of": (\d+),', self._account.read_bytes())
        return len(set(said)) > MANY_OBSERVERS and len(said) > MANY_LINES


@pytest.fixture
def observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of the test's labs have an observer, which writes to the file `calls`."""
    monkeypatch.setenv("LISTENER_LOG", str(tmp_path / "calls"))
    monkeypatch.setenv("OBSERVERS", "1")
    monkeypatch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-m", "tests.listening_server"])


@pytest.fixture
def listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Line]], ListenedLab]:
    """Mounts a lab that follows rules; see tests.listening_server."""
    compiler = shutil.which("gcc")
    assert compiler is not None, "gcc is not installed (apt-get install gcc libc6-dev)"
    client = tmp_path / "client"
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-o", client, CLIENT], check=True)

    def mount(rules: Sequence[Line] | None = (), observers: int = 0) -> ListenedLab:
        """Without rules (None) there is no listener."""
        monkeypatch.setenv("LISTENER_LOG", str(tmp_path / "calls"))
        monkeypatch.setenv("OBSERVERS", str(observers))
        if rules is not None:
            monkeypatch.setenv("LISTENER_RULES", json.dumps(list(rules)))
        monkeypatch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-m", "tests.listening_server"])
        lab = MountedLab(tmp_path, "--config", str(ROOT / "examples/copier.toml"))
        return ListenedLab(lab, tmp_path / "calls", client)

    return mount


ROUND = (
    "VFIO_DEVICE_GET_INFO",
    "write 0x10",
    "write 0x14",
    "read 0x18",
    "write 0x18",
    "VFIO_IOMMU_MAP_DMA",
    "VFIO_IOMMU_UNMAP_DMA",
)
"""The calls of a round of the C client."""
COPY = ("read", "write", "MSIX")
"""What the copier does by itself in each round."""


def check_rounds(lines: Sequence[Line], calls: Sequence[str]) -> None:
    """All lines are of the calls, which come again and again: none is missing and none is there twice."""

    def name(line: Line) -> str:
        offset = line["arguments"].get("offset")
        return line["name"] if offset is None else f"{line['name']} {offset:#x}"

    names = [name(line) for line in lines]
    first = calls.index(names[0]) if names else 0
    assert names == list(itertools.islice(itertools.cycle(calls), first, first + len(names)))


def pass_rounds(rounds: IO[str]) -> None:
    """Wait while the C client makes rounds.  What it has printed before is of rounds before."""
    fd = rounds.fileno()
    while select.select([fd], [], [], 0)[0]:
        assert os.read(fd, 1 << 16), "the client has ended"
    for _ in range(2):
        assert os.read(fd, 1 << 16), "the client has ended"


MANY_OBSERVERS, MANY_LINES = 20, 1000


def test_observers_come_and_go_while_a_client_works(listen: Callable[..., ListenedLab]) -> None:
    listened = listen(None)
    with listened.lab as lab:
        listened.create()
        with listened.going_round() as rounds:
            assert listened.told == 0
            files = settled(lambda: open_files(lab.pid))
            numbers = itertools.count(1)

            def came_and_went() -> bool:
                """One observer more or less; whether it is enough."""
                number = next(numbers)
                listened.observe(number % 5 < 3)
                time.sleep(random.uniform(0, 0.01))
                return number >= 200 and number % 50 == 0 and listened.is_told_much()

            def untold() -> bool:
                """One observer less; whether nobody is left: whole rounds of the client are not told."""
                listened.observe(False)
                pass_rounds(rounds)
                before = listened.told
                pass_rounds(rounds)
                return listened.told == before

            wait_for(came_and_went)
            wait_for(untold, MOST_SECONDS)
            told = listened.told
            pass_rounds(rounds)
            assert listened.told == told
            assert settled(lambda: open_files(lab.pid)) == files
            listened.observe(True)
            wait_for(lambda: listened.told > told)
        listened.remove()
    accounts = listened.accounts().values()
    assert len(accounts) > MANY_OBSERVERS and sum(map(len, accounts)) > MANY_LINES
    for lines in accounts:
        assert [line["number"] for line in lines] == list(range(len(lines)))  # each that began has ended
        assert all(line["errno"] is None for line in lines)
        check_rounds([line for line in lines if line["kind"] in ("ioctl", "region")], ROUND)
        check_rounds([line for line in lines if line["kind"] in ("dma", "interrupt")], COPY)


def test_an_observer_that_fails_is_logged_once_a_kind(
    listen: Callable[..., ListenedLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    listened = listen(None, 1)
    with listened.lab as lab:
        listened.create()
        assert listened.drive().stdout == "status 1\nok\n"
        listened.remove()
        log = lab.log
        lab.log_path.write_text("")  # a traceback at the end would be a fault of the server
    assert log.count("an observer failed") == log.count("Traceback") == 2
    assert "ZeroDivisionError" in log and "ValueError: probe" in log
    dialogue_lines = [line for line in listened.lines(1) if line["kind"] not in OBSERVED_ONLY]
    assert [told(line) for line in dialogue_lines] == dialogue(listened.name)


@needs.userfaultfd
def test_memory_of_a_client_that_waits_holds_up_nobody_else(tmp_path: Path, observed: None) -> None:
    """What an observer is told of a struct lies in the memory that waits; the struct itself is before it."""
    stopped, size = StoppedMemory(2 * PAGE, present=PAGE), ctypes.sizeof(DeviceInfo)
    with MountedLab(tmp_path) as lab, lab.create() as own, lab.create() as other:
        stopped.write(bytes(DeviceInfo(argsz=MOST_TOLD)), PAGE - size)
        files = [own.open(), *(lab.create().open() for _ in range(5))]
        call = DEVICE_GET_INFO, stopped.address + PAGE - size
        with ThreadPoolExecutor(len(files)) as pool, stopped:
            with bystander(lab, other) as work_on:
                results = [pool.submit(result, fd, *call) for fd in files]
                wait_for(lambda: stopped.touched)
                work_on()
                assert not any(each.done() for each in results)
            stopped.let_go()
            assert [each.result() for each in results] == [0] * len(files)
        info = DeviceInfo.from_buffer_copy(stopped.read(PAGE - size, size))
        assert (info.num_regions, info.num_irqs) == (9, 5)
        for fd in files:
            os.close(fd)
    stopped.close()
    lines = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    held = [
        line for line in lines if line["name"] == "VFIO_DEVICE_GET_INFO" and line["subject"] != other.name
    ]
    assert len(held) == len(files)
    for line in held:
        before, after = bytes.fromhex(line["arguments"]["before"]), bytes.fromhex(line["after"])
        assert before == bytes(DeviceInfo(argsz=MOST_TOLD)) + bytes(MOST_TOLD - size)
        assert DeviceInfo.from_buffer_copy(after).num_regions == 9 and len(after) == MOST_TOLD


def told(line: Line) -> tuple[object, ...]:
    """What is compared of a line: everything but numbers and threads."""
    arguments = {key: value for key, value in line["arguments"].items() if key not in ("arg", "before")}
    if "path" in arguments:
        arguments["path"] = arguments["path"].rstrip("0123456789")
    outcome = line["errno"] or line["result"]
    return line["kind"], line["subject"], line["name"], arguments, outcome


def little(value: int, size: int) -> str:
    return value.to_bytes(size, "little").hex()


def ioctl(subject: str, name: str, result: object = 0) -> tuple[object, ...]:
    return "ioctl", subject, f"VFIO_{name}", {}, result


def test_a_file_whose_open_waited_is_listened_to(listen: Callable[..., ListenedLab]) -> None:
    listened = listen()
    with listened.lab:
        listened.create()
        root, number = listened.lab.path, (listened.lab.mdevs / listened.name / "iommu_group").resolve().name
        with closing(*left_behind(lambda: group_file(listened.lab, number))), Group(root, number) as group:
            assert group.flags == 1
        listened.remove()
    names = [line["name"] for line in listened.lines()]
    assert names == ["create", "create", "probe", "open", "open", "VFIO_GROUP_GET_STATUS", "remove", "remove"]


def test_an_open_that_fails_with_enosys_does_not_end_all_opens(
    listen: Callable[..., ListenedLab], tmp_path: Path
) -> None:
    """After ENOSYS the kernel would ask for no open any more, and each later call would be on no file."""
    listened = listen([{"name": "open", "errno": "ENOSYS"}])
    with listened.lab:
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                os.open(listened.lab.path / "dev/vfio/vfio", os.O_RDWR)
            assert caught.value.errno == errno.EIO


def test_a_dialogue_by_iommufd_is_told(listen: Callable[..., ListenedLab]) -> None:
    listened = listen([{"name": "VFIO_DEVICE_DETACH_IOMMUFD_PT", "errno": "EIO"}])
    memory = Memory(2 * PAGE)
    with listened.lab:
        listened.create()
        name = listened.name
        node = os.listdir(listened.lab.mdevs / name / "vfio-dev")[0]
        with (
            Iommufd(listened.lab.path) as iommufd,
            Copier(listened.lab.path / "dev/vfio/devices" / node) as copier,
        ):
            fails(errno.EBADFD, copier.bind, copier)
            copier.ready(iommufd)
            ioas = iommufd.ioas()
            iommufd.map(ioas, memory.address, memory.size, IOVA)
            copier.attach(ioas)
            assert copier.reaches(IOVA, memory)
            fails(errno.EIO, copier.detach)
            assert copier.reaches(IOVA, memory)
        listened.remove()
    lines = [line for line in listened.lines() if line["kind"] in ("ioctl", "dma")]
    dma = [("read", name, IOVA), ("write", name, IOVA + PAGE)]
    found = [(line["name"], line["subject"], line["arguments"].get("iova", line["errno"])) for line in lines]
    assert found == [
        ("VFIO_DEVICE_BIND_IOMMUFD", name, "EBADFD"),
        ("VFIO_DEVICE_BIND_IOMMUFD", name, None),
        ("IOMMU_IOAS_ALLOC", "iommufd", None),
        ("IOMMU_IOAS_MAP", "iommufd", None),
        ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", name, None),
        *dma,
        ("VFIO_DEVICE_DETACH_IOMMUFD_PT", name, "EIO"),
        *dma,
    ]
    memory.close()


@pytest.mark.parametrize(
    ("rules", "observers"), [((), 0), (None, 2), ((), 1)], ids=["listener", "observers", "both"]
)
def test_a_whole_dialogue_is_told_once_in_order_with_its_results(
    listen: Callable[..., ListenedLab], rules: Sequence[Line] | None, observers: int
) -> None:
    listened = listen(rules, observers)
    with listened.lab:
        listened.create()
        done = listened.drive()
        listened.remove()
    assert done.stdout == "status 1\nok\n", done.stderr
    if rules is not None:
        steered = [line for line in observed_dialogue(listened.name) if line[0] != "reset"]
        assert [told(line) for line in listened.lines()] == steered
        check_structs(listened.lines(), listened.name)
    for observer in range(1, observers + 1):
        lines = listened.lines(observer)
        assert [told(line) for line in lines if line["kind"] not in OBSERVED_ONLY] == dialogue(listened.name)
        closed = {line["subject"] for line in lines if line["name"] == "close"}
        assert closed == {"container", "group 0", listened.name}
        opened = [told(line) for line in lines if line["name"] != "close"]
        assert opened == observed_dialogue(listened.name)
        client = {line["tid"] for line in lines if line["kind"] in ("ioctl", "region")}
        assert len(client) == 1 and 0 not in client
        ours = {line["tid"] for line in lines if line["kind"] in ("store", "lifecycle")}
        assert ours == {threading.get_native_id()}
        check_structs(lines, listened.name)
        on_device = {line["device"] for line in lines if line["subject"] == listened.name}
        assert on_device <= {listened.name, None}
        assert all(
            line["device"] for line in lines if line["kind"] in ("region", "dma", "interrupt", "reset")
        )


def check_structs(lines: Sequence[Line], name: str) -> None:
    """The structs of the client's ioctls, before and after each."""
    structs = {
        line["name"].removeprefix("VFIO_"): (
            bytes.fromhex(line["arguments"]["before"]),
            bytes.fromhex(line["after"]),
        )
        for line in lines
        if line["kind"] == "ioctl"
    }
    descriptor, event = structs["GROUP_SET_CONTAINER"][0], structs["DEVICE_SET_IRQS"][0][20:]
    assert len(descriptor) == len(event) == 4 and descriptor != event
    assert structs["GET_API_VERSION"] == structs["SET_IOMMU"] == structs["DEVICE_RESET"] == (b"", b"")
    assert structs["GROUP_GET_DEVICE_FD"][0].decode() == name
    mapped, unchanged = map(DmaMap.from_buffer_copy, structs["IOMMU_MAP_DMA"])
    assert (mapped.argsz, mapped.iova, mapped.size) == (32, IOVA, 2 * PAGE)
    assert bytes(mapped) == bytes(unchanged)
    before, after = map(DmaUnmap.from_buffer_copy, structs["IOMMU_UNMAP_DMA"])
    assert before.size == after.size == 2 * PAGE
    asked, info = (struct.unpack("<5I", each[:20]) for each in structs["DEVICE_GET_INFO"])
    assert asked[2:4] == (0, 0) and info[2:4] == (9, 5)  # regions and interrupts


OBSERVED_ONLY = ("open", "reset")


def observed_dialogue(name: str) -> list[tuple[object, ...]]:
    """What observers are told of the client's dialogue."""
    found = dialogue(name)

    def place(kind: str, what: str) -> int:
        return next(i for i, line in enumerate(found) if line[0] == kind and line[2] == what)

    def file(subject: str, what: str, path: str) -> tuple[object, ...]:
        return "open", subject, what, {"path": path}, None

    container, group = "dev/vfio/vfio", "dev/vfio/"
    opened = place("ioctl", "VFIO_GET_API_VERSION")
    found[opened:opened] = [file("container", "open", container), file("group 0", "open", group)]
    device = place("ioctl", "VFIO_DEVICE_GET_INFO")
    found[device:device] = [file(name, "open", ".device-")]
    reset = place("ioctl", "VFIO_DEVICE_RESET")
    found.insert(reset + 1, ("reset", name, "reset", {}, None))
    return found


def dialogue(name: str) -> list[tuple[object, ...]]:
    """What is told of a copier's creation, the client's dialogue, and the removal."""
    parent = "copiers"

    def region(what: str, offset: int, size: int, outcome: object, **data: str) -> tuple[object, ...]:
        return "region", name, what, {"region": 0, "offset": offset, "size": size, **data}, outcome

    def put(offset: int, value: int, size: int) -> tuple[object, ...]:
        return region("write", offset, size, size, data=little(value, size))

    def dma(what: str, iova: int, outcome: object, **data: str) -> tuple[object, ...]:
        return "dma", name, what, {"iova": iova, "size": SIZE, **data}, outcome

    directory = f"sys/devices/virtual/copier/{parent}"
    types = f"{directory}/mdev_supported_types/copier-1"
    return [
        ("store", types, "create", {"data": name.encode().hex()}, len(name)),
        ("lifecycle", "copier-1", "create", {"arguments": None}, None),
        ("lifecycle", name, "probe", {"arguments": None}, None),
        ioctl("container", "GET_API_VERSION"),
        ioctl("group 0", "GROUP_SET_CONTAINER"),
        ioctl("container", "SET_IOMMU"),
        ioctl("container", "IOMMU_MAP_DMA"),
        ("ioctl", "group 0", "VFIO_GROUP_GET_DEVICE_FD", {"name": name}, None),
        ioctl(name, "DEVICE_GET_INFO"),
        ioctl(name, "DEVICE_SET_IRQS"),
        ("region", name, "write", {"region": 7, "offset": 4, "size": 2, "data": little(6, 2)}, 2),
        put(0x00, IOVA, 8),
        put(0x08, IOVA + PAGE, 8),
        put(0x10, SIZE, 4),
        put(0x14, 1, 4),
        dma("read", IOVA, (b"\7" * SIZE).hex()),
        dma("write", IOVA + PAGE, None, data=(b"\7" * 64).hex()),
        ("interrupt", name, "MSIX", {"vector": 0}, None),
        region("read", 0x18, 4, little(1, 4)),
        put(0x18, 1, 4),
        ioctl(name, "DEVICE_RESET"),
        ioctl("container", "IOMMU_UNMAP_DMA"),
        ("store", f"{directory}/{name}", "remove", {"data": b"1".hex()}, None),
        ("lifecycle", name, "remove", {"arguments": None}, None),
    ]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"name": "VFIO_IOMMU_MAP_DMA", "errno": "ENOSPC"}, "No space left on device"),
        ({"name": "VFIO_GROUP_SET_CONTAINER", "errno": "EPERM"}, "Operation not permitted"),
        ({"name": "VFIO_GROUP_GET_DEVICE_FD", "errno": "EMFILE"}, "Too many open files"),
        ({"name": "VFIO_DEVICE_RESET", "errno": "EIO"}, "reset: Input/output error"),
    ],
    ids=["pump", "worker", "handover", "device"],
)
def test_an_ioctl_is_refused(listen: Callable[..., ListenedLab], rule: Line, says: str) -> None:
    listened = listen([rule])
    with listened.lab:
        listened.create()
        done = listened.drive()
        listened.remove()
    assert says in done.stdout + done.stderr
    refused = [line for line in listened.lines() if line["name"] == rule["name"]]
    assert [line["errno"] for line in refused] == [rule["errno"]]


def test_a_dma_is_refused_as_a_fault_of_the_device(listen: Callable[..., ListenedLab]) -> None:
    listened = listen([{"name": "read", "errno": "EFAULT"}])
    with listened.lab:
        listened.create()
        done = listened.drive()
        faults = (listened.lab.mdevs / listened.name / "dma_faults").read_text()
        listened.remove()
    # The client's own read of STATUS is called "read" as well, and is refused to the client.
    assert "Bad address" in done.stderr
    assert faults == "1\n"


def test_a_store_and_a_lifecycle_change_are_refused(listen: Callable[..., ListenedLab]) -> None:
    for name, error in (("create", errno.EPERM), ("remove", errno.EPERM)):
        listened = listen([{"name": name, "errno": "EPERM"}])
        with listened.lab:
            with pytest.raises(OSError) as caught:
                listened.create()
                listened.remove()
            assert caught.value.errno == error
            assert listened.lab.mdevs.joinpath(listened.name).exists() is (name == "remove")


@pytest.mark.parametrize(
    "name",
    ["VFIO_DEVICE_GET_INFO", "VFIO_GROUP_SET_CONTAINER", "VFIO_GROUP_GET_DEVICE_FD", "write", "MSIX"],
    ids=["ioctl", "blocking ioctl", "handover", "region and DMA", "interrupt"],
)
def test_a_call_that_is_held_up_holds_up_its_caller_alone(
    listen: Callable[..., ListenedLab], name: str
) -> None:
    listened = listen([{"name": name, "holds": 1, "delay": DELAY}])
    with ThreadPoolExecutor(1) as threads, listened.lab:
        listened.create()
        driving = threads.submit(timed, listened.drive)
        listened.held(1)
        look(listened.lab)
        assert not driving.done()
        listened.release()
        done, took = driving.result()
        listened.remove()
    assert done.stdout == "status 1\nok\n", done.stderr
    assert took > DELAY


@pytest.mark.parametrize("name", ["create", "remove"])
def test_a_store_waits_for_itself_and_for_its_lifecycle_change(
    listen: Callable[..., ListenedLab], name: str
) -> None:
    listened = listen([{"name": name, "holds": 2, "delay": DELAY}])
    with ThreadPoolExecutor(1) as threads, listened.lab:
        for what in (listened.create, listened.remove):
            storing = threads.submit(timed, what)
            if what.__name__ == name:
                for count in (1, 2):  # one is the store, the other the lab's change
                    listened.held(count)
                    look(listened.lab)
                    assert not storing.done()
                    listened.release()
                _, took = storing.result()
                assert took > 2 * DELAY
            else:
                storing.result()


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and how many seconds it takes."""
    begun = time.monotonic()
    return call(), time.monotonic() - begun


def look(lab: MountedLab) -> None:
    """The lab answers."""
    for _ in range(10):
        assert (lab.parent("copiers") / "mdev_supported_types/copier-1/name").read_text()
