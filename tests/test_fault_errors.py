# SPDX-License-Identifier: Apache-2.0
"""The errors that fault rules have devices report: registers, counters, ERR, uevents, the recovery."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import run
from tests.faultactions import (
    AER,
    BAR0,
    BESIDE,
    CACHE_LINE,
    CARD,
    CONFIG,
    CORRECTABLE,
    DEVSTA,
    FIRST,
    INTEGRATED,
    NIC,
    PORT,
    SCRATCH,
    UNCORRECTABLE,
    add,
    as_before,
    counts,
    express_of,
    lab,
    opened_function,
    place_of,
    read,
    vgpu,
    write,
)
from tests.labs import MountedLab, described
from tests.nic import function, to_vfio
from tests.test_uevents import hear, listening
from tests.tool import need
from tests.vfio.devices import ERR, TRIGGER, eventfd, mdev, signals, silent
from tests.waiting import wait_for

__all__ = ["as_before", "lab", "vgpu"]


@pytest.mark.parametrize(
    ("severity", "status", "bit", "name", "total", "root"),
    [
        ("corrected", 0x1, 0, "RxErr", "aer_dev_correctable TOTAL_ERR_COR", "cor"),
        ("nonfatal", 0x2, 14, "CmpltTO", "aer_dev_nonfatal TOTAL_ERR_NONFATAL", "nonfatal"),
        ("fatal", 0, 4, "DLP", "aer_dev_fatal TOTAL_ERR_FATAL", "fatal"),  # the link was reset
    ],
)
def test_an_error_is_in_registers_counters_and_events(
    lab: MountedLab, severity: str, status: int, bit: int, name: str, total: str, root: str
) -> None:
    before, before_port = counts(lab, NIC), counts(lab, PORT)
    with ExitStack() as stack:
        device = opened_function(lab, stack, NIC)
        err = stack.enter_context(eventfd())
        device.device.eventfds(ERR, TRIGGER, 0, err)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        events = stack.enter_context(listening(lab, os.O_NONBLOCK))
        add(lab, f"device={NIC} region=BAR0 access=read times=1 error={severity}")
        read(device, BAR0)
        wait_for(lambda: counts(lab, NIC) != before)
        config = read(device, CONFIG, 4096)
        aer, express = place_of(config, AER), express_of(config)
        corrected = severity == "corrected"
        place = aer + (CORRECTABLE if corrected else UNCORRECTABLE)

        def value(offset: int, width: int = 4) -> int:
            return int.from_bytes(read(device, CONFIG + offset, width), "little")

        wait_for(lambda: read(device, CONFIG + CACHE_LINE, 1) == (b"\0" if severity == "fatal" else b"\x10"))
        assert value(express + DEVSTA, 2) & 0xF == status
        assert value(place) == 1 << bit
        assert value(aer + (UNCORRECTABLE if corrected else CORRECTABLE)) == 0
        if corrected:
            assert silent(err)
        else:
            assert signals(err) == 1 and value(aer + FIRST) & 0x1F == bit
        write(device, CONFIG + place, struct.pack("<I", 1 << bit))  # the client clears it
        assert value(place) == 0
        wanted = [] if corrected else [(NIC, "BEGIN_RECOVERY", "0"), (NIC, "SUCCESSFUL_RECOVERY", "1")]
        assert recoveries(events, len(wanted)) == wanted
    file = total.split(" ", maxsplit=1)[0]
    assert counts(lab, NIC) == {
        **before,
        f"{file} {name}": before.get(f"{file} {name}", 0) + 1,
        total: before.get(total, 0) + 1,
    }
    key = f"aer_rootport_total_err_{root}"
    assert counts(lab, PORT) == {**before_port, key: before_port.get(key, 0) + 1}


def recoveries(events: int, count: int) -> list[tuple[str, str, str]]:
    """The next events of recoveries: function, event, whether it is online."""
    found: list[tuple[str, str, str]] = []

    def enough() -> bool:
        found.extend(
            (variables["PCI_SLOT_NAME"], variables["ERROR_EVENT"], variables["DEVICE_ONLINE"])
            for _, variables in hear(events)
            if "ERROR_EVENT" in variables
        )
        return len(found) >= count

    wait_for(enough)
    return found


def test_a_fatal_error_reaches_all_below_the_port(lab: MountedLab) -> None:
    """The neighbour's client gets ERR too, and loses what it has written: the link was reset."""
    to_vfio(lab, function(lab, BESIDE))
    with ExitStack() as stack:
        device = opened_function(lab, stack, CARD)
        err = stack.enter_context(eventfd())
        device.device.eventfds(ERR, TRIGGER, 0, err)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        events = stack.enter_context(listening(lab, os.O_NONBLOCK))
        add(lab, f"device={BESIDE} after=0 error=fatal")
        assert signals(err) == 1
        wait_for(lambda: read(device, CONFIG + CACHE_LINE, 1) == b"\0")
        begun, done = [(CARD, "BEGIN_RECOVERY", "0"), (BESIDE, "BEGIN_RECOVERY", "0")], "SUCCESSFUL_RECOVERY"
        assert recoveries(events, 4) == [*begun, (CARD, done, "1"), (BESIDE, done, "1")]


