# SPDX-License-Identifier: Apache-2.0
"""Taking away what a client holds, vGPUs and functions: by waiting until it lets go, and by surprise."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.snapshot import snapshot
from tests.test_sriov import bind_by_override
from tests.vfio.client import (
    DEVICE_GET_INFO,
    DEVICE_RESET,
    GROUP_GET_STATUS,
    DeviceInfo,
    GroupStatus,
    Memory,
    fails,
    ioctl,
)
from tests.vfio.devices import ERR, GPU, MSI, REQ, TRIGGER, eventfd, opened, signals, silent
from tests.waiting import SECONDS, comes_to, wait_for

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e03"
CARD = Path(__file__).parent / "vfio/models/card.py"
LAB = f"""\
[models]
card = "{CARD}:Card"

[mount]
remove = "{{remove}}"

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "256M"
vfs = 2
vf_memory = "16M"
types.vgpu-8 = {{{{ memory = "32M", description = "an eighth" }}}}

[parents.cards]
kind = "virtual"
driver = "card"
slots = 4
types.card-1 = {{{{ description = "a card", instances = 2 }}}}
"""


def mounted(folder: Path, remove: str) -> MountedLab:
    (folder / "lab.toml").write_text(LAB.format(remove=remove))
    return MountedLab(folder, "--config", str(folder / "lab.toml"))


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab where removing waits."""
    with mounted(tmp_path_factory.mktemp("patient"), "wait") as lab:
        yield lab


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab where it fails."""
    with mounted(tmp_path_factory.mktemp("cards"), "busy") as lab:
        yield lab


@pytest.fixture(autouse=True)
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, the lab is as it was before."""
    labs: list[MountedLab] = [
        request.getfixturevalue(name) for name in ("patient", "cards") if name in request.fixturenames
    ]
    before = [snapshot(lab.path) for lab in labs]
    yield
    comes_to(lambda: [snapshot(lab.path) for lab in labs], before)


