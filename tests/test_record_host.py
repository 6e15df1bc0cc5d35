# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse record --host`: the recorder that sees a program's VFIO calls from the program's side.

A lab plays the real machine: the recorder runs within `vfsfuse run`, or uses the files of a bare mount.  What
the lab's server records of the same dialogue is what the recorder is compared with.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import needs, ordinary_user
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.labs import MountedLab
from tests.test_run import in_terminal
from tests.tracers import UUID, programs, started
from tests.waiting import wait_for
from vfsfuse.recording.reading import read
from vfsfuse.recording.recording import Event, Recording

Compile = Callable[..., Path]
SECONDS = 60
GROUP = f"$(basename $(readlink /sys/bus/mdev/devices/{UUID}/iommu_group))"


class Device(NamedTuple):
    """A device, in a lab of its own."""

    parent: str
    type: str
    config: str = ""

    @property
    def create(self) -> str:
        """The command that makes it."""
        return f"echo {UUID} > /sys/class/mdev_bus/{self.parent}/mdev_supported_types/{self.type}/create"

    @property
    def options(self) -> tuple[str, ...]:
        """What chooses the lab."""
        return ("--config", self.config) if self.config else ()


MTTY, VGPU = Device("mtty", "mtty-1"), Device("0000:86:00.0", "vgpu-1")
COPIER = Device("copiers", "copier-1", "examples/copier.toml")
ADDRESSES = {"VFIO_IOMMU_MAP_DMA": slice(8, 16), "IOMMU_IOAS_MAP": slice(16, 24)}
"""Where an ioctl has an address of the program's memory."""
OPEN = f"""
import ctypes, fcntl, mmap, os, socket, struct, sys, threading
def number(nr):
    return ord(";") << 8 | 100 + nr
def use():
    group = os.readlink("/sys/bus/mdev/devices/{UUID}/iommu_group").rpartition("/")[2]
    files = [os.open("/dev/vfio/" + name, os.O_RDWR) for name in ("vfio", group)]
    fcntl.ioctl(files[1], number(4), struct.pack("i", files[0]))
    fcntl.ioctl(files[0], number(2), 3)
    return fcntl.ioctl(files[1], number(6), bytearray(b"{UUID}\\0"))
def region(device, index, size=32):
    answer = bytearray(struct.pack("4I2Q", size, 0, index, 0, 0, 0).ljust(size, b"\\0"))
    fcntl.ioctl(device, number(8), answer)
    return answer
device = use()
"""
"""The beginning of a client in Python."""


