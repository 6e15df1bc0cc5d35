# SPDX-License-Identifier: Apache-2.0
"""The trace of a lab in a program."""

from __future__ import annotations

import os
import signal

import pytest

from vfsfuse import Lab, LabError

GPU = "0000:86:00.0"


def test_what_a_driver_does(copiers: Lab) -> None:
    with copiers.create("copier-1") as vgpu, copiers.trace(vgpu) as trace, vgpu.open() as device:
        device.enable()
        device.regions[0].write_int(0, 0x1234, 8)
        found = trace.wait(lambda record: record.arguments.get("register") == "SOURCE")
        assert (found.pid, found.subject, found.kind, found.name) == (
            os.getpid(),
            vgpu.name,
            "region",
            "write",
        )
        device.interrupts().trigger()
    names = [record.name for record in trace.records if record.kind == "ioctl"]
    assert names[:2] == ["VFIO_DEVICE_BIND_IOMMUFD", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"]
    lines = trace.text().splitlines()
    assert len(lines) == len(trace.records) and vgpu.name in lines[0]
    assert any("BAR0 write SOURCE" in line for line in lines)
    trace.close()


def test_devices_by_name(builtin: Lab) -> None:
    with builtin.create("vgpu-8") as vgpu, builtin.create("vgpu-8") as other:
        (number,) = (each for each in ("vgpu0", "vgpu1") if vgpu.name in _target(builtin, each))
        for name in (number, vgpu.name, vgpu):
            with builtin.trace(name) as trace:
                for each in (vgpu, other):
                    with each.open() as device:
                        device.reset()
            assert {record.subject for record in trace.records} == {vgpu.name}
        with builtin.trace("no-such-device") as trace:
            vgpu.open().close()
        assert trace.records == [] and trace.text() == ""


def _target(lab: Lab, name: str) -> str:
    return str((lab.path / "sys/class/vgpu/vfsfuse" / name).resolve())


def test_filters(builtin: Lab) -> None:
    lifecycle, failed = builtin.trace(kinds=["lifecycle"]), builtin.trace(errnos=["any"], keep=10)
    with lifecycle, failed, builtin.create("vgpu-8") as vgpu, pytest.raises(FileExistsError):
        builtin.create("vgpu-8", uuid=vgpu.uuid)
    assert [record.name for record in lifecycle.records][-1] == "remove"
    assert {record.errno for record in failed.records} == {17}
    with pytest.raises(LabError, match="there is no such kind of call"):
        builtin.trace(kinds=["nothing"])
    with pytest.raises(LabError, match="there is no such errno"):
        builtin.trace(errnos=["ENOTHING"])


def test_what_does_not_happen(builtin: Lab) -> None:
    with builtin.trace() as trace:
        with builtin.create("vgpu-8"):
            pass
        with pytest.raises(TimeoutError, match=r"(?s)no such call within 0\.1 seconds; there were:.* store "):
            trace.wait(lambda record: record.kind == "reset", timeout=0.1)


def test_a_lab_that_ends() -> None:
    with Lab() as lab, lab.trace() as trace:
        lab.create("vgpu-8")
        os.kill(lab.pid, signal.SIGKILL)
        with pytest.raises(LabError):
            trace.wait(lambda record: False)
        trace.close()
    assert trace.text() is not None
    with Lab() as lab:
        trace = lab.trace()
        lab.create("vgpu-8")
    assert any(record.kind == "store" for record in trace.records)


def test_a_lab_that_is_silent(builtin: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfsfuse.api.tracing.PATIENCE", 0.2)
    os.kill(builtin.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LabError, match="does not answer"):
            builtin.trace()
    finally:
        os.kill(builtin.pid, signal.SIGCONT)
