# SPDX-License-Identifier: Apache-2.0
"""The programs of docs/python.md and docs/faults.md print what is shown there. A line `...` and dots within a
line stand for any text, as in the sessions of the README."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import vfsfuse
from tests import needs
from tests.commands import ROOT
from tests.test_readme import pattern

TEXT, FAULTS = ((ROOT / "docs" / name).read_text() for name in ("python.md", "faults.md"))
PROGRAMS, OF_FAULTS = (
    re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL) for text in (TEXT, FAULTS)
)


@pytest.mark.parametrize(("program", "expected"), [*PROGRAMS, *OF_FAULTS])
def test_a_program(program: str, expected: str) -> None:
    command = [sys.executable, "-u", "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.fullmatch(pattern(expected), done.stdout), f"{done.stdout}{done.stderr}instead of\n{expected}"
    assert done.stderr == ""


@needs.open_fuse
@needs.root("the other tests run as an ordinary user already")
def test_an_ordinary_user_has_a_driver() -> None:
    program, expected = PROGRAMS[1]
    assert "device.map(" in program and "device.interrupts(" in program
    command = [sys.executable, "-m", "tests.ordinary_user", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (expected, "")


def test_every_program_is_run() -> None:
    assert len(PROGRAMS) == TEXT.count("```python\n") > 5
    assert len(OF_FAULTS) == FAULTS.count("import vfsfuse\n") == 1


@pytest.mark.parametrize("name", vfsfuse.__all__)
def test_every_name_is_told(name: str) -> None:
    assert re.search(rf"(`|vfsfuse\.){name}\b", TEXT)
