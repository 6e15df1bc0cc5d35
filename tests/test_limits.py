# SPDX-License-Identifier: Apache-2.0
"""A test that waits for ever fails by its name, whatever it waits for, and the next one runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import ROOT

CONFTEST = """\
from tests import limits
from tests.conftest import pytest_configure

limits.GRACE_SECONDS = 1
"""
PATIENT = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
import pytest
from tests.labs import MountedLab

@pytest.fixture
def late_set_up():
    threading.Event().wait()

@pytest.fixture
def late_end():
    yield
    threading.Event().wait()

@pytest.mark.limit(0.5)
def test_a_lock():
    threading.Event().wait()

@pytest.mark.limit(0.5)
def test_a_child():
    subprocess.run(["sleep", "600"])

@pytest.mark.limit(0.5)
def test_a_loop():
    while True:
        time.sleep(0.01)

@pytest.mark.limit(0.5)
def test_a_set_up(late_set_up):
    pass

@pytest.mark.limit(0.5)
def test_an_end(late_end):
    pass

@pytest.mark.limit(4)
def test_a_server(tmp_path):
    with MountedLab(tmp_path) as lab:
        os.kill(lab.pid, signal.SIGSTOP)
        os.listdir(lab.path / "sys/class/mdev_bus")

def test_the_next_one(tmp_path):
    with MountedLab(tmp_path) as lab:
        assert os.listdir(lab.path / "sys/class/mdev_bus")
"""


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\nmarkers =\n    limit(seconds): as ours\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_patient.py").write_text(PATIENT)
    return tmp_path


def test_a_hang_is_a_failure_that_names_the_test(patient: Path) -> None:
    begun = time.monotonic()
    options = ["-rfEp", "-p", "no:cacheprovider", "--basetemp", str(patient / "base")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(patient), str(patient)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert time.monotonic() - begun < 100
    summary = done.stdout.partition("short test summary info")[2]
    outcomes = [tuple(line.split(" - ")[0].split()) for line in summary.splitlines() if "::" in line]
    named = [(outcome, name.rpartition("::")[2]) for outcome, name in outcomes]
    assert sorted(named) == [
        ("ERROR", "test_a_set_up"),
        ("ERROR", "test_an_end"),
        ("FAILED", "test_a_child"),
        ("FAILED", "test_a_lock"),
        ("FAILED", "test_a_loop"),
        ("FAILED", "test_a_server"),
        ("PASSED", "test_an_end"),
        ("PASSED", "test_the_next_one"),
    ], done.stdout
    assert "test_a_lock: the test takes longer than 0.5 seconds" in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert str(patient) not in Path("/proc/self/mounts").read_text()
