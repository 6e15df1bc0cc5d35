# SPDX-License-Identifier: Apache-2.0
"""Parents and vGPUs as objects, of each framework."""

from __future__ import annotations

import errno
import os
import uuid

import pytest

from tests.nvidia.host import LAB as VENDOR
from vfsfuse import Lab

GPU = "0000:86:00.0"
UUID = "6a9c2f52-8d0e-4a3f-9d0c-2f6d7f1b9e01"


def test_parents_and_types(builtin: Lab) -> None:
    gpu = builtin.parents[GPU]
    assert (gpu.name, gpu.driver, gpu.path.name) == (GPU, "vgpu", GPU)
    assert list(gpu.types) == ["vgpu-1", "vgpu-2", "vgpu-4", "vgpu-8"] and len(gpu.types) == 4
    half = gpu.types["vgpu-2"]
    assert (half.name, half.available_instances) == ("vgpu-2", 2)
    assert half.description == "virtual GPU, 128 MB video memory"
    assert half.attribute("device_api") == "vfio-pci"
    assert builtin.parents["mtty"].driver is None
    assert {gpu, builtin.parents[GPU]} == {gpu} and gpu != builtin.parents["mtty"]
    assert repr(gpu) == f"<MdevParent {GPU}>" and repr(gpu.vgpus) == "<vGPUs >"


@pytest.mark.parametrize("name", ["mdpy0", "", ".", "..", "../devices", "mtty/"])
def test_what_is_not_there(builtin: Lab, name: str) -> None:
    for mapping in (
        builtin.parents,
        builtin.vgpus,
        builtin.parents["mtty"].types,
        builtin.parents[GPU].vgpus,
    ):
        assert name not in mapping
        with pytest.raises(KeyError, match=r"there is no (parent|vGPU|type) "):
            mapping[name]


def test_a_mediated_vgpu(builtin: Lab) -> None:
    with builtin.create("vgpu-4", GPU, UUID.upper()) as vgpu:
        assert (vgpu.name, vgpu.uuid, vgpu.type, vgpu.driver) == (UUID, UUID, "vgpu-4", "vfio_mdev")
        assert os.path.exists(builtin.path / "dev/vfio" / str(vgpu.group))
        assert dict(builtin.vgpus) == dict(builtin.parents[GPU].vgpus) == {UUID: vgpu}
        assert len(builtin.parents["mtty"].vgpus) == 0
        assert vgpu.attribute("power/control") == "auto"
        vgpu.set("engine_timeout_ms", 100)
        assert vgpu.attribute("engine_timeout_ms") == "100"
        with pytest.raises(OSError) as caught:
            vgpu.set("engine_timeout_ms", 0)
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, f"{vgpu.path}/engine_timeout_ms")
        with pytest.raises(FileNotFoundError):
            vgpu.attribute("nothing")
    assert not builtin.vgpus
    with pytest.raises(FileNotFoundError):
        vgpu.remove()


def test_a_vgpu_is_created_on_the_first_parent_with_the_type(builtin: Lab) -> None:
    with builtin.create("mtty-2") as vgpu:
        assert vgpu.path.parent == builtin.parents["mtty"].path and uuid.UUID(vgpu.name).version == 4
    with pytest.raises(KeyError, match=r"no parent has the type mtty-3 \(there is vgpu-1, "):
        builtin.create("mtty-3")
    with pytest.raises(KeyError, match=r"there is no type mtty-1 \(there is vgpu-1, "):
        builtin.create("mtty-1", GPU)


def test_a_vgpu_with_resources(builtin: Lab) -> None:
    with builtin.create("vgpu-8", uuid=UUID, instance=3, weight=7, vram="16M") as vgpu:
        assert (vgpu.name, vgpu.uuid) == (f"{UUID}-3", UUID)
        assert vgpu.attribute("engine_weight") == "7"
        with builtin.create("vgpu-8", uuid=UUID, weight=2) as other:
            assert other.name == f"{UUID}-0"
    with pytest.raises(KeyError):
        builtin.parents[GPU].create("vgpu-9", instance=1)
    with pytest.raises(OSError, match="Invalid argument"):
        builtin.create("vgpu-8", weight=-1)


def test_a_vgpu_that_is_gone_at_the_end_already(builtin: Lab) -> None:
    with builtin.create("vgpu-8") as vgpu:
        vgpu.remove()
    with builtin.create("vgpu-8") as vgpu:
        vgpu.surprise_remove()
    assert not vgpu.exists()


def test_a_vgpu_that_was_removed_cannot_be_opened(builtin: Lab) -> None:
    vgpu = builtin.create("mtty-1")
    vgpu.remove()
    with pytest.raises(FileNotFoundError) as caught:
        vgpu.open()
    assert caught.value.filename == str(vgpu.path)


def test_a_screenshot(builtin: Lab) -> None:
    with builtin.create("mdpy-vga") as vgpu:
        picture = vgpu.screenshot()
        assert picture.size == (640, 480)
    with builtin.create("mtty-1") as vgpu, pytest.raises(FileNotFoundError):
        vgpu.screenshot()
    with builtin.create("vgpu-8") as vgpu, pytest.raises(OSError) as caught:
        vgpu.screenshot()
    assert caught.value.errno == errno.ENODATA


def test_vgpus_of_nvidias_framework(vendor: Lab) -> None:
    gpu = vendor.parents[GPU]
    assert dict(vendor.vgpus) == {} and list(gpu.types) == []
    with gpu.create("NVIDIA LAB-4Q") as vgpu:
        assert gpu.attribute("sriov_numvfs") == "8"
        assert (vgpu.name, vgpu.uuid, vgpu.type) == ("0000:86:00.4", None, "14")
        assert vgpu.group is not None and vgpu.driver == "nvidia"
        assert (
            vgpu.attribute("vram_used") == "0"
            and vgpu.attribute("nvidia/gpu_instance_id") == "Not Applicable"
        )
        assert dict(vendor.vgpus) == dict(gpu.vgpus) == {vgpu.name: vgpu}
        assert list(gpu.types) == ["14", "24"] and gpu.types["24"].description == "NVIDIA LAB-4A"
        assert gpu.types["14"].available_instances == 1
        with vendor.create("14") as other:
            assert other.name == "0000:86:00.5"
        with pytest.raises(KeyError, match=r"there is no type 18 \(there is 14, 24\)"):
            gpu.create("18")
        with pytest.raises(FileNotFoundError):
            vgpu.surprise_remove()
    assert not vgpu.exists() and list(vendor.vgpus) == []
    with pytest.raises(ValueError, match="neither a UUID"):
        gpu.create("14", UUID)


def test_a_vgpu_of_nvidias_framework_on_the_first_parent() -> None:
    with Lab(VENDOR, strict=True) as lab:
        with lab.create("NVIDIA LAB-8Q") as vgpu:
            assert vgpu.type == "18"
        with pytest.raises(KeyError, match=r"no parent has the type 99 \(there is 11, 14, 24, 18, 1116\)"):
            lab.create("99")


def test_no_virtual_function_is_free(vendor: Lab) -> None:
    gpu = vendor.parents[GPU]
    made = [vendor.create("11") for _ in range(8)]
    try:
        with pytest.raises(OSError) as caught:
            gpu.create("11")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(gpu.path))
    finally:
        for each in made:
            each.remove()
