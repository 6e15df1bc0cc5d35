# SPDX-License-Identifier: Apache-2.0
"""What `vfsfuse run` says on the stderr of its program while that runs, of what goes wrong in the lab."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, vfsfuse
from tests.failing import DIVIDED, LINE, failing_lab, written
from tests.labs import MountedLab
from tests.test_run_failures import AS_NOBODY, RUN, said, started
from tests.waiting import wait_for

UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"
SAYS = f"vfsfuse: run: {UUID}: {DIVIDED}"
TYPES = "/sys/class/mdev_bus/pool/mdev_supported_types"
MAKE = f"echo {UUID} | tee {TYPES}/*/create >/dev/null; cd /sys/bus/mdev/devices/{UUID}"
FAIL = "cat divided 2>/dev/null"
REMOVE = f"echo 1 > /sys/bus/mdev/devices/{UUID}/remove"
SECONDS = 60.0
TRACEBACK = f'card.py", line {LINE}, in quotient'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[MountedLab]:
    with failing_lab(tmp_path) as mounted:
        yield mounted


def heard(*options: str | Path, script: str = FAIL, lines: int = 1) -> list[str]:
    """The lines that are said while a program makes a card and then runs `script`: so many, and no others
    until it ends."""
    command = f"{MAKE}; {script}; read line; cd /; {REMOVE}"
    with started(*options, "--", "sh", "-c", command) as run:
        first = [next_line(run) for _ in range(lines)]
        _, rest = run.communicate("\n", timeout=SECONDS)
    assert (run.returncode, rest) == (0, "")
    return first


def next_line(run: subprocess.Popen[str]) -> str:
    """The next line on stderr.  A program that says nothing for long is ended."""
    assert run.stderr is not None
    timer = threading.Timer(SECONDS, run.kill)
    timer.start()
    try:
        return run.stderr.readline().rstrip("\n")
    finally:
        timer.cancel()


def test_a_hook_that_fails_in_a_private_lab(config: Path) -> None:
    assert heard("--config", config) == [f"{SAYS} (run --log FILE keeps the rest)"]


def test_the_log_has_the_rest(config: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert heard("--config", config, "--log", log) == [f"{SAYS} (see {log})"]
    assert TRACEBACK in log.read_text() and log.read_text().count("Traceback") == 1


def test_the_place_of_the_rest_is_said_once(config: Path) -> None:
    assert heard("--config", config, script=f"{FAIL}; {FAIL}", lines=2) == [
        f"{SAYS} (run --log FILE keeps the rest)",
        SAYS,
    ]


def test_a_mounted_lab(lab: MountedLab, tmp_path: Path) -> None:
    assert heard("--mount", lab.path) == [f"{SAYS} (run --log FILE keeps the rest)"]
    log = tmp_path / "log"
    assert heard("--mount", lab.path, "--log", log) == [f"{SAYS} (see {log})"]
    assert TRACEBACK in log.read_text() and log.read_text().count("Traceback") == 1


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet(config: Path, tmp_path: Path, option: str) -> None:
    log = tmp_path / "log"
    assert heard("--config", config, "--log", log, option, lines=0) == []
    assert TRACEBACK in log.read_text()


def test_quiet_also_about_the_end_of_a_lab(lab: MountedLab, tmp_path: Path) -> None:
    """The log has the line."""
    (log := tmp_path / "log").touch()
    command: list[str | Path] = [
        "-q",
        "--log",
        log,
        "--mount",
        lab.path,
        "--",
        "sh",
        "-c",
        "echo up; read line",
    ]
    with started(*command) as run:
        assert said(run) == "up\n"
        end(lab)
        wait_for(lambda: bool(log.read_text()))
        assert run.communicate("\n", timeout=SECONDS) == ("", "")
    assert f" run: the server of {lab.path} has ended: its files fail from now on\n" in log.read_text()


def test_a_mounted_lab_that_ends(lab: MountedLab) -> None:
    with started("--mount", lab.path, "--", "sh", "-c", "echo up; read line; exit 3") as run:
        assert said(run) == "up\n"
        end(lab)
        line = next_line(run)
        assert run.communicate("\n", timeout=SECONDS) == ("", "")
    assert line == f"vfsfuse: run: the server of {lab.path} has ended: its files fail from now on"
    assert run.returncode == 3


def end(lab: MountedLab) -> None:
    """Kill the server of a lab, as nobody should."""
    assert lab.server is not None
    lab.server.kill()
    lab.server.wait()
    vfsfuse("umount", "--lazy", lab.path)
    lab.server.returncode = 0  # it was to end


def test_a_flood_is_counted(config: Path) -> None:
    """Each failure is said or counted, however long they take."""
    script = f"{MAKE}; for i in $(seq 50); do {FAIL}; done; read line; cd /; {REMOVE}"
    with started("--config", config, "--", "sh", "-c", script) as run:
        lines = [next_line(run)]
        while lines[-1] and sum(map(failures_in, lines)) < 50:
            lines.append(next_line(run))
        _, rest = run.communicate("\n", timeout=SECONDS)
    assert (run.returncode, rest) == (0, "")
    assert lines[0] == f"{SAYS} (run --log FILE keeps the rest)"
    assert sum(map(failures_in, lines)) == 50


def failures_in(line: str) -> int:
    """How many failures a line is about."""
    more = re.fullmatch("vfsfuse: run: and ([0-9]+) more", line)
    assert more or line.startswith(SAYS), line
    return int(more[1]) if more else 1


def test_a_stderr_that_nobody_reads_holds_nothing_up(config: Path) -> None:
    """A pipe that is full: the program and the lab go on, and end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"x" * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
    script = f"{MAKE}; for i in $(seq 20); do {FAIL}; done; cat value; echo done"
    command = [*RUN, "--config", str(config), "--", "sh", "-c", script]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=writer, text=True, check=False, cwd=ROOT, timeout=SECONDS
    )
    os.close(writer)
    assert done.stdout.endswith("done\n")
    with open(reader, "rb") as pipe:
        lines = pipe.read().lstrip(b"x").decode().splitlines()
    assert all(line.startswith("vfsfuse: run: ") for line in lines)  # a line may wait for room for a moment


