# SPDX-License-Identifier: Apache-2.0
"""`vfsfuse run`: a program opens terminals of its own, also where /dev is another one than the machine's."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.commands import ROOT, VFSFUSE, run, vfsfuse

OPENS = """
import os
terminal, program = os.openpty()
os.write(terminal, b"a line\\n")
assert os.read(program, 100) == b"a line\\n"
assert os.stat(os.ttyname(program)).st_rdev == os.fstat(program).st_rdev
named = os.open(f"/dev/pts/{os.path.basename(os.ttyname(program))}", os.O_RDWR | os.O_NOCTTY)
assert os.path.samestat(os.fstat(named), os.fstat(program))
assert os.access("/dev/ptmx", os.R_OK | os.W_OK)
print("ok")
"""
PYTHON = [sys.executable, "-c", OPENS]
PTMX = {"node": "mknod -m 666 ptmx c 5 2", "link": "ln -s pts/ptmx ptmx && chmod 666 pts/ptmx"}
THERE = {"vfio": "mkdir vfio && touch vfio/machines", "iommu": "echo text >iommu"}
USERS = {"root": [], "an ordinary user": [sys.executable, "-m", "tests.ordinary_user"]}


def test_a_program_opens_a_terminal() -> None:
    done = vfsfuse("run", "--", *PYTHON)
    assert (done.stdout, done.stderr) == ("ok\n", "")


@needs.root("another /dev is made by mknod(2)")
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("ptmx", PTMX)
@pytest.mark.parametrize("there", THERE)
def test_in_a_dev_without_a_place_for_the_lab(tmp_path: Path, user: str, ptmx: str, there: str) -> None:
    """Nothing of the machine's VFIO is anywhere in /dev."""
    (dev := tmp_path / "dev").mkdir()
    made = (
        f"mount -t tmpfs -o mode=755 dev {dev} && cd {dev} && cp -a /dev/null /dev/fuse /dev/urandom ."
        f" && {THERE[there]}"
        f" && mkdir pts && mount -t devpts -o newinstance,ptmxmode=000 devpts pts && {PTMX[ptmx]}"
        f" && cd {ROOT} && mount --move {dev} /dev"
    )
    script = f"{shlex.join(PYTHON)} && find /dev -name machines -o -name iommu -size +0"
    command = shlex.join([*USERS[user], *VFSFUSE, "run", "--", "sh", "-c", script])
    done = run(["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{made} && {command}"])
    assert (done.stdout, done.stderr) == ("ok\n", "")
