# SPDX-License-Identifier: Apache-2.0
"""What fault rules have happen to a device while it is closed, removed, reloaded or loses its driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import pytest

from tests.commands import one_write
from tests.faultactions import BAR0, NIC, ONES, add, as_before, enable, lab, read, vgpu, virtual
from tests.labs import MountedLab
from tests.nic import function
from tests.vfio.devices import Opened, opened
from tests.waiting import wait_for

__all__ = ["as_before", "lab", "vgpu"]


def together(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls at the same time; each may find that the device has gone."""
    start = threading.Barrier(len(calls))

    def make(call: Callable[[], None]) -> None:
        start.wait()
        with suppress(OSError):
            call()

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("action", ["remove=true", "reset=true", "error=fatal"])
def test_an_action_meets_a_close_and_a_removal(lab: MountedLab, action: str) -> None:
    types = lab.parent("copiers") / "mdev_supported_types/copier-1"
    room = (types / "available_instances").read_text()
    for _ in range(30):
        made = lab.create("copier-1", "copiers")
        with ExitStack() as stack:
            stack.enter_context(opened(lab, made.group, made.name))
            name = made.name
            together(
                [
                    lambda name=name: add(lab, f"device={name} after=0 {action}"),  # type: ignore[misc]
                    lambda name=name: add(lab, f"device={name} after=0 {action}"),  # type: ignore[misc]
                    lambda stack=stack: stack.close(),  # type: ignore[misc]
                    lambda made=made: made.remove(),  # type: ignore[misc]
                ]
            )
        with suppress(OSError):  # it is gone
            made.remove()
        wait_for(lambda made=made: not (lab.mdevs / made.name).exists())  # type: ignore[misc]
        one_write(lab.path / "faults", "clear")
    wait_for(lambda: (types / "available_instances").read_text() == room)


def test_an_action_meets_a_driver_that_leaves_and_virtual_functions_that_go(lab: MountedLab) -> None:
    for _ in range(10):
        enable(lab, 3)
        first = virtual(lab)[0].name
        together(
            [
                lambda first=first: add(lab, f"device={first} after=0 remove=true"),  # type: ignore[misc]
                lambda: add(lab, f"device={NIC} after=0 error=fatal"),
                lambda: enable(lab, 0),
                lambda first=first: one_write(function(lab, first) / "driver/unbind", first),  # type: ignore[misc]
            ]
        )
        one_write(lab.path / "faults", "clear")
        enable(lab, 0)
        assert virtual(lab) == {}


def test_an_action_meets_a_reload(lab: MountedLab, vgpu: Opened) -> None:
    together(
        [
            lambda: one_write(lab.path / "reload", "copier"),
            lambda: add(lab, f"device={vgpu.name} after=0 reset=true"),
            lambda: add(lab, f"device={vgpu.name} after=0 remove=true"),
        ]
    )
    wait_for(lambda: not (lab.mdevs / vgpu.name).exists())
    assert read(vgpu, BAR0) == 4 * ONES
