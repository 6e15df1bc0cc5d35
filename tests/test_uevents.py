# SPDX-License-Identifier: Apache-2.0
"""`uevents`: what comes, goes and changes in a lab is heard, as udev hears of devices."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devmodel.lifecycle.uevents import BACKLOG
from tests.commands import one_write
from tests.labs import MountedLab, Vgpu
from tests.snapshot import snapshot

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e02"
GPU = "0000:86:00.0"
GPU_PATH = f"/devices/pci0000:00/0000:00:01.0/{GPU}"
PCI = {
    "PCI_CLASS": "30000",
    "PCI_ID": "1234:86F0",
    "PCI_SUBSYS_ID": "1AF4:1100",
    "PCI_SLOT_NAME": GPU,
}
SECONDS = 60


@contextmanager
def listening(lab: MountedLab, flags: int = 0) -> Iterator[int]:
    fd = os.open(lab.path / "uevents", os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def event(data: bytes) -> tuple[str, dict[str, str]]:
    """A datagram as its first line and its variables; it has the form that it must have."""
    assert data.endswith(b"\0")
    head, *lines = data.decode("ascii").split("\0")[:-1]
    variables = dict(line.split("=", 1) for line in lines)
    assert len(variables) == len(lines)
    assert list(variables)[:3] == ["ACTION", "DEVPATH", "SUBSYSTEM"] and list(variables)[-1] == "SEQNUM"
    assert head == f"{variables['ACTION']}@{variables['DEVPATH']}"
    return head, variables


def hear(fd: int) -> list[tuple[str, dict[str, str]]]:
    """All there is to hear now, on a descriptor that is O_NONBLOCK."""
    heard = []
    while True:
        try:
            heard.append(event(os.read(fd, 4096)))
        except BlockingIOError:
            return heard


def refused(number: int, fd: int) -> None:
    with pytest.raises(OSError) as caught:
        os.read(fd, 4096)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def numbered(vgpu: Vgpu) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """The DEVPATHs of a vGPU's group and vfio<N>, and what their events say besides."""
    minor = vgpu.vfio.removeprefix("vfio")
    own = f"{GPU_PATH}/{vgpu.name}/vfio-dev/{vgpu.vfio}"
    return (
        f"/devices/virtual/vfio/{vgpu.group}",
        own,
        {"MAJOR": "511", "MINOR": vgpu.group, "DEVNAME": f"vfio/{vgpu.group}"},
        {"MAJOR": "510", "MINOR": minor, "DEVNAME": f"vfio/devices/{vgpu.vfio}"},
    )


def said(variables: dict[str, str]) -> dict[str, str]:
    """What an event says beyond what all of them do."""
    return {key: variables[key] for key in variables if key not in ("ACTION", "DEVPATH", "SEQNUM")}


