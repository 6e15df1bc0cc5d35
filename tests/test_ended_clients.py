# SPDX-License-Identifier: Apache-2.0
"""Clients that have ended, and files of theirs that are closed a moment later: by the supervisor of a
`vfsfuse run`, which is the test itself here, or by a real one, when its clients are killed at any moment.

Nobody else finds a group or a device in use because of them.  What another process has, it has.  An open
waits for the group and the devices of it, a removal for the devices alone.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import tests.commands
from tests.commands import ROOT, VFSFUSE
from tests.labs import MountedLab, Vgpu
from tests.patient_server import SECONDS as PATIENCE
from tests.snapshot import snapshot
from tests.test_sriov import VFS, bind_by_override, enable, store, vf_dir
from tests.vfio.client import Container, Group, fails
from tests.vfio.devices import group_device, opened, prepared_device
from tests.vfio.test_lifetimes import child, reap

Compile = Callable[..., Path]
CLOSES_AFTER = 0.15
"""Seconds after which a file that was left behind is closed."""
AT_ONCE = PATIENCE * 0.9
"""A call that waits for somebody who stays takes PATIENCE."""
USUAL = 0.5
"""Seconds for which a server waits that is not told otherwise."""
HANG = 20
"""No call takes so many seconds, however busy the machine is."""
LONG = 250
"""Seconds that hundreds of programs may take there, one after the other."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab that waits long (tests.patient_server)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.commands, "VFSFUSE", [sys.executable, "-m", "tests.patient_server"])
        made = MountedLab(tmp_path_factory.mktemp("lab"))
    with made as mounted:
        yield mounted


@contextmanager
def made_vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    """A vGPU, which a test may remove."""
    before = snapshot(lab.path)
    made = lab.create()
    yield made
    with suppress(FileNotFoundError):
        made.remove()
    assert snapshot(lab.path) == before


@pytest.fixture
def vgpu(lab: MountedLab) -> Iterator[Vgpu]:
    with made_vgpu(lab) as made:
        yield made


@pytest.fixture
def usual(fresh_lab: MountedLab) -> Iterator[Vgpu]:
    """One of a lab that does not wait long."""
    with made_vgpu(fresh_lab) as made:
        yield made