def in_lab(script: str, device: Device = MTTY) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a lab of its own, once the device is there."""
    return vfsfuse("run", *device.options, "--", "sh", "-c", f"{device.create}; {script}")


def host_recorder(out: Path, *options: str) -> str:
    """The beginning of a command that records another one."""
    return shlex.join([*VFSFUSE, "record", "--host", "-q", "-o", str(out), *options, "--"])


def recorded(
    tmp_path: Path, command: str, device: Device = MTTY, *options: str
) -> tuple[subprocess.CompletedProcess[str], Recording]:
    """What a command says when it is recorded from its own side, and the recording."""
    out = tmp_path / "host.recording"
    done = in_lab(f"{host_recorder(out, *options)} {command}", device)
    return done, read(out)


def recorded_by_lab(tmp_path: Path, command: str, device: Device = MTTY) -> Recording:
    """The recording of a command that the server of the lab makes."""
    out, script = tmp_path / "lab.recording", f"{device.create}; {command}"
    done = vfsfuse("record", "-q", "-o", out, *device.options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return read(out)


def python(script: str) -> str:
    """A command that runs a client in Python, which begins with OPEN."""
    return shlex.join([sys.executable, "-c", OPEN + script])


def plain(event: Event) -> Event:
    """The event without its time and without addresses."""
    event = replace(event, time=0.0)
    if event.name in ADDRESSES:
        for name in ("before", "after"):
            struct = bytearray(getattr(event, name))
            struct[ADDRESSES[event.name]] = bytes(8)
            setattr(event, name, bytes(struct))
    return event


def dialogue(recording: Recording) -> list[Event]:
    """The events that the program's side can see.  A program's end closes its files in any order."""
    events = [plain(event) for event in recording.events if event.kind != "dma"]
    last = next(at for at in range(len(events), 0, -1) if events[at - 1].kind != "close")
    return events[:last] + sorted(events[last:], key=lambda event: (event.file, event.name))


def kinds(recording: Recording, *wanted: str) -> list[tuple[str, int, int, bytes]]:
    """Accesses of a recording."""
    return [
        (event.kind, event.region, event.offset, event.data)
        for event in recording.events
        if event.kind in wanted
    ]


def same(host: Recording, lab: Recording) -> None:
    """The two recordings have the same devices and the same dialogue."""
    assert [replace(device, names={}) for device in lab.devices] == host.devices
    assert dialogue(host) == dialogue(lab)
    assert len(host.events) > 10


# ---- the same dialogue as a lab's server records ----


def test_a_client_of_a_group(tmp_path: Path, compile_client: Compile) -> None:
    command = f"{compile_client('copier_client')} 0 {UUID}"
    done, host = recorded(tmp_path, command, COPIER)
    assert (done.returncode, done.stdout, done.stderr) == (0, "status 1\nok\n", "")
    same(host, recorded_by_lab(tmp_path, command, COPIER))
    assert [event.vector for event in host.events if event.kind == "interrupt"] == [0]
    assert host.source == "host" and not host.shows_mmap


def test_the_driver_of_the_examples(tmp_path: Path) -> None:
    program = tmp_path / "copy"
    subprocess.run(["gcc", "-o", program, ROOT / "examples/driver/copy.c"], check=True)
    done, host = recorded(tmp_path, f"{program} 0 {UUID} 100", COPIER)
    assert (done.returncode, done.stdout) == (0, f"{'*' * 100}\n")
    same(host, recorded_by_lab(tmp_path, f"{program} 0 {UUID} 100", COPIER))


@pytest.mark.parametrize("how", ["", "-t", "-f"], ids=["one thread", "a thread", "a forked child"])
def test_groups_and_who_uses_them(tmp_path: Path, compile_client: Compile, how: str) -> None:
    command = f"{compile_client('vfio_client')} {how} {GROUP} {UUID}"
    done, host = recorded(tmp_path, command, VGPU)
    assert (done.returncode, done.stderr) == (0, "")
    same(host, recorded_by_lab(tmp_path, command, VGPU))


def test_a_character_device_and_iommufd(tmp_path: Path, compile_client: Compile) -> None:
    command = f"{compile_client('iommufd_client')} vfio0"
    done, host = recorded(tmp_path, command, VGPU)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("an interrupt, and 42 by DMA\nok\n")
    same(host, recorded_by_lab(tmp_path, command, VGPU))


def test_a_bare_mount_where_a_filter_chooses_the_calls(
    lab: MountedLab, tmp_path: Path, compile_client: Compile
) -> None:
    out, client = tmp_path / "recording", compile_client("iommufd_client")
    with lab.create() as vgpu:
        dev = lab.path / "dev"
        done = vfsfuse("record", "--host", "-q", "-o", out, "--", client, dev, vgpu.vfio)
        assert (done.returncode, done.stderr) == (0, "")
        host = read(out)
        assert [device.name for device in host.devices] == [vgpu.name]
    assert [event.name for event in host.events if event.kind == "open"] == [
        "/dev/iommu",
        f"/dev/vfio/devices/{vgpu.vfio}",
    ]
    assert {event.kind for event in host.events} == {"open", "close", "ioctl", "read", "write", "interrupt"}


def test_qemu(tmp_path: Path) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)")
    qemu = "qemu-system-x86_64 -M q35 -accel tcg -m 64 -nodefaults -display none -S -monitor stdio"
    command = f"{qemu} -device vfio-pci,sysfsdev=/sys/bus/mdev/devices/{UUID}"
    done, host = recorded(tmp_path, f"sh -c 'echo quit | exec {command}'", COPIER)
    assert done.returncode == 0, done.stderr
    lab = recorded_by_lab(tmp_path, f"echo quit | {command}", COPIER)
    assert [replace(device, names={}) for device in lab.devices] == host.devices
    assert list(map(without_structs, dialogue(host))) == list(map(without_structs, dialogue(lab)))
    assert kinds(host, "read", "write")


def without_structs(event: Event) -> Event:
    """QEMU's structs have addresses, and bytes that nobody has set."""
    return replace(event, before=b"", after=b"")


