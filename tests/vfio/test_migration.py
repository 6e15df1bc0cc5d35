# SPDX-License-Identifier: Apache-2.0
"""The state of a device as data: a C client under `vfsfuse run`, which gives it data_fd, on a real mount."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ioctl_shim.abi import LabFlag
from tests.commands import ROOT, vfsfuse
from tests.labs import MountedLab, described
from tests.vfio.client import DEVICE_FEATURE, fails
from tests.vfio.devices import Device, opened
from vfsfuse.run.labinfo import LabInfo
from vfsfuse.run.traps import trapped

Compile = Callable[..., Path]
GET, SET = 1 << 16, 1 << 17
MIGRATION, DEVICE_STATE = 1, 2
ERROR, STOP, RUNNING, STOP_COPY, RESUMING = range(5)
LAB = f"""\
[models]
counter = "{ROOT}/tests/vfio/counter.py:Counter"

[parents.counters]
kind = "virtual"
driver = "counter"
slots = 8
types.counter-1 = {{ description = "counts" }}

[parents.serial]
kind = "virtual"
driver = "mtty"
slots = 8
types.mtty-1 = {{ description = "a serial card", model = "mtty" }}
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    """A lab with counters, which migrate."""
    with described(tmp_path_factory.mktemp("counters"), LAB) as mounted:
        yield mounted


def state(device: Device, flags: int, wanted: int = 0) -> tuple[int, int]:
    """MIG_DEVICE_STATE: the state and the descriptor that come back."""
    data = ctypes.create_string_buffer(struct.pack("=IIIi", 16, flags | DEVICE_STATE, wanted, 9))
    device.ioctl(DEVICE_FEATURE, data)
    return struct.unpack_from("=Ii", data, 8)


@pytest.mark.parametrize("traced", [False, True])
def test_a_state_moves_to_another_device(
    machine: MountedLab, compile_client: Compile, tmp_path: Path, traced: bool
) -> None:
    program, trace = compile_client("migrate"), tmp_path / "trace"
    more = ["--trace", str(trace)] if traced else []
    with ExitStack() as stack:
        pair = [stack.enter_context(machine.create("counter-1", "counters")).vfio for _ in range(2)]
        done = vfsfuse("run", "--mount", machine.path, *more, "--", "timeout", "30", program, *pair)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    if traced:
        lines = [line for line in trace.read_text().splitlines() if "MIG_DEVICE_STATE" in line]
        asked = "data={device_state=VFIO_DEVICE_STATE_STOP_COPY, data_fd=77}"
        assert f"{asked}}} => {{data={{device_state=VFIO_DEVICE_STATE_STOP_COPY, ...}}}}" in lines[0]


def test_a_model_that_migrates_after_a_reload(compile_client: Compile, tmp_path: Path) -> None:
    """A run that begins then gives descriptors."""
    code = Path(f"{ROOT}/tests/vfio/counter.py").read_text()
    (model := tmp_path / "counter.py").write_text(code.replace("(Migrates, PciDevice)", "(PciDevice)"))
    with described(tmp_path, LAB.replace(f"{ROOT}/tests/vfio/counter.py", str(model))) as lab:
        assert flags_of(lab) is LabFlag.NONE
        model.write_text(code)
        assert vfsfuse("reload", "--mount", lab.path).returncode == 0
        with lab.create("counter-1", "counters") as one, lab.create("counter-1", "counters") as other:
            program = compile_client("migrate")
            done = vfsfuse("run", "--mount", lab.path, "--", "timeout", "30", program, one.vfio, other.vfio)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def flags_of(machine: MountedLab) -> LabFlag:
    """What a lab tells the supervisor of a run."""
    root = os.open(machine.path, os.O_PATH | os.O_DIRECTORY)
    try:
        with LabInfo(root) as info:
            return info.flags()
    finally:
        os.close(root)


def test_a_run_stops_device_feature_only_where_a_model_migrates(machine: MountedLab, lab: MountedLab) -> None:
    """Each call that the filter stops costs time."""
    assert flags_of(machine) is LabFlag.MIGRATES and DEVICE_FEATURE in trapped(LabFlag.MIGRATES)
    assert flags_of(lab) is LabFlag.NONE and DEVICE_FEATURE not in trapped(LabFlag.NONE)
    assert set(trapped(LabFlag.MIGRATES)) - set(trapped(LabFlag.NONE)) == {DEVICE_FEATURE}


def test_without_a_run_the_device_stops_and_gives_nothing(machine: MountedLab) -> None:
    with machine.create("counter-1", "counters") as vgpu, opened(machine, vgpu.group, vgpu.name) as found:
        device = found.device
        assert state(device, GET) == (RUNNING, -1)
        assert state(device, SET, STOP) == (STOP, -1)
        for wanted in (STOP_COPY, RESUMING):
            fails(errno.EOPNOTSUPP, state, device, SET, wanted)
        assert state(device, GET) == (STOP, -1)
        assert state(device, SET, RUNNING) == (RUNNING, -1)


def test_a_device_that_does_not_migrate(machine: MountedLab) -> None:
    with machine.create("mtty-1", "serial") as vgpu, opened(machine, vgpu.group, vgpu.name) as found:
        fails(errno.ENOTTY, state, found.device, GET)
        fails(errno.ENOTTY, state, found.device, SET, STOP)


def test_the_next_client_finds_it_running(machine: MountedLab) -> None:
    with machine.create("counter-1", "counters") as vgpu:
        with opened(machine, vgpu.group, vgpu.name) as found:
            state(found.device, SET, STOP)
        with opened(machine, vgpu.group, vgpu.name) as found:
            assert state(found.device, GET) == (RUNNING, -1)