def test_the_life_of_a_vgpu_is_heard_in_the_kernels_order(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd:
        (lab.gpu / "vgpu_create").write_text(f"{UUID}:0:vgpu-8")
        vgpu = Vgpu(lab, f"{UUID}-0")
        group, dev, of_group, of_dev = numbered(vgpu)
        own = f"{GPU_PATH}/{vgpu.name}"
        for face in ("vgpu_start", "vgpu_start", "vgpu_shutdown"):
            (lab.path / "sys/class/vgpu" / face).write_text(UUID)
        vgpu.remove()
        heard = hear(fd)
    vfio_mdev = {"SUBSYSTEM": "mdev", "DRIVER": "vfio_mdev"}
    assert [(head, said(variables)) for head, variables in heard] == [
        (f"add@{own}", {"SUBSYSTEM": "mdev"}),
        (f"add@{group}", {"SUBSYSTEM": "vfio", **of_group}),
        (f"add@{dev}", {"SUBSYSTEM": "vfio-dev", **of_dev}),
        (f"bind@{own}", vfio_mdev),
        (f"online@{own}", vfio_mdev),
        (f"offline@{own}", vfio_mdev),
        (f"remove@{dev}", {"SUBSYSTEM": "vfio-dev", **of_dev}),
        (f"remove@{group}", {"SUBSYSTEM": "vfio", **of_group}),
        (f"unbind@{own}", {"SUBSYSTEM": "mdev"}),
        (f"remove@{own}", {"SUBSYSTEM": "mdev"}),
    ]
    numbers = [int(variables["SEQNUM"]) for _, variables in heard]
    assert numbers == list(range(numbers[0], numbers[0] + 10))


def test_a_function_that_changes_its_driver_is_heard(lab: MountedLab) -> None:
    drivers = lab.path / "sys/bus/pci/drivers"
    with listening(lab, os.O_NONBLOCK) as fd:
        (drivers / "vgpu/unbind").write_text(GPU)
        (lab.gpu / "driver_override").write_text("vfio-pci")
        (drivers / "vfio-pci/bind").write_text(GPU)
        (minor,) = os.listdir(lab.gpu / "vfio-dev")
        (drivers / "vfio-pci/unbind").write_text(GPU)
        (lab.gpu / "driver_override").write_text("\n")
        (drivers / "vgpu/bind").write_text(GPU)
        heard = hear(fd)
    assert [head for head, _ in heard] == [
        *(f"change@{GPU_PATH}", f"unbind@{GPU_PATH}"),
        *("add@/devices/virtual/vfio/0", f"add@{GPU_PATH}/vfio-dev/{minor}", f"bind@{GPU_PATH}"),
        *(f"remove@{GPU_PATH}/vfio-dev/{minor}", "remove@/devices/virtual/vfio/0", f"unbind@{GPU_PATH}"),
        *(f"change@{GPU_PATH}", f"bind@{GPU_PATH}"),
    ]
    modalias = (lab.gpu / "modalias").read_text().strip()
    types = {"SUBSYSTEM": "pci", "MDEV_STATE": "unregistered", "DRIVER": "vgpu", **PCI, "MODALIAS": modalias}
    assert list(said(heard[0][1]).items()) == list(types.items())
    types["MDEV_STATE"] = "registered"
    assert list(said(heard[8][1]).items()) == list(types.items())
    assert said(heard[1][1]) == {"SUBSYSTEM": "pci", **PCI}  # no driver, and so no alias to load one by
    bound = {"SUBSYSTEM": "pci", "DRIVER": "vfio-pci", **PCI, "MODALIAS": modalias}
    assert said(heard[4][1]) == bound


def test_a_driver_that_leaves_removes_its_vgpus_first(lab: MountedLab) -> None:
    """As mdev_unregister_parent() of the kernel does."""
    vgpus = [lab.create() for _ in range(2)]
    with listening(lab, os.O_NONBLOCK) as fd:
        (lab.path / "sys/bus/pci/drivers/vgpu/unbind").write_text(GPU)
        heard = hear(fd)
    expected = []
    for vgpu in vgpus:
        own = f"{GPU_PATH}/{vgpu.name}"
        expected += [f"remove@{own}/vfio-dev/{vgpu.vfio}", f"remove@/devices/virtual/vfio/{vgpu.group}"]
        expected += [f"unbind@{own}", f"remove@{own}"]
    assert [head for head, _ in heard] == [*expected, f"change@{GPU_PATH}", f"unbind@{GPU_PATH}"]
    assert heard[-2][1]["MDEV_STATE"] == "unregistered"
    (lab.path / "sys/bus/pci/drivers/vgpu/bind").write_text(GPU)


def test_what_is_heard_of_is_there_and_what_is_gone_is_not(lab: MountedLab) -> None:
    """The listener looks at once, in another process, each time."""
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1] + '/uevents', os.O_RDONLY)\n"
        "print(flush=True)\n"
        "while True:\n"
        "    head = os.read(fd, 4096).split(b'\\0')[0].decode()\n"
        "    action, path = head.split('@')\n"
        "    print(action, os.path.exists(sys.argv[1] + '/sys' + path), flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(lab.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None and listener.stdout.readline() == "\n"
        for _ in range(20):
            with lab.create():
                lines = [listener.stdout.readline().split() for _ in range(4)]
                assert lines == [[action, "True"] for action in ("add", "add", "add", "bind")]
            lines = [listener.stdout.readline().split() for _ in range(4)]
            assert lines == [[action, "False"] for action in ("remove", "remove", "unbind", "remove")]
        listener.kill()


