# SPDX-License-Identifier: Apache-2.0
"""Fixtures: real labs on real mounts, and compiled C clients. Every test has a limit (tests/limits.py)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.labs import MountedLab
from tests.limits import Limits

CLIENTS = Path(__file__).parent / "clients"
OF_THE_USER = (
    *("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS"),
    *("PYTEST_ADDOPTS", "PYTHONUNBUFFERED", "CI", "BUILD_NUMBER"),
)
"""Variables of the environment that change what programs print, or which tests a pytest of a test runs."""
settings.register_profile("no deadline", deadline=None)  # a busy machine is no fault
settings.load_profile("no deadline")


def pytest_configure(config: pytest.Config) -> None:
    for name in OF_THE_USER:
        os.environ.pop(name, None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # a shell without job control starts background processes so, and they pass it on to all programs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Limits())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """The built-in lab, mounted for a module; tests take away what they create."""
    with MountedLab(tmp_path_factory.mktemp("lab")) as mounted:
        yield mounted


@pytest.fixture
def fresh_lab(tmp_path: Path) -> Iterator[MountedLab]:
    """The built-in lab, mounted for one test."""
    with MountedLab(tmp_path) as mounted:
        yield mounted


@pytest.fixture(scope="session")
def compile_client(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """compile_client(name, *flags): the program built from tests/clients/<name>.c."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed (apt-get install gcc libc6-dev)")
    folder = tmp_path_factory.mktemp("clients")

    def build(name: str, *flags: str) -> Path:
        program = folder / "".join([name, *flags])
        if not program.exists():
            source = CLIENTS / f"{name}.c"
            subprocess.run(
                ["gcc", "-O1", "-Wall", "-Wextra", *flags, "-o", program, source, "-lpthread"], check=True
            )
        return program

    return build
