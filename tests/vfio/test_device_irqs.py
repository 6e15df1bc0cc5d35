# SPDX-License-Identifier: Apache-2.0
"""SET_IRQS on a real mount: every data type and action, and every refusal with the kernel's errno."""

from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.labs import MountedLab, described
from tests.vfio.client import (
    DEVICE_GET_IRQ_INFO,
    DEVICE_SET_IRQS,
    IrqInfo,
    IrqSet,
    fails,
    ioctl,
    unmapped_address,
)
from tests.vfio.devices import (
    BOOL,
    ERR,
    EVENTFD,
    GPU,
    INTX,
    LAB,
    MASK,
    MSI,
    MSIX,
    NONE,
    REQ,
    TRIGGER,
    UNMASK,
    Device,
    bound,
    eventfd,
    mdev,
    opened,
    signals,
    silent,
)

COMMAND, INTX_DISABLE = 4, 0x400


@pytest.fixture
def device(machine: MountedLab) -> Iterator[Device]:
    """The physical GPU, with INTx, MSI, 2048 vectors of MSI-X, ERR and REQ."""
    with bound(machine, GPU) as groups, opened(machine, groups[0], GPU) as found:
        yield found.device


@pytest.fixture
def event() -> Iterator[int]:
    with eventfd() as fd:
        yield fd


INFO = [(INTX, 7, 1), (MSI, 9, 1), (MSIX, 1, 2048), (ERR, 9, 1), (REQ, 9, 1)]
"""Index, flags (EVENTFD 1, MASKABLE 2, AUTOMASKED 4, NORESIZE 8), count."""


@pytest.mark.parametrize(("index", "flags", "count"), INFO)
def test_irq_info(device: Device, index: int, flags: int, count: int) -> None:
    info = IrqInfo(index=index)
    device.ioctl(DEVICE_GET_IRQ_INFO, info)
    assert (info.flags, info.count) == (flags, count)


def test_irq_info_of_a_mediated_device(machine: MountedLab) -> None:
    with mdev(machine, "mtty-2", "mtty") as found:
        for index, expected in ((INTX, 1), (MSI, 0), (MSIX, 0), (REQ, 1)):
            info = IrqInfo(index=index)
            found.device.ioctl(DEVICE_GET_IRQ_INFO, info)
            assert info.count == expected
        fails(errno.EINVAL, found.device.ioctl, DEVICE_GET_IRQ_INFO, IrqInfo(index=ERR))
        fails(errno.EINVAL, found.device.tear_down, MSI)


REFUSED = {
    "no index": (5, NONE | TRIGGER, 0, 1, b"", {}, errno.EINVAL),
    "absurd index": (2**32 - 1, NONE | TRIGGER, 0, 1, b"", {}, errno.EINVAL),
    "start beyond": (MSIX, NONE | TRIGGER, 2048, 0, b"", {}, errno.EINVAL),
    "end beyond": (MSIX, NONE | TRIGGER, 2047, 2, b"", {}, errno.EINVAL),
    "wrap-around": (MSIX, NONE | TRIGGER, 1, 2**32 - 1, b"", {}, errno.EINVAL),
    "huge count": (MSIX, EVENTFD | TRIGGER, 0, 2**31, b"", {"argsz": 2**32 - 1}, errno.EINVAL),
    "no data type": (INTX, TRIGGER, 0, 1, b"", {}, errno.EINVAL),
    "two data types": (INTX, NONE | BOOL | TRIGGER, 0, 1, b"\1", {}, errno.EINVAL),
    "unknown flag": (INTX, 64 | NONE | TRIGGER, 0, 1, b"", {}, errno.EINVAL),
    "short argsz": (INTX, NONE | TRIGGER, 0, 1, b"", {"argsz": 19}, errno.EINVAL),
    "no room for bools": (MSIX, BOOL | TRIGGER, 0, 3, b"\1\1", {}, errno.EINVAL),
    "no room for eventfds": (MSIX, EVENTFD | TRIGGER, 0, 2, bytes(7), {}, errno.EINVAL),
    "no action": (INTX, NONE, 0, 1, b"", {}, errno.ENOTTY),
    "two actions": (INTX, NONE | MASK | UNMASK, 0, 1, b"", {}, errno.ENOTTY),
    "mask MSI": (MSI, NONE | MASK, 0, 1, b"", {}, errno.ENOTTY),
    "unmask MSI-X": (MSIX, NONE | UNMASK, 0, 1, b"", {}, errno.ENOTTY),
    "mask ERR": (ERR, NONE | MASK, 0, 1, b"", {}, errno.ENOTTY),
    "mask REQ": (REQ, NONE | MASK, 0, 1, b"", {}, errno.ENOTTY),
    "mask INTx unset": (INTX, NONE | MASK, 0, 1, b"", {}, errno.EINVAL),
    "unmask INTx unset": (INTX, NONE | UNMASK, 0, 1, b"", {}, errno.EINVAL),
    "fire INTx unset": (INTX, NONE | TRIGGER, 0, 1, b"", {}, errno.EINVAL),
    "tear down INTx unset": (INTX, NONE | TRIGGER, 0, 0, b"", {}, errno.EINVAL),
    "fire MSI-X unset": (MSIX, BOOL | TRIGGER, 0, 1, b"\1", {}, errno.EINVAL),
    "enable no vector": (MSIX, EVENTFD | TRIGGER, 0, 0, b"", {}, errno.ERANGE),
    "fire ERR unset": (ERR, NONE | TRIGGER, 0, 1, b"", {}, errno.EINVAL),
    "no bool for ERR": (ERR, BOOL | TRIGGER, 0, 0, b"", {}, errno.EINVAL),
    "no eventfd for ERR": (ERR, EVENTFD | TRIGGER, 0, 0, b"", {}, errno.EINVAL),
    "no such descriptor": (INTX, EVENTFD | TRIGGER, 0, 1, struct.pack("=i", 9999), {}, errno.EBADF),
    "no eventfd": (MSI, EVENTFD | TRIGGER, 0, 1, struct.pack("=i", 0), {}, errno.EINVAL),
    "no eventfd for REQ": (REQ, EVENTFD | TRIGGER, 0, 1, struct.pack("=i", 0), {}, errno.EINVAL),
    "REQ below -1": (REQ, EVENTFD | TRIGGER, 0, 1, struct.pack("=i", -2), {}, errno.EINVAL),
}


@pytest.mark.parametrize("case", REFUSED)
def test_set_irqs_refuses(device: Device, case: str) -> None:
    index, flags, start, count, data, fields, number = REFUSED[case]
    fails(number, device.irqs, index, flags, start, count, data, **fields)


def test_bad_pointers(device: Device) -> None:
    for address in (0, unmapped_address()):
        fails(errno.EFAULT, ioctl, device.fd, DEVICE_SET_IRQS, address)
        fails(errno.EFAULT, ioctl, device.fd, DEVICE_GET_IRQ_INFO, address)


def test_long_argsz_is_no_harm(device: Device, event: int) -> None:
    device.irqs(REQ, EVENTFD | TRIGGER, 0, 1, struct.pack("=i", event), argsz=4096)
    device.irqs(REQ, NONE | TRIGGER, 0, 1, argsz=2**32 - 1)
    assert signals(event) == 1


def test_intx_loopback_mask_and_tear_down(device: Device, event: int) -> None:
    device.eventfds(INTX, TRIGGER, 0, event)
    device.irqs(INTX, NONE | TRIGGER, 0, 1)
    device.irqs(INTX, BOOL | TRIGGER, 0, 1, b"\1")
    device.irqs(INTX, BOOL | TRIGGER, 0, 1, b"\0")
    assert signals(event) == 2
    for flags, data in (
        (NONE | MASK, b""),
        (BOOL | MASK, b"\1"),
        (NONE | UNMASK, b""),
        (BOOL | UNMASK, b"\1"),
    ):
        device.irqs(INTX, flags, 0, 1, data)
    fails(errno.ENOTTY, device.eventfds, INTX, MASK, 0, event)
    device.tear_down(INTX)
    fails(errno.EINVAL, device.irqs, INTX, NONE | TRIGGER, 0, 1)


def test_intx_disable_in_config_space_silences_it(device: Device, event: int) -> None:
    device.eventfds(INTX, TRIGGER, 0, event)
    device.set_config(COMMAND, device.config(COMMAND) | INTX_DISABLE)
    device.irqs(INTX, NONE | TRIGGER, 0, 1)
    assert silent(event)
    device.set_config(COMMAND, device.config(COMMAND) & ~INTX_DISABLE)
    device.irqs(INTX, NONE | TRIGGER, 0, 1)
    assert signals(event) == 1


def test_unmask_by_eventfd(device: Device, event: int) -> None:
    device.eventfds(INTX, TRIGGER, 0, event)
    with eventfd() as unmask, eventfd() as second:
        device.eventfds(INTX, UNMASK, 0, unmask)
        fails(errno.EBUSY, device.eventfds, INTX, UNMASK, 0, second)
        device.irqs(INTX, NONE | MASK, 0, 1)
        os.eventfd_write(unmask, 1)
        while not silent(unmask):  # the server takes it
            pass
        device.eventfds(INTX, UNMASK, 0, -1)
        device.eventfds(INTX, UNMASK, 0, second)


def test_the_kinds_exclude_each_other(device: Device, event: int) -> None:
    device.eventfds(MSI, TRIGGER, 0, event)
    fails(errno.EINVAL, device.eventfds, INTX, TRIGGER, 0, event)
    fails(errno.EINVAL, device.eventfds, MSIX, TRIGGER, 0, event)
    fails(errno.EINVAL, device.tear_down, MSIX)
    device.tear_down(MSI)
    device.eventfds(MSIX, TRIGGER, 0, event)


def test_msix_with_all_vectors(device: Device) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with ExitStack() as stack:
            events = [stack.enter_context(eventfd()) for _ in range(2048)]
            device.eventfds(MSIX, TRIGGER, 0, *events)
            device.irqs(MSIX, BOOL | TRIGGER, 0, 2048, bytes([1, 0] * 1024))
            assert all(os.eventfd_read(event) == 1 for event in events[::2])
            device.irqs(MSIX, NONE | TRIGGER, 2047, 1)
            assert os.eventfd_read(events[2047]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_msix_is_dynamic_with_holes(device: Device, event: int) -> None:
    with eventfd() as other:
        device.eventfds(MSIX, TRIGGER, 0, -1, event, -1)
        device.eventfds(MSIX, TRIGGER, 100, other)
        device.irqs(MSIX, NONE | TRIGGER, 0, 200)
        assert (signals(event), signals(other)) == (1, 1)
        device.eventfds(MSIX, TRIGGER, 1, -1)
        device.irqs(MSIX, NONE | TRIGGER, 0, 200)
        assert silent(event) and signals(other) == 1
        device.eventfds(MSIX, TRIGGER, 1, other)
        device.irqs(MSIX, NONE | TRIGGER, 1, 1)
        assert silent(event) and signals(other) == 1


def test_a_failed_range_is_taken_away_again(device: Device, event: int) -> None:
    device.eventfds(MSIX, TRIGGER, 0, event, event)
    fails(errno.EBADF, device.eventfds, MSIX, TRIGGER, 0, event, event, 9999)
    device.irqs(MSIX, NONE | TRIGGER, 0, 3)
    assert silent(event)
    device.tear_down(MSIX)
    fails(errno.EBADF, device.eventfds, MSIX, TRIGGER, 0, event, 9999)
    fails(errno.EINVAL, device.irqs, MSIX, NONE | TRIGGER, 0, 1)


@pytest.mark.parametrize("index", [ERR, REQ])
def test_err_and_req(device: Device, event: int, index: int) -> None:
    device.eventfds(index, TRIGGER, 0, event)
    device.irqs(index, NONE | TRIGGER, 0, 1)
    device.irqs(index, BOOL | TRIGGER, 0, 1, b"\1")
    device.irqs(index, BOOL | TRIGGER, 0, 1, b"\0")
    assert signals(event) == 2
    device.eventfds(index, TRIGGER, 0, -1)
    fails(errno.EINVAL, device.irqs, index, NONE | TRIGGER, 0, 1)
    device.eventfds(index, TRIGGER, 0, event)
    device.tear_down(index)
    fails(errno.EINVAL, device.tear_down, index)


def test_a_removal_that_is_refused_requests_the_device(machine: MountedLab, event: int) -> None:
    with machine.create("mtty-2", "mtty") as vgpu, opened(machine, vgpu.group, vgpu.name) as found:
        found.device.eventfds(REQ, TRIGGER, 0, event)
        fails(errno.EBUSY, vgpu.remove)
        assert signals(event)  # each write(2) of "1" asks again


def test_a_full_eventfd_holds_nobody(device: Device) -> None:
    with eventfd() as full:
        os.eventfd_write(full, 2**64 - 2)
        device.eventfds(MSI, TRIGGER, 0, full)
        device.irqs(MSI, NONE | TRIGGER, 0, 1)
        assert os.eventfd_read(full) == 2**64 - 1, "it overflows once, as with eventfd_signal()"


def test_a_client_that_fills_its_counter_meanwhile_holds_nobody(
    tmp_path: Path, compile_client: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter fills when the server has just seen that it has room."""
    monkeypatch.setenv("LD_PRELOAD", str(compile_client("filling_poll", "-shared", "-fPIC")))
    with described(tmp_path, LAB) as lab:
        monkeypatch.delenv("LD_PRELOAD")
        with mdev(lab, "mtty-2", "mtty") as found, eventfd() as event:
            found.device.eventfds(INTX, TRIGGER, 0, event)
            trigger = os.fork()
            if not trigger:
                found.device.irqs(INTX, NONE | TRIGGER, 0, 1)
                os._exit(0)
            try:
                subprocess.run(["cat", lab.gpu / "vendor"], check=True, timeout=60)  # another client
            finally:
                while os.waitpid(trigger, os.WNOHANG) == (0, 0):
                    signals(event, 0.1)


def test_closing_lets_the_eventfds_go(machine: MountedLab) -> None:
    descriptors = f"/proc/{machine.pid}/fd"
    with bound(machine, GPU) as groups:
        before = len(os.listdir(descriptors))
        with opened(machine, groups[0], GPU) as found, eventfd() as event:
            found.device.eventfds(MSIX, TRIGGER, 0, *[event] * 50)
            found.device.eventfds(REQ, TRIGGER, 0, event)
            assert len(os.listdir(descriptors)) >= before + 51
        with opened(machine, groups[0], GPU) as found:
            assert len(os.listdir(descriptors)) < before + 20
            fails(errno.EINVAL, found.device.irqs, MSIX, NONE | TRIGGER, 0, 1)


def test_the_struct_is_the_headers() -> None:
    assert bytes(IrqSet(flags=1, index=2, start=3, count=4)) == struct.pack("=5I", 20, 1, 2, 3, 4)
