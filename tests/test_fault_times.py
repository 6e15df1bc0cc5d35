# SPDX-License-Identifier: Apache-2.0
"""When fault rules hit, what they have happen to devices, and that a trace tells of each hit."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path

from tests.commands import one_write
from tests.faultrules import (
    COMMAND_REGISTER,
    IOVA,
    PF,
    STATUS_REGISTER,
    TARGET,
    Faults,
    aside,
    faults,
    machine,
    mapped,
    put,
    read,
)
from tests.iommufd.client import Iommufd
from tests.iommufd.conftest import copier, gpu, iommufd, memory, vgpu
from tests.iommufd.devices import Copier
from tests.labs import MountedLab, Vgpu
from tests.vfio.client import (
    DEVICE_RESET,
    Container,
    Memory,
    fails,
    ioctl,
)
from tests.vfio.copiers import DONE, GPU
from tests.vfio.devices import (
    MSIX,
    TRIGGER,
    eventfd,
    function_dir,
    give_back,
    vfio_pci,
)
from tests.waiting import wait_for

__all__ = ["copier", "faults", "gpu", "iommufd", "machine", "mapped", "memory", "vgpu"]


# ---- when ----


def test_the_same_seed_hits_the_same_calls(faults: Faults, copier: Copier) -> None:
    def outcome(seed: int) -> list[int]:
        with faults.hold(f"name=some register=STATUS probability=0.3 seed={seed} value=1"):
            return [read(copier, STATUS_REGISTER) for _ in range(100)]

    first = outcome(1)
    assert 10 < sum(first) < 60 and outcome(1) == first and outcome(2) != first


def test_a_rule_holds_while_a_file_is_there(faults: Faults, copier: Copier, tmp_path: Path) -> None:
    path = tmp_path / "on"
    with faults.hold(f"register=STATUS while={path} value=1"):
        assert read(copier, STATUS_REGISTER) == 0
        path.touch()
        wait_for(lambda: read(copier, STATUS_REGISTER) == 1)
        path.unlink()
        wait_for(lambda: read(copier, STATUS_REGISTER) == 0)


def test_a_rule_is_about_one_process(faults: Faults, machine: MountedLab) -> None:
    path = machine.path / "dev/iommu"
    with faults.hold("process=cat open=iommu errno=EPERM"):
        done = subprocess.run(["cat", path], capture_output=True, text=True, check=False)
        os.close(os.open(path, os.O_RDWR))
        assert "Operation not permitted" in done.stderr and faults.said() == "1 hit of 1 call"
    with faults.hold(f"process={os.getpid()} open=iommu errno=EPERM"):
        done = subprocess.run(["cat", path], capture_output=True, text=True, check=False)
        fails(errno.EPERM, os.open, path, os.O_RDWR)
        assert "Operation not permitted" not in done.stderr and faults.said() == "1 hit of 1 call"


def test_rules_of_one_device_leave_the_others_alone(faults: Faults, copier: Copier, gpu: Copier) -> None:
    with faults.hold(f"device={GPU} register=STATUS value=1", "device=copier-1 register=STATUS value=2"):
        assert (read(gpu, STATUS_REGISTER), read(copier, STATUS_REGISTER)) == (1, 2)
    with faults.hold("device=86:0?.0 call=any errno=plausible"):
        fails(errno.EIO, read, gpu, STATUS_REGISTER)
        fails(errno.EAGAIN, ioctl, gpu.fd, DEVICE_RESET)
        assert read(copier, STATUS_REGISTER) == 0


# ---- devices ----


def test_a_device_is_gone_at_a_call(machine: MountedLab, faults: Faults, iommufd: Iommufd) -> None:
    vgpu = machine.create("copier-1", "copiers")
    with Copier(vgpu.cdev) as copier:
        copier.ready(iommufd)
        with faults.hold("register=SIZE access=write nth=2 remove=true"):
            put(copier, 0x10, 1)
            put(copier, 0x10, 2)
            wait_for(lambda: not vgpu.path.exists())
            wait_for(lambda: _errno(copier) == errno.ENODEV or read(copier, 0x10) == 0xFFFFFFFF)
            assert faults.said() == "1 hit of 2 calls"


def _errno(copier: Copier) -> int:
    try:
        os.pread(copier.fd, 4, 0x10)
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_device_resets_itself(faults: Faults, copier: Copier, vgpu: Vgpu) -> None:
    put(copier, 0x10, 7)
    with faults.hold("register=COMMAND access=write nth=1 reset=true"):
        put(copier, COMMAND_REGISTER, 0)
        wait_for(lambda: read(copier, 0x10) == 0)


def test_a_device_goes_by_itself(machine: MountedLab, faults: Faults) -> None:
    vgpu = machine.create("copier-1", "copiers")
    trace = os.open(machine.path / "trace", os.O_RDWR)
    os.write(trace, b'{"kinds": ["lifecycle"]}\n')
    with faults.hold(f"name=gone device={vgpu.name} after=0.05 remove=true"):
        wait_for(lambda: not vgpu.path.exists())
        assert faults.said() == "1 hit of 1 call"
    with open(trace, encoding="utf-8") as lines:  # one comes when its call is over
        record = next(each for each in map(json.loads, lines) if each["name"] == "fault")
    assert (record["subject"], record["name"]) == (vgpu.name, "fault")
    assert (record["arguments"], record["fault"]) == ({"arguments": ["remove"]}, "gone")


def test_virtual_functions_appear_late_and_without_a_driver(machine: MountedLab, faults: Faults) -> None:
    function = function_dir(machine, PF)

    def present(index: int) -> bool:
        return (function / f"virtfn{index}").exists()

    try:
        with faults.hold(f"device={PF} nth=2 late=0.2", f"name=bare device={PF} nth=1 driverless=true"):
            one_write(function / "sriov_numvfs", "2")
            assert present(0) and not (function / "virtfn0/driver").exists()
            wait_for(lambda: present(1))
            assert (function / "virtfn1/driver").resolve().name == "vfdriver"
    finally:
        one_write(function / "sriov_numvfs", "0")


# ---- the trace ----


def test_each_fault_is_in_the_trace_with_its_rule(
    machine: MountedLab, faults: Faults, copier: Copier, mapped: Memory, iommufd: Iommufd
) -> None:
    rules = {
        "ioctl": "ioctl=IOMMU_IOAS_ALLOC errno=EIO",
        "region": "register=SIZE access=write flip=1",
        "dma": "dma=write drop=true",
        "interrupt": "interrupt=any drop=true",
        "store": "store=numa_node hang=true",
        "lifecycle": f"device={PF} driverless=true",
        "open": "open=vfio/vfio errno=EIO",
    }
    more = {"lifecycle create": "create=holder-1 errno=EIO", "lifecycle probe": "probe=vfio-pci errno=EIO"}
    trace = os.open(machine.path / "trace", os.O_RDWR | os.O_NONBLOCK)
    function = function_dir(machine, PF)
    with (
        eventfd() as event,
        faults.hold(
            *(f"name={kind} {rule}" for kind, rule in rules.items()),
            *(f"name={kind.replace(' ', '.')} {rule}" for kind, rule in more.items()),
        ),
    ):
        fails(errno.EIO, iommufd.ioas)
        copier.eventfds(MSIX, TRIGGER, 0, event)
        assert copier.copy(IOVA, TARGET, 8) == DONE
        copier.tear_down(MSIX)
        with aside(lambda: one_write(function / "numa_node", "-1")) as future:
            wait_for(lambda: faults.said(4).endswith("1 held"))
            faults.write("release store")
            future.exception(20)
        one_write(function / "sriov_numvfs", "1")
        one_write(function / "sriov_numvfs", "0")
        fails(errno.EIO, Container, machine.path)
        types = machine.parent("holders") / "mdev_supported_types"
        fails(errno.EIO, one_write, types / "holder-1/create", str(uuid.uuid4()))
        try:
            fails(errno.EIO, vfio_pci, machine, GPU)
        finally:
            give_back(machine, GPU)
        assert not any("# 0 hits" in line for line in faults.list())
    hits: dict[str, str] = {}

    def all_told() -> bool:
        with suppress(BlockingIOError):
            for line in os.read(trace, 1 << 20).splitlines():
                record = json.loads(line)
                if record.get("fault"):
                    hits[record["fault"]] = record["kind"]
        return len(hits) == 9

    wait_for(all_told)
    os.close(trace)
    assert hits == {
        **{kind: kind for kind in rules},
        "lifecycle.create": "lifecycle",
        "lifecycle.probe": "lifecycle",
    }
