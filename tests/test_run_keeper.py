# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: a program whose supervisor is killed goes on, and can start others."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import ROOT, SECONDS, VFSFUSE
from tests.labs import MountedLab, Vgpu
from tests.supervisors import supervisor_of
from tests.waiting import wait_for


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
def asking(vgpu: Vgpu) -> Iterator[subprocess.Popen[str]]:
    """A program that asks what a node is, and starts another program, for each line."""
    command = [*VFSFUSE, "run", "--mount", str(vgpu.lab.path), "--", "python3", "-c", ASKING, vgpu.group]
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


def test_a_call_that_a_killed_supervisor_had_at_hand_goes_on(vgpu: Vgpu) -> None:
    """The lab's server is stopped, and so the supervisor cannot hear what the node is."""
    with asking(vgpu) as run:
        supervisor = supervisor_of(run)
        os.kill(vgpu.lab.pid, signal.SIGSTOP)
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


def test_the_keeper_ends_with_its_run(vgpu: Vgpu) -> None:
    with asking(vgpu) as run:
        keeper = keeper_of(supervisor_of(run))
    wait_for_its_end(keeper)