def test_an_upstream_port_recovers_with_all_below_the_root_port(tmp_path: Path) -> None:
    """The port below which it is has the link on which the error was."""
    bridges = {"0000:00:01.0": ("root-port", 1), "0000:01:00.0": ("switch-upstream", 2)}
    bridges["0000:02:00.0"] = ("switch-downstream", 3)
    text = "".join(
        f'[functions."{name}"]\nbridge = "{kind}"\nsecondary = {bus}\n'
        for name, (kind, bus) in bridges.items()
    )
    below = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]
    text += f'[functions."{below[-1]}"]\ndriver = "ice"\ncapabilities = ["express"]\n'
    with described(tmp_path, text) as lab, listening(lab, os.O_NONBLOCK) as events:
        add(lab, f"device={below[0]} after=0 error=nonfatal")
        heard = recoveries(events, 6)
        assert sorted(name for name, event, _ in heard if event == "BEGIN_RECOVERY") == below
        assert sorted(name for name, event, _ in heard if event == "SUCCESSFUL_RECOVERY") == below


def test_a_function_without_a_driver_makes_the_recovery_fail(lab: MountedLab) -> None:
    (function(lab, BESIDE) / "driver/unbind").write_text(BESIDE)
    with listening(lab, os.O_NONBLOCK) as events:
        add(lab, f"device={CARD} after=0 error=nonfatal")
        failed = "FAILED_RECOVERY"
        assert recoveries(events, 3) == [
            (CARD, "BEGIN_RECOVERY", "0"),
            (CARD, failed, "0"),
            (BESIDE, failed, "0"),
        ]


def test_an_integrated_endpoint_that_cannot_be_reset_stays_as_it_is(lab: MountedLab) -> None:
    with ExitStack() as stack:
        device = opened_function(lab, stack, INTEGRATED)
        err = stack.enter_context(eventfd())
        device.device.eventfds(ERR, TRIGGER, 0, err)
        write(device, CONFIG + CACHE_LINE, b"\x10")
        events = stack.enter_context(listening(lab, os.O_NONBLOCK))
        add(lab, f"device={INTEGRATED} after=0 error=fatal")
        assert signals(err) == 1
        assert recoveries(events, 2) == [
            (INTEGRATED, "BEGIN_RECOVERY", "0"),
            (INTEGRATED, "FAILED_RECOVERY", "0"),
        ]
        assert read(device, CONFIG + CACHE_LINE, 1) == b"\x10"


def test_an_error_of_a_vgpu_is_told_to_its_client_alone(lab: MountedLab) -> None:
    with ExitStack() as stack:
        vgpu = stack.enter_context(mdev(lab, "express", "copiers"))
        err, events = stack.enter_context(eventfd()), stack.enter_context(listening(lab, os.O_NONBLOCK))
        vgpu.device.eventfds(ERR, TRIGGER, 0, err)
        status = CONFIG + express_of(read(vgpu, CONFIG, 256)) + DEVSTA
        write(vgpu, BAR0 + SCRATCH, b"\1\2\3\4")
        for number, severity in enumerate(("corrected", "nonfatal", "fatal"), 1):
            add(lab, f"device={vgpu.name} region=BAR0 access=read nth={number} error={severity}")
        assert read(vgpu, BAR0 + SCRATCH) == b"\1\2\3\4" and silent(err)
        assert read(vgpu, status, 1) == b"\1"
        assert read(vgpu, BAR0 + SCRATCH) == b"\1\2\3\4" and signals(err) == 1
        assert read(vgpu, status, 1) == b"\3"
        assert read(vgpu, BAR0 + SCRATCH) == b"\1\2\3\4" and signals(err) == 1
        assert read(vgpu, BAR0 + SCRATCH) == bytes(4) and read(vgpu, status, 1) == b"\0"  # it was reset
        assert not any("ERROR_EVENT" in variables for _, variables in hear(events))


def test_lspci_shows_the_errors(lab: MountedLab) -> None:
    need("lspci", "pciutils")
    for severity in ("corrected", "nonfatal"):
        add(lab, f"device={CARD} after=0 error={severity}")
    wait_for(lambda: {"aer_dev_correctable RxErr", "aer_dev_nonfatal CmpltTO"} <= counts(lab, CARD).keys())
    shown = run(["lspci", "-O", f"sysfs.path={lab.path}/sys/bus/pci", "-vvvs", CARD]).stdout
    lines = {line.split(":")[0].strip(): line for line in shown.splitlines()}
    assert "CorrErr+ NonFatalErr+ FatalErr-" in lines["DevSta"]
    assert "CmpltTO+" in lines["UESta"] and "RxErr+" in lines["CESta"] and "DLP-" in lines["UESta"]