def left_behind(take: Callable[[], list[int]], reaped: bool = True) -> list[int]:
    """Copies of the files that `take` opens in a process which ends then."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = child(lambda: socket.send_fds(theirs, [b"x"], take()))
        os.waitid(os.P_PID, pid, os.WEXITED | (0 if reaped else os.WNOWAIT))
        return list(socket.recv_fds(ours, 1, 8)[1])


def group_file(lab: MountedLab, number: str) -> list[int]:
    return [os.open(lab.path / "dev/vfio" / number, os.O_RDWR)]


def device_file(lab: MountedLab, number: str, name: str) -> list[int]:
    """A device's file, whose group's file is closed."""
    container, group = Container(lab.path), Group(lab.path, number)
    group.set_container(container)
    container.set_iommu()
    device = group_device(lab.path, group, name)
    group.close()
    return [device]


@contextmanager
def closing(*fds: int) -> Iterator[Callable[[], float]]:
    """The files are closed after a while.  Gives what says how many seconds have passed of it: what waits for
    the close takes CLOSES_AFTER from the beginning on, whenever it begins itself."""
    begun = time.monotonic()
    timers = [threading.Timer(CLOSES_AFTER, os.close, (fd,)) for fd in fds]
    for timer in timers:
        timer.start()
    yield lambda: time.monotonic() - begun
    for timer in timers:
        timer.join()


def seconds(call: Callable[[], object], number: int) -> float:
    """How long the call takes, which fails with errno `number`."""
    begun = time.monotonic()
    fails(number, call)
    return time.monotonic() - begun


def open_group(lab: MountedLab, number: str) -> None:
    Group(lab.path, number).close()


def unbind(vgpu: Vgpu) -> None:
    (vgpu.lab.path / "sys/bus/mdev/drivers/vfio_mdev/unbind").write_text(vgpu.name)


CHANGES: dict[str, Callable[[Vgpu], object]] = {
    "open": lambda vgpu: open_group(vgpu.lab, vgpu.group),
    "remove": Vgpu.remove,
    "vgpu_destroy": lambda vgpu: (vgpu.lab.gpu / "vgpu_destroy").write_text(f"{vgpu.name}:0\n"),
    "unbind": unbind,
}


def keeping(change: str, vgpu: Vgpu) -> list[int]:
    """An open file that stands in the way of the change."""
    if change == "open":
        return group_file(vgpu.lab, vgpu.group)
    return device_file(vgpu.lab, vgpu.group, vgpu.name)


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
@pytest.mark.parametrize(("file", "change"), [("group", "open"), *[("device", change) for change in CHANGES]])
def test_what_a_client_left_behind_is_waited_for(vgpu: Vgpu, change: str, file: str, reaped: bool) -> None:
    def take() -> list[int]:
        number = vgpu.group
        return group_file(vgpu.lab, number) if file == "group" else device_file(vgpu.lab, number, vgpu.name)

    with closing(*left_behind(take, reaped)) as passed:
        CHANGES[change](vgpu)
        took = passed()
    assert CLOSES_AFTER <= took < PATIENCE
    if not reaped:
        os.wait()


@pytest.mark.parametrize("change", CHANGES)
def test_what_stays_open_is_busy_and_waited_for_once(usual: Vgpu, change: str) -> None:
    """An heir has the file: whoever comes first finds that out, the others get the answer at once."""
    (heir,) = left_behind(lambda: keeping(change, usual))
    before = snapshot(usual.lab.path)
    first, *others = (seconds(lambda: CHANGES[change](usual), errno.EBUSY) for _ in range(10))
    assert USUAL * 0.9 < first < HANG
    assert statistics.median(others) < USUAL * 0.9
    assert snapshot(usual.lab.path) == before
    os.close(heir)


def test_virtual_functions_that_a_client_left_behind_are_waited_for(lab: MountedLab) -> None:
    enable(lab, 3)
    for name in VFS[:2]:
        bind_by_override(lab, name)
    groups = [os.readlink(vf_dir(lab, name) / "iommu_group").rsplit("/", 1)[1] for name in VFS[:2]]
    with closing(*left_behind(lambda: device_file(lab, groups[0], VFS[0]))) as passed:
        store(lab, "drivers/vfio-pci/unbind", VFS[0])
        assert passed() >= CLOSES_AFTER
    bind_by_override(lab, VFS[0])
    pairs = [*zip(groups, VFS, strict=False)]
    left = left_behind(lambda: [fd for number, name in pairs for fd in device_file(lab, number, name)])
    with closing(*left) as passed:
        enable(lab, 0)
        assert CLOSES_AFTER <= passed() < PATIENCE


def test_one_that_lives_among_them_is_not_waited_for(lab: MountedLab) -> None:
    """Nothing can come of waiting for the others."""
    enable(lab, 2)
    for name in VFS[:2]:
        bind_by_override(lab, name)
    groups = [os.readlink(vf_dir(lab, name) / "iommu_group").rsplit("/", 1)[1] for name in VFS[:2]]
    (heir,) = left_behind(lambda: device_file(lab, groups[0], VFS[0]))
    with opened(lab, groups[1], VFS[1]):
        assert min(seconds(lambda: enable(lab, 0), errno.EBUSY) for _ in range(3)) < AT_ONCE
    os.close(heir)
    enable(lab, 0)


def test_a_device_that_lives_beside_the_group_is_not_waited_for(vgpu: Vgpu) -> None:
    """Its own file is another client's."""
    (heir,) = left_behind(lambda: device_file(vgpu.lab, vgpu.group, vgpu.name))
    cdev = os.open(vgpu.cdev, os.O_RDWR)
    assert seconds(vgpu.remove, errno.EBUSY) < AT_ONCE
    os.close(cdev)
    os.close(heir)


