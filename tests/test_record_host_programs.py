# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse record --host` and the program: its end, its signals, its terminal, a program that is hostile."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs, ordinary_user
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.hostrecorders import (
    kinds,
    python,
    recorded,
)
from tests.test_run import in_terminal
from tests.tracers import programs, started
from tests.waiting import wait_for
from vfsfuse.recording.reading import read

SECONDS = 60


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
        for _ in range(20):  # timeout(1) sends two, the second one when the recorder is ending
            recorder.send_signal(signal.SIGTERM)
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


def test_a_program_that_cannot_be_looked_into() -> None:
    """Its user may run it, and not read it."""
    needs.be_root("it needs a user and a file of another one")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program")
        source = "#include <sys/ioctl.h>\nint main(void) { return ioctl(0, 0x3b64) ? 3 : 4; }"
        subprocess.run(["gcc", "-xc", "-", "-o", program], input=source, text=True, check=True)
        program.chmod(0o711)
        os.chown(folder, ordinary_user.UID, ordinary_user.UID)
        words = ["record", "--host", "-o", f"{folder}/out", "--", str(program)]
        done = run([sys.executable, "-m", "tests.ordinary_user", *VFSFUSE, *words])
        assert done.returncode == 3
        assert re.search(r"program .* cannot be looked into, so it is not recorded", done.stderr), done.stderr


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


def test_files_that_only_have_the_names_of_vfio(tmp_path: Path) -> None:
    """Regular files, and a FUSE server that never answers, at the paths of a lab."""
    needs.be_root("it mounts a file system")
    script = f"""
import fcntl, os
folder = {str(tmp_path)!r}
os.makedirs(folder + "/dev/vfio/devices")
os.makedirs(folder + "/sys/class/vfio-dev/vfio0")
for name in ("vfio/vfio", "vfio/0", "vfio/devices/vfio0", "vfio/devices/vfio1", "iommu"):
    open(folder + "/dev/" + name, "w").close()
import vfsfuse.run.syscalls as syscalls
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
def silent(path, mode):
    fuse = os.open("/dev/fuse", os.O_RDWR)
    syscalls.mount("silent", folder + path, "fuse", 0, f"fd={{fuse}},rootmode={{mode}},user_id=0,group_id=0")
silent("/dev/vfio/devices/vfio1", "100000")
silent("/sys", "40000")
for name, flags in (("vfio/vfio", os.O_RDWR), ("vfio/0", os.O_RDWR), ("vfio/devices/vfio0", os.O_RDWR),
                    ("vfio/devices/vfio1", os.O_PATH), ("iommu", os.O_RDWR)):
    file = os.open(folder + "/dev/" + name, flags)
    for call in (lambda: fcntl.ioctl(file, 0x3b6b, bytearray(24)), lambda: os.pread(file, 1, 0)):
        try:
            call()
        except OSError:
            pass
print("alive", flush=True)
os._exit(0)  # the mounts go with the namespace
"""
    out = tmp_path / "out"
    done = vfsfuse("record", "--host", "-q", "-o", out, "--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
    assert read(out).devices == [] and read(out).events == []


def test_memory_that_changes_meanwhile(tmp_path: Path) -> None:
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
