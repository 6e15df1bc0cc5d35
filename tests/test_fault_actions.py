# SPDX-License-Identifier: Apache-2.0
"""What fault rules have happen to devices of a mount, as clients, udev and tools see it: surprise removals
and resets; virtual functions that are late or without a driver; probes that are refused."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from contextlib import ExitStack

from tests.commands import one_write
from tests.faultactions import (
    ALONE,
    BAR0,
    BESIDE,
    CACHE_LINE,
    CARD,
    CONFIG,
    NIC,
    ONES,
    SLOT,
    add,
    as_before,
    enable,
    lab,
    opened_function,
    read,
    vgpu,
    virtual,
    write,
)
from tests.labs import MountedLab
from tests.nic import driver_of, function
from tests.test_uevents import hear, listening
from tests.vfio.client import DEVICE_GET_INFO, DEVICE_RESET, DeviceInfo, fails, ioctl
from tests.vfio.devices import ERR, REQ, TRIGGER, Opened, eventfd, signals, silent
from tests.waiting import wait_for

__all__ = ["as_before", "lab", "vgpu"]

NEVER = 86400
"""Seconds by which a virtual function is late that does not come during a test."""


# ---- surprise removal ----


def test_a_vgpu_goes_after_the_write_that_a_rule_names(lab: MountedLab, vgpu: Opened) -> None:
    add(lab, f"device={vgpu.name} region=BAR0 access=write nth=2 remove=true")
    with eventfd() as req, listening(lab, os.O_NONBLOCK) as events:
        vgpu.device.eventfds(REQ, TRIGGER, 0, req)
        write(vgpu, BAR0, b"\1\2\3\4")
        assert read(vgpu, BAR0) == b"\1\2\3\4" and silent(req)
        write(vgpu, BAR0, b"\5\6\7\x08")
        assert read(vgpu, BAR0) == read(vgpu, CONFIG) == 4 * ONES and signals(req) == 1
        write(vgpu, BAR0, b"\1\2\3\4")
        fails(errno.ENODEV, ioctl, vgpu.device.fd, DEVICE_RESET)
        assert read(vgpu, BAR0) == 4 * ONES
        heard: list[str] = []

        def gone() -> bool:
            heard.extend(variables["ACTION"] for _, variables in hear(events))
            return "unbind" in heard and heard[-1] == "remove" and not (lab.mdevs / vgpu.name).exists()

        wait_for(gone)
    assert heard[-2:] == ["unbind", "remove"]


def test_a_virtual_function_goes_alone_and_stays_enabled(lab: MountedLab) -> None:
    enable(lab, 4)
    first, second = virtual(lab)[0], virtual(lab)[1]
    with ExitStack() as stack:
        device = opened_function(lab, stack, second.name)
        err, req = (stack.enter_context(eventfd()) for _ in range(2))
        device.device.eventfds(ERR, TRIGGER, 0, err)
        device.device.eventfds(REQ, TRIGGER, 0, req)
        add(lab, f"device={second.name} ioctl=VFIO_DEVICE_GET_INFO remove=true")
        ioctl(device.device.fd, DEVICE_GET_INFO, DeviceInfo())
        assert read(device, CONFIG) == read(device, BAR0) == 4 * ONES
        assert signals(err) == signals(req) == 1
        wait_for(lambda: not second.exists())
        assert list(virtual(lab)) == [0, 2, 3] and driver_of(first) == "iavf"
        assert (function(lab, NIC) / "sriov_numvfs").read_text() == "4\n"
        fails(errno.EBUSY, enable, lab, 2)
    enable(lab, 0)
    enable(lab, 4)
    wait_for(lambda: list(virtual(lab)) == [0, 1, 2, 3])
    assert driver_of(second) == "iavf"


def test_a_function_without_a_slot_goes_and_a_rescan_finds_it(lab: MountedLab) -> None:
    with ExitStack() as stack:
        device = opened_function(lab, stack, ALONE)
        add(lab, f"device={ALONE} after=0 remove=true")
        wait_for(lambda: not function(lab, ALONE).exists())
        assert read(device, CONFIG) == 4 * ONES
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert driver_of(function(lab, ALONE)) == "nvme"


def test_a_function_in_a_slot_goes_with_its_card(lab: MountedLab) -> None:
    slot = lab.path / "sys/bus/pci/slots" / SLOT
    assert (slot / "adapter").read_text() == "1\n"
    add(lab, f"device={BESIDE} after=0 remove=true")
    wait_for(lambda: (slot / "adapter").read_text() == "0\n")
    assert not function(lab, CARD).exists() and not function(lab, BESIDE).exists()
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert not function(lab, CARD).exists()
    (slot / "plug").write_text("1")
    assert driver_of(function(lab, CARD)) == driver_of(function(lab, BESIDE)) == "nvme"


def test_a_physical_function_takes_its_virtual_ones_along(lab: MountedLab) -> None:
    enable(lab, 2)
    with ExitStack() as stack:
        device = opened_function(lab, stack, virtual(lab)[0].name)
        add(lab, f"device={NIC} after=0 remove=true")
        wait_for(lambda: not function(lab, NIC).exists())
        assert read(device, CONFIG) == 4 * ONES
        assert not function(lab, device.name).exists()
    (lab.path / "sys/bus/pci/rescan").write_text("1")
    assert driver_of(function(lab, NIC)) == "ice" and virtual(lab) == {}


# ---- reset ----


def test_a_device_that_resets_itself_has_lost_what_was_written(lab: MountedLab, vgpu: Opened) -> None:
    write(vgpu, BAR0, b"\1\2\3\4")
    vgpu.device.set_config(4, 0x4 | vgpu.device.config(4))
    before = vgpu.device.config(4)
    add(lab, f"device={vgpu.name} region=BAR0 access=read reset=true")
    assert read(vgpu, BAR0) == b"\1\2\3\4"
    assert read(vgpu, BAR0) == bytes(4)
    assert vgpu.device.config(4) != before
    one_write(lab.path / "faults", "clear")
    write(vgpu, BAR0, b"\5\6\7\x08")
    assert read(vgpu, BAR0) == b"\5\6\7\x08"


def test_a_function_that_resets_itself_loses_its_configuration_space(lab: MountedLab) -> None:
    with ExitStack() as stack:
        device = opened_function(lab, stack, ALONE)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        add(lab, f"device={ALONE} after=0 reset=true")
        wait_for(lambda: read(device, CONFIG + CACHE_LINE, 1) == b"\0")
        assert read(device, CONFIG, 2) != 2 * ONES


# ---- virtual functions as they appear ----


def test_a_late_virtual_function_comes_by_itself_with_its_events(lab: MountedLab) -> None:
    add(lab, f"name=late device={NIC} nth=2 late={NEVER}")
    with listening(lab, os.O_NONBLOCK) as events:
        enable(lab, 3)
        there = virtual(lab)
        assert list(there) == [0, 2] and all(driver_of(each) == "iavf" for each in there.values())
        assert (function(lab, NIC) / "sriov_numvfs").read_text() == "3\n"
        heard = [head for head, variables in hear(events) if variables["SUBSYSTEM"] == "pci"]
        enable(lab, 0)
        one_write(lab.path / "faults", "clear late")
        hear(events)
        add(lab, f"device={NIC} nth=2 late=0.05")
        enable(lab, 3)
        wait_for(lambda: list(virtual(lab)) == [0, 1, 2])
        late = virtual(lab)[1]
        wait_for(lambda: driver_of(late) == "iavf")
        assert not any(late.name in head for head in heard)
        actions: list[str] = []

        def is_bound() -> bool:
            found = [(variables["ACTION"], head) for head, variables in hear(events)]
            actions.extend(action for action, head in found if head.endswith(late.name))
            return "bind" in actions

        wait_for(is_bound)
        assert actions == ["add", "change", "bind"]


def test_a_late_virtual_function_does_not_come_when_all_are_disabled(lab: MountedLab) -> None:
    add(lab, f"name=never device={NIC} late={NEVER}")
    enable(lab, 2)
    assert virtual(lab) == {}
    enable(lab, 0)
    one_write(lab.path / "faults", "clear never")
    add(lab, f"name=soon device={NIC} late=0.2")
    enable(lab, 2)
    enable(lab, 0)
    one_write(lab.path / "faults", "clear soon")
    add(lab, f"device={NIC} nth=1 late=0.4")
    enable(lab, 2)
    wait_for(lambda: list(virtual(lab)) == [0, 1])
    enable(lab, 0)
    assert virtual(lab) == {}


def test_a_virtual_function_without_a_driver_can_be_bound_later(lab: MountedLab) -> None:
    add(lab, f"device={NIC} nth=1 driverless=true")
    with listening(lab, os.O_NONBLOCK) as events:
        enable(lab, 2)
        first, second = virtual(lab).values()
        assert driver_of(first) is None and driver_of(second) == "iavf"
        bound = [head for head, variables in hear(events) if variables["ACTION"] == "bind"]
        assert [head.rpartition("/")[2] for head in bound] == [second.name]
    (lab.path / "sys/bus/pci/drivers/iavf/bind").write_text(first.name)
    assert driver_of(first) == "iavf"


# ---- probes ----


def test_a_refused_probe_is_the_errno_of_bind_and_of_nothing_else(lab: MountedLab) -> None:
    own, drivers = function(lab, ALONE), lab.path / "sys/bus/pci/drivers"
    (own / "driver/unbind").write_text(ALONE)
    (own / "driver_override").write_text("vfio-pci")
    add(lab, f"name=probe device={ALONE} probe=vfio-pci errno=ENOMEM")
    for number, file in (
        (errno.ENOMEM, drivers / "vfio-pci/bind"),
        (0, lab.path / "sys/bus/pci/drivers_probe"),
    ):
        if number:
            fails(number, one_write, file, ALONE)
        else:
            one_write(file, ALONE)
        assert driver_of(own) is None and not (own / "vfio-dev").exists()
    one_write(lab.path / "faults", "clear probe")
    one_write(drivers / "vfio-pci/bind", ALONE)
    assert driver_of(own) == "vfio-pci"


def test_a_vgpu_whose_probe_is_refused_is_there_without_a_driver(lab: MountedLab) -> None:
    add(lab, "probe=vfio_mdev nth=1 errno=EIO")
    name = str(uuid.uuid4())
    types = lab.parent("copiers") / "mdev_supported_types/copier-1"
    one_write(types / "create", name)
    own = lab.mdevs / name
    assert own.is_dir() and driver_of(own) is None and not (own / "iommu_group").exists()
    one_write(lab.path / "sys/bus/mdev/drivers_probe", name)
    assert driver_of(own) == "vfio_mdev"
    driver = lab.path / "sys/bus/mdev/drivers/vfio_mdev"
    one_write(driver / "unbind", name)
    add(lab, f"device={name} probe=vfio_mdev nth=1 errno=EBUSY")
    fails(errno.EBUSY, one_write, driver / "bind", name)
    assert driver_of(own) is None
    one_write(driver / "bind", name)
    assert driver_of(own) == "vfio_mdev" and (own / "iommu_group").exists()
    one_write(own / "remove", "1")


def test_a_probe_that_takes_its_time_holds_up_its_store_alone(lab: MountedLab) -> None:
    own = function(lab, ALONE)
    (own / "driver/unbind").write_text(ALONE)
    add(lab, f"name=slow device={ALONE} probe=nvme hang=true")
    done = threading.Event()

    def bind() -> None:
        one_write(lab.path / "sys/bus/pci/drivers/nvme/bind", ALONE)
        done.set()

    thread = threading.Thread(target=bind)
    thread.start()
    wait_for(lambda: driver_of(own) == "nvme")
    made = lab.create("copier-1", "copiers")  # others go on
    made.remove()
    assert not done.is_set()
    one_write(lab.path / "faults", "release slow")
    thread.join(60)
    assert done.is_set()