def in_thread(call: Callable[[], object]) -> None:
    """Make the call on a thread that ends then."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def held_by_a_thread_that_ended(vgpu: Vgpu, change: str) -> int:
    def hold() -> None:
        in_thread(lambda: keeping(change, vgpu))
        os.write(said, b"x")
        time.sleep(60)

    ready, said = os.pipe()
    pid = child(hold)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.close(said)
    return pid


OUTLIVES = """\
import ctypes, os, sys, threading, time
from pathlib import Path
from tests.labs import MountedLab, Vgpu
from tests.test_ended_clients import keeping
keeping(sys.argv[2], Vgpu(MountedLab(Path(sys.argv[1]).parent), sys.argv[3]))
first = threading.main_thread().native_id
def outlive():
    while open(f"/proc/self/task/{first}/stat").read().rsplit(") ", 1)[1][0] != "Z":
        time.sleep(0.001)
    os.write(1, b"x")
    time.sleep(60)
threading.Thread(target=outlive, daemon=True).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def held_by_a_process_whose_first_thread_ended(vgpu: Vgpu, change: str) -> int:
    ready, said = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(said, 1)
        arguments = (str(vgpu.lab.path), change, vgpu.name)
        os.execv(sys.executable, [sys.executable, "-c", OUTLIVES, *arguments])
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.close(said)
    return pid


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "hold", [held_by_a_thread_that_ended, held_by_a_process_whose_first_thread_ended], ids=["other", "first"]
)
def test_a_living_process_keeps_it_though_its_thread_has_ended(
    vgpu: Vgpu, hold: Callable[[Vgpu, str], int], change: str
) -> None:
    pid = hold(vgpu, change)
    assert min(seconds(lambda: CHANGES[change](vgpu), errno.EBUSY) for _ in range(3)) < AT_ONCE
    reap(pid, signal.SIGKILL)
    CHANGES[change](vgpu)


def test_others_are_served_while_an_open_waits(vgpu: Vgpu) -> None:
    (heir,) = left_behind(lambda: group_file(vgpu.lab, vgpu.group))
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_group, vgpu.lab, vgpu.group)
        time.sleep(0.05)
        for _ in range(50):
            Container(vgpu.lab.path).close()
        assert not opening.done()
        os.close(heir)
        opening.result()


def test_one_of_many_that_wait_gets_it(vgpu: Vgpu) -> None:
    """The others find a living process there."""
    got: list[int] = []

    def contend() -> None:
        try:
            got.extend(group_file(vgpu.lab, vgpu.group))
        except OSError as error:
            assert error.errno == errno.EBUSY
            got.append(-1)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    with closing(*left_behind(lambda: group_file(vgpu.lab, vgpu.group))):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 8 and got.count(-1) == 7
    os.close(max(got))


@pytest.mark.parametrize("comes_free", [True, False])
def test_a_client_that_is_killed_while_it_waits_leaves_nothing(vgpu: Vgpu, comes_free: bool) -> None:
    """The kernel takes the open file of a client that is being killed, and closes it."""
    left = left_behind(lambda: group_file(vgpu.lab, vgpu.group))
    for _ in range(3):
        pid = child(lambda: time.sleep(60 * len(group_file(vgpu.lab, vgpu.group))))
        time.sleep(0.05)
        if comes_free:
            with closing(*left):
                reap(pid, signal.SIGKILL)
            left = left_behind(lambda: group_file(vgpu.lab, vgpu.group))
        else:
            reap(pid, signal.SIGKILL)
    for fd in left:
        os.close(fd)
    open_group(vgpu.lab, vgpu.group)


def test_an_interrupted_open_is_answered(vgpu: Vgpu) -> None:
    """A signal does not make it fail: on Linux nothing would wait there."""
    ticks: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: ticks.append(number))
    try:
        with closing(*left_behind(lambda: group_file(vgpu.lab, vgpu.group))) as passed:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            open_group(vgpu.lab, vgpu.group)
            took = passed()
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert took >= CLOSES_AFTER and ticks


