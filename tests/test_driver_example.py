# SPDX-License-Identifier: Apache-2.0
"""examples/driver, the driver of docs/testing.md: its tests pass for root, for a user and in parallel.

Each runs in a pytest of its own, as yours would. test_readme.py runs the sessions of docs/testing.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.ordinary_user import UID

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs/testing.md").read_text()
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
ORDINARY = [sys.executable, "-m", "tests.ordinary_user"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an ordinary user can get to, and write in."""
    with tempfile.TemporaryDirectory(prefix="driver-") as name:
        path = Path(name)
        if not os.geteuid():
            os.chown(path, UID, UID)
        yield path


def passes(tests: Path, temporary: Path, *options: str, user: tuple[str, ...] = ()) -> str:
    """Run tests, with one folder for all that they leave; the last line that pytest prints."""
    command = [*user, *PYTEST, *options, f"--basetemp={temporary / 'base'}", str(tests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_it_passes(workers: str, tmp_path: Path) -> None:
    needs.module("xdist")
    assert passes(ROOT / "examples/driver", tmp_path, "-n", workers).startswith("3 passed")


def test_the_tests_with_faults_pass(tmp_path: Path) -> None:
    assert passes(ROOT / "examples/faults", tmp_path).startswith("3 passed")


@needs.root("the other tests run as an ordinary user already")
@needs.open_fuse
def test_it_passes_for_an_ordinary_user(folder: Path) -> None:
    assert passes(ROOT / "examples/driver", folder, user=tuple(ORDINARY)).startswith("3 passed")


def test_a_lab_for_many_tests(tmp_path: Path) -> None:
    """The files of the tutorial that have their names in their first lines."""
    for text, name in re.findall(r"```python\n(# (\w+\.py).*?)```", TUTORIAL, re.DOTALL):
        (tmp_path / name).write_text(text)
    for name in ("copier.py", "copier.toml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    done = subprocess.run(
        [*PYTEST, f"--basetemp={tmp_path / 'base'}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1].startswith("1 passed"), done.stdout + done.stderr


def test_the_workflow_installs_what_a_set_up_does() -> None:
    """Every package by which tools/setup.sh builds, and those of Python."""
    (installed,) = re.findall(r"apt-get install -y (.*)\n", TUTORIAL)
    (packages,) = re.findall(r"^packages=\((.*)\)$", (ROOT / "tools/setup.sh").read_text(), re.MULTILINE)
    assert sorted(installed.split()) == sorted([*packages.split(), "python3-dev", "python3-venv"])