@pytest.mark.parametrize(
    ("text", "action", "extra"),
    [
        ("add", "add", {"SYNTH_UUID": "0"}),
        ("change\n", "change", {"SYNTH_UUID": "0"}),
        (f"bind {UUID}", "bind", {"SYNTH_UUID": UUID}),
        (f"change {UUID} A=1 B2=c", "change", {"SYNTH_UUID": UUID, "SYNTH_ARG_A": "1", "SYNTH_ARG_B2": "c"}),
    ],
)
def test_a_synthetic_event_says_what_the_file_does(
    lab: MountedLab, text: str, action: str, extra: dict[str, str]
) -> None:
    with lab.create() as vgpu, listening(lab, os.O_NONBLOCK) as fd:
        for directory, subsystem in (
            (lab.gpu, "pci"),
            (vgpu.path, "mdev"),
            (vgpu.path / "vfio-dev" / vgpu.vfio, "vfio-dev"),
            (lab.path / "sys/class/vfio" / vgpu.group, "vfio"),
            (lab.parent("mtty"), "mtty"),
        ):
            (directory / "uevent").write_text(text)
            ((head, variables),) = hear(fd)
            devpath = str(directory.resolve()).removeprefix(f"{lab.path}/sys")
            assert head == f"{action}@{devpath}"
            shown = dict(line.split("=", 1) for line in (directory / "uevent").read_text().splitlines())
            assert said(variables) == {"SUBSYSTEM": subsystem, **extra, **shown}


def test_a_synthetic_event_has_the_room_that_linux_has(lab: MountedLab) -> None:
    """2,048 bytes of variables, each with a byte at its end, and 64 of them."""
    with listening(lab, os.O_NONBLOCK) as fd:
        (lab.gpu / "uevent").write_text(f"change {UUID} A=1")
        (_, variables) = hear(fd)[0]
        taken = sum(len(f"{key}={value}\0") for key, value in variables.items())
        digits = len(str(int(variables["SEQNUM"]) + 1)) - len(variables["SEQNUM"])
        room = 2048 - taken - digits + 1
        count = 64 - len(variables) + 1
        for most, more in (
            ("A=" + "1" * room, "A=" + "1" * (room + 1)),
            *((" ".join(f"A{n}=1" for n in range(each)) for each in (count, count + 1)),),
        ):
            one_write(lab.gpu / "uevent", f"change {UUID} {most}")
            assert len(hear(fd)) == 1
            with pytest.raises(OSError) as caught:
                one_write(lab.gpu / "uevent", f"change {UUID} {more}")
            assert caught.value.errno == errno.ENOMEM and hear(fd) == []


