# SPDX-License-Identifier: Apache-2.0
"""The file `faults` of a mount: who may use it, what it refuses, and rules that change while clients work."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests import needs
from tests.commands import one_write
from tests.faultrules import (
    IOVA,
    PF,
    SOURCE_REGISTER,
    STATUS_REGISTER,
    TARGET,
    Faults,
    faults,
    machine,
    mapped,
    put,
    read,
)
from tests.iommufd.client import Iommufd
from tests.iommufd.conftest import copier, gpu, iommufd, memory, vgpu
from tests.iommufd.devices import LAB, Copier
from tests.labs import MountedLab, described
from tests.vfio.client import (
    PAGE,
    Memory,
    fails,
)
from tests.vfio.copiers import GPU
from tests.vfio.devices import (
    function_dir,
)
from tests.waiting import SECONDS, wait_for

__all__ = ["copier", "faults", "gpu", "iommufd", "machine", "mapped", "memory", "vgpu"]


def test_the_file_belongs_to_the_user_of_the_lab(machine: MountedLab) -> None:
    found = os.stat(machine.path / "faults")
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o600, os.geteuid(), os.getegid())


@needs.root("acts as another user")
def test_another_user_cannot_open_the_file(machine: MountedLab) -> None:
    def other() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

    done = subprocess.run(
        ["cat", "faults"], cwd=machine.path, preexec_fn=other, capture_output=True, text=True, check=False
    )
    assert "Permission denied" in done.stderr


def test_bad_rules_say_what_is_wrong(faults: Faults) -> None:
    for text, number, why in (
        (
            "add iotcl=VFIO_DEVICE_RESET errno=EIO",
            errno.EINVAL,
            "iotcl: there is no such key (did you mean ioctl?)\n",
        ),
        ("clear nobody", errno.ENOENT, "nobody: there is no such rule (there are none)\n"),
        (
            "add name=a call=any delay=1\nadd name=a call=any delay=1",
            errno.EEXIST,
            "a: there is such a rule (give another name)\n",
        ),
        ("remove", errno.EINVAL, "'remove' is no command (write add, clear, release or list)\n"),
    ):
        with pytest.raises(OSError) as caught:
            faults.write(text)
        assert (caught.value.errno, caught.value.strerror) == (number, why)
    assert faults.list() == []


def test_a_register_that_an_open_device_has_not(faults: Faults, copier: Copier, gpu: Copier) -> None:
    with pytest.raises(OSError, match=rf"register: {GPU} has no register STATE \(it has .*STATUS"):
        faults.write(f"add device={GPU} register=STATE value=1")


def test_the_list_can_be_written_back(faults: Faults, tmp_path: Path) -> None:
    rules = (
        f"call=any while='{tmp_path}/a b' nth=4 errno=EIO",
        "device='0000:*' region=config range=4-5 flip=0x8000 probability=0.25",
        "store=sys/bus/*/bind hang=true times=3",
    )
    with faults.hold(*rules):
        listed = faults.list()
        assert all(line.endswith("  # 0 hits of 0 calls") for line in listed)
        assert faults.write("clear\n" + "".join(f"add {line}\n" for line in listed)).count("added ") == 3
        assert faults.list() == listed
        fd = os.open(faults.path, os.O_RDWR)
        os.write(fd, b"list\n")
        assert os.pread(fd, 4096, 0).decode().splitlines() == listed
        os.close(fd)


def test_garbage_changes_nothing(machine: MountedLab, faults: Faults) -> None:
    choose = random.Random(18)
    with faults.hold("name=a open=iommu errno=EPERM"):
        for _ in range(200):
            data = bytes(choose.randrange(256) for _ in range(choose.randrange(1, 200)))
            if data.strip() and b"#" not in data:
                with pytest.raises(OSError) as caught:
                    faults.write(b"x" + data)
                assert caught.value.errno == errno.EINVAL
        for data in (
            b"add " * 20_000,
            b"\n" * 200_000,
            b"add name=" + b"a" * 60_000,
            b"\0" * 100,
            b"add \xff",
        ):
            with pytest.raises(OSError) as caught:
                faults.write(data)
            assert caught.value.errno == errno.EINVAL
        assert [line.partition(" ")[0] for line in faults.list()] == ["name=a"]
        fails(errno.EPERM, os.open, machine.path / "dev/iommu", os.O_RDWR)


def test_a_file_of_a_lab_is_nothing_to_wait_for(machine: MountedLab, faults: Faults, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(machine.path)
    for path in (machine.path, machine.path / "sys/class", tmp_path / "link/sys/none"):
        with pytest.raises(OSError, match="is on a file system of type fuse"):
            faults.write(f"add call=any errno=EIO while={path}")
    assert faults.list() == []


def test_a_file_server_that_does_not_answer_holds_up_nobody(
    faults: Faults, copier: Copier, tmp_path: Path
) -> None:
    """A rule is to look for a file in a lab that is stopped, at once or because a link leads there later."""
    link, here = tmp_path / "link", tmp_path / "here"
    here.mkdir()
    (here / "on").touch()
    link.symlink_to(here)

    def lead(to: Path) -> None:
        (tmp_path / "new").symlink_to(to)
        (tmp_path / "new").rename(link)

    with faults.hold(f"register=STATUS while={link}/on value=1"), MountedLab(tmp_path) as other:
        assert read(copier, STATUS_REGISTER) == 1
        os.kill(other.pid, signal.SIGSTOP)
        try:
            lead(other.path)
            wait_for(lambda: read(copier, STATUS_REGISTER) == 0)
            with pytest.raises(OSError, match="is on a file system of type fuse"):
                faults.write(f"add call=any errno=EIO while={link}/other")
            lead(here)
            wait_for(lambda: read(copier, STATUS_REGISTER) == 1)
        finally:
            os.kill(other.pid, signal.SIGCONT)


def test_ten_thousand_rules_are_the_most(machine: MountedLab, faults: Faults, copier: Copier) -> None:
    lines = b"add device=0000:86:00.0 register=STATUS errno=EIO\n" * 1000
    try:
        for _ in range(10):
            assert faults.write(lines).count("added ") == 1000
        with pytest.raises(OSError, match="there can be 10000 rules") as caught:
            faults.write("add call=any delay=1")
        assert caught.value.errno == errno.ENOSPC
        assert len(faults.list()) == 10_000
        assert read(copier, STATUS_REGISTER) == 0
    finally:
        faults.write("clear")
    assert faults.list() == []


def test_rules_can_be_changed_while_every_call_hangs(faults: Faults, iommufd: Iommufd) -> None:
    with faults.hold("name=first call=any hang=true"), ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(iommufd.ioas) for _ in range(8)]
        wait_for(lambda: faults.said().endswith("8 held"))
        assert (
            faults.write("add name=second store=* drop=true\nrelease first\n")
            == "released first\nadded second\n"
        )
        assert len({call.result(60) for call in calls}) == 8


def test_rules_come_and_go_while_clients_work(
    machine: MountedLab, faults: Faults, iommufd: Iommufd, copier: Copier, mapped: Memory
) -> None:
    """No call is left hanging when its rule has gone, and afterwards all is as before."""
    choose, over = random.Random(18), threading.Event()
    wheres = (
        "ioctl=*",
        "region=BAR0",
        "register=STATUS",
        "open=*",
        "store=*",
        "dma=any",
        "call=any",
        "create=*",
    )
    whens = ("", "nth=3", "every=2", "probability=0.3", "times=5", "after=0.001")
    whats = ("hang=true", "delay=0.001", "errno=EIO", "errno=ENODEV delay=0.001", "hang=true delay=0.001")
    work: tuple[Callable[[], object], ...] = (
        iommufd.ioas,
        lambda: read(copier, STATUS_REGISTER),
        lambda: put(copier, SOURCE_REGISTER, IOVA, 8),
        lambda: os.close(os.open(machine.path / "dev/vfio/vfio", os.O_RDWR)),
        lambda: one_write(function_dir(machine, PF) / "driver_override", "a"),
        lambda: copier.begin(IOVA, TARGET, 8),
    )

    done = [0] * len(work)

    def client(index: int) -> None:
        while not over.is_set():
            with suppress(OSError):
                work[index]()
            done[index] += 1

    with ThreadPoolExecutor(len(work)) as threads, ExitStack() as stack:
        stack.callback(faults.write, "clear")
        stack.callback(over.set)
        clients = [threads.submit(client, index) for index in range(len(work))]
        end = time.monotonic() + SECONDS
        for number in itertools.count():
            if number >= 150 and min(done) > 1:
                break
            assert time.monotonic() < end, done
            rule = " ".join((choose.choice(wheres), choose.choice(whens), choose.choice(whats)))
            faults.write(f"add name=r{number} {rule}")
            if number % 3 == 2:
                faults.write(f"clear r{number - choose.randrange(2)}\nrelease")
            if number % 12 == 11:
                faults.write("clear")
    for each in clients:
        each.result()
    one_write(function_dir(machine, PF) / "driver_override", "\n")
    mapped.write(b"\7" * 8)
    copier.begin(IOVA, TARGET, 8)
    wait_for(lambda: mapped.read(PAGE, 8) == b"\7" * 8)
    assert read(copier, SOURCE_REGISTER, 8) == IOVA and iommufd.ioas()


def test_a_lab_has_rules_from_its_start(tmp_path: Path) -> None:
    rules = '[[faults]]\nname = "full"\nopen = "iommu"\nnth = 2\nerrno = "EMFILE"\n'
    with described(tmp_path, LAB + rules) as lab:
        os.close(os.open(lab.path / "dev/iommu", os.O_RDWR))
        fails(errno.EMFILE, os.open, lab.path / "dev/iommu", os.O_RDWR)
        assert Faults(lab).list() == ["name=full open=iommu nth=2 errno=EMFILE  # 1 hit of 2 calls"]


def test_a_lab_ends_while_calls_hang(tmp_path: Path) -> None:
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(3))
        with described(tmp_path, LAB) as lab:
            faults = Faults(lab)
            fd = os.open(lab.path / "dev/iommu", os.O_RDWR)
            stack.callback(os.close, fd)
            faults.write("add call=any hang=true")
            waiting: list[Callable[[], object]] = [
                lambda: os.open(lab.path / "dev/vfio/vfio", os.O_RDWR),
                Iommufd(fd).ioas,
                lambda: one_write(lab.path / "sys/bus/pci/rescan", "1"),
            ]
            calls = [threads.submit(call) for call in waiting]
            wait_for(lambda: faults.said().endswith("3 held"))
        for call in calls:
            call.exception(20)
