# SPDX-License-Identifier: Apache-2.0
"""The uevents of a lab in a program."""

from __future__ import annotations

import os
import select
import signal
import threading

import pytest

from vfsfuse import Lab, LabError

GPU = "0000:86:00.0"


def test_what_comes_and_goes(builtin: Lab) -> None:
    with builtin.uevents() as events:
        assert events.take() == []
        vgpu = builtin.create("vgpu-8")
        assert select.select([events], [], [], 60)[0]
        added = events.wait("add", vgpu.name)
        assert (added.action, added.name) == ("add", vgpu.name)
        assert f"sys{added.path}" == str(vgpu.path.relative_to(builtin.path))
        assert added.variables["SUBSYSTEM"] == "mdev"
        vgpu.remove()
        heard = events.take()
        assert [each.name for each in heard if each.action == "remove"][-1] == vgpu.name
        later = threading.Timer(0.05, builtin.functions[GPU].reset)
        later.start()
        with pytest.raises(TimeoutError, match=r"no add of a device in 0\.1 seconds"):
            events.wait("add", timeout=0.1)
        later.join()


def test_a_wait_for_what_comes_later(builtin: Lab) -> None:
    with builtin.uevents() as events:
        later = threading.Timer(0.05, lambda: builtin.create("vgpu-8").remove())
        later.start()
        assert events.wait("remove").variables["ACTION"] == "remove"
        later.join()
    events.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        events.take()


def test_a_server_that_is_killed() -> None:
    with Lab() as lab, lab.uevents() as events:
        os.kill(lab.pid, signal.SIGKILL)
        with pytest.raises(LabError, match="was killed by SIGKILL"):
            events.wait("add")
