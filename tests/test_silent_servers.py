# SPDX-License-Identifier: Apache-2.0
"""Servers that are stopped, hung or slow: each command ends in time, with the truth or an error.

The device lane alone cannot be hung: whatever a hook waits for, another thread takes over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.intime import at_once, in_time
from tests.labs import MountedLab, described
from tests.waiting import stop, wait_for
from vfsfuse.cli.mountpoint import server_of, wait_for_end
from vfsfuse.kernfs.xattr import pid_namespace
from vfsfuse.mounts import FSTYPE, Mount

LANE, MAIN, ALL = 0, 4, 8
"""Offsets of the registers of the model, by what a write to them blocks."""

MODEL = """\
import ctypes, os
from devmodel.sdk import Bar, Identity, Layout, PciDevice, Register, Registers

class Sleeper(PciDevice):
    identity = Identity(0x1234, 0x5EEE, 0x1AF4, 0x1100, class_code=0x088000)

    def bars(self):
        self.registers = Registers(LAYOUT, self)
        return {0: Bar(self.registers)}

    def block_lane(self, value):
        sleep(ctypes.CDLL)

    def block_main_thread(self, value):
        self.start(self.sleep)

    async def sleep(self):
        sleep(ctypes.CDLL)

    def block_interpreter(self, value):
        sleep(ctypes.PyDLL)  # with the GIL held

def sleep(library):
    fd = os.open("PILLOW", os.O_RDONLY)
    library(None).flock(fd, 2)
    os.close(fd)

LAYOUT = Layout(4096, [
    Register(0, 4, "LANE", on_write=Sleeper.block_lane),
    Register(4, 4, "MAIN", on_write=Sleeper.block_main_thread),
    Register(8, 4, "ALL", on_write=Sleeper.block_interpreter),
])
"""
LAB = """\
[models]
sleeper = "sleeper.py:Sleeper"
[parents.bed]
kind = "virtual"
driver = "bed"
model = "sleeper"
types.one = { description = "sleeps", instances = 4 }
"""
WRITE = """
import sys, os
from tests.iommufd.bound import open_bound
device, offset = open_bound(sys.argv[1]), int(sys.argv[2])
print(flush=True)
os.pwrite(device, bytes(4), offset)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MountedLab]:
    """A lab with a device that stops the server's threads.  The server is killed at the end."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "sleeper.py").write_text(MODEL.replace("PILLOW", str(pillow(tmp_path))))
    pillow(tmp_path).touch()
    lab = described(tmp_path, LAB)
    lab.__enter__()
    assert lab.server is not None
    try:
        yield lab
    finally:
        lab.server.kill()  # also when it is stopped
        lab.server.wait()
        while is_mounted(lab.path):
            subprocess.run(["fusermount3", "-u", "-z", lab.path], check=True)


def is_mounted(path: Path) -> bool:
    rows = Path("/proc/self/mounts").read_text().splitlines()
    return str(path) in (row.split(" ")[1] for row in rows)


def pillow(folder: Path) -> Path:
    """What a thread of the server sleeps on: it waits for a lock of this file."""
    return folder / "pillow"


def timed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command line, which has to end in time."""
    return timed_at_once([arguments])[0]


def timed_at_once(commands: Sequence[Sequence[str | Path]]) -> list[subprocess.CompletedProcess[str]]:
    """Run command lines beside each other. Each has to end in time."""
    return at_once([partial(vfsfuse, *command) for command in commands])


