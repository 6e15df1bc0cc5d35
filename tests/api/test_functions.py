# SPDX-License-Identifier: Apache-2.0
"""PCI functions and slots as objects: drivers, virtual functions, resets, cards."""

from __future__ import annotations

import errno

import pytest

from tests import needs
from vfsfuse import Function, Lab, Slot

GPU = "0000:86:00.0"
PLUGGABLE = """
[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
slot = "7"
memory = "16M"
types.small = { memory = "16M", description = "all of it" }

[functions."0000:87:00.0"]
driver = "nic"
iommu = false
"""


def test_a_function(builtin: Lab) -> None:
    gpu = builtin.functions[GPU]
    assert (gpu.name, gpu.driver, gpu.driver_override, gpu.vfio, gpu.slot) == (GPU, "vgpu", None, None, None)
    assert (gpu.vendor, gpu.device, gpu.class_code >> 16) == (0x1234, 0x86F0, 3)
    assert gpu.group is not None and gpu.exists() and gpu.physical is None
    assert "0000:00:01.0" in builtin.functions and len(builtin.functions) == 2
    for name in ("0000:99:00.0", ".", "", f"../devices/{GPU}"):
        assert name not in builtin.functions


def drivers(function: Function) -> tuple[str | None, str | None]:
    """The driver that it has, and the only one that it may have."""
    return function.driver, function.driver_override


def test_drivers(builtin: Lab) -> None:
    gpu = builtin.functions[GPU]
    gpu.bind()
    assert (*drivers(gpu), gpu.vfio) == ("vfio-pci", "vfio-pci", "vfio0")
    gpu.bind()
    gpu.unbind()
    gpu.unbind()
    assert drivers(gpu) == (None, "vfio-pci")
    gpu.bind(None)
    assert drivers(gpu) == ("vgpu", None)
    with gpu.bound(), gpu.open():
        with pytest.raises(OSError) as caught:
            gpu.unbind()
        assert caught.value.errno == errno.EBUSY
    assert drivers(gpu) == ("vgpu", None)
    with pytest.raises(FileNotFoundError):
        gpu.bind("no-such-driver")
    gpu.bind(None)
    assert drivers(gpu) == ("vgpu", None)


def test_virtual_functions(builtin: Lab) -> None:
    gpu = builtin.functions[GPU]
    assert (gpu.sriov_numvfs, gpu.sriov_totalvfs, gpu.vfs) == (0, 4, ())
    gpu.sriov_numvfs = 3
    try:
        assert [each.name for each in gpu.vfs] == ["0000:86:00.4", "0000:86:00.5", "0000:86:00.6"]
        assert [each.physical for each in gpu.vfs] == [gpu] * 3
        assert gpu.vfs[1] == builtin.functions["0000:86:00.5"]
        with gpu.vfs[0].bound(), gpu.vfs[0].open() as device:
            assert device.config.read_int(0, 2) == 0x1234
        with pytest.raises(OSError) as caught:
            gpu.sriov_numvfs = 2
        assert caught.value.errno == errno.EBUSY
    finally:
        gpu.sriov_numvfs = 0
    assert gpu.vfs == ()
    with pytest.raises(FileNotFoundError):
        builtin.functions["0000:00:01.0"].sriov_numvfs  # noqa: B018


def test_a_reset(builtin: Lab) -> None:
    with pytest.raises(FileNotFoundError):
        builtin.functions["0000:00:01.0"].reset()
    builtin.functions[GPU].reset()


def test_a_removal_and_a_rescan(builtin: Lab) -> None:
    gpu = builtin.functions[GPU]
    gpu.remove()
    assert not gpu.exists() and GPU not in builtin.functions and GPU not in builtin.parents
    builtin.rescan()
    assert gpu.exists() and builtin.functions[GPU] == gpu


def state(slot: Slot) -> tuple[bool, bool]:
    """Whether there is a card in the slot, and power."""
    return slot.occupied, slot.powered


def test_a_virtual_function_that_wants_a_token() -> None:
    with Lab(strict=True) as lab:
        gpu = lab.functions[GPU]
        lab.files.store(lab.path / "sys/module/vfio_pci/parameters/enable_sriov", "Y")
        with gpu.bound(), gpu.open():
            gpu.sriov_numvfs = 1
            with pytest.raises(PermissionError):
                gpu.vfs[0].open()
            gpu.sriov_numvfs = 0


def test_cards() -> None:
    with Lab(PLUGGABLE, strict=True) as lab:
        gpu, slot = lab.functions[GPU], lab.slots["7"]
        assert gpu.slot == slot and list(lab.slots) == ["7"]
        assert (slot.address, *state(slot)) == ("0000:86:00", True, True)
        with pytest.raises(OSError) as caught:
            slot.plug()
        assert caught.value.errno == errno.EBUSY
        slot.unplug()
        assert not gpu.exists() and state(slot) == (False, False)
        slot.plug()
        assert gpu.exists() and state(slot) == (True, True)
        with lab.create("small").open() as device:
            config = device.config
            with pytest.raises(OSError) as caught:
                slot.unplug()
            assert caught.value.errno == errno.EBUSY
            slot.unplug(surprise=True)
            assert not gpu.exists() and config.read(0, 2) == b"\xff\xff"


def test_a_function_without_iommu() -> None:
    with Lab(PLUGGABLE, strict=True) as lab:
        function = lab.functions["0000:87:00.0"]
        assert function.group is None
        lab.files.store(lab.path / "sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")
        function.bind()
        assert str(function.group).startswith("noiommu-")
        assert (lab.path / "dev/vfio" / str(function.group)).exists()
        if needs.has_capability("CAP_SYS_RAWIO"):
            with function.open() as device:
                assert device.config.read_int(0, 2) == 0x1B36
        else:  # as on Linux
            with pytest.raises(PermissionError):
                function.open()