# ---- descriptors ----


def test_every_way_to_share_a_device_is_seen(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
def put(file, value):
    os.pwrite(file, bytes([value]), 7)  # the scratch register of the port
import array
copy = os.dup(device)
os.close(device)
put(copy, 1)
other = fcntl.fcntl(copy, fcntl.F_DUPFD, 200)
os.dup2(other, 300, inheritable=True)
os.close(copy)
os.closerange(other, other + 1)
put(300, 2)
if not os.fork():
    put(300, 3)
    os.execv(sys.executable, [sys.executable, "-c", "import os; os.pwrite(300, bytes([4]), 7)"])
os.wait()
ours, theirs = socket.socketpair()
begin, go = os.pipe()
if not os.fork():
    os.close(300)
    os.read(begin, 1)
    put(socket.recv_fds(theirs, 10, 1)[1][0], 5)
    os._exit(0)
socket.send_fds(ours, [b"."], [300])
os.close(300)
os.write(go, b".")
os.wait()
""",
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert kinds(host, "write") == [("write", 0, 7, bytes([value])) for value in (1, 2, 3, 4, 5)]
    assert [device.name for device in host.devices] == [UUID]
    assert sum(event.kind == "close" and event.device == 0 for event in host.events) == 1


def test_vectors_and_the_position_of_the_file(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
os.lseek(device, 7, os.SEEK_SET)
os.write(device, b"a")
os.lseek(device, 7, os.SEEK_SET)
assert os.read(device, 1) == b"a"
os.pwritev(device, [b"b"], 7)
os.preadv(device, [bytearray(1)], 7)
"""
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert kinds(host, "read", "write") == [
        *[("write", 0, 7, b"a"), ("read", 0, 7, b"a")],
        *[("write", 0, 7, b"b"), ("read", 0, 7, b"b")],
    ]


def test_calls_of_many_threads_are_all_there(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
def work(value):
    for _ in range(50):
        os.pwrite(device, bytes([value]), 7)
        os.pread(device, 1, 7)
threads = [threading.Thread(target=work, args=(value,)) for value in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = [data[0] for kind, _, _, data in kinds(host, "write")]
    assert sorted(written) == sorted(50 * list(range(8)))
    assert len(kinds(host, "read")) == 400


def test_failures_have_their_errno(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
def fail(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return
    raise SystemExit(f"{call} works")
fail(os.open, "/dev/vfio/999", os.O_RDWR)
fail(os.pread, device, 4, 9 << 40)
fail(fcntl.ioctl, device, number(8), struct.pack("4I2Q", 32, 0, 99, 0, 0, 0))
fail(fcntl.ioctl, device, number(8), 16)
fail(fcntl.ioctl, device, number(99))
"""
        ),
    )
    assert (done.returncode, done.stderr) == (0, "")
    failed = [(event.kind, event.name, os.strerror(event.errno)) for event in host.events if event.errno]
    assert failed == [
        ("open", "/dev/vfio/999", "No such file or directory"),
        ("read", "", "Invalid argument"),
        ("ioctl", "VFIO_DEVICE_GET_REGION_INFO", "Invalid argument"),
        ("ioctl", "VFIO_DEVICE_GET_REGION_INFO", "Bad address"),
        ("ioctl", "0x3bc7", "Inappropriate ioctl for device"),
    ]


# ---- what hides from a recorder ----


def test_a_program_is_not_told_that_it_can_map(tmp_path: Path) -> None:
    script = "answer = region(device, 4, 256); print(answer[4], answer[12:16].hex())"
    done, host = recorded(tmp_path, python(script), COPIER)
    assert (done.stdout, done.stderr) == ("3 00000000\n", "")  # READ|WRITE, no capabilities
    assert host.devices[0].regions[4].flags == 15 and host.devices[0].regions[4].capabilities
    done, host = recorded(tmp_path, python(script), COPIER, "--mmap")
    assert (done.stdout, done.stderr) == ("15 20000000\n", "")
    assert host.shows_mmap


def test_a_mapping_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "recording"
    script = """
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
print(libc.mmap(None, ctypes.c_size_t(4096), 1, 1, device, ctypes.c_long((4 << 40) + 4096)) != 2**64 - 1)
"""
    recorder = host_recorder(out).replace(" -q ", " ")
    done = in_lab(f"{recorder} {python(script)}", COPIER)
    if done.stdout == "False\n":
        pytest.skip("this kernel lets no server of FUSE map its files")
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert re.search(rf"BAR4 of {UUID} is mapped: accesses .* are not recorded", done.stderr)
    assert [(event.region, event.size) for event in read(out).events if event.kind == "mmap"] == [(4, 4096)]


def test_a_program_that_uses_ptrace_is_told_about(tmp_path: Path) -> None:
    out = tmp_path / "recording"
    script = "import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))"
    done = vfsfuse("record", "--host", "-o", out, "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (0, "-1\n")
    assert "cannot use ptrace(2), because the recorder does already" in done.stderr
    assert not read(out).events


# ---- the program: its end, its signals, the end of the recorder ----


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -KILL $$", -9)]
)
def test_it_ends_as_the_program_does(tmp_path: Path, script: str, status: int) -> None:
    done = vfsfuse("record", "--host", "-q", "-o", tmp_path / "out", "--", "sh", "-c", f"echo up; {script}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "up\n", "")
    assert not read(tmp_path / "out").events


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    done = vfsfuse("record", "--host", "-q", "-o", tmp_path / "out", "--", "/nonexistent")
    assert (done.returncode, done.stderr) == (
        127,
        "vfsfuse: record: /nonexistent: No such file or directory\n",
    )


@pytest.fixture
def background(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A recorder whose program waits in a child, and says so."""
    script = "trap 'echo told; exit 4' TERM; echo up; while :; do sleep 0.05; done"
    words = ("--host", "-q", "-o", tmp_path / "out", "--", "sh", "-c", script)
    with started("record", *words) as recorder:
        assert recorder.stdout is not None
        assert recorder.stdout.readline() == "up\n"
        yield recorder
        recorder.kill()


def test_a_signal_that_asks_it_to_end_goes_to_the_program(background: subprocess.Popen[str]) -> None:
    background.send_signal(signal.SIGTERM)
    assert background.communicate(timeout=SECONDS) == ("told\n", "")
    assert background.returncode == 4


def test_what_is_left_in_the_background_is_recorded_until_a_signal(tmp_path: Path) -> None:
    words = ("--host", "-o", tmp_path / "out", "--", "sh", "-c", "sleep 60 & echo $!; exit 5")
    with started("record", *words) as recorder:
        assert recorder.stdout is not None and recorder.stderr is not None
        left = int(recorder.stdout.readline())
        wait_for(lambda: not programs(recorder))
        assert alive(left)
        recorder.send_signal(signal.SIGTERM)
        assert "what the program has left in the background is ended" in recorder.stderr.readline()
        assert recorder.wait(SECONDS) == 5
    wait_for(lambda: not alive(left))
    assert not read(tmp_path / "out").events


def test_the_program_ends_with_a_recorder_that_is_killed(background: subprocess.Popen[str]) -> None:
    (pid,) = programs(background)
    background.kill()
    wait_for(lambda: not alive(pid))


def test_a_stopped_program_goes_on(background: subprocess.Popen[str]) -> None:
    (pid,) = programs(background)
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state(pid) in "tT")
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: state(pid) not in "tT")
    background.send_signal(signal.SIGTERM)
    assert background.communicate(timeout=SECONDS) == ("told\n", "")


def test_the_terminal_is_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job of a shell: ^Z suspends it, `fg` has it go on, ^C ends it, and there is a recording."""
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out"
    script = "trap 'exit 3' INT; echo waiting; read line; echo on$line; while :; do sleep 0.05; done"
    words = shlex.join([*VFSFUSE, "record", "--host", "-q", "-o", str(out), "--", "sh", "-c", script])
    job = f"set -m; {words}; echo suspended $?; fg > /dev/null; echo ended $?"
    keys = (b"waiting", b"\x1a"), (b"suspended 148", b"ward\n"), (b"onward", b"\x03")
    shown, _ = in_terminal(["bash", "-c", job], *keys)
    assert "ended 3" in shown, shown
    assert not read(out).events


def test_an_ordinary_user() -> None:
    needs.be_root("the other tests run as an ordinary user already")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, ordinary_user.UID, ordinary_user.UID)
        words = ["record", "--host", "-q", "-o", f"{folder}/out", "--", "sh", "-c", "id -u; exit 3"]
        done = run([sys.executable, "-m", "tests.ordinary_user", *VFSFUSE, *words])
        assert (done.returncode, done.stdout, done.stderr) == (3, "65534\n", "")


def state(pid: int) -> str:
    """The state of a process, as ps(1) shows it; Z when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def alive(pid: int) -> bool:
    return state(pid) not in "ZX"


def test_a_recorder_of_a_recorder(tmp_path: Path) -> None:
    """The inner one cannot trace: it says so, and its program does not run."""
    inner = [*VFSFUSE, "record", "--host", "-o", str(tmp_path / "inner"), "--", "echo", "ran"]
    done = run([*VFSFUSE, "record", "--host", "-q", "-o", tmp_path / "outer", "--", *inner])
    assert (done.returncode, done.stdout) == (125, "")
    assert re.search("vfsfuse: record: the program cannot be traced: ", done.stderr)


# ---- hostile programs ----


def test_pointers_that_lead_nowhere(tmp_path: Path) -> None:
    done, host = recorded(
        tmp_path,
        python(
            """
libc = ctypes.CDLL(None, use_errno=True)
P, L = ctypes.c_void_p, ctypes.c_long
NOWHERE = 1 << 44, 2**64 - 8, 1
page = mmap.mmap(-1, 8192)
edge = ctypes.addressof(ctypes.c_char.from_buffer(page)) + 4096 - 4
for at in NOWHERE:
    for nr in range(100, 122):
        libc.ioctl(device, L(ord(";") << 8 | nr), P(at))
    for call in (libc.pread64, libc.pwrite64, libc.preadv, libc.pwritev):
        for size in (1, 4, 2**31, 2**63 - 1):
            call(device, P(at), L(size), L(0))
    libc.open(P(at), 2)
    libc.sendmsg(0, P(at), 0)
for size in (0, 1, 2**31 - 1, 2**32 - 1):  # argsz
    ctypes.memmove(edge, struct.pack("I", size), 4)
    for nr in range(100, 122):
        libc.ioctl(device, L(ord(";") << 8 | nr), P(edge))
print("alive", os.pread(device, 1, 7) is not None)
"""
        ),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive True\n", "")
    assert kinds(host, "read")[-1][:3] == ("read", 0, 7)


def test_memory_that_changes_meanwhile(tmp_path: Path, compile_client: Compile) -> None:
    """A thread fills the struct of SET_IRQS with anything, while another one makes the call."""
    done, host = recorded(
        tmp_path,
        python(
            """
libc = ctypes.CDLL(None, use_errno=True)
room = ctypes.create_string_buffer(4096)
over = threading.Event()
def change():
    while not over.is_set():
        ctypes.memmove(room, os.urandom(64), 64)
        ctypes.memmove(room, struct.pack("5I", 24, 36, 0, 0, 1), 20)
thread = threading.Thread(target=change)
thread.start()
for _ in range(200):
    for nr in (7, 8, 9, 10):
        libc.ioctl(device, ctypes.c_long(number(nr)), room)
over.set()
thread.join()
print("alive")
"""
        ),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
    assert sum(event.kind == "ioctl" and event.device == 0 for event in host.events) == 800


def test_threads_that_end_anyhow(tmp_path: Path) -> None:
    """Execs of a thread that is not the first, forks in threads, and a kill in the middle of calls."""
    script = """
import os, signal, sys, threading
for _ in range(5):
    if not os.fork():
        threading.Thread(target=os.execvp, args=("true", ["true"])).start()
        while True:
            os.read(0, 0)
    os.wait()
for _ in range(5):
    child = os.fork()
    if not child:
        for _ in range(4):
            threading.Thread(target=lambda: [os.stat(".") and os.read(0, 0) for _ in range(10**9)]).start()
        signal.pause()
    os.kill(child, signal.SIGKILL)
    os.wait()
print("alive")
"""
    out = tmp_path / "recording"
    done = vfsfuse("record", "--host", "-q", "-o", out, "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