def test_a_driver_has_synthetic_events_too(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd:
        for bus, driver in (("pci", "vgpu"), ("mdev", "vfio_mdev")):
            (lab.path / "sys/bus" / bus / "drivers" / driver / "uevent").write_text("add")
            ((head, variables),) = hear(fd)
            assert head == f"add@/bus/{bus}/drivers/{driver}"
            assert said(variables) == {"SUBSYSTEM": "drivers", "SYNTH_UUID": "0"}


def test_virtual_functions_are_heard(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd:
        (lab.gpu / "sriov_numvfs").write_text("1")
        function = os.path.basename(os.readlink(lab.gpu / "virtfn0"))
        (lab.gpu / "sriov_numvfs").write_text("0")
        heard = hear(fd)
    path = f"/devices/pci0000:00/0000:00:01.0/{function}"
    assert [head for head, _ in heard] == [
        *(f"add@{path}", f"change@{path}", f"change@{GPU_PATH}", f"remove@{path}")
    ]
    assert heard[0][1]["PCI_SLOT_NAME"] == function


def test_each_open_hears_everything_from_then_on(lab: MountedLab) -> None:
    (lab.gpu / "uevent").write_text("add")
    with listening(lab, os.O_NONBLOCK) as early:
        (lab.gpu / "uevent").write_text("change")
        with listening(lab, os.O_NONBLOCK) as late:
            (lab.gpu / "uevent").write_text("move")
            assert [head.split("@")[0] for head, _ in hear(early)] == ["change", "move"]
            assert [head.split("@")[0] for head, _ in hear(late)] == ["move"]


def test_a_read_gets_one_event_and_what_there_is_no_room_for_is_lost(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd:
        (lab.gpu / "uevent").write_text("add")
        (lab.gpu / "uevent").write_text("change")
        assert os.read(fd, 5) == b"add@/"
        assert event(os.read(fd, 4096))[0] == f"change@{GPU_PATH}"
        refused(errno.EAGAIN, fd)


def test_a_failed_write_tells_of_nothing(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd:
        for path, text in ((lab.gpu / "vgpu_create", "nonsense"), (lab.gpu / "uevent", "explode")):
            with pytest.raises(OSError, match="Invalid"):
                path.write_text(text)
        assert hear(fd) == []


def test_it_is_a_stream_that_cannot_be_written(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd:
        for call in (lambda: os.lseek(fd, 0, 0), lambda: os.pread(fd, 1, 0)):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.ESPIPE
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(PermissionError):
            os.open(lab.path / "uevents", flags)


# ---- waiting ----


def blocked(process: subprocess.Popen[str]) -> bool:
    """Whether it waits in read(2)."""
    with open(f"/proc/{process.pid}/syscall", encoding="ascii") as file:
        return file.read().split()[0] == "0"


def wait_until_blocked(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while not blocked(process):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


READER = """
import os, signal, sys
fd = os.open(sys.argv[1] + '/uevents', os.O_RDONLY)
def stop(*_): raise InterruptedError
signal.signal(signal.SIGUSR1, stop)
print(flush=True)
try:
    os.read(fd, 4096)
    print('heard', flush=True)
except InterruptedError:
    print('interrupted', flush=True)
    sys.stdin.readline()
    print(os.read(fd, 4096).split(b'\\0')[0].decode(), flush=True)
"""


@contextmanager
def reader(lab: MountedLab) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for an event."""
    command = [sys.executable, "-c", READER, str(lab.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        wait_until_blocked(process)
        try:
            yield process
        finally:
            process.kill()


def test_more_readers_wait_than_there_are_tasks_and_everything_else_goes_on(lab: MountedLab) -> None:
    """pyfuse3 has 99 tasks, and each lane one thread: none of them may be kept."""
    heard = []

    def read(fd: int) -> None:
        heard.append(event(os.read(fd, 4096))[0])

    opened = [os.open(lab.path / "uevents", os.O_RDONLY) for _ in range(150)]
    readers = [threading.Thread(target=read, args=(fd,), daemon=True) for fd in opened]
    for thread in readers:
        thread.start()
    with lab.create() as vgpu:
        assert snapshot(vgpu.path)
        with open(vgpu.open(), "rb", buffering=0) as device:
            assert os.pread(device.fileno(), 4, 7 << 40)
        for thread in readers:
            thread.join(SECONDS)
        assert heard == [f"add@{GPU_PATH}/{vgpu.name}"] * len(opened)
    for fd in opened:
        os.close(fd)


def test_threads_that_read_one_descriptor_share_its_events(lab: MountedLab) -> None:
    heard = []
    with listening(lab) as fd:
        readers = [
            threading.Thread(target=lambda: heard.append(event(os.read(fd, 4096))[0]), daemon=True)
            for _ in range(8)
        ]
        for thread in readers:
            thread.start()
        with lab.create():
            pass
        for thread in readers:
            thread.join(SECONDS)
    assert sorted(head.split("@")[0] for head in heard) == sorted(
        ["add"] * 3 + ["bind", "unbind"] + ["remove"] * 3
    )


def test_a_signal_ends_a_read_and_loses_nothing(lab: MountedLab) -> None:
    with reader(lab) as process:
        assert process.stdin is not None and process.stdout is not None
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "interrupted\n"
        (lab.gpu / "uevent").write_text("move")
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"move@{GPU_PATH}\n"


def test_a_killed_reader_is_gone_and_nobody_minds(lab: MountedLab) -> None:
    with reader(lab) as killed, reader(lab) as process:
        killed.kill()
        assert killed.wait(SECONDS) == -signal.SIGKILL
        (lab.gpu / "uevent").write_text("add")
        assert process.stdout is not None and process.stdout.readline() == "heard\n"


def test_a_reader_that_gets_signals_all_the_time_hears_each_event_once(lab: MountedLab) -> None:
    """Interrupts and events meet in every order; nothing is lost and nothing comes twice."""
    count = 200
    script = (
        "import os, signal, sys\n"
        "signals = 0\n"
        "def count(*_):\n"
        "    global signals\n"
        "    signals += 1\n"
        "signal.signal(signal.SIGALRM, count)\n"
        "fd = os.open(sys.argv[1] + '/uevents', os.O_RDONLY)\n"
        "print(flush=True)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)\n"  # Python reads again after EINTR
        f"seen = [os.read(fd, 4096).split(b'SEQNUM=')[1] for _ in range({count})]\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "assert signals\n"
        "print(len(set(seen)))\n"
    )
    command = [sys.executable, "-c", script, str(lab.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        wait_until_blocked(process)
        for _ in range(count):
            (lab.gpu / "uevent").write_text("change")
        try:
            assert process.wait(3 * SECONDS) == 0
        finally:
            process.kill()
        assert process.stdout.read() == f"{count}\n"


def test_poll_wakes_up(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as fd, listening(lab, os.O_NONBLOCK) as other:
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        assert waiting.poll(0) == []
        for _ in range(5):
            timer = threading.Timer(0.05, lambda: (lab.gpu / "uevent").write_text("change"))
            timer.start()
            assert waiting.poll(1000 * SECONDS) == [(fd, select.POLLIN)]
            timer.join()
            assert len(hear(fd)) == 1 and waiting.poll(0) == []
        assert len(hear(other)) == 5


def test_epoll_and_select_wake_up_all_who_wait(lab: MountedLab) -> None:
    woken: list[str] = []

    def by_epoll(fd: int) -> None:
        with select.epoll() as epoll:
            epoll.register(fd, select.EPOLLIN)
            woken.extend("epoll" for _ in epoll.poll(SECONDS))

    def by_select(fd: int) -> None:
        woken.extend("select" for _ in select.select([fd], [], [], SECONDS)[0])

    with listening(lab, os.O_NONBLOCK) as fd:
        threads = [threading.Thread(target=by, args=(fd,)) for by in (by_epoll, by_select) * 4]
        for thread in threads:
            thread.start()
        (lab.gpu / "uevent").write_text("change")
        for thread in threads:
            thread.join()
        assert sorted(woken) == ["epoll"] * 4 + ["select"] * 4


def test_a_slow_reader_loses_the_oldest_and_is_told_so(lab: MountedLab) -> None:
    with listening(lab, os.O_NONBLOCK) as slow, listening(lab, os.O_NONBLOCK) as fast:
        fd = os.open(lab.gpu / "uevent", os.O_WRONLY)
        try:
            for _ in range(BACKLOG):
                os.pwrite(fd, b"change", 0)
            first = hear(fast)
            os.pwrite(fd, b"move", 0)
        finally:
            os.close(fd)
        assert len(first) == BACKLOG and len(hear(fast)) == 1
        refused(errno.ENOBUFS, slow)
        heard = hear(slow)
        assert len(heard) == BACKLOG and heard[-1][0] == f"move@{GPU_PATH}"
        assert heard[0] == first[1]


def test_the_server_ends_while_somebody_listens(fresh_lab: MountedLab) -> None:
    with reader(fresh_lab) as process:
        os.kill(fresh_lab.pid, signal.SIGTERM)
        assert process.wait(SECONDS) != 0
