# SPDX-License-Identifier: Apache-2.0
"""Who may not be looked into, and who was only killed: a process that dies is root's for a moment."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ioctl_shim.seccomp import SeccompListener, TrappedCall
from vfsfuse.run import labfiles
from vfsfuse.run.labfiles import LabFiles, LeftToKernel, PtraceRefused


def files_of(check: Callable[[TrappedCall], None]) -> LabFiles:
    """The files of a lab, with a listener that answers `check`."""
    return LabFiles(cast(SeccompListener, SimpleNamespace(check=check)), os.open("/", os.O_PATH))


def dead(call: TrappedCall) -> None:
    raise OSError(errno.ENOENT, "the caller is dead")


def test_a_caller_that_was_killed_is_not_said_to_be_refused() -> None:
    """Nobody has waited for it.  The kernel says EACCES to an ordinary user, ENOENT to root."""
    with subprocess.Popen(["sleep", "1234.5"]) as caller:
        caller.kill()
        while " Z " not in Path(f"/proc/{caller.pid}/stat").read_text():
            time.sleep(0.001)
        with pytest.raises(LeftToKernel) as caught:
            files_of(dead).require(cast(TrappedCall, SimpleNamespace(tid=caller.pid)), 3)
    assert not isinstance(caught.value, PtraceRefused)


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_caller_that_lives_is(monkeypatch: pytest.MonkeyPatch, is_dead: bool) -> None:
    def refuse(file: int | str, ask: bool = False) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    files = files_of(dead if is_dead else lambda call: None)
    monkeypatch.setattr(labfiles, "file_id", refuse)
    with pytest.raises(LeftToKernel) as caught:
        files.require(cast(TrappedCall, SimpleNamespace(tid=os.getpid())), 3)
    assert isinstance(caught.value, PtraceRefused) is not is_dead
