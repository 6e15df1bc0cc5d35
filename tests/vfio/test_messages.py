# SPDX-License-Identifier: Apache-2.0
"""Interrupts that a device raises, as a client of vfio-pci gets them: INTx by level, and eight messages."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.labs import MountedLab, described
from tests.vfio.client import fails
from tests.vfio.devices import (
    BOOL,
    EVENTFD,
    INTX,
    MASK,
    MSI,
    NONE,
    TRIGGER,
    UNMASK,
    Device,
    bound,
    eventfd,
    opened,
    signals,
    silent,
)

NAME = "0000:86:00.0"
LAB = f"""\
[models]
notifier = "{Path(__file__).parent}/models/notifier.py:Notifier"

[parents."{NAME}"]
kind = "gpu"
driver = "notifier"
model = "notifier"
memory = "16M"
types.one = {{ memory = "4M", description = "a share" }}
"""
LEVEL, MESSAGE = 0, 4
COMMAND, STATUS, INTX_DISABLE, INTX_STATUS = 4, 6, 0x400, 8
COUNT = 8


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("notifier"), LAB) as mounted:
        yield mounted


@pytest.fixture
def device(lab: MountedLab) -> Iterator[Device]:
    with bound(lab, NAME) as groups, opened(lab, groups[0], NAME) as found:
        found.device.set_config(COMMAND, found.device.config(COMMAND) | 2)
        yield found.device


@pytest.fixture
def events() -> Iterator[list[int]]:
    """An eventfd for each message."""
    with ExitStack() as stack:
        yield [stack.enter_context(eventfd()) for _ in range(COUNT)]


def drive(device: Device, level: int) -> None:
    """Set the level of INTx."""
    os.pwrite(device.fd, level.to_bytes(4, "little"), LEVEL)


def send(device: Device, *messages: int) -> None:
    for message in messages:
        os.pwrite(device.fd, message.to_bytes(4, "little"), MESSAGE)


def pending(device: Device) -> bool:
    """Whether the status register shows INTx."""
    return bool(device.config(STATUS) & INTX_STATUS)


# ---- INTx ----


def test_intx_masks_itself_and_fires_again_while_the_line_is_up(device: Device, events: list[int]) -> None:
    device.eventfds(INTX, TRIGGER, 0, events[0])
    drive(device, 1)
    assert signals(events[0]) == 1 and pending(device)
    drive(device, 1)
    assert silent(events[0])
    device.irqs(INTX, NONE | UNMASK, 0, 1)
    assert signals(events[0]) == 1
    drive(device, 0)
    assert not pending(device)
    device.irqs(INTX, NONE | UNMASK, 0, 1)
    assert silent(events[0])


def test_the_status_register_shows_the_line_whatever_the_command_register_says(
    device: Device, events: list[int]
) -> None:
    device.eventfds(INTX, TRIGGER, 0, events[0])
    command = device.config(COMMAND)
    device.set_config(COMMAND, command | INTX_DISABLE)
    assert device.config(COMMAND) & INTX_DISABLE
    drive(device, 1)
    assert silent(events[0]) and pending(device)
    device.set_config(COMMAND, command)
    assert signals(events[0]) == 1


def test_a_masked_line_fires_when_it_is_unmasked(device: Device, events: list[int]) -> None:
    device.eventfds(INTX, TRIGGER, 0, events[0])
    device.irqs(INTX, NONE | MASK, 0, 1)
    drive(device, 1)
    assert silent(events[0])
    device.irqs(INTX, BOOL | UNMASK, 0, 1, b"\1")
    assert signals(events[0]) == 1


def test_an_eventfd_unmasks_a_line_that_is_up(device: Device, events: list[int]) -> None:
    device.eventfds(INTX, TRIGGER, 0, events[0])
    device.eventfds(INTX, UNMASK, 0, events[1])
    drive(device, 1)
    assert signals(events[0]) == 1
    os.eventfd_write(events[1], 1)
    assert signals(events[0]) == 1


def test_there_is_one_intx(device: Device, events: list[int]) -> None:
    fails(errno.EINVAL, device.eventfds, INTX, TRIGGER, 0, *events[:2])
    fails(errno.EINVAL, device.eventfds, INTX, TRIGGER, 1, events[0])


# ---- messages ----


def test_each_message_has_an_eventfd(device: Device, events: list[int]) -> None:
    device.eventfds(MSI, TRIGGER, 0, *events)
    send(device, *range(COUNT))
    assert [signals(event) for event in events] == [1] * COUNT
    device.eventfds(MSI, TRIGGER, 0, -1)
    send(device, 0)
    assert silent(events[0])


def test_eventfds_change_places(device: Device, events: list[int]) -> None:
    device.eventfds(MSI, TRIGGER, 0, *events)
    device.eventfds(MSI, TRIGGER, 3, events[5], -1, events[3])
    send(device, 3, 4, 5)
    assert (signals(events[5]), signals(events[3])) == (1, 1) and silent(events[4])


def test_a_client_fires_some_of_them_by_itself(device: Device, events: list[int]) -> None:
    device.eventfds(MSI, TRIGGER, 0, *events)
    device.irqs(MSI, BOOL | TRIGGER, 0, COUNT, b"\1\0" * (COUNT // 2))
    assert all(signals(event) == 1 for event in events[::2]) and all(map(silent, events[1::2]))


def test_no_more_messages_than_were_enabled_at_first(device: Device, events: list[int]) -> None:
    device.eventfds(MSI, TRIGGER, 0, *events[:3])
    fails(errno.EINVAL, device.eventfds, MSI, TRIGGER, 3, *events[3:5])
    device.tear_down(MSI)
    device.eventfds(MSI, TRIGGER, 2, events[2])
    send(device, 0, 1, 2)
    assert signals(events[2]) == 1 and silent(events[0])


def test_messages_keep_intx_away(device: Device, events: list[int]) -> None:
    device.eventfds(MSI, TRIGGER, 0, *events)
    fails(errno.EINVAL, device.eventfds, INTX, TRIGGER, 0, events[0])
    device.tear_down(MSI)
    fails(errno.EINVAL, device.tear_down, MSI)
    device.irqs(INTX, EVENTFD | TRIGGER, 0, 1, events[0].to_bytes(4, "little"))
