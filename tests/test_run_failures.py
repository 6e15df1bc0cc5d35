# SPDX-License-Identifier: Apache-2.0
"""What `vfsfuse run` says when its lab or its supervisor fails: one line, in time, on stderr."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, vfsfuse
from tests.labs import MountedLab, Vgpu
from tests.supervisors import is_keeper, parent, supervisor_of
from tests.test_run import ended, server_pid
from tests.tool import need
from tests.waiting import stop

Compile = Callable[..., Path]
RUN = [*VFSFUSE, "run"]
AS_NOBODY = [sys.executable, "-m", "tests.ordinary_user"]
SECONDS = 60.0
PROMPT = 3.0
"""Two seconds are promised.  One more is for the start of two interpreters."""

LAB = """\
[models]
bad = "model.py:Model"

[parents.pool]
kind = "virtual"
driver = "bad"
slots = 1
types.one = { description = "of a model with a bad start" }
"""


two_users = needs.root("acting as two users takes root")


def started(*command: str | Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*RUN, *map(str, command)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT
    )


def said(run: subprocess.Popen[str]) -> str:
    """The next line of the program's stdout."""
    assert run.stdout is not None
    return run.stdout.readline()


def one_line(stderr: str) -> str:
    """What `run` said, if that is one line."""
    assert stderr.startswith("vfsfuse: run: ") and stderr.count("\n") == 1, stderr
    return stderr


def refused(*command: str | Path, prefix: list[str] | None = None) -> str:
    """Run a command that cannot start.  Returns the line that it says, in time."""
    words = [*(prefix or []), *RUN, *map(str, command)]
    begun = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=ROOT)
    assert is_prompt(time.monotonic() - begun)
    assert (done.returncode, done.stdout) == (125, "")
    return one_line(done.stderr)


