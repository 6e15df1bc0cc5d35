# SPDX-License-Identifier: Apache-2.0
"""The recording of a lab in a program."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from tests import needs
from tests.vfio.copiers import GPU
from vfsfuse import Lab, LabError, Vgpu
from vfsfuse.api.recordings import LabRecording
from vfsfuse.recording.reading import read
from vfsfuse.recording.recording import NO_DEVICE, Irq, Region

SOURCE, TARGET, SIZE, COMMAND, STATUS = 0x00, 0x08, 0x10, 0x14, 0x18
BAR4 = 4
FLAG_MMAP = 4
GET_INFO = 0x3B6B


def copy(vgpu: Vgpu, size: int, byte: bytes = b"x") -> None:
    """Have a copier copy `size` bytes."""
    with vgpu.open() as device, device.interrupts("msix", 1) as interrupts, device.map(1 << 20) as memory:
        device.enable()
        registers = device.regions[0]
        memory.write(0, byte * size)
        registers.write_int(SOURCE, memory.iova, width=8)
        registers.write_int(TARGET, memory.iova + (1 << 19), width=8)
        registers.write_int(SIZE, size)
        registers.write_int(COMMAND, 1)
        interrupts.wait(0)
        assert registers.read_int(STATUS) == 1


def test_a_dialogue_and_the_device(copiers: Lab, tmp_path: Path) -> None:
    with copiers.create("copier-1") as vgpu, copiers.recording() as made:
        copy(vgpu, 6)
        with vgpu.open() as again, pytest.raises(OSError, match="Bad address"):
            os.pread(again.fileno(), 4, 7 << 40 | 4096)
    (device,) = made.devices
    assert (device.name, device.flags, device.num_regions, device.num_irqs) == (vgpu.name, 3, 9, 5)
    assert device.regions[0] == Region(0, 4096, 3) and device.irqs[2] == Irq(2, 2, 1)
    assert 8 not in device.regions and device.is_mediated
    assert device.config[:4] == bytes.fromhex("3412f1c0") and len(device.config) == 256
    assert device.names[0, COMMAND, 4] == "COMMAND"
    events = [event for event in made.events if event.device == 0]
    told = [(event.kind, event.name) for event in events if event.kind in ("dma", "interrupt")]
    assert told == [("dma", "read"), ("dma", "write"), ("interrupt", "MSIX")]
    (command,) = [event for event in events if event.offset == COMMAND and event.kind == "write"]
    (interrupt,) = [event for event in events if event.kind == "interrupt"]
    assert events.index(command) < events.index(interrupt) and command.data == b"\1\0\0\0"
    assert [event.errno for event in events if event.errno] == [errno.EFAULT]
    assert {event.file for event in made.events if event.device == NO_DEVICE} == {"iommufd"}
    assert made.events[0].time == 0.0 and all(event.time >= 0 for event in made.events)

    path = tmp_path / "copier.recording"
    made.save(path)
    assert path.read_text() == made.text()
    assert read(path) == made.recording


def test_data_are_whole(copiers: Lab) -> None:
    size = 300_000
    long = bytearray((5000).to_bytes(4, "little") + bytes(4996))
    with copiers.create("copier-1") as vgpu, copiers.recording() as made, copiers.trace() as trace:
        copy(vgpu, size, b"y")
        with vgpu.open() as device:
            device.config.read(0, 256)
            fcntl.ioctl(device.fileno(), GET_INFO, long)
    moved = [event.data for event in made.events if event.kind == "dma"]
    assert moved == [b"y" * size] * 2
    assert [len(event.data) for event in made.events if event.kind == "read"][-1] == 256
    assert [len(event.after) for event in made.events if event.name == "VFIO_DEVICE_GET_INFO"][-1] == 5000
    told = [(each.kind, each.arguments) for each in trace.records]
    assert [len(said["data"]) for kind, said in told if kind == "dma"] == [64, 64]
    assert max(len(said["before"]) for kind, said in told if "before" in said) == 1024


def test_files_of_sysfs_are_no_part_of_it(copiers: Lab) -> None:
    with copiers.create("copier-1") as vgpu, copiers.recording() as made, vgpu.open():
        before = [(event.kind, event.name) for event in made.events]
        (vgpu.path / "config").read_bytes()
        assert [(event.kind, event.name) for event in made.events] == before


def test_a_function_of_vfio_pci(copiers: Lab) -> None:
    gpu = copiers.functions[GPU]
    with gpu.bound("vfio-pci"), copiers.recording() as made:
        with gpu.open() as device:
            config = device.config.read(0, 256)
            device.reset()
        assert made.devices[0].name == GPU and not made.devices[0].is_mediated
        assert made.devices[0].config == config
        assert made.devices[0].group is not None
    assert [event.kind for event in made.events if event.kind == "reset"] == []
    assert sum(event.name == "VFIO_DEVICE_RESET" for event in made.events) == 1


def test_a_device_that_was_open_before_is_not_in_it(copiers: Lab) -> None:
    with copiers.create("copier-1") as vgpu, vgpu.open() as device, copiers.recording() as made:
        device.config.read(0, 4)
        assert made.devices == [] and [event for event in made.events if event.device >= 0] == []


@needs.passthrough
def test_mappings_are_hidden_while_it_records(copiers: Lab) -> None:
    with copiers.create("copier-1") as vgpu:
        with copiers.recording() as made, vgpu.open() as device:
            assert not device.regions[BAR4].can_map
        assert made.devices[0].regions[BAR4].flags & FLAG_MMAP  # it is what the device says
        assert made.devices[0].regions[BAR4].capabilities
        with copiers.recording(shows_mmap=True) as shown, vgpu.open() as device:
            assert device.regions[BAR4].can_map
        assert shown.recording.shows_mmap
        with vgpu.open() as device:
            assert device.regions[BAR4].can_map


def test_a_recording_that_misses_calls_is_none(copiers: Lab) -> None:
    with copiers.create("copier-1") as vgpu, LabRecording(copiers.files, keep=3) as made:
        copy(vgpu, 6)
        with pytest.raises(LabError, match=r"\d+ records are missing"):
            made.text()
