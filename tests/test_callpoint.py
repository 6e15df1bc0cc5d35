# SPDX-License-Identifier: Apache-2.0
"""A listener and observers on a mounted lab: they see a C client's whole dialogue, and the listener may delay
or refuse any of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

import tests.lab
from tests.iommufd.client import Iommufd
from tests.iommufd.devices import Copier
from tests.lab import ROOT, VFSFUSE, MountedLab, run
from tests.test_ended_clients import closing, group_file, left_behind
from tests.vfio.client import Group, Memory, fails

CLIENT = ROOT / "tests/clients/copier_client.c"
IOVA, PAGE, SIZE = 1 << 20, 4096, 100
DELAY = 0.4
Line = dict[str, Any]
T = TypeVar("T")


class ListenedLab:
    """A lab of copiers whose calls are told to a listener, with what it was told."""

    def __init__(self, lab: MountedLab, account: Path, client: Path) -> None:
        self.lab, self._account, self._client = lab, account, client
        self.name = str(uuid.uuid4())

    def lines(self, of: int = 0) -> list[Line]:
        """Every call that is over, in the order in which they began, as told to listener or observer `of`."""
        found = [json.loads(line) for line in self._account.read_text().splitlines()]
        return sorted((line for line in found if line["of"] == of), key=lambda line: line["number"])

    def create(self) -> None:
        types = self.lab.path / "sys/class/mdev_bus/copiers/mdev_supported_types"
        (types / "copier-1/create").write_text(self.name)

    def remove(self) -> None:
        (self.lab.mdevs / self.name / "remove").write_text("1")

    def drive(self) -> subprocess.CompletedProcess[str]:
        """Run the C client on the copier."""
        group = (self.lab.mdevs / self.name / "iommu_group").resolve().name
        return run([*VFSFUSE, "run", "--mount", self.lab.path, "--", self._client, group, self.name])


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
        monkeypatch.setattr(tests.lab, "VFSFUSE", [sys.executable, "-m", "tests.listening_server"])
        lab = MountedLab(tmp_path, "--config", str(ROOT / "examples/copier.toml"))
        return ListenedLab(lab, tmp_path / "calls", client)

    return mount


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
    assert names == ["create", "create", "VFIO_GROUP_GET_STATUS", "remove", "remove"]


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
        assert [told(line) for line in listened.lines()] == dialogue(listened.name)
    for observer in range(1, observers + 1):
        lines = listened.lines(observer)
        assert [told(line) for line in lines if line["kind"] not in OBSERVED_ONLY] == dialogue(listened.name)
        closed = {line["subject"] for line in lines if line["name"] == "close"}
        assert closed == {"container", "group 0", listened.name}
        opened = [told(line) for line in lines if line["name"] != "close"]
        assert opened == observed_dialogue(listened.name)
        client = {line["tid"] for line in lines if line["kind"] in ("ioctl", "region")}
        assert len(client) == 1 and 0 not in client
        on_device = {line["device"] for line in lines if line["subject"] == listened.name}
        assert on_device <= {listened.name, None}
        assert all(
            line["device"] for line in lines if line["kind"] in ("region", "dma", "interrupt", "reset")
        )


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
    found[device:device] = [file(name, "open", "dev/vfio/.device-")]
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
def test_a_delay_holds_up_its_caller_alone(listen: Callable[..., ListenedLab], name: str) -> None:
    listened = listen([{"name": name, "delay": DELAY}])
    with listened.lab:
        listened.create()
        done, took, looks = beside(listened.lab, listened.drive)
        listened.remove()
    assert done.stdout == "status 1\nok\n", done.stderr
    assert took > DELAY > max(looks) and len(looks) > 5


@pytest.mark.parametrize("name", ["create", "remove"])
def test_a_store_waits_for_itself_and_for_its_lifecycle_change(
    listen: Callable[..., ListenedLab], name: str
) -> None:
    listened = listen([{"name": name, "delay": DELAY}])
    with listened.lab:
        times = {}
        for what in (listened.create, listened.remove):
            _, times[what.__name__], looks = beside(listened.lab, what)
            assert max(looks) < DELAY
    assert times.pop(name) > 2 * DELAY  # one is the store's, the other the lab's
    assert all(took < DELAY for took in times.values())


def beside(lab: MountedLab, call: Callable[[], T]) -> tuple[T, float, list[float]]:
    """What a call gives and how long it takes, and how long looks at the lab take meanwhile, in seconds."""
    with ThreadPoolExecutor(1) as threads:
        begun = time.monotonic()
        future = threads.submit(call)
        looks = []
        while not future.done():
            started = time.monotonic()
            (lab.path / "sys/class/mdev_bus/copiers/uevent").read_text()
            looks.append(time.monotonic() - started)
            time.sleep(0.01)
        return future.result(), time.monotonic() - begun, looks
