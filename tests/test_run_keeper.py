# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: a program whose supervisor is killed goes on, and can start others."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, SECONDS, VFSFUSE
from tests.labs import MountedLab, Vgpu
from tests.supervisors import supervisor_of
from tests.waiting import stop, wait_for
from vfsfuse.run import syscalls
from vfsfuse.run.supervisor import PRIVATE_END, SHARED_END


@pytest.fixture
def vgpu(fresh_lab: MountedLab) -> Iterator[Vgpu]:
    with fresh_lab.create() as made:
        yield made


ASKING = """
import os, subprocess, sys
node = os.open("/dev/vfio/" + sys.argv[1], os.O_PATH)
print("ready", flush=True)
for line in sys.stdin:
    print(oct(os.fstat(node).st_mode), subprocess.run(["sh", "-c", "ls / >/dev/null"]).returncode, flush=True)
"""


@contextmanager
def asking(
    vgpu: Vgpu, script: str = ASKING, *options: str, more: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A program that asks what a node is, and starts another program, for each line."""
    lab = ["--mount", str(vgpu.lab.path)]
    command = [*VFSFUSE, "run", *options, *lab, "--", "python3", "-c", script, vgpu.group, more]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        assert run.stdin is not None
        assert run.stdout.readline() == "ready\n"
        yield run
        run.stdin.close()
        assert (run.stdout.read(), run.wait(SECONDS)) == ("", 0)


def ask(run: subprocess.Popen[str]) -> list[str]:
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write("\n")
    run.stdin.flush()
    return run.stdout.readline().split()


def mode_of(vgpu: Vgpu) -> int:
    """The permissions of the group's node."""
    return stat.S_IMODE((vgpu.lab.path / "dev/vfio" / vgpu.group).stat().st_mode)


def keeper_of(supervisor: int) -> int:
    """The only child of the supervisor of a mounted lab."""
    (child,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return int(child)


def wait_for_its_end(pid: int) -> None:
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_programs_start_after_the_supervisor_was_killed(vgpu: Vgpu) -> None:
    """Nodes are regular files from then on, as on the bare mount.  Its keeper ends with the program."""
    with asking(vgpu) as run:
        supervisor = supervisor_of(run)
        keeper = keeper_of(supervisor)
        assert ask(run) == [oct(stat.S_IFCHR | mode_of(vgpu)), "0"]
        os.kill(supervisor, signal.SIGKILL)
        wait_for_its_end(supervisor)
        assert ask(run) == [oct(stat.S_IFREG | mode_of(vgpu)), "0"]
    wait_for_its_end(keeper)


@needs.root("what a program waits for is in /proc/PID/wchan, which only root can read of a run")
def test_a_call_that_a_killed_supervisor_had_at_hand_goes_on(vgpu: Vgpu) -> None:
    """The lab's server is stopped, and so the supervisor cannot hear what the node is."""
    with asking(vgpu) as run:
        supervisor = supervisor_of(run)
        stop(vgpu.lab.pid)
        try:
            assert run.stdin is not None
            run.stdin.write("\n")
            run.stdin.flush()
            wait_for(lambda: "seccomp" in Path(f"/proc/{run.pid}/wchan").read_text())
            os.kill(supervisor, signal.SIGKILL)
        finally:
            os.kill(vgpu.lab.pid, signal.SIGCONT)
        assert run.stdout is not None
        assert run.stdout.readline().split() == [oct(stat.S_IFREG | mode_of(vgpu)), "0"]


BESIDE = """
import os, subprocess, sys, threading
def look():
    try: os.stat(sys.argv[2] + "/vfio")
    except OSError: pass
print("ready", flush=True)
sys.stdin.readline()
threading.Thread(target=look).start()
for line in sys.stdin:
    print(subprocess.run(["sh", "-c", "ls / >/dev/null"]).returncode, flush=True)
"""


@contextmanager
def silent_folder(path: Path) -> Iterator[int]:
    """A FUSE mount on `path` whose server, who reads from the descriptor, answers nothing."""
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    syscalls.mount("silent", str(path), "fuse", 0, f"fd={fuse},rootmode=40000,user_id=0,group_id=0")
    try:
        _, _, unique = struct.unpack_from("=IIQ", os.read(fuse, 1 << 17))
        init = struct.pack("=IIIIHHIIHHII24x", 7, 31, 0, 0, 12, 9, 4096, 1, 1, 0, 0, 0)
        os.write(fuse, struct.pack("=IiQ", 16 + len(init), 0, unique) + init)
        yield fuse
    finally:
        os.close(fuse)
        syscalls.detach(str(path))


@needs.root("mounting a file system whose server answers nothing")
def test_a_thread_that_outlives_the_supervisor_holds_up_nobody(
    vgpu: Vgpu, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It waits for a file system whose server has read its request, so not even SIGKILL ends it."""
    folder = tmp_path_factory.mktemp("silent")
    with silent_folder(folder) as fuse, asking(vgpu, BESIDE, "--stat-paths", more=str(folder)) as run:
        try:
            supervisor = supervisor_of(run)
            assert run.stdin is not None
            run.stdin.write("\n")
            run.stdin.flush()
            assert b"vfio" in os.read(fuse, 1 << 17)
            os.kill(supervisor, signal.SIGKILL)
            assert ask(run) == ["0"]
            assert list(Path(f"/proc/{supervisor}/task").iterdir())
        finally:
            os.dup2(os.open("/dev/null", os.O_RDWR), fuse)  # the connection ends, and with it all waiting


def test_the_keeper_holds_no_directory_of_the_caller(vgpu: Vgpu) -> None:
    with asking(vgpu) as run:
        assert os.readlink(f"/proc/{keeper_of(supervisor_of(run))}/cwd") == "/"


def test_the_keeper_ends_with_its_run(vgpu: Vgpu) -> None:
    with asking(vgpu) as run:
        keeper = keeper_of(supervisor_of(run))
    wait_for_its_end(keeper)


def test_a_keeper_that_is_stopped_holds_up_no_end(vgpu: Vgpu) -> None:
    with asking(vgpu) as run:
        supervisor = supervisor_of(run)
        keeper = keeper_of(supervisor)
        stop(keeper)
    wait_for_its_end(supervisor)
    wait_for_its_end(keeper)


@pytest.mark.parametrize("where", ["a mounted lab", "a private lab"])
def test_it_is_said_that_the_supervisor_was_killed(fresh_lab: MountedLab, where: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    lab = ["--mount", str(fresh_lab.path)] if where == "a mounted lab" else []
    command = [*VFSFUSE, "run", "--log", str(log), *lab, "--", "sh", "-c", "echo ready; cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "ready\n"
        os.kill(supervisor_of(run), signal.SIGKILL)
        said = SHARED_END if lab else PRIVATE_END
        assert run.stderr.readline() == f"vfsfuse: run: {said}\n"
        assert run.communicate(timeout=SECONDS)[1] == ""
    assert f" run: {said}\n" in log.read_text()