def test_a_shell_has_another_stderr_while_it_starts_a_command(config: Path) -> None:
    """The line comes when it has the first one again."""
    script = f"exec 3>&2 2>/dev/null; {FAIL}; exec 2>&3 3>&-"
    assert heard("--config", config, script=script) == [f"{SAYS} (run --log FILE keeps the rest)"]


@needs.root("an executable that its user cannot read takes two users")
@needs.open_fuse
def test_a_program_that_is_out_of_reach(compile_client: Callable[..., Path]) -> None:
    """The supervisor of an ordinary user may not look into a program that the user cannot read."""
    program = compile_client("device_fd")
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o755)
        hidden = Path(home, "hidden")
        shutil.copy(program, hidden)
        hidden.chmod(0o711)
        script = f"""
            echo {UUID} > /sys/bus/pci/devices/0000:86:00.0/mdev_supported_types/vgpu-8/create
            group=$(basename $(readlink /sys/bus/mdev/devices/{UUID}/iommu_group))
            {hidden} $group {UUID} errors; read line"""
        command = [*AS_NOBODY, *RUN, "--", "sh", "-c", script]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as run:
            lines = [next_line(run), next_line(run)]
            run.communicate("\n", timeout=SECONDS)
    assert any("hidden" in line and "cannot be looked into" in line for line in lines), lines


def test_lines_of_many_threads_are_whole() -> None:
    code = """
import os, threading
from vfsfuse.run.programstderr import ProgramStderr
words = ProgramStderr(os.getpid())
threads = [threading.Thread(target=words.say, args=(f"{number}" * 9,)) for number in range(8)]
for each in threads: each.start()
for each in threads: each.join()
for number in range(3): words.say_once("once")
words.finish()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert sorted(done.stderr.splitlines()) == [f"vfsfuse: run: {str(number) * 9}" for number in range(8)]