def error_of(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line on stderr."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert done.stderr.startswith("vfsfuse: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@contextlib.contextmanager
def sleeping(lab: MountedLab, offset: int, for_ever: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A client has a device open, and the thread that its register at `offset` blocks sleeps.  In the end the
    server is killed, or the thread goes on."""
    device = lab.create("one", "bed").cdev
    with (
        open(pillow(lab.path.parent), "rb") as pillow_,
        subprocess.Popen(
            [sys.executable, "-c", WRITE, device, str(offset)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        ) as client,
    ):
        fcntl.flock(pillow_, fcntl.LOCK_EX)
        assert client.stdout is not None
        assert client.stdout.readline() == b"\n"
        wait_for(lambda: sleeps(lab.pid))
        try:
            yield client
        finally:
            if client.poll() is None and for_ever:  # it waits for its server, even when killed
                os.kill(lab.pid, signal.SIGKILL)
            fcntl.flock(pillow_, fcntl.LOCK_UN)
            client.kill()


def sleeps(pid: int) -> bool:
    """Whether a thread of the process waits for a lock.  Source: proc_locks(5)."""
    rows = Path("/proc/locks").read_text().splitlines()
    return any(row.split()[1] == "->" and str(pid) in row.split() for row in rows)


@contextlib.contextmanager
def stopped(lab: MountedLab) -> Iterator[None]:
    stop(lab.pid)
    try:
        yield
    finally:
        os.kill(lab.pid, signal.SIGCONT)


Silence = Callable[[MountedLab], contextlib.AbstractContextManager[object]]
SILENT: dict[str, Silence] = {
    "stopped": stopped,
    "main thread hung": lambda lab: sleeping(lab, MAIN),
    "interpreter hung": lambda lab: sleeping(lab, ALL),
    "main thread slow": lambda lab: sleeping(lab, MAIN, for_ever=False),
    "interpreter slow": lambda lab: sleeping(lab, ALL, for_ever=False),
}


def cold(lab: MountedLab) -> MountedLab:
    """The lab, of which the kernel remembers nothing that it could answer by itself."""
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("2")
    return lab


@pytest.mark.parametrize("how", SILENT)
def test_each_command_that_asks_a_silent_server_says_so_in_time(bed: MountedLab, how: str) -> None:
    with SILENT[how](cold(bed)):
        commands: list[list[str | Path]] = [
            ["mount", bed.path],
            ["mount", "--foreground", bed.path],
            ["tree", bed.path],
            ["capture", "--sys", bed.path / "sys"],
            ["screenshot", "--mount", bed.path, "vgpu0", bed.path.parent / "out.png"],
            ["surprise-remove", "--mount", bed.path, "vgpu0"],
        ]
        for command, done in zip(commands, timed_at_once(commands), strict=True):
            if how.startswith("main") and command[0] == "screenshot" and "no display" in done.stderr:
                continue  # the device lane knows
            line = error_of(done)
            assert str(bed.path) in line and f"(pid {bed.pid})" in line, line
            assert f"kill -KILL {bed.pid} ends it" in line, line
            assert ("is stopped (kill -CONT" in line) == (how == "stopped"), line
        assert not (bed.path.parent / "out.png").exists()
    if how.endswith("slow") or how == "stopped":  # it has lost nothing
        wait_for(lambda: vfsfuse("tree", bed.path).returncode == 0)


@pytest.mark.parametrize("how", ["stopped", "main thread hung", "interpreter hung"])
def test_further_commands_say_so_too(bed: MountedLab, how: str) -> None:
    commands: list[list[str | Path]] = [["list"], ["top", "-n", "1"], ["reload"]]
    with SILENT[how](cold(bed)):
        for done in timed_at_once([[*command, "--mount", bed.path] for command in commands]):
            line = error_of(done)
            assert f"{bed.path}: the server (pid {bed.pid})" in line and f"kill -KILL {bed.pid}" in line


@pytest.mark.parametrize("how", ["stopped", "main thread hung", "interpreter hung"])
def test_umount_leaves_what_is_in_use_and_lazily_hides_it(bed: MountedLab, how: str) -> None:
    with contextlib.ExitStack() as stack:
        if how == "stopped":
            stack.callback(os.close, os.open(bed.path / "sys", os.O_PATH))
        stack.enter_context(SILENT[how](cold(bed)))
        line = error_of(timed("umount", bed.path))
        assert "Device or resource busy" in line and "--lazy" in line and f"kill -KILL {bed.pid}" in line
        assert is_mounted(bed.path)
        line = error_of(timed("umount", "--lazy", bed.path), status=0)
        assert f"{bed.path} is unmounted" in line and f"kill -KILL {bed.pid} ends it" in line
        assert not is_mounted(bed.path) and not wait_for_end(bed.pid, 0)


def test_a_hook_that_does_not_return_keeps_nobody_from_the_lab(bed: MountedLab) -> None:
    """It holds up who waits for its device, and the end of the lab's clients."""
    with sleeping(cold(bed), LANE):
        picture = bed.path.parent / "out.png"
        mount, foreground, tree, screenshot = timed_at_once(
            [
                ["mount", bed.path],
                ["mount", "--foreground", bed.path],
                ["tree", bed.path],
                ["screenshot", "--mount", bed.path, "vgpu0", picture],
            ]
        )
        assert "already" in mount.stdout and "already" in foreground.stdout
        assert tree.returncode == 0 and "uevents" in tree.stdout
        assert "no display" in error_of(screenshot)
        line = error_of(timed("umount", bed.path))
        assert "Device or resource busy" in line and "does not answer" not in line
        assert "is unmounted" in error_of(timed("umount", "--lazy", bed.path), status=0)


def test_umount_of_an_idle_lab_needs_no_answer(bed: MountedLab) -> None:
    with stopped(bed):
        line = error_of(timed("umount", bed.path))
        assert f"{bed.path} is unmounted" in line and f"the server (pid {bed.pid}) is stopped" in line
        assert not is_mounted(bed.path)
    assert wait_for_end(bed.pid, 60)


def test_a_command_that_gave_up_is_no_reason_for_the_mount_to_be_busy(bed: MountedLab) -> None:
    with stopped(bed):
        error_of(timed("tree", bed.path))
        assert f"{bed.path} is unmounted" in error_of(timed("umount", bed.path))


def test_what_one_lab_does_is_nothing_to_commands_about_another(bed: MountedLab, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with MountedLab(tmp_path / "other") as other, stopped(cold(bed)):
        vgpu = other.create("mdpy-vga", "mdpy")
        assert timed("tree", "--depth", "1", other.path).returncode == 0
        assert "already" in timed("mount", other.path).stdout
        picture = tmp_path / "out.png"
        assert timed("screenshot", "--mount", other.path, vgpu.name, picture).stderr.count("\n") <= 1
        assert timed("surprise-remove", "--mount", other.path, vgpu.name).returncode == 0
        line = error_of(timed("surprise-remove", vgpu.name))  # of both labs, it asks none
        assert str(bed.path) in line and str(other.path) in line and "--mount" in line


def test_a_path_through_a_silent_lab_is_given_up(bed: MountedLab) -> None:
    inside = bed.path / "sys/class"
    with stopped(cold(bed)):
        for done in timed_at_once([[command, inside / "mnt"] for command in ("mount", "umount", "tree")]):
            line = error_of(done)
            assert f"the server (pid {bed.pid}) is stopped" in line, line


def test_who_reads_the_output_of_a_command_that_gave_up_sees_its_end(bed: MountedLab) -> None:
    """The child that still asks keeps nothing of the command's open."""
    shell = ["sh", "-c", f"{' '.join(VFSFUSE)} tree {bed.path} 2>&1 | cat"]
    with sleeping(cold(bed), MAIN):
        done = in_time(partial(subprocess.run, shell, cwd=ROOT, capture_output=True, text=True, check=True))
        assert "does not answer" in done.stdout


def test_the_end_of_a_server_frees_who_asked_it(bed: MountedLab) -> None:
    with stopped(cold(bed)):
        line = error_of(timed("tree", bed.path))
        (kill,) = re.findall(r"(kill -KILL \d+)", line)
        subprocess.run(["sh", "-c", kill], check=True)
        assert wait_for_end(bed.pid, 60)
        assert "its server is gone" in error_of(timed("tree", bed.path))
        assert timed("umount", bed.path).returncode == 0


@needs.root("mounting fusectl takes root")
def test_an_abort_frees_who_waits_for_a_server_that_lives_on(bed: MountedLab) -> None:
    connection = os.minor(os.stat(bed.path).st_dev)
    with sleeping(bed, ALL) as client:
        client.kill()
        assert not wait_for_end(client.pid, 1)  # not even SIGKILL ends it
        control = "/sys/fs/fuse/connections"
        abort = f"mount -t fusectl none {control} && echo 1 > {control}/{connection}/abort"
        subprocess.run(["unshare", "--mount", "sh", "-c", abort], check=True)
        assert client.wait(60) == -signal.SIGKILL
        assert not wait_for_end(bed.pid, 0)
        assert vfsfuse("umount", bed.path).returncode == 1  # its server still sleeps
        assert not is_mounted(bed.path)


@needs.root("a pid namespace takes root")
def test_umount_aborts_no_server_of_another_pid_namespace(tmp_path: Path) -> None:
    """Its pid means nothing here: no process has it, or another one."""
    path, (reader, writer) = tmp_path / "mnt", os.pipe()
    command = [*VFSFUSE, "mount", "--foreground", "--ready-fd", str(writer), str(path)]
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", *command], pass_fds=(writer,), cwd=ROOT
    )
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as ready:
            assert ready.readline() == b"ready\n"
        server = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        held = os.open(path / "sys/bus/pci/devices/0000:86:00.0/vendor", os.O_RDONLY)
        stop(server)
        line = error_of(timed("umount", path))
        os.kill(server, signal.SIGCONT)
        assert "Device or resource busy" in line and "the server does not answer" in line, line
        assert "umount --lazy hides the lab" in line and is_mounted(path)
        assert os.pread(held, 16, 0).startswith(b"0x")
        os.close(held)
        assert timed("umount", path).returncode == 0
        assert outer.wait(60) == 0
    finally:
        outer.kill()
        outer.wait()
        if is_mounted(path):
            subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize(
    ("source", "server"),
    [
        ("vfsfuse@{gone}:{here}", None),
        ("vfsfuse@{gone}:1", 0),
        ("vfsfuse@{gone}:0", 0),
        ("vfsfuse@{gone}", 0),
        ("vfsfuse@{gone}:{here}0", 0),
        (f"vfsfuse@{'9' * 4400}:{{here}}", 0),
        ("vfsfuse@:{here}", 0),
        ("other", 0),
    ],
)
def test_a_server_is_gone_only_if_it_was_one_of_this_pid_namespace(source: str, server: int | None) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    name = source.format(gone=ended.pid, here=pid_namespace())
    assert server_of(Mount(1, "/", "/mnt", FSTYPE, name, f"rw,user_id={os.geteuid()}")) == server


@needs.open_fuse
@needs.root("the other tests of this file are an ordinary user's already")
def test_an_ordinary_users_commands_end_as_well(tmp_path: Path) -> None:
    tests = "(lazily or says_so) and (stopped or interpreter) and not slow or nobody_from"
    tests += " or needs_no_answer or is_no_reason"
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", tests]
    done = subprocess.run(
        [sys.executable, "-m", "tests.ordinary_user", *pytest_, "tests/test_silent_servers.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout) and "failed" not in done.stdout