@contextmanager
def holding(what: Path | int) -> Iterator[int]:
    """Hold a file, by its path or as a descriptor that is closed at the end."""
    fd = what if isinstance(what, int) else os.open(what, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


WRITER = """
import os, signal, sys
signal.signal(signal.SIGUSR1, signal.default_int_handler)
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC)
print(fd, flush=True)
try:
    os.write(fd, sys.argv[2].encode())
    print("written")
except KeyboardInterrupt:
    print("interrupted")
except OSError as error:
    print(error.strerror)
"""


class Writer:
    """A process that writes `text` to `path`, and waits there."""

    def __init__(self, path: Path, text: str) -> None:
        command = [sys.executable, "-c", WRITER, str(path), text]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.fd = int(self.process.stdout.readline())

    def __enter__(self) -> Writer:
        wait_for(self.is_writing)
        return self

    def is_writing(self) -> bool:
        """Whether it is in write(2), or behind that already.  It has printed by a write(2), too."""
        if self.process.poll() is not None:
            return True
        call = Path(f"/proc/{self.process.pid}/syscall").read_text().split()
        return call[1:2] == [hex(self.fd)]

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def waits(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """Its end."""
        return self.process.communicate(timeout=SECONDS)[0].strip()


def remover(vgpu: Vgpu) -> Writer:
    return Writer(vgpu.path / "remove", "1")


def destroyer(vgpu: Vgpu) -> Writer:
    return Writer(vgpu.lab.gpu / "vgpu_destroy", f"{vgpu.name}:0")


def mdev_unbinder(vgpu: Vgpu) -> Writer:
    return Writer(vgpu.lab.path / "sys/bus/mdev/drivers/vfio_mdev/unbind", vgpu.name)


def driver_unbinder(vgpu: Vgpu) -> Writer:
    return Writer(vgpu.lab.path / "sys/bus/pci/drivers/vgpu/unbind", vgpu.lab.gpu.name)


def does_not_answer(device: int) -> bool:
    try:
        os.pread(device, 4, 7 << 40)
    except OSError:  # ENOTCONN or ECONNABORTED
        return True
    return False


def does_not_open(path: Path) -> bool:
    """Whether it is there, and opening it is ENODEV."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error.errno == errno.ENODEV
    return False


def leaves(vgpu: Vgpu) -> bool:
    return does_not_open(vgpu.cdev)


# ---- by waiting ----


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("face", [remover, destroyer])
def test_removing_waits_for_the_holder(
    patient: MountedLab, face: Callable[[Vgpu], Writer], bound: bool
) -> None:
    """Whether or not it has bound the device."""
    vgpu = patient.create()
    group = patient.path / "dev/vfio" / vgpu.group
    held = vgpu.open() if bound else os.open(vgpu.cdev, os.O_RDWR)
    with face(vgpu) as writer:
        wait_for(lambda: does_not_open(vgpu.cdev))
        assert does_not_open(group)
        assert writer.waits and (vgpu.path / "vgpu_uuid").read_text() == f"{vgpu.name}\n"
        assert Vgpu(patient, vgpu.name).group == vgpu.group
        os.close(held)
        assert writer.said() == "written"
    assert not vgpu.path.exists() and not group.exists()


def test_unbinding_waits_for_the_holder(patient: MountedLab) -> None:
    driver = patient.path / "sys/bus/mdev/drivers/vfio_mdev"
    with patient.create() as vgpu:
        held = os.open(vgpu.cdev, os.O_RDWR)
        with mdev_unbinder(vgpu) as writer:
            wait_for(lambda: does_not_open(vgpu.cdev))
            assert writer.waits and (driver / vgpu.name).exists()
            os.close(held)
            assert writer.said() == "written"
        assert not (driver / vgpu.name).exists()
        (driver / "bind").write_text(vgpu.name)


def test_a_driver_that_leaves_waits_for_the_holders_of_its_vgpus(patient: MountedLab) -> None:
    """Meanwhile there are no new vGPUs and virtual functions, and everything else works. All go together."""
    before = snapshot(patient.path)
    driver = patient.path / "sys/bus/pci/drivers/vgpu"
    free, vgpu = patient.create(), patient.create()
    with eventfd() as asked, opened(patient, vgpu.group, vgpu.name) as client:
        client.device.eventfds(REQ, TRIGGER, 0, asked)
        with driver_unbinder(vgpu) as writer:
            assert signals(asked) == 1
            wait_for(lambda: does_not_open(vgpu.cdev) and does_not_open(free.cdev))
            fails(errno.ENODEV, patient.create)
            fails(errno.ENOENT, (patient.gpu / "sriov_numvfs").write_text, "1")
            assert (patient.gpu / "sriov_numvfs").read_text() == "0\n"
            assert client.device.config(0) == 0x1234
            free.remove()
            assert writer.waits and vgpu.path.exists()
            client.device.close()
            assert writer.said() == "written"
        fails(errno.ENODEV, lambda: client.group.flags)
    assert not vgpu.path.exists() and not (patient.gpu / "driver").exists()
    (driver / "bind").write_text(patient.gpu.name)
    comes_to(lambda: snapshot(patient.path), before)


@pytest.mark.parametrize("by", ["sriov_numvfs", "unbind"])
def test_virtual_functions_wait_for_their_holders(patient: MountedLab, by: str) -> None:
    name, pci = "0000:86:00.4", patient.path / "sys/bus/pci"
    sriov_numvfs = patient.gpu / "sriov_numvfs"
    sriov_numvfs.write_text("2")
    bind_by_override(patient, name)
    group = os.readlink(pci / "devices" / name / "iommu_group").rsplit("/", 1)[1]
    with opened(patient, group, name) as client, eventfd() as asked:
        client.device.eventfds(REQ, TRIGGER, 0, asked)
        path, text = (sriov_numvfs, "0") if by == "sriov_numvfs" else (pci / "drivers/vgpu/unbind", GPU)
        with Writer(path, text) as writer:
            assert signals(asked) == 1
            assert sriov_numvfs.read_text() == "2\n" and len(os.listdir(pci / "devices")) >= 3
            assert Writer(sriov_numvfs, "2").said() == "written"  # who waits keeps nobody else waiting
            client.device.close()
            assert writer.said() == "written"
    assert sriov_numvfs.read_text() == "0\n" and not (pci / "devices" / name).exists()
    if by == "unbind":
        (pci / "drivers/vgpu/bind").write_text(GPU)


@pytest.mark.parametrize("face", [mdev_unbinder, driver_unbinder])
def test_a_signal_ends_the_wait_of_a_driver_that_leaves(
    patient: MountedLab, face: Callable[[Vgpu], Writer]
) -> None:
    with patient.create() as other, patient.create() as vgpu, holding(vgpu.cdev):
        before = snapshot(patient.path)
        with face(vgpu) as writer:
            wait_for(lambda: does_not_open(vgpu.cdev))
            writer.process.send_signal(signal.SIGUSR1)
            assert writer.said() == "interrupted"
        comes_to(lambda: snapshot(patient.path), before)
        for each in (other, vgpu):
            with holding(each.cdev):
                pass
        patient.create().remove()


def test_what_nobody_holds_goes_at_once(patient: MountedLab) -> None:
    vgpu = patient.create()
    vgpu.remove()
    assert not vgpu.path.exists()
    vgpu = patient.create()
    (patient.gpu / "vgpu_destroy").write_text(f"{vgpu.name}:0")
    assert not vgpu.path.exists()


def test_what_is_malformed_or_not_there_is_refused_at_once(patient: MountedLab) -> None:
    with patient.create() as vgpu, holding(vgpu.cdev):
        for path, text, number in (
            (vgpu.path / "remove", "x", errno.EINVAL),
            (patient.gpu / "vgpu_destroy", vgpu.name, errno.EINVAL),
            (patient.gpu / "vgpu_destroy", f"{UUID}:0", errno.ENODEV),
        ):
            fails(number, path.write_text, text)
        (vgpu.path / "remove").write_text("0")
        with holding(vgpu.cdev):
            assert vgpu.path.exists()


def test_the_holder_is_asked_to_let_go(patient: MountedLab) -> None:
    vgpu = patient.create()
    with eventfd() as asked, opened(patient, vgpu.group, vgpu.name) as client:
        client.device.eventfds(REQ, TRIGGER, 0, asked)
        writer = remover(vgpu)
        with writer:
            assert signals(asked) == 1 and writer.waits
            client.device.close()
            assert writer.said() == "written"  # the group is open still


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
@pytest.mark.parametrize("face", [remover, destroyer])
def test_a_signal_ends_the_wait_and_nothing_has_changed(
    patient: MountedLab, face: Callable[[Vgpu], Writer], number: signal.Signals
) -> None:
    with patient.create() as vgpu, holding(vgpu.cdev):
        before = snapshot(patient.path)
        for _ in range(3):
            with face(vgpu) as writer:
                wait_for(lambda: does_not_open(vgpu.cdev))
                writer.process.send_signal(number)
                assert writer.said() == ("interrupted" if number == signal.SIGUSR1 else "")
            wait_for(lambda: not does_not_open(vgpu.cdev))  # SIGKILL ends the process before we hear of it
            comes_to(lambda: snapshot(patient.path), before)
            with holding(patient.path / "dev/vfio" / vgpu.group):
                pass


def test_an_interrupted_write_is_eintr(patient: MountedLab) -> None:
    """The system call itself says so, whatever a language makes of it."""
    program = (
        "import ctypes, os, signal, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY)\n"
        "print(flush=True)\n"
        "print(libc.write(fd, b'1', 1), ctypes.get_errno())\n"
    )
    with patient.create() as vgpu, holding(vgpu.cdev):
        command = [sys.executable, "-c", program, str(vgpu.path / "remove")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "\n"
            wait_for(lambda: does_not_open(vgpu.cdev))
            process.send_signal(signal.SIGUSR1)
            assert process.stdout.read() == f"-1 {errno.EINTR}\n"


def test_of_two_who_wait_one_removes_it(patient: MountedLab) -> None:
    vgpu = patient.create()
    held = os.open(vgpu.cdev, os.O_RDWR)
    with remover(vgpu) as one, destroyer(vgpu) as two, remover(vgpu) as three:
        wait_for(lambda: does_not_open(vgpu.cdev))
        os.kill(three.process.pid, signal.SIGUSR1)
        assert three.said() == "interrupted"
        assert does_not_open(vgpu.cdev)  # for the sake of the other two
        os.close(held)
        assert sorted([one.said(), two.said()]) == ["No such device", "written"]


def test_who_waits_keeps_nobody_else_waiting(patient: MountedLab) -> None:
    """The same attribute serves others, shells that truncate it among them, and can be looked at."""
    with patient.create() as vgpu, holding(vgpu.cdev), destroyer(vgpu) as writer:
        wait_for(lambda: does_not_open(vgpu.cdev))
        for _ in range(3):
            other = patient.create()
            done = subprocess.run(
                ["sh", "-c", f"echo {other.name}:0 > {patient.gpu}/vgpu_destroy"],
                timeout=SECONDS,
                check=False,
            )
            assert done.returncode == 0 and not other.path.exists()
        assert os.stat(patient.gpu / "vgpu_destroy").st_mode & 0o777 == 0o200
        (patient.gpu / "vgpu_destroy").chmod(0o220)
        assert os.stat(patient.gpu / "vgpu_destroy").st_mode & 0o777 == 0o220
        (patient.gpu / "vgpu_destroy").chmod(0o200)
        assert writer.waits
        writer.process.send_signal(signal.SIGUSR1)
        assert writer.said() == "interrupted"


def test_more_wait_than_there_are_tasks(patient: MountedLab) -> None:
    """pyfuse3 has 99 tasks: writes that wait keep none of them."""
    ended = []

    def write(fd: int) -> None:
        try:
            os.write(fd, b"1")
        except OSError as error:
            ended.append(error.errno)

    vgpu = patient.create()
    held = os.open(vgpu.cdev, os.O_RDWR)
    files = [os.open(vgpu.path / "remove", os.O_WRONLY) for _ in range(120)]
    threads = [threading.Thread(target=write, args=(fd,), daemon=True) for fd in files]
    for thread in threads:
        thread.start()
    wait_for(lambda: does_not_open(vgpu.cdev))
    with patient.create():
        assert snapshot(patient.gpu)
    os.close(held)
    for thread in threads:
        thread.join(SECONDS)
    assert ended == [errno.ENODEV] * 119
    for fd in files:
        os.close(fd)


def test_the_server_ends_while_somebody_waits(tmp_path: Path) -> None:
    with mounted(tmp_path, "wait") as lab:
        vgpu = lab.create()
        held = vgpu.open()
        with remover(vgpu) as writer:
            wait_for(lambda: does_not_open(vgpu.cdev))
            os.kill(lab.pid, signal.SIGTERM)
            assert writer.said() not in ("written", "interrupted")
        wait_for(lambda: does_not_answer(held))
        os.close(held)


# ---- by surprise ----


def surprise(vgpu: Vgpu) -> None:
    (vgpu.path / "surprise_remove").write_text("1")


def test_a_vgpu_that_nobody_holds_is_gone(cards: MountedLab) -> None:
    for text in ("1", "2\n"):
        vgpu = cards.create()
        (vgpu.path / "surprise_remove").write_text("0")
        fails(errno.EINVAL, (vgpu.path / "surprise_remove").write_text, "x")
        assert vgpu.path.exists()
        (vgpu.path / "surprise_remove").write_text(text)
        assert not vgpu.path.exists()


def test_what_the_holder_has_answers_as_if_there_was_nothing(cards: MountedLab) -> None:
    vgpu = cards.create("card-1", "cards")
    with ExitStack() as stack:
        err, req, msi = (stack.enter_context(eventfd()) for _ in range(3))
        client = stack.enter_context(opened(cards, vgpu.group, vgpu.name))
        device, fd = client.device, client.device.fd
        for index, number in ((ERR, err), (REQ, req), (MSI, msi)):
            device.eventfds(index, TRIGGER, 0, number)
        memory = Memory(mmap.PAGESIZE)
        stack.callback(memory.close)
        client.container.map(0, memory.address, mmap.PAGESIZE)
        os.pwrite(fd, b"kept", 0)
        assert device.config(0) == 0x1234 and os.pread(fd, 4, 2 << 40) == bytes.fromhex("fe5a0000")
        assert signals(msi)
        assert silent(err) and silent(req)
        surprise(vgpu)
        assert not vgpu.path.exists()
        assert signals(err) == 1 and signals(req) == 1
        for place in (0, (1 << 20) - 8, 2 << 40, (2 << 40) + 4, 7 << 40, (7 << 40) + 0x3C):
            os.pwrite(fd, bytes(4), place)
            assert os.pread(fd, 4, place) == b"\xff" * 4
        fails(errno.EINVAL, os.pread, fd, 4, 1 << 20)
        for cmd in (DEVICE_GET_INFO, DEVICE_RESET):
            fails(errno.ENODEV, ioctl, fd, cmd, DeviceInfo())
        fails(errno.ENODEV, device.eventfds, REQ, TRIGGER, 0, req)
        signals(msi, 0)
        time.sleep(0.05)
        assert silent(msi)  # it does nothing any more
        ioctl(client.group.fd, GROUP_GET_STATUS, GroupStatus())
        assert client.container.unmap(0, mmap.PAGESIZE) == mmap.PAGESIZE


@needs.passthrough
def test_mapped_pages_stay_and_are_the_holders_alone(cards: MountedLab) -> None:
    vgpu = cards.create("card-1", "cards")
    with holding(vgpu.open()) as fd:
        pages = mmap.mmap(fd, 1 << 20)
        pages[:4] = b"mine"
        surprise(vgpu)
        pages[4:8] = b"too "
        assert pages[:8] == b"minetoo "
        with cards.create("card-1", "cards") as other, holding(other.open()) as another:
            assert os.pread(another, 8, 0) == bytes(8)
    assert pages[:8] == b"minetoo "
    pages.close()


def test_nothing_of_it_is_given_away_before_the_holder_lets_go(cards: MountedLab) -> None:
    def left() -> tuple[str, str]:
        instances = (cards.parent("cards") / "mdev_supported_types/card-1/available_instances").read_text()
        return (cards.gpu / "vram_free").read_text(), instances

    free = left()
    vgpu, card = cards.create(), cards.create("card-1", "cards")
    taken = left()
    assert taken != free
    held = [os.open(each.cdev, os.O_RDWR) for each in (vgpu, card)]
    surprise(vgpu)
    surprise(card)
    assert left() == taken
    fails(errno.ENOSPC, lambda: [cards.create("card-1", "cards") for _ in range(2)])
    (made,) = os.listdir(cards.mdevs)
    with Vgpu(cards, made) as third:
        assert third.group not in (vgpu.group, card.group) and third.vfio not in (vgpu.vfio, card.vfio)
    for fd in held:
        os.close(fd)
    wait_for(lambda: left() == free)
    with cards.create() as again:
        assert again.group in (vgpu.group, card.group)


def test_the_same_name_can_be_had_again_at_once(cards: MountedLab) -> None:
    create = cards.gpu / "mdev_supported_types/vgpu-8/create"
    create.write_text(UUID)
    with holding(Vgpu(cards, UUID).open()) as old:
        os.pwrite(old, b"old", 0)
        surprise(Vgpu(cards, UUID))
        create.write_text(UUID)
        with Vgpu(cards, UUID) as vgpu, holding(vgpu.open()) as new:
            assert os.pread(new, 3, 0) == bytes(3) and os.pread(old, 3, 0) == b"\xff" * 3
            assert os.pread(new, 2, 7 << 40) == b"\x34\x12"


def test_open_files_of_sysfs_are_enodev(cards: MountedLab) -> None:
    vgpu = cards.create("card-1", "cards")
    with ExitStack() as stack:
        stack.enter_context(holding(vgpu.cdev))
        names = ("config", "resource0", "resource2")
        files = [stack.enter_context(holding(vgpu.path / name)) for name in names]
        for fd in files:
            assert os.pread(fd, 4, 0)
        surprise(vgpu)
        for fd in files:
            fails(errno.ENODEV, os.pread, fd, 4, 0)
            fails(errno.ENODEV, os.pwrite, fd, b"1234", 0)


def test_a_holder_that_is_killed_leaves_nothing(cards: MountedLab) -> None:
    vgpu = cards.create()
    script = f"exec 3<>{vgpu.cdev} 4<>{cards.path}/dev/vfio/{vgpu.group}; echo; read forever"
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", script], stdin=pipe, stdout=pipe, text=True) as client:
        assert client.stdout is not None and client.stdout.readline() == "\n"
        surprise(vgpu)
        client.kill()
    wait_for(lambda: (cards.gpu / "vram_free").read_text() == (cards.gpu / "vram_total").read_text())


def test_many_go_by_surprise_while_clients_use_them(cards: MountedLab) -> None:
    """Accesses and the end of the device meet in every order: a read is the device's, or all ones."""
    stop = threading.Event()
    wrong: list[bytes] = []

    def read(fd: int) -> None:
        while not stop.is_set():
            got = os.pread(fd, 4, 7 << 40)
            os.pwrite(fd, b"data", 0)
            if got not in (b"\x34\x12\x11\x11", b"\xff" * 4):
                wrong.append(got)

    for _ in range(5):
        vgpus = [cards.create() for _ in range(4)]
        held = [vgpu.open() for vgpu in vgpus]
        stop.clear()
        threads = [threading.Thread(target=read, args=(fd,)) for fd in held]
        for thread in threads:
            thread.start()
        for vgpu in vgpus:
            surprise(vgpu)
        stop.set()
        for thread in threads:
            thread.join()
        assert all(os.pread(fd, 4, 7 << 40) == b"\xff" * 4 for fd in held)
        for fd in held:
            os.close(fd)
    assert wrong == []
    wait_for(lambda: (cards.gpu / "vram_free").read_text() == (cards.gpu / "vram_total").read_text())


def test_surprise_removal_while_somebody_waits_for_the_removal(patient: MountedLab) -> None:
    vgpu = patient.create()
    with holding(vgpu.cdev), remover(vgpu) as writer:
        wait_for(lambda: does_not_open(vgpu.cdev))
        surprise(vgpu)
        assert not vgpu.path.exists()
        assert writer.said() == "No such device"


def test_the_command_removes_by_any_name(cards: MountedLab) -> None:
    for name in ("vgpu0", "its uuid", "its directory"):
        (cards.gpu / "vgpu_create").write_text(f"{UUID}:0:vgpu-8")
        vgpu = Vgpu(cards, f"{UUID}-0")
        with holding(vgpu.cdev):
            said = vfsfuse(
                "surprise-remove",
                {"its uuid": UUID, "its directory": vgpu.name}.get(name, name),
                "--mount",
                cards.path,
            )
            assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
            assert not vgpu.path.exists()
    said = vfsfuse("surprise-remove", str(uuid.uuid4()), "--mount", cards.path)
    assert said.returncode == 1 and said.stdout == ""
    assert said.stderr.startswith("vfsfuse: surprise-remove: ") and "there is no such vGPU" in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize("traced", [False, True], ids=["nobody looks", "traced"])
def test_an_open_that_meets_a_surprise_removal_finds_no_device(lab: MountedLab, traced: bool) -> None:
    """The kernel looks at the answer to an open after the device has gone: that is no EIO.  While somebody
    observes, another thread opens it, and finds it gone then."""
    trace = os.open(lab.path / "trace", os.O_RDONLY | os.O_CLOEXEC) if traced else -1
    vfio, errors, ended = lab.path / "dev/vfio/devices", set[int | None](), threading.Event()

    def open_all() -> None:
        while not ended.is_set():
            for name in os.listdir(vfio):
                try:
                    os.close(os.open(vfio / name, os.O_RDWR | os.O_CLOEXEC))
                except OSError as error:
                    errors.add(error.errno)

    threads = [threading.Thread(target=open_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(400):
        surprise(lab.create())
    ended.set()
    for thread in threads:
        thread.join()
    if traced:
        os.close(trace)
    assert errors <= {errno.ENOENT, errno.ENODEV}
