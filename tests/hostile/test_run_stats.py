# SPDX-License-Identifier: Apache-2.0
"""fstat(2) and its like under `vfsfuse run`: what one program hands in holds up neither the other programs of
its run nor the supervisor, and no answer is wrong.  The client is tests/clients/hostile_stat.c."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE
from tests.hostile.clients import SKIP
from tests.hostile.conftest import reachable
from tests.labs import MountedLab
from tests.ordinary_user import UID
from tests.supervisors import supervisor_of
from tests.waiting import wait_for

NODE, NUMBER = "/dev/vfio/vfio", "10:196"
SECONDS = 200
CALLS = ("fstat", "newfstatat", "statx")
MEMORIES = ("userfault", "shared", "private", "stored", "locked")


@dataclass
class Client:
    """The hostile client, in a folder that everybody may pass."""

    lab: MountedLab
    program: Path

    def command(self, *words: str, prefix: tuple[str, ...] = (), by_path: bool = False) -> list[str]:
        """Its command line under `vfsfuse run`: a mode, and the call and the memory in it."""
        mode, *more = words
        own = [str(self.program), *(["-u"] if os.geteuid() else []), mode, str(self.program.parent / "file")]
        run = [*VFSFUSE, "run", *(["--stat-paths"] if by_path else []), "--mount", str(self.lab.path), "--"]
        return [*run, *prefix, *own, NODE, NUMBER, *more]

    def check(self, *words: str, prefix: tuple[str, ...] = (), by_path: bool = False) -> None:
        """It has to end well."""
        command = self.command(*words, prefix=prefix, by_path=by_path)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=ROOT)
        if done.returncode == SKIP:
            pytest.skip(done.stdout.splitlines()[-1])
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout.endswith("ok\n")


@pytest.fixture(scope="module")
def client(lab: MountedLab, compile_client: Callable[..., Path]) -> Iterator[Client]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file").touch(0o666)
        yield Client(lab, reachable(compile_client("hostile_stat"), folder))


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("call", CALLS)
def test_a_result_that_goes_to_memory_that_waits(client: Client, call: str, memory: str) -> None:
    client.check("buffer", call, memory)


@pytest.mark.parametrize("memory", ["userfault", "shared", "private", "locked"])
@pytest.mark.parametrize("call", CALLS[1:])
def test_an_empty_path_in_memory_that_waits(client: Client, call: str, memory: str) -> None:
    client.check("path", call, memory)


@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_answers_nothing(client: Client, call: str) -> None:
    client.check("file", call)


def test_a_fuse_server_that_asks_before_it_answers(client: Client) -> None:
    """It is under the filter, too."""
    client.check("served")


@needs.userfaultfd
def test_a_page_fault_that_is_answered_by_who_asks(client: Client) -> None:
    client.check("faults")


def test_a_number_that_changes_meanwhile(client: Client) -> None:
    client.check("swapped")


def test_a_thousand_threads(client: Client) -> None:
    client.check("threads")


def test_processes_that_fork(client: Client) -> None:
    client.check("forks")


def test_a_process_that_may_not_be_traced(client: Client) -> None:
    client.check("undumpable")


@needs.root("running a setuid program as somebody else")
def test_a_setuid_program(client: Client) -> None:
    program = client.program.with_name("setuid")
    program.write_bytes(client.program.read_bytes())
    os.chown(program, 1, 1)
    program.chmod(0o4755)
    as_user = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
    Client(client.lab, program).check("threads", prefix=as_user)


@needs.userfaultfd
def test_the_supervisor_keeps_no_thread_for_the_dead(client: Client) -> None:
    """Nor for those who do not wait any more."""
    command = client.command("killed")
    start = command.index("--") + 1
    script = '"$@"; echo ended; read line'
    command[start:start] = ["sh", "-c", script, "sh"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as program:
        assert program.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1] not in ("ended\n", ""):
            lines.append(program.stdout.readline())
        assert lines[-2:] == ["ok\n", "ended\n"]
        tasks = Path(f"/proc/{supervisor_of(program)}/task")
        wait_for(lambda: len(list(tasks.iterdir())) <= FEW)
        program.communicate("\n", SECONDS)
    assert program.returncode == 0


@pytest.mark.parametrize("memory", ["userfault", "shared"])
@pytest.mark.parametrize("call", ["path-stat", "path-newfstatat", "path-statx"])
def test_a_path_in_memory_that_waits(client: Client, call: str, memory: str) -> None:
    client.check("path", call, memory, by_path=True)


def test_paths_of_a_fuse_server_that_asks_before_it_answers(lab: MountedLab, tmp_path: Path) -> None:
    command = [*VFSFUSE, "run", "--stat-paths", "--mount", str(lab.path), "--"]
    command += [sys.executable, "-m", "tests.hostile.asking_server", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


FEW = 6
"""Threads of a supervisor while no call is under way."""
