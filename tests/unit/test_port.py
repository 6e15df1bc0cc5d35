# SPDX-License-Identifier: Apache-2.0
"""The backing id of a device's port: what the kernel cannot do is asked once, what fails for now is asked
again, and an id stays registered as long as a file has it.  No open of a port gets another model's."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from devmodel.device.base import Device
from devmodel.region.region import Memory
from devmodel.vfio.group import Assignable
from ioctl_shim import lane
from tests.unit.fakes import fails
from vfsfuse.vfio.port import Port

TRANSIENT = [errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOSPC]


class Kernel:
    """Answers of open_backing(), one after the other: an id, or an errno below 0."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.closed: list[int] = []

    def open_backing(self, fd: int) -> int:
        answer = self.answers.pop(0)
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer

    def close_backing(self, backing_id: int) -> None:
        self.closed.append(backing_id)


@pytest.fixture
def port() -> Iterator[Port]:
    device = Device("toy", [Memory(4096)], [])
    yield Port(cast(Assignable, SimpleNamespace(device=device, access=device)))
    device.close()


@pytest.mark.parametrize("error", TRANSIENT)
def test_what_fails_for_now_is_asked_again(port: Port, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(-error, -error, 7)
    monkeypatch.setattr(lane, "open_backing", kernel.open_backing)
    fails(error, port.take_backing)
    fails(error, port.take_backing)
    assert [port.take_backing(), port.take_backing()] == [7, 7]


def test_what_the_kernel_cannot_do_is_asked_once(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "open_backing", Kernel(0).open_backing)
    assert [port.take_backing(), port.take_backing()] == [0, 0]
    port.close()


def test_an_id_goes_with_the_last_file_of_a_removed_device(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(7)
    monkeypatch.setattr(lane, "open_backing", kernel.open_backing)
    monkeypatch.setattr(lane, "close_backing", kernel.close_backing)
    first, second = port.take_backing(), port.take_backing()
    port.give_backing(first)
    port.close()
    assert kernel.closed == [], "the kernel may not have looked at the answer to the second open"
    fails(errno.ENODEV, port.take_backing)
    port.give_backing(second)
    assert kernel.closed == [7]


def test_an_id_that_no_file_has_goes_with_the_device(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(7)
    monkeypatch.setattr(lane, "open_backing", kernel.open_backing)
    monkeypatch.setattr(lane, "close_backing", kernel.close_backing)
    port.give_backing(port.take_backing())
    assert kernel.closed == [], "the next open has the same id"
    port.close()
    assert kernel.closed == [7]


def test_a_port_stays_that_of_the_model_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(7)
    monkeypatch.setattr(lane, "open_backing", kernel.open_backing)
    monkeypatch.setattr(lane, "close_backing", kernel.close_backing)
    typed, blank = Device("toy", [Memory(4096)], []), Device("toy", [], [])
    assignable = SimpleNamespace(device=typed, access=typed)
    port = Port(cast(Assignable, assignable))
    port.give_backing(port.take_backing())
    assignable.device = assignable.access = blank
    assert port.take_backing() == 7, "a client may have the first file open: EIO"
    port.close()
    fails(errno.ENODEV, port.take_backing)
    typed.close()


def test_the_port_of_a_device_without_memory_is_closed_too() -> None:
    device = Device("blank", [], [])
    port = Port(cast(Assignable, SimpleNamespace(device=device, access=device)))
    assert port.take_backing() == 0
    port.close()
    fails(errno.ENODEV, port.take_backing)
