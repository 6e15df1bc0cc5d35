# SPDX-License-Identifier: Apache-2.0
"""The fault rules of a lab as objects: added, counted, released, removed; and labs that have them from the
start."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.commands import ROOT
from tests.waiting import wait_for
from vfsfuse import Fault, FaultRule, Lab, LabError, Region, Vgpu
from vfsfuse.faults.keys import KEYS

STATUS = 0x18
UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"


@pytest.fixture
def lab(copiers: Lab) -> Iterator[Lab]:
    """The lab of copiers, without rules at the end."""
    yield copiers
    copiers.faults.clear()
    assert not copiers.faults


@pytest.fixture
def vgpu(lab: Lab) -> Iterator[Vgpu]:
    with lab.create("copier-1") as created:
        yield created


def test_python_has_the_keys_of_a_lab_file() -> None:
    keys = {key.removesuffix("_") for key in get_type_hints(FaultRule)}
    assert keys == set(KEYS)


def test_a_rule_hits_and_counts(lab: Lab, vgpu: Vgpu) -> None:
    fault = lab.faults.add(name="ones", device=vgpu.name, register="STATUS", nth=2, value=0xFFFF)
    assert (fault.name, fault.hits, fault.calls) == ("ones", 0, 0)
    with vgpu.open() as device:
        device.enable()
        read = [device.regions[0].read_int(STATUS) for _ in range(3)]
    assert read == [0, 0xFFFF, 0]
    assert (fault.hits, fault.calls) == (1, 2)
    assert "register=STATUS" in fault.rule and fault.rule.startswith("name=ones ")
    assert dict(lab.faults) == {"ones": fault} and lab.faults["ones"] == fault
    assert repr(fault) == "<Fault ones>" and repr(lab.faults) == "<Faults ones>"


def test_an_ioctl_fails_with_an_errno(lab: Lab, vgpu: Vgpu) -> None:
    with lab.faults.add(ioctl="VFIO_DEVICE_RESET", errno=errno.EBUSY) as fault, vgpu.open() as device:
        with pytest.raises(OSError) as caught:
            device.reset()
        assert caught.value.errno == errno.EBUSY
        assert fault.name in lab.faults
    assert not lab.faults
    with vgpu.open() as device:
        device.reset()


def test_rules_come_and_go_while_a_device_is_open(lab: Lab, vgpu: Vgpu) -> None:
    with vgpu.open() as device:
        device.enable()
        registers, interrupts = device.regions[0], device.interrupts("msix", 1)
        assert registers.read_int(STATUS) == 0
        with lab.faults.add(device=vgpu.name, region="BAR0", range=STATUS, access="read", value=7) as fault:
            assert registers.read_int(STATUS) == 7
            assert fault.hits == 1
        assert registers.read_int(STATUS) == 0
        again = lab.faults.add(device=vgpu.name, ioctl="VFIO_DEVICE_RESET", errno="EAGAIN")
        with again, pytest.raises(BlockingIOError):
            device.reset()
        device.reset()
        with lab.faults.add(device=vgpu.name, interrupt="MSIX", drop=True) as fault:
            copy_nothing(registers)
            wait_for(lambda: registers.read_int(STATUS))
            wait_for(lambda: fault.hits == 1)
            assert interrupts.take() == 0
        with lab.faults.add(device=vgpu.name, interrupt="MSIX", duplicate=True):
            copy_nothing(registers)
            signals: list[int] = []

            def both() -> bool:
                signals.append(interrupts.take())
                return sum(signals) == 2

            wait_for(both)
        interrupts.close()


def copy_nothing(registers: Region) -> None:
    """Have a copier copy 0 bytes, which raises an interrupt."""
    registers.write_int(STATUS, 1)
    registers.write_int(0x10, 0)
    registers.write_int(0x14, 1)


def test_a_rule_is_removed_once_and_again(lab: Lab) -> None:
    fault = lab.faults.add(store="create", errno="EIO", nth=1000)
    fault.remove()
    fault.remove()
    assert list(lab.faults) == []
    for gone in (lambda: fault.hits, lambda: fault.calls, lambda: fault.rule, fault.release):
        with pytest.raises(KeyError, match=f"there is no fault rule {fault.name}|{fault.name}"):
            gone()
    with pytest.raises(KeyError, match=fault.name):
        lab.faults[fault.name]


def test_a_call_hangs_until_it_is_released(lab: Lab, vgpu: Vgpu) -> None:
    fault = lab.faults.add(name="stuck", device=vgpu.name, ioctl="VFIO_DEVICE_RESET", hang=True)
    with vgpu.open() as device, lab.trace(injected=["stuck"]) as trace:
        resetting = threading.Thread(target=device.reset)
        resetting.start()
        found = trace.wait(lambda record: record.duration is None)
        assert (found.name, found.fault, found.delayed) == ("VFIO_DEVICE_RESET", "stuck", True)
        assert trace.text().endswith("VFIO_DEVICE_RESET (DELAYED stuck) <unfinished ...>\n")
        assert resetting.is_alive() and fault.held == 1
        fault.release()
        resetting.join(60)
        assert not resetting.is_alive()
        trace.wait(lambda record: record.number == found.number and record.duration is not None)
    assert (fault.hits, fault.held) == (1, 0)


def test_a_store_that_hangs_ends_with_its_program(lab: Lab) -> None:
    fault = lab.faults.add(name="stuck", store="create", hang=True)
    path = lab.parents["copiers"].path / "mdev_supported_types/copier-1/create"
    with lab.trace(injected=["stuck"]) as trace:
        with subprocess.Popen(["sh", "-c", f"echo {UUID} > {path}"]) as program:
            wait_for(lambda: fault.held == 1)
            program.kill()
            assert program.wait(60) == -signal.SIGKILL
        found = trace.wait(lambda record: record.duration is not None)
    assert (found.errno, found.error, found.fault) == (errno.EINTR, "interrupted", "stuck")
    assert (fault.hits, fault.held) == (1, 0) and UUID not in lab.vgpus


def test_what_is_injected_is_in_the_trace(lab: Lab, vgpu: Vgpu) -> None:
    lab.faults.add(name="late", register="STATUS", access="read", delay=0.01)
    lab.faults.add(name="full", ioctl="VFIO_DEVICE_RESET", errno="ENOMEM")
    every, some = lab.trace(vgpu), lab.trace(injected=["any"])
    with every, some, vgpu.open() as device:
        device.enable()
        device.regions[0].read_int(STATUS)
        with pytest.raises(OSError):
            device.reset()
    told = [(record.name, record.fault, record.delayed, record.errno) for record in some.records]
    assert told == [("read", "late", True, 0), ("VFIO_DEVICE_RESET", "full", False, errno.ENOMEM)]
    assert [record for record in every.records if record.fault] == some.records
    first, second = some.text().splitlines()
    assert " = 0x0 (DELAYED late) <0." in first
    assert " = -1 ENOMEM (Cannot allocate memory)" in second and " (INJECTED full) <0." in second


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"store": "create"}, "errno"),
        ({"stores": "create", "errno": "EIO"}, "stores"),
        ({"store": "create", "errno": "EWHAT"}, "EWHAT"),
        ({"store": "create", "errno": "EIO", "nth": 2, "every": 2}, "every"),
    ],
)
def test_a_rule_that_makes_no_sense(lab: Lab, rule: FaultRule, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        lab.faults.add(**rule)
    assert not lab.faults


def test_a_value_of_another_type(lab: Lab) -> None:
    with pytest.raises(TypeError, match="store: "):
        lab.faults.add(store=None, errno="EIO")  # type: ignore[arg-type]


def test_a_name_twice(lab: Lab) -> None:
    lab.faults.add(name="a", store="create", errno="EIO", nth=1000)
    with pytest.raises(ValueError, match="a"):
        lab.faults.add(name="a", store="remove", errno="EIO")
    with pytest.raises(KeyError, match="b"):
        lab.faults.clear("a", "b")
    assert list(lab.faults) == ["a"]


def test_a_rule_while_a_file_exists(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "it's there"
    lab.faults.add(store="create", errno="ENOSPC", while_=path)

    def refused() -> int:
        try:
            with lab.create("copier-1"):
                return 0
        except OSError as error:
            return error.errno or 0

    assert refused() == 0
    path.touch()
    wait_for(lambda: refused() == errno.ENOSPC)
    path.unlink()
    wait_for(lambda: refused() == 0)


def test_a_lab_with_rules_from_the_start() -> None:
    rules: list[FaultRule] = [
        {"name": "a", "store": "create", "errno": "EIO", "times": 1},
        {"store": "create", "errno": "EPERM", "nth": 3},
    ]
    with Lab(faults=rules, strict=True) as lab:
        assert len(lab.faults) == 2 and "a" in lab.faults
        with pytest.raises(OSError) as caught:
            lab.create("vgpu-8")
        assert caught.value.errno == errno.EIO
        with lab.create("vgpu-8"):
            pass
        with pytest.raises(PermissionError):
            lab.create("vgpu-8")
        with pytest.raises(LabError, match="leave `config` and `faults` out"):
            Lab(at=lab.path, faults=rules).start()
        with Lab(at=lab.path) as joined:
            assert list(joined.faults) == list(lab.faults)
            joined.faults.add(name="b", store="create", errno="EIO", nth=1000)
        assert "b" in lab.faults


def test_a_lab_with_a_rule_that_makes_no_sense() -> None:
    rules: list[FaultRule] = [{"store": "create"}, {"store": "create", "errno": "EIO"}]
    with pytest.raises(LabError, match=r"--fault store=create: .*errno") as caught:
        Lab(faults=rules).start()
    assert len(str(caught.value).splitlines()) == 1


def test_a_child_takes_no_rule_away(lab: Lab) -> None:
    with lab.faults.add(name="a", store="create", errno="EIO", nth=1000) as fault:
        if not (child := os.fork()):
            fault.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert isinstance(lab.faults["a"], Fault)


def test_a_lab_that_is_gone() -> None:
    with Lab() as lab:
        faults = lab.faults
        fault = faults.add(store="create", errno="EIO")
        lab.kill()
        with pytest.raises(LabError):
            wait_for(faults.clear)
        with pytest.raises(LabError):
            assert fault.hits


PROGRAM = """\
from vfsfuse import FaultRule, Lab

rule: FaultRule = {"store": "create", "errno": "EIO"}
with Lab(faults=[rule, {"ioctl": "*", "delay": 0.5}]) as lab:
    reveal_type(lab.faults.add(dma="any", iova="0x1000-0x1fff", errno=5).hits)
    lab.faults.add(dma="all", errno=5)
    lab.faults.add(stores="create")
"""


def test_mypy_knows_the_keys(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"MYPYPATH": str(ROOT)}
    )
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert said[0] == 'note: Revealed type is "int"', done.stdout + done.stderr
    assert 'Argument "dma"' in said[1] and 'Unexpected keyword argument "stores"' in said[2]
