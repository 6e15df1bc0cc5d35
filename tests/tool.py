# SPDX-License-Identifier: Apache-2.0
"""Unmodified programs, run in a mounted lab by `vfsfuse run --mount`."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.commands import vfsfuse
from tests.labs import MountedLab

SYSTEM_PYTHON = "/usr/bin/python3"
NO_MODULES = re.compile(r"^\w+: Unable to load libkmod resources: error -2\n", re.MULTILINE)
"""What pciutils say on a machine that has no /lib/modules of its kernel, which no lab can change."""


def need(program: str, package: str = "") -> None:
    """Skip the test unless the program is installed; the package has its name unless another is given."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install {package or program})")


def need_pyudev() -> None:
    """Skip the test unless the system's Python has pyudev."""
    need(SYSTEM_PYTHON, "python3")
    if subprocess.run([SYSTEM_PYTHON, "-c", "import pyudev"], capture_output=True, check=False).returncode:
        pytest.skip(f"pyudev is not installed for {SYSTEM_PYTHON} (apt-get install python3-pyudev)")


class Tool:
    """A program, run in the lab."""

    def __init__(self, lab: MountedLab, name: str) -> None:
        self.lab, self.name = lab, name

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it and return how it ended."""
        done = vfsfuse("run", "--mount", self.lab.path, "--", self.name, *arguments)
        done.stderr = NO_MODULES.sub("", done.stderr)
        return done

    def __call__(self, *arguments: str) -> str:
        """What it prints; it has to succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def quiet(self, *arguments: str) -> str:
        """What it prints; it has to succeed, and to say nothing on stderr."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout
