# SPDX-License-Identifier: Apache-2.0
"""Configuration space of functions that vfio-pci drives, on a real mount: what a client reads, what it may
write, and what the device does then. The same registers in sysfs are the hardware's."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import MountedLab, described
from tests.vfio.client import (
    DEVICE_GET_INFO,
    DEVICE_PCI_HOT_RESET,
    DEVICE_PCI_HOT_RESET_INFO,
    DEVICE_RESET,
    DeviceInfo,
    fails,
)
from tests.vfio.devices import (
    EVENTFD,
    MSI,
    MSIX,
    NONE,
    TRIGGER,
    Device,
    Opened,
    bound,
    eventfd,
    function_dir,
    mdev,
    opened,
    signals,
    silent,
)
from tests.vfio.models.wired import MEMORY, MESSAGES, PM_EVENTS, ROM, TABLE, VECTORS

WIRED, INTEGRATED, FIXED, SLOT = "0000:86:00.0", "0000:00:05.0", "0000:00:06.0", "0000:87:00.0"
LAB = f"""\
[models]
wired = "{Path(__file__).parent}/models/wired.py:Wired"
fixed = "{Path(__file__).parent}/models/wired.py:Fixed"

[parents."{WIRED}"]
kind = "gpu"
driver = "host"
model = "wired"
memory = "1M"
types.own = {{ memory = "1M", description = "mediated", model = "wired" }}

[parents."{INTEGRATED}"]
kind = "gpu"
driver = "host"
model = "wired"
memory = "1M"
types.own = {{ memory = "1M", description = "mediated", model = "wired" }}

[parents."{FIXED}"]
kind = "gpu"
driver = "host"
model = "fixed"
memory = "1M"
types.own = {{ memory = "1M", description = "mediated", model = "fixed" }}

[parents."{SLOT}"]
kind = "gpu"
driver = "host"
model = "fixed"
memory = "1M"
types.own = {{ memory = "1M", description = "mediated", model = "fixed" }}
"""
COMMAND, INTERRUPT_LINE = 0x04, 0x3C
PM, MSI_CAP, VNDR, EXP, MSIX_CAP = 1, 5, 9, 0x10, 0x11
BAR0, PORTS, BAR2, ROM_REGION = 0, 1 << 40, 2 << 40, 6 << 40
FLAGS_RESET = 1


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("wired"), LAB) as mounted:
        yield mounted


@pytest.fixture
def wired(lab: MountedLab) -> Iterator[Opened]:
    with bound(lab, WIRED) as groups, opened(lab, groups[0], WIRED) as found:
        yield found


@pytest.fixture
def device(wired: Opened) -> Device:
    return wired.device


@pytest.fixture
def mediated(lab: MountedLab) -> Iterator[Device]:
    with mdev(lab, "own", WIRED) as found:
        yield found.device


def capability(device: Device, identity: int) -> int:
    place = device.config(0x34, 1)
    while place and device.config(place, 1) != identity:
        place = device.config(place + 1, 1)
    assert place
    return place


def raw(lab: MountedLab, offset: int, size: int = 2, name: str = WIRED) -> int:
    """What the hardware has, by sysfs."""
    with (function_dir(lab, name) / "config").open("rb") as file:
        return int.from_bytes(os.pread(file.fileno(), size, offset), "little")


def set_raw(lab: MountedLab, offset: int, value: int, size: int = 2) -> None:
    with (function_dir(lab, WIRED) / "config").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), value.to_bytes(size, "little"), offset)


def is_eio(device: Device, place: int) -> None:
    fails(errno.EIO, os.pread, device.fd, 4, place)
    fails(errno.EIO, os.pwrite, device.fd, b"lost", place)


# ---- what is the client's, and what the hardware's ----


@pytest.mark.parametrize(
    ("offset", "size", "written", "seen"),
    [
        (0x10, 4, 0xFFFFFFFF, 0xFFFFF000),
        (0x14, 4, 0xFFFFFFFF, 0xFFFFFFF9),
        (0x18, 4, 0xFFFFFFFF, 0xFFF00008),
        (0x1C, 4, 0xFFFFFFFF, 0),
        (0x30, 4, 0xFFFFFFFF, 0xFFFF0001),
        (INTERRUPT_LINE, 1, 0x0B, 0x0B),
    ],
)
def test_what_is_virtual_is_the_clients_alone(
    lab: MountedLab, device: Device, offset: int, size: int, written: int, seen: int
) -> None:
    before = raw(lab, offset, size)
    assert device.config(offset, size) == before
    device.set_config(offset, written, size)
    assert device.config(offset, size) == seen
    assert raw(lab, offset, size) == before


@pytest.mark.parametrize(("offset", "value"), [(0x0C, 0x10), (0x0D, 0xA8)])
def test_what_is_not_virtual_is_the_hardwares(
    lab: MountedLab, device: Device, offset: int, value: int
) -> None:
    device.set_config(offset, value, 1)
    assert device.config(offset, 1) == raw(lab, offset, 1) == value
    set_raw(lab, offset, 0x33, 1)
    assert device.config(offset, 1) == 0x33


def test_a_client_writes_no_identity_and_no_list(lab: MountedLab, device: Device) -> None:
    before = os.pread(device.fd, 256, 7 << 40)
    for offset, size in ((0x00, 4), (0x06, 2), (0x08, 4), (0x2C, 4), (0x34, 1), (0x3D, 1)):
        device.set_config(offset, (1 << 8 * size) - 1, size)
    for identity in (PM, MSI_CAP, EXP, MSIX_CAP, VNDR):
        device.set_config(capability(device, identity), 0xFFFF)
    assert os.pread(device.fd, 256, 7 << 40) == before
    assert len(before) == 256 and raw(lab, 0, 4) == 0xC0F41234


def test_the_next_client_finds_what_was_before(lab: MountedLab) -> None:
    with bound(lab, WIRED) as groups:
        with opened(lab, groups[0], WIRED) as first:
            image = os.pread(first.device.fd, 256, 7 << 40)
            for offset in range(0, 256, 4):
                if offset != capability(first.device, EXP) + 8:  # its highest bit resets
                    first.device.set_config(offset, 0xFFFFFFFF, 4)
        hardware = [raw(lab, offset, 4) for offset in range(0, 256, 4)]
        assert hardware == list(struct.unpack("<64I", image))
        with opened(lab, groups[0], WIRED) as second:
            assert os.pread(second.device.fd, 256, 7 << 40) == image


# ---- decoding ----


def test_memory_that_is_not_decoded_is_eio(device: Device) -> None:
    for place in (BAR0, BAR2):
        os.pwrite(device.fd, b"kept", place)
    command = device.config(COMMAND)
    device.set_config(COMMAND, command & ~2)
    for place in (BAR0, BAR0 + 0x400, BAR2, BAR2 + MEMORY - 4):
        is_eio(device, place)
    fails(errno.EIO, os.pread, device.fd, 4, ROM_REGION)
    fails(errno.EINVAL, os.pread, device.fd, 4, BAR2 + MEMORY)  # where the region ends is looked at first
    os.pwrite(device.fd, b"port", PORTS)
    assert os.pread(device.fd, 4, PORTS) == b"port"
    device.set_config(COMMAND, command)
    assert os.pread(device.fd, 4, BAR0) == os.pread(device.fd, 4, BAR2) == b"kept"
    assert os.pread(device.fd, 4, ROM_REGION) == b"\x55\xaa\x02R"


def test_ports_that_are_not_decoded_read_all_ones(device: Device) -> None:
    os.pwrite(device.fd, b"port", PORTS)
    command = device.config(COMMAND)
    device.set_config(COMMAND, command & ~1)
    assert os.pread(device.fd, 4, PORTS) == b"\xff" * 4
    assert os.pwrite(device.fd, b"lost", PORTS) == 4
    device.set_config(COMMAND, command)
    assert os.pread(device.fd, 4, PORTS) == b"port"


def test_sysfs_reads_all_ones_where_nothing_is_decoded(lab: MountedLab, device: Device) -> None:
    os.pwrite(device.fd, b"kept", BAR2)
    device.set_config(COMMAND, device.config(COMMAND) & ~2)
    with (function_dir(lab, WIRED) / "resource2").open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 4, 0) == b"\xff" * 4
        assert os.pwrite(file.fileno(), b"lost", 0) == 4
        device.set_config(COMMAND, device.config(COMMAND) | 2)
        assert os.pread(file.fileno(), 4, 0) == b"kept"


def test_a_mediated_device_reads_all_ones_where_nothing_is_decoded(mediated: Device) -> None:
    mediated.set_config(COMMAND, 0)
    for place in (BAR0, BAR2, PORTS):
        assert os.pread(mediated.fd, 4, place) == b"\xff" * 4
        assert os.pwrite(mediated.fd, b"lost", place) == 4


# ---- power ----


def power(device: Device, state: int) -> int:
    """Write the state; the state that the function is in then."""
    place = capability(device, PM) + 4
    device.set_config(place, device.config(place) & ~3 | state)
    return device.config(place) & 3


def test_in_d3hot_memory_is_eio_and_configuration_space_answers(lab: MountedLab, device: Device) -> None:
    os.pwrite(device.fd, b"kept", BAR2)
    os.pwrite(device.fd, b"reg0", BAR0)
    assert power(device, 3) == 3
    for place in (BAR0, BAR2):
        is_eio(device, place)
    fails(errno.EIO, os.pread, device.fd, 4, ROM_REGION)
    assert os.pread(device.fd, 4, PORTS) == b"\xff" * 4
    assert device.config(0, 4) == 0xC0F41234 and device.config(COMMAND) & 2
    device.set_config(INTERRUPT_LINE, 0x55, 1)
    assert device.config(INTERRUPT_LINE, 1) == 0x55
    with (function_dir(lab, WIRED) / "resource2").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4, 0) == b"\xff" * 4
    assert power(device, 0) == 0
    assert os.pread(device.fd, 4, BAR2) == b"kept" and os.pread(device.fd, 4, BAR0) == b"reg0"


@pytest.mark.parametrize("state", [1, 2])
def test_a_state_that_it_does_not_have_is_not_entered(device: Device, state: int) -> None:
    assert power(device, state) == 0
    assert power(device, 3) == 3
    assert power(device, state) == 3
    assert power(device, 0) == 0


def test_a_reset_and_the_next_client_find_d0(lab: MountedLab) -> None:
    with bound(lab, WIRED) as groups:
        with opened(lab, groups[0], WIRED) as first:
            assert power(first.device, 3) == 3
            first.device.ioctl(DEVICE_RESET)
            assert first.device.config(capability(first.device, PM) + 4) & 3 == 0
            os.pread(first.device.fd, 4, BAR2)
            assert power(first.device, 3) == 3
            place = capability(first.device, PM) + 4
        assert raw(lab, place) & 3 == 0
        with opened(lab, groups[0], WIRED) as second:
            assert second.device.config(place) & 3 == 0
            os.pread(second.device.fd, 4, BAR2)


def test_a_mediated_device_has_power_states_too(mediated: Device) -> None:
    os.pwrite(mediated.fd, b"kept", BAR2)
    assert power(mediated, 3) == 3
    assert os.pread(mediated.fd, 4, BAR2) == b"\xff" * 4
    assert power(mediated, 2) == 3 and power(mediated, 0) == 0
    assert os.pread(mediated.fd, 4, BAR2) == b"kept"
    assert power(mediated, 3) == 3
    mediated.ioctl(DEVICE_RESET)
    assert mediated.config(capability(mediated, PM) + 4) & 3 == 0
    assert os.pread(mediated.fd, 4, BAR2) == b"kept"


# ---- messages ----


def test_msi_says_whether_it_is_on(lab: MountedLab, device: Device) -> None:
    place = capability(device, MSI_CAP) + 2
    with eventfd() as event:
        device.eventfds(MSI, TRIGGER, 0, event, event, event)
        assert device.config(place) & 1 and raw(lab, place) & 0x71 == 0x21  # four of them, by the hardware
        device.tear_down(MSI)
    assert not device.config(place) & 1 and not raw(lab, place) & 1


def test_msi_is_not_switched_on_behind_vfios_back(lab: MountedLab, device: Device) -> None:
    place = capability(device, MSI_CAP) + 2
    for width in (1, 2):
        device.set_config(place, (device.config(place) | 0x71) & (1 << 8 * width) - 1, width)
        assert device.config(place) & 0x71 == raw(lab, place) & 0x71 == 0
    with eventfd() as event:
        device.eventfds(MSIX, TRIGGER, 0, event)
        device.set_config(place, device.config(place) | 1)
        assert not device.config(place) & 1


def test_msi_that_a_client_switches_off_sends_nothing(device: Device) -> None:
    place = capability(device, MSI_CAP) + 2
    with eventfd() as event:
        device.eventfds(MSI, TRIGGER, 0, event, event)
        on = device.config(place)
        device.set_config(place, on & ~1)
        os.pwrite(device.fd, struct.pack("<I", 1), BAR0 + 4)
        assert not device.config(place) & 1 and silent(event)
        device.set_config(place, on | 0x31)
        assert device.config(place) & 0x71 == 0x11  # no more than were set up
        os.pwrite(device.fd, struct.pack("<I", 1), BAR0 + 4)
        assert signals(event) == 1
        device.tear_down(MSI)


def test_the_message_is_virtual_and_the_mask_is_not(lab: MountedLab, device: Device) -> None:
    place = capability(device, MSI_CAP)
    for offset, size, value in ((4, 4, 0xFEE01000), (8, 4, 1), (12, 2, 0x4021), (16, 4, 0x0F)):
        device.set_config(place + offset, value, size)
        assert device.config(place + offset, size) == value
    assert [raw(lab, place + offset, 4) for offset in (4, 8, 12, 16)] == [0, 0, 0, 0x0F]


def test_msix_control_is_read_only_and_says_whether_it_is_on(lab: MountedLab, device: Device) -> None:
    place = capability(device, MSIX_CAP) + 2
    off = VECTORS - 1
    device.set_config(place, 0xC000)
    assert device.config(place) == off
    with eventfd() as event:
        device.eventfds(MSIX, TRIGGER, 0, event)
        assert device.config(place) == raw(lab, place) == 0x8000 | off
        device.set_config(place, 0x4000)
        assert device.config(place) == 0x8000 | off
        os.pwrite(device.fd, struct.pack("<I", 0), BAR0 + 4)
        assert signals(event) == 1
        device.tear_down(MSIX)
        assert device.config(place) == raw(lab, place) == off
        device.eventfds(MSIX, TRIGGER, 0, event)
        device.irqs(MSIX, NONE | TRIGGER, 0, 0)
    assert device.config(place) == off


def test_the_last_close_switches_messages_off(lab: MountedLab) -> None:
    with bound(lab, WIRED) as groups:
        with opened(lab, groups[0], WIRED) as found, eventfd() as event:
            place = capability(found.device, MSIX_CAP) + 2
            found.device.eventfds(MSIX, TRIGGER, 0, event)
            assert raw(lab, place) & 0x8000
        assert not raw(lab, place) & 0x8000


def test_messages_that_are_refused_are_not_on(device: Device) -> None:
    place = capability(device, MSIX_CAP) + 2
    fails(errno.EBADF, device.irqs, MSIX, EVENTFD | TRIGGER, 0, 1, struct.pack("=i", 9999))
    assert not device.config(place) & 0x8000


def test_a_mediated_devices_capabilities_say_what_is_on(mediated: Device) -> None:
    msi, msix = capability(mediated, MSI_CAP) + 2, capability(mediated, MSIX_CAP) + 2
    with eventfd() as event:
        mediated.eventfds(MSI, TRIGGER, 0, *[event] * MESSAGES)
        assert mediated.config(msi) & 0x71 == 0x31
        mediated.ioctl(DEVICE_RESET)
        assert mediated.config(msi) & 0x71 == 0x31
        os.pwrite(mediated.fd, struct.pack("<I", 7), BAR0 + 4)
        assert signals(event) == 1
        mediated.tear_down(MSI)
        mediated.eventfds(MSIX, TRIGGER, 0, event)
        assert mediated.config(msix) & 0x8000 and not mediated.config(msi) & 1
        mediated.tear_down(MSIX)
    assert not mediated.config(msix) & 0x8000


# ---- the MSI-X table ----


@pytest.mark.parametrize("size", [1, 2, 4, 8, 64])
def test_the_table_is_the_kernels_wherever_it_is(lab: MountedLab, device: Device, size: int) -> None:
    for offset in (TABLE, TABLE + 16 * VECTORS - size):
        assert os.pwrite(device.fd, bytes(size), BAR0 + offset) == size
        assert os.pread(device.fd, size, BAR0 + offset) == b"\xff" * size
    with (function_dir(lab, WIRED) / "resource0").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 16 * VECTORS, TABLE) == bytes(16 * VECTORS)


def test_an_access_across_the_table_has_both(device: Device) -> None:
    end = TABLE + 16 * VECTORS
    os.pwrite(device.fd, b"mine", BAR0)
    got = os.pread(device.fd, end + 8, BAR0)
    assert got[:4] == b"mine" and got[TABLE:end] == b"\xff" * (end - TABLE) and got[end:] == bytes(8)
    assert os.pwrite(device.fd, b"self" + bytes(end + 4), BAR0) == end + 8
    assert os.pread(device.fd, 4, BAR0) == b"self"


def test_the_table_needs_no_decoding(device: Device) -> None:
    device.set_config(COMMAND, device.config(COMMAND) & ~2)
    assert os.pread(device.fd, 16, BAR0 + TABLE) == b"\xff" * 16
    fails(errno.EIO, os.pread, device.fd, 16, BAR0 + TABLE - 8)


def test_a_mediated_devices_table_is_its_models(mediated: Device) -> None:
    os.pwrite(mediated.fd, b"entry 0.", BAR0 + TABLE)
    assert os.pread(mediated.fd, 8, BAR0 + TABLE) == b"entry 0."


def test_the_rom_is_padded(device: Device) -> None:
    assert os.pread(device.fd, 8, ROM_REGION) == b"\x55\xaa\x02ROM\xff\xff"
    assert os.pread(device.fd, 8, ROM_REGION + ROM - 4) == b"\xff" * 4
    fails(errno.EINVAL, os.pwrite, device.fd, b"x", ROM_REGION)


# ---- PCI Express ----


def test_device_control_keeps_what_is_written(lab: MountedLab, device: Device) -> None:
    place = capability(device, EXP) + 8
    assert device.config(place) == raw(lab, place) == 0x2910
    device.set_config(place, 0x58EF)
    assert device.config(place) == 0x58EF
    assert raw(lab, place) == 0x580F  # the size of packets is the host's
    device.set_config(place, 0x0200)
    assert device.config(place) == 0x0000  # no phantom functions


def test_link_control_is_the_hosts(lab: MountedLab, device: Device) -> None:
    place = capability(device, EXP)
    assert device.config(place + 0x0C, 4) & 0x3FF == device.config(place + 0x12) & 0x3FF == 0x043
    device.set_config(place + 0x10, 0xFFFF)
    assert device.config(place + 0x10) == raw(lab, place + 0x10) == 0x0040
    set_raw(lab, place + 0x10, 0x0003)
    assert device.config(place + 0x10) == 0x0003


def test_the_reset_bit_resets_and_reads_0(lab: MountedLab, device: Device) -> None:
    place = capability(device, EXP) + 8
    device.set_config(0x10, 0xFFFFFFFF, 4)
    for width, value in ((2, 0x8000), (1, 0x80)):
        os.pwrite(device.fd, b"mine", BAR0)
        assert power(device, 3) == 3
        device.set_config(place + 2 - width, value, width)
        assert not device.config(place) & 0x8000
        assert os.pread(device.fd, 4, BAR0) == bytes(4)
        assert device.config(0x10, 4) == 0xFFFFF000  # saved and restored
    os.pwrite(device.fd, b"mine", BAR0)
    set_raw(lab, place, 0xA910)
    assert os.pread(device.fd, 4, BAR0) == bytes(4) and raw(lab, place) == 0x2910


# ---- resets ----


def flags(device: Device) -> int:
    info = DeviceInfo()
    device.ioctl(DEVICE_GET_INFO, info)
    return int(info.flags)


@pytest.mark.parametrize(
    ("name", "has_reset", "has_port"),
    [(WIRED, True, True), (INTEGRATED, True, False), (FIXED, False, False), (SLOT, True, True)],
)
def test_what_has_a_reset_says_so_and_has_it(
    lab: MountedLab, name: str, has_reset: bool, has_port: bool
) -> None:
    with bound(lab, name) as groups, opened(lab, groups[0], name) as found:
        device = found.device
        assert bool(flags(device) & FLAGS_RESET) is has_reset
        call = ctypes.create_string_buffer(struct.pack("=III", 20, 0, 0), 20)
        reset = ctypes.create_string_buffer(struct.pack("=IIIi", 16, 0, 1, found.group.fd))
        if has_reset:
            device.ioctl(DEVICE_RESET)
        else:
            fails(errno.EINVAL, device.ioctl, DEVICE_RESET)
        if has_port:
            device.ioctl(DEVICE_PCI_HOT_RESET_INFO, call)
            device.ioctl(DEVICE_PCI_HOT_RESET, reset)
        else:
            fails(errno.ENODEV, device.ioctl, DEVICE_PCI_HOT_RESET_INFO, call)
            fails(errno.ENODEV, device.ioctl, DEVICE_PCI_HOT_RESET, reset)


def test_what_could_be_reset_when_it_was_opened_has_the_flag_until_it_is_closed(lab: MountedLab) -> None:
    method = function_dir(lab, WIRED) / "reset_method"
    with bound(lab, WIRED) as groups:
        with opened(lab, groups[0], WIRED) as found:
            method.write_text("\n")
            assert flags(found.device) & FLAGS_RESET
            fails(errno.ENOTTY, found.device.ioctl, DEVICE_RESET)
        with opened(lab, groups[0], WIRED) as found:
            method.write_text("default")
            assert not flags(found.device) & FLAGS_RESET
            fails(errno.EINVAL, found.device.ioctl, DEVICE_RESET)


def test_a_client_has_no_power_management_events(lab: MountedLab) -> None:
    with bound(lab, SLOT) as groups, opened(lab, groups[0], SLOT) as found:
        place = capability(found.device, PM)
        assert raw(lab, place + 2, name=SLOT) & PM_EVENTS and raw(lab, place + 4, name=SLOT) & 0x0100
        assert not found.device.config(place + 2) & PM_EVENTS and not found.device.config(place + 4) & 0x8100
        for width, value in ((2, 0x8100), (4, 0x8100)):
            found.device.set_config(place + 4, value, width)
            assert not found.device.config(place + 4) & 0x8100
            assert raw(lab, place + 4, name=SLOT) & 0x8100 == 0x0100


def test_a_function_without_intx_keeps_the_bit_that_disables_it(lab: MountedLab) -> None:
    with bound(lab, SLOT) as groups, opened(lab, groups[0], SLOT) as found:
        command = found.device.config(COMMAND)
        found.device.set_config(COMMAND, command | 0x400)
        assert found.device.config(COMMAND) == command | 0x400
        assert not raw(lab, COMMAND, name=SLOT) & 0x400
        found.device.set_config(COMMAND, command)
        assert found.device.config(COMMAND) == command


def test_a_function_on_bus_0_has_no_link(lab: MountedLab) -> None:
    with bound(lab, INTEGRATED) as groups, opened(lab, groups[0], INTEGRATED) as found:
        place = capability(found.device, EXP)
        assert found.device.config(place + 2) == 0x0092
        assert [found.device.config(place + offset, 4) for offset in (0x0C, 0x10, 0x2C)] == [0, 0, 0]


def test_a_mediated_device_has_its_reset(mediated: Device) -> None:
    assert flags(mediated) & FLAGS_RESET
    os.pwrite(mediated.fd, b"mine", BAR0)
    mediated.ioctl(DEVICE_RESET)
    assert os.pread(mediated.fd, 4, BAR0) == bytes(4)
