# SPDX-License-Identifier: Apache-2.0
"""Which calls a fault rule is about."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from subprocess import Popen
from typing import cast

import pytest

from devmodel.calls.call import Call, CallKind
from devmodel.lifecycle.lab import Lab, Observer
from tests.commands import ROOT
from tests.unit.faultcalls import (
    UUID,
    Nobody,
    actions,
    dma,
    hit,
    interrupt,
    ioctl,
    lab,
    lifecycle,
    opening,
    region,
    rules,
    store,
)
from tests.waiting import wait_for
from vfsfuse.faults.devices import LabDevices
from vfsfuse.faults.keys import CALLS
from vfsfuse.faults.rule import Rule, RuleError, parse_line
from vfsfuse.faults.rules import FaultRules
from vfsfuse.labfile.reader import load

__all__ = ["actions", "lab", "rules"]


@pytest.mark.parametrize(
    ("line", "call", "others"),
    [
        ("ioctl=VFIO_IOMMU_*", ioctl("VFIO_IOMMU_MAP_DMA"), [ioctl("IOMMU_DESTROY"), opening("dev/vfio/0")]),
        ("ioctl=VFIO_DEVICE_RESET", ioctl("VFIO_DEVICE_RESET"), [ioctl("VFIO_IOMMU_MAP_DMA")]),
        ("region=BAR0", region("read", 0, 0, 4), [region("read", 1, 0, 4), dma("read", 0, 4)]),
        ("region=0 range=4-7", region("write", 0, 7, 1), [region("read", 0, 0, 4), region("read", 0, 8, 4)]),
        ("region=0 range=6", region("write", 0, 4, 8), [region("read", 0, 7, 4)]),
        ("region=0 access=read", region("read", 0, 0, 4), [region("write", 0, 0, 4)]),
        ("dma=any", dma("pin", 0, 1), [region("read", 0, 0, 4)]),
        ("dma=write iova=4096-8191", dma("write", 4095, 2), [dma("write", 4095, 1), dma("read", 4096, 1)]),
        ("dma=pin iova=0x1000", dma("pin", 0, 2), [dma("pin", 0, 1)]),
        ("interrupt=MSIX vector=1", interrupt("MSIX", 1), [interrupt("MSIX", 0), interrupt("MSI", 1)]),
        ("interrupt=any", interrupt("ERR", 0), [ioctl("VFIO_DEVICE_RESET")]),
        ("store=sriov_numvfs", store("sys/x/sriov_numvfs"), [store("sys/x/remove")]),
        ("store=sriov_*", store("sys/x/sriov_numvfs"), [store("sys/x/remove")]),
        ("store=sys/bus/*/bind", store("sys/bus/pci/drivers/a/bind"), [store("sys/x/bind")]),
        ("store=/sys/a/b", store("sys/a/b"), [store("sys/c/b")]),
        ("create=vgpu-*", lifecycle("create", "vgpu-8", UUID), [lifecycle("create", "mtty-1", UUID)]),
        ("bind=vfio-pci", store("sys/bus/pci/drivers/vfio-pci/bind"), [store("sys/x/ice/bind")]),
        ("probe=vfio*", lifecycle("probe", "x", "vfio-pci"), [lifecycle("probe", "x", "ice")]),
        ("probe=vfio_mdev", lifecycle("probe", UUID), [lifecycle("probe", "x", "vfio-pci")]),
        ("open=vfio/0", opening("dev/vfio/0"), [opening("dev/vfio/vfio"), opening("dev/iommu")]),
        ("open=/dev/vfio/[0-9]*", opening("dev/vfio/12"), [opening("dev/vfio/vfio")]),
        ("open=sys/*/config", opening("sys/devices/a/config"), [opening("sys/devices/a/resource0")]),
        ("call=any", ioctl("VFIO_IOMMU_MAP_DMA"), [ioctl("VFIO_GET_API_VERSION"), dma("read", 0, 1)]),
        ("call=any", store("sys/x/remove"), [ioctl("VFIO_DEVICE_RESET", tid=0), store("faults")]),
        ("call=open,region", region("read", 0, 0, 4), [ioctl("VFIO_DEVICE_RESET"), store("sys/x/remove")]),
        ("device=0000:86:00.0", store("sys/devices/pci0000:80/0000:86:00.0/remove"), [store("sys/x/remove")]),
        ("device=86:00.?", lifecycle("probe", "0000:86:00.0", "a"), []),
        (f"device={UUID} create=*", lifecycle("create", "a", UUID), [lifecycle("create", "a", UUID[::-1])]),
        ("device=vgpu-8 create=*", lifecycle("create", "vgpu-8", UUID), [lifecycle("create", "a", UUID)]),
        (f"device={UUID} store=create", store("sys/x/create", UUID.encode()), [store("sys/x/create", b"2")]),
        (f"process={os.getpid()} ioctl=*", ioctl("VFIO_DEVICE_RESET", tid=threading.get_native_id()), [
            ioctl("VFIO_DEVICE_RESET"), ioctl("VFIO_DEVICE_RESET", tid=0)]),
    ],
)  # fmt: skip
def test_a_rule_is_about_its_calls(rules: FaultRules, line: str, call: Call, others: list[Call]) -> None:
    if "device=" in line and not any(f"{key}=" in line for key in CALLS):
        line += " call=any" if call.kind is CallKind.STORE else " probe=*"
    rules.add(parse_line(f"name=a {line} delay=1"))
    assert hit(rules, call) == "a"
    assert [hit(rules, other) for other in others] == [""] * len(others)
    (active,) = rules.listed()
    assert active.counter.said == "1 hit of 1 call"


def test_the_order_of_rules_is_kept(rules: FaultRules, lab: Lab) -> None:
    device = lab.drivers.functions["0000:86:00.0"].device
    lines = (
        "device=0000:*",
        "device=86:00.0",
        "region=BAR0",
        "device=0000:86:00.0",
        "region=BAR0 access=read",
        "register=*",
    )
    rules.add(*(parse_line(f"name=r{number} {line} delay=1") for number, line in enumerate(lines)))
    assert hit(rules, region("read", 0, 0, 4, device)) == "r0,r1,r2,r3,r4"
    assert hit(rules, region("write", 0, 0, 4, device)) == "r0,r1,r2,r3"


def test_types_of_the_framework_of_nvidia() -> None:
    lab = Lab(load(ROOT / "examples/vendor_host.toml"), cast(Observer, Nobody()))
    rules = FaultRules(lab.calls, LabDevices(lab), lambda *_: lambda: None)
    kind = next(spec for parent in lab.spec.parents for spec in parent.types)
    for pattern in (kind.name, str(kind.number), kind.name[:2] + "*"):
        rules.add(Rule.of({"name": "a", "create": pattern, "errno": "ENOSPC"}))
        assert hit(rules, lifecycle("set_type", "0000:01:00.4", str(kind.number))) == "a"
        assert hit(rules, lifecycle("set_type", "0000:01:00.4", "0")) == ""
        rules.clear()
    lab.close()


def test_a_function_without_virtual_ones_has_none_that_are_late(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text('[functions."0000:05:00.0"]\nbars = { 0 = { size = "4K" } }\n')
    lab = Lab(load(tmp_path / "lab.toml"), cast(Observer, Nobody()))
    rules = FaultRules(lab.calls, LabDevices(lab), lambda *_: lambda: None)
    for line in ("device=0000:05:00.0 late=1", "device=05:00.0 driverless=true nth=2"):
        with pytest.raises(RuleError, match="has no virtual functions"):
            rules.add(parse_line(line))
    rules.add(parse_line("device=0000:05:00.* late=1"), parse_line("device=0000:06:00.1 late=1"))
    rules.clear()
    lab.close()


def test_a_process_is_known_by_its_name(rules: FaultRules) -> None:
    own = Path("/proc/self/comm").read_text().rstrip("\n")
    rules.add(parse_line(f"name=a process={own[:4]}* call=any errno=EIO"))
    assert hit(rules, ioctl("VFIO_DEVICE_RESET", tid=threading.get_native_id())) == "a"
    assert hit(rules, ioctl("VFIO_DEVICE_RESET", tid=1)) == ""


def test_linux_keeps_fifteen_bytes_of_the_name_of_a_process(rules: FaultRules, tmp_path: Path) -> None:
    program = tmp_path / "a-driver-in-user-space"
    program.symlink_to("/bin/sleep")
    rules.add(parse_line(f"name=a process={program.name} call=any errno=EIO"))
    with Popen([program, "60.18"]) as sleeping:
        comm = Path(f"/proc/{sleeping.pid}/comm")
        wait_for(lambda: comm.read_text() == "a-driver-in-use\n")
        found = hit(rules, ioctl("VFIO_DEVICE_RESET", tid=sleeping.pid))
        sleeping.kill()
    assert found == "a"


def test_names_of_devices(lab: Lab, rules: FaultRules) -> None:
    parent = next(iter(lab.parents.values()))
    kind = next(iter(parent.types.values()))
    mdev = lab.create(kind, uuid.UUID(UUID), 3, f"{UUID}-3")
    group = mdev.group.number
    call = Call(CallKind.IOCTL, mdev.name, "VFIO_DEVICE_RESET", {}, 1, mdev.device)
    named = (UUID.upper(), f"{UUID}-3", f"vgpu{mdev.minor}", kind.name, f"{UUID[:8]}*")
    for name in named:
        opens = opening(f"dev/vfio/{group}"), opening(f"dev/vfio/devices/vfio{mdev.vfio_minor}")
        given = Call(CallKind.IOCTL, "group 99", "VFIO_GROUP_GET_DEVICE_FD", {"name": mdev.name}, 1)
        for about in (call, *opens, ioctl("VFIO_GROUP_SET_CONTAINER", f"group {group}"), given):
            rules.add(Rule.of({"name": "a", "device": name, "call": "any", "errno": "EIO"}))
            assert hit(rules, about) == "a", (name, about)
            rules.clear()
    rules.add(Rule.of({"name": "a", "device": "vgpu9", "call": "any", "errno": "EIO"}))
    assert hit(rules, call) == hit(rules, ioctl("VFIO_GROUP_SET_CONTAINER", "group 99")) == ""
    with pytest.raises(TypeError):
        rules.listed()[0].rule.keys["nth"] = 1  # type: ignore[index]
    assert LabDevices(lab).found(f"vgpu{mdev.minor}") == LabDevices(lab).found(UUID) == mdev.name


def test_registers_of_a_device(lab: Lab, rules: FaultRules) -> None:
    function = lab.drivers.functions["0000:86:00.0"]
    device = function.device
    index, named = next(
        (index, region_.names)
        for index, region_ in enumerate(device.regions)
        if region_ is not None and region_.names is not None and index < 6
    )
    register = next(iter(named))
    line = f"name=a device={device.name} register={register.name} value=0x11223344"
    rules.add(parse_line(line))
    assert hit(rules, region("read", index, register.offset, register.width, device)) == "a"
    assert hit(rules, region("read", index, register.offset + 1, 1, device)) == "a"
    assert hit(rules, region("read", index, register.offset + register.width, 1, device)) == ""
    assert hit(rules, region("read", 200, register.offset, 4, device)) == ""
    wider = rules.begin(region("read", index, register.offset - 2 if register.offset else 0, 8, device))
    assert wider is not None and wider.change is not None
    start = 2 if register.offset else 0
    assert wider.change(b"\xff" * 8)[start : start + 4] == bytes.fromhex("44332211")
    with pytest.raises(RuleError, match=rf"register: {device.name} has no register NOTHING \(it has "):
        rules.add(parse_line(f"device={device.name} register=NOTHING value=1"))