def test_an_open_that_waited_is_like_any_other(vgpu: Vgpu) -> None:
    with (
        closing(*left_behind(lambda: device_file(vgpu.lab, vgpu.group, vgpu.name))),
        opened(vgpu.lab, vgpu.group, vgpu.name) as found,
    ):
        assert found.device.config(0) == 0x1234
    path = vgpu.lab.path / "dev/vfio" / vgpu.group
    with closing(*left_behind(lambda: group_file(vgpu.lab, vgpu.group))):
        fails(errno.EINVAL, os.open, path, os.O_RDWR | os.O_DIRECT)
    open_group(vgpu.lab, vgpu.group)


def test_a_group_that_goes_while_an_open_waits_is_enodev(lab: MountedLab) -> None:
    vgpu = lab.create()
    (heir,) = left_behind(lambda: group_file(lab, vgpu.group))
    timer = threading.Timer(CLOSES_AFTER, (vgpu.path / "surprise_remove").write_text, ("1",))
    timer.start()
    fd = os.open(lab.path / "dev/vfio" / vgpu.group, os.O_PATH)
    fails(errno.ENODEV, os.open, f"/proc/self/fd/{fd}", os.O_RDWR)
    timer.join()
    os.close(heir)
    os.close(fd)


def test_the_group_of_a_child_that_ended_in_the_call_can_leave_its_container(vgpu: Vgpu) -> None:
    """The parent has the group.  The child asked for the device, which its supervisor still has."""
    with Container(vgpu.lab.path) as container, Group(vgpu.lab.path, vgpu.group) as group:
        group.set_container(container)
        container.set_iommu()
        for tid in (os.getpid(), None):
            pid = child(lambda: time.sleep(60))
            path = prepared_device(vgpu.lab.path, group.fd, vgpu.name, tid or pid)
            reap(pid, signal.SIGKILL)
            file = os.open(path, os.O_RDWR)
            if tid:
                assert seconds(group.unset_container, errno.EBUSY) < AT_ONCE
                os.close(file)
            else:
                with closing(file) as passed:
                    group.unset_container()
                    assert CLOSES_AFTER <= passed() < PATIENCE


KILLS = """\
import errno, os, random, subprocess, sys, time
program, parent, what, count = *sys.argv[1:4], int(sys.argv[4])
mdevs, moments, busy = "/sys/bus/mdev/devices", random.Random(12), 0

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

def create():
    write(f"/sys/class/mdev_bus/{parent}/mdev_supported_types/vgpu-8/create", name)
    return os.readlink(f"{mdevs}/{name}/iommu_group").rsplit("/", 1)[1]

def open_group():
    os.close(os.open(f"/dev/vfio/{group}", os.O_RDWR))

def remove():
    write(f"{mdevs}/{name}/remove", "1")

name = "5e2d7a10-6b1f-4f0e-9a57-3f4f5b6c7d8e"
group = create()
for _ in range(count):
    client = subprocess.Popen([program, group, name, "forever"], stderr=subprocess.DEVNULL)
    time.sleep(moments.uniform(0.002, 0.02))
    client.kill()
    client.wait()
    try:
        {"open": open_group, "remove": remove}[what]()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        busy += 1
        time.sleep(1)
    else:
        group = create() if what == "remove" else group
remove()
print(busy)
"""


@pytest.mark.parametrize(("what", "kills"), [("open", 300), ("remove", 150)])
def test_no_client_killed_at_any_moment_leaves_its_group_in_use(
    lab: MountedLab, compile_client: Compile, what: str, kills: int
) -> None:
    """Some are killed in the middle of VFIO_GROUP_GET_DEVICE_FD: one in a hundred, more on a busy machine."""
    program = compile_client("device_fd")
    command = [*VFSFUSE, "run", "--mount", str(lab.path), "--", sys.executable, "-c", KILLS]
    command += [str(program), "0000:86:00.0", what, str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONG, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
