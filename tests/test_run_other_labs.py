# SPDX-License-Identifier: Apache-2.0
"""Labs that are mounted while a `vfsfuse run` goes on: it keeps no other lab alive, and `umount` says who
still sees a lab."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run, vfsfuse
from tests.labs import MountedLab
from tests.tool import need
from tests.waiting import wait_for

RUN = [*VFSFUSE, "run"]
NO_ADMINISTRATOR = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
"""Before a command: root without CAP_SYS_ADMIN, who gets a user namespace as an ordinary user does."""
SECONDS = 60.0
WAYS = ["root", "user namespace"] if os.geteuid() == 0 else ["user namespace"]


def prefix(way: str) -> list[str]:
    return NO_ADMINISTRATOR if way == "user namespace" and os.geteuid() == 0 else []


@contextmanager
def running(*options: str | Path, way: str = WAYS[0], cwd: Path = ROOT) -> Iterator[subprocess.Popen[str]]:
    """A run of cat, which has begun."""
    need("setpriv", "util-linux")
    script = "echo up; exec cat"
    command = [*prefix(way), *RUN, *map(str, options), "--", "sh", "-c", script]
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=cwd, env=environment) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        try:
            yield program
        finally:
            program.communicate(timeout=SECONDS)


def said_by_umount(path: Path) -> str:
    """What `umount` says of a lab that it has unmounted, empty if nothing."""
    done = vfsfuse("umount", path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("\n") == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_an_unmounted_lab_ends_though_a_run_goes_on(tmp_path: Path, way: str) -> None:
    with MountedLab(tmp_path, umount=False) as lab, running(way=way):
        assert said_by_umount(lab.path) == ""
        assert lab.server is not None
        assert lab.server.wait(SECONDS) == 0


def test_a_zombie_keeps_no_lab(tmp_path: Path) -> None:
    """Nobody but root may look at its descriptors, of which it has none."""
    with MountedLab(tmp_path, umount=False) as lab, running(way="user namespace"):
        with subprocess.Popen(["true"]) as zombie:
            wait_for(lambda: ") Z " in Path(f"/proc/{zombie.pid}/stat").read_text())
            assert said_by_umount(lab.path) == ""
        assert lab.server is not None
        assert lab.server.wait(SECONDS) == 0


@needs.root("the propagation of all mounts is changed by root")
@pytest.mark.parametrize("way", WAYS)
def test_an_unmounted_lab_ends_where_mounts_are_shared(tmp_path: Path, way: str) -> None:
    """As on a machine with systemd."""
    words = shlex.join(VFSFUSE), shlex.join([*prefix(way), *RUN]), shlex.quote(str(tmp_path))
    script = """
        cd {2} && mkdir lab && mkfifo stop && touch out
        {0} mount --log-file log lab > hints
        {1} -- sh -c 'ls -A lab; echo up; read line < stop' > out &
        until grep up out; do sleep 0.05; done
        {0} umount lab; echo $?
        echo > stop; wait"""
    command = ["unshare", "--mount", "--propagation", "shared", "sh", "-c", script.format(*words)]
    done = run(command, PYTHONPATH=str(ROOT))
    assert (done.stdout, done.stderr) == ("up\n0\n", "")


@pytest.mark.parametrize("way", WAYS)
def test_a_run_shows_no_other_lab(fresh_lab: MountedLab, way: str) -> None:
    with running(way=way) as program:
        there = os.listdir(f"/proc/{program.pid}/root{fresh_lab.path}")
    assert there == []
    assert "counters" in os.listdir(fresh_lab.path)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_starts_in_a_lab_stays_in_it(fresh_lab: MountedLab, way: str) -> None:
    command = [*prefix(way), *RUN, "--", "ls", "counters"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=fresh_lab.path, env=environment, check=False
    )
    assert (done.stdout, done.stderr) == ("counters\n", "")


USES = {
    "descriptor": "f = open('counters'); os.chdir('/')",
    "directory": "os.chdir('sys/class')",
    "mapping": "f = open(sys.argv[1], 'r+b'); os.chdir('/'); m = mmap.mmap(f.fileno(), 4096); f.close()",
}
"""By the way in which a process uses the lab that is its current directory: what it does."""


@pytest.mark.parametrize("use", USES)
def test_a_lab_that_is_used_goes_on_though_a_run_has_it(tmp_path: Path, use: str) -> None:
    """Taken out of sight; the run has a locked copy of its mount."""
    if use == "mapping" and needs.NO_PASSTHROUGH:
        pytest.skip(needs.NO_PASSTHROUGH)
    with MountedLab(tmp_path, umount=False) as lab, running(way="user namespace"):
        memory = lab.create().path / "resource0"
        script = f"import mmap, os, sys; {USES[use]}; print(flush=True); input()"
        user, pipe = [sys.executable, "-c", script, str(memory)], subprocess.PIPE
        with subprocess.Popen(user, stdin=pipe, stdout=pipe, text=True, cwd=lab.path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
            vfsfuse("umount", "--lazy", lab.path).check_returncode()
            assert lab.server is not None
            for _ in range(2):
                time.sleep(0.5)  # in which the server looks
                assert lab.server.poll() is None
            process.communicate("\n", timeout=SECONDS)
        assert lab.server.wait(SECONDS) == 0


def test_umount_says_which_run_still_sees_the_lab(tmp_path: Path) -> None:
    """The server ends with the run."""
    with MountedLab(tmp_path, umount=False) as lab:
        with running("--mount", lab.path) as program:
            wait_for(lambda: Path(f"/proc/{program.pid}/comm").read_text() == "cat\n")
            line = said_by_umount(lab.path)
            assert line == (
                f"vfsfuse: umount: {lab.path} is unmounted; the run of cat (pid {program.pid})"
                f" still sees the lab, and its server (pid {lab.pid}) ends with that"
                f" (kill -KILL {lab.pid} ends it now)\n"
            )
            assert os.listdir(f"/proc/{program.pid}/root/sys/class/mdev_bus")
        assert lab.server is not None
        assert lab.server.wait(SECONDS) == 0


def test_umount_counts_the_runs_that_still_see_the_lab(tmp_path: Path) -> None:
    with (
        MountedLab(tmp_path, umount=False) as lab,
        running("--mount", lab.path),
        running("--mount", lab.path, way="user namespace"),
        running(way="user namespace"),
    ):
        assert " and 1 more still see the lab, and its server " in (line := said_by_umount(lab.path))
        assert " ends with them " in line


@needs.root("mount namespaces are made by root")
def test_umount_says_who_else_sees_the_lab(tmp_path: Path) -> None:
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo up; exec cat"]
    pipe = subprocess.PIPE
    with (
        MountedLab(tmp_path, umount=False) as lab,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other,
    ):
        assert other.stdout is not None
        other.stdout.readline()
        wait_for(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "cat\n")
        line = said_by_umount(lab.path)
        assert f"; cat (pid {other.pid}) still sees the lab at {lab.path}, and its server " in line
        other.communicate(timeout=SECONDS)


@needs.root("a lab is mounted at a second place by root")
def test_umount_says_where_else_the_lab_is_mounted(tmp_path: Path) -> None:
    (again := tmp_path / "again").mkdir()
    with MountedLab(tmp_path, umount=False) as lab:
        subprocess.run(["mount", "--bind", lab.path, again], check=True)
        assert f"is unmounted; the lab is also mounted at {again}, and its server " in said_by_umount(
            lab.path
        )
        subprocess.run(["umount", again], check=True)


def test_a_server_leaves_the_next_lab_at_its_mountpoint(tmp_path: Path) -> None:
    (second := tmp_path / "second").mkdir()
    with MountedLab(tmp_path, umount=False) as lab, open(lab.path / "counters", "rb"):
        vfsfuse("umount", "--lazy", lab.path).check_returncode()
        log = second / "log"
        vfsfuse("mount", "--log-file", log, lab.path).check_returncode()
        assert lab.server is not None
        lab.server.send_signal(signal.SIGTERM)
        assert lab.server.wait(SECONDS) == 0
        assert (lab.path / "counters").exists()
        assert said_by_umount(lab.path) == ""