def is_prompt(seconds: float) -> bool:
    """Whether something took no longer than PROMPT, or what a busy machine adds to that."""
    if seconds < PROMPT:
        return True
    begun = time.monotonic()
    vfsfuse("--version")
    return seconds < PROMPT + 10 * (time.monotonic() - begun)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    stop(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_lab_whose_server_is_stopped(fresh_lab: MountedLab) -> None:
    """Also while the kernel still remembers what the server said before."""
    for name in ("sys", "dev/vfio"):
        (fresh_lab.path / name).stat()
    with stopped(fresh_lab.pid):
        assert "does not answer" in refused("--mount", fresh_lab.path, "--", "true")
    assert vfsfuse("run", "--mount", fresh_lab.path, "--", "true").returncode == 0


def test_a_lab_whose_server_was_killed(tmp_path: Path) -> None:
    lab = MountedLab(tmp_path)
    lab.__enter__()
    assert lab.server is not None
    lab.server.kill()
    lab.server.wait()
    try:
        assert "not connected" in refused("--mount", lab.path, "--", "true")
    finally:
        vfsfuse("umount", "--lazy", lab.path)


@two_users
def test_a_lab_in_a_directory_of_another_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with MountedLab(tmp_path) as lab:
        line = refused("--mount", lab.path, "--", "true", prefix=AS_NOBODY)
        assert f"{lab.path}: Permission denied" in line


@two_users
@needs.open_fuse
def test_a_lab_that_another_user_keeps_to_themselves() -> None:
    """A user's own mount is closed to everybody else, root too."""
    need("fusermount3", "fuse3")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        mount, log = f"{home}/mnt", Path(home, "log")
        mounted = [*AS_NOBODY, *VFSFUSE, "mount", "--log-file", str(log), mount]
        environment = {**os.environ, "HOME": home}
        subprocess.run(mounted, cwd=ROOT, env=environment, check=True, capture_output=True)
        server = server_pid(log)
        try:
            there = [
                "nsenter",
                f"--target={server}",
                "--mount",
                f"--wd={ROOT}",
            ]  # tests.ordinary_user has its own
            assert f"{mount}: Permission denied" in refused("--mount", mount, "--", "true", prefix=there)
        finally:
            os.kill(server, signal.SIGTERM)
            assert ended(server)


@two_users
def test_device_files_that_are_anothers_keep_nobody_from_the_lab(fresh_lab: MountedLab) -> None:
    """`run` opens none of them: it starts, and the program finds out by itself."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        subprocess.run(["mount", "--bind", fresh_lab.path, folder], check=True)
        try:
            command = [*AS_NOBODY, *RUN, "--mount", folder, "--", "ls", "/sys/class/mdev_bus"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mtty" in done.stdout


def bad_lab(folder: Path, start: str) -> Path:
    """The lab file of a model whose module does `start` when it is imported."""
    (folder / "model.py").write_text(f"import os, signal, time\n{start}\n")
    (folder / "lab.toml").write_text(LAB)
    return folder / "lab.toml"


def test_a_private_server_that_is_killed_before_it_is_ready(tmp_path: Path) -> None:
    config = bad_lab(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert "did not start (killed by signal 9)" in refused("--config", config, "--", "true")


@pytest.mark.parametrize(("number", "why"), [(signal.SIGKILL, "was killed"), (signal.SIGTERM, "SIGTERM")])
def test_a_supervisor_that_is_killed_before_the_program_starts(
    tmp_path: Path, number: signal.Signals, why: str
) -> None:
    config = bad_lab(tmp_path, "time.sleep(60)")
    with started("--config", config, "--", "echo", "started") as run:
        supervisor = supervisor_of(run)
        server_of(supervisor)  # from then on it can say that it was asked to end
        os.kill(supervisor, number)
        begun = time.monotonic()
        out, err = run.communicate(timeout=SECONDS)
        assert is_prompt(time.monotonic() - begun)
    assert (run.returncode, out) == (125, "")
    assert why in one_line(err)


def test_an_exception_of_a_supervisor_before_the_program_starts(tmp_path: Path) -> None:
    script = f"""
from vfsfuse.run.namespace import SetupError
from vfsfuse.run.supervisor import RunPlan, Supervisor
try:
    Supervisor(RunPlan({str(tmp_path / "nowhere")!r}, None, None)).wait_ready()
except SetupError as error:
    print(error)"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("the supervisor has died (FileNotFoundError: "), done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    script = f'mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec "$@"'
    command = ["sh", "-c", script, "sh", *RUN, "--mount", "mnt", "--", "true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 125
    one_line(done.stderr)


def test_a_private_server_that_is_killed_later(tmp_path: Path) -> None:
    """The program is told on its stderr, and what it reads fails; nothing hangs."""
    with started("--", "sh", "-c", "echo up; read line; cat /sys/class/*/*/name; exit 3") as run:
        assert said(run) == "up\n"
        os.kill(server_of(supervisor_of(run)), signal.SIGKILL)
        assert run.stderr is not None
        line = run.stderr.readline()
        run.communicate("\n", timeout=SECONDS)
    assert line.startswith("vfsfuse: run: the server of the private lab has ended (killed by signal 9)")
    assert run.returncode == 3


def server_of(supervisor: int) -> int:
    """The server that a supervisor starts, as soon as it has."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*"):
            if parent(path) == supervisor and not is_keeper(path):
                return int(path.name)
    raise AssertionError("no server")


def test_a_program_that_sent_its_stderr_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    """Number 2 may be a file of its own by now."""
    with started("--", "sh", "-c", f"exec 2>{tmp_path}/own; echo up; read line; exit 3") as run:
        assert said(run) == "up\n"
        supervisor = supervisor_of(run)
        os.kill(supervisor, signal.SIGTERM)
        assert ended(supervisor)
        assert run.communicate("\n", timeout=SECONDS) == ("", "")
    assert (tmp_path / "own").read_text() == ""


@pytest.fixture
def vgpu(fresh_lab: MountedLab) -> Iterator[Vgpu]:
    with fresh_lab.create() as made:
        yield made


def test_a_supervisor_that_dies_later_says_why(vgpu: Vgpu, compile_client: Compile) -> None:
    """From then on the call fails as on the bare mount."""
    program = compile_client("handover")
    with started("--mount", vgpu.lab.path, "--", program, vgpu.group, vgpu.name, "after") as run:
        assert said(run) == "ready\n"
        supervisor = supervisor_of(run)
        os.kill(supervisor, signal.SIGTERM)
        assert run.stderr is not None
        line = run.stderr.readline()
        assert ended(supervisor)
        out, err = run.communicate("\n", timeout=SECONDS)
    assert line.startswith("vfsfuse: run: the supervisor has died (killed by SIGTERM): ")
    assert (run.returncode, out, err) == (0, "ok\n", "")


def test_an_exhausted_supervisor_fails_calls_and_goes_on(vgpu: Vgpu, compile_client: Compile) -> None:
    """One that has no descriptor left is not dead: the call fails, and the next one works."""
    script = f"""
        {compile_client("device_fd")} {vgpu.group} {vgpu.name} errors || echo failed
        read line; {compile_client("device_fd")} {vgpu.group} {vgpu.name} errors"""
    with started("--mount", vgpu.lab.path, "--", "sh", "-c", f"echo up; read line; {script}") as run:
        assert said(run) == "up\n"
        supervisor = supervisor_of(run)
        before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, before[1]))
        assert run.stdin is not None
        run.stdin.write("\n")
        run.stdin.flush()
        assert said(run) == "failed\n"
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
        out, err = run.communicate("\n", timeout=SECONDS)
    assert (run.returncode, out) == (0, "ok\n")
    assert "Too many open files" in err
