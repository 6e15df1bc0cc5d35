# SPDX-License-Identifier: Apache-2.0
"""examples/vendor_host.toml: the life of a vGPU by writes to files of a virtual function, and QEMU on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import MountedLab
from tests.machines.machine import can_pin, example, function_dir, lspci, shell
from tests.qemu import drivers
from tests.qemu.guest import build
from tests.qemu.machine import Machine, in_lab
from tests.tool import need

GPU = "0000:86:00.0"
VFS = 32
SLOT = 5
"""The vGPU's slot in a guest."""
HEADER = "ID    : vGPU Name"
SMALL = "video=640x480"


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with example(tmp_path_factory.mktemp("host"), "vendor_host.toml") as made:
        yield made


@pytest.fixture
def host(mounted: MountedLab) -> Iterator[MountedLab]:
    """The host with all virtual functions enabled, none of which is a vGPU."""
    numvfs = function_dir(mounted, GPU) / "sriov_numvfs"
    numvfs.write_text(str(VFS))
    yield mounted
    numvfs.write_text("0")


def virtual(host: MountedLab, index: int) -> str:
    """The address of a virtual function."""
    return os.path.basename(os.readlink(function_dir(host, GPU) / f"virtfn{index}"))


def file(host: MountedLab, index: int, name: str) -> Path:
    return function_dir(host, GPU) / f"virtfn{index}/nvidia/{name}"


def test_programs_find_no_mdev(host: MountedLab) -> None:
    """Several decide by this which of the two frameworks a host has."""
    assert shell(host, "ls /sys/class/mdev_bus 2>/dev/null | wc -l") == "0\n"
    modules = shell(host, "ls /sys/module").split()
    assert "vfio_pci" in modules and not {"mdev", "vfio_mdev"} & set(modules)
    assert shell(host, "[ -e /sys/bus/mdev ] || echo none") == "none\n"
    assert shell(host, f"ls -d /sys/bus/pci/devices/{GPU}/mdev_supported_types 2>&1 || true").endswith(
        "No such file or directory\n"
    )


def test_lspci_lists_the_virtual_functions_with_the_ids_of_the_card(host: MountedLab) -> None:
    need("lspci", "pciutils")
    shown = lspci(host, "-n", "-k", "-d", "10de:")
    assert shown.count("0300: 10de:2ab0") == VFS + 1
    assert shown.count("Kernel driver in use: nvidia") == VFS + 1


def test_the_life_of_a_vgpu_in_a_shell(host: MountedLab) -> None:
    """As administrators' scripts do it: look at what can be created, write an id, read it back, clear it."""
    said = shell(
        host,
        f"""
        cd /sys/bus/pci/devices/{GPU}
        head -n 2 virtfn0/nvidia/creatable_vgpu_types
        id=$(sed -n 's/^\\([0-9]*\\) *: NVIDIA LABA48-8Q$/\\1/p' virtfn3/nvidia/creatable_vgpu_types)
        echo $id > virtfn3/nvidia/current_vgpu_type
        cat virtfn3/nvidia/current_vgpu_type
        cat virtfn3/nvidia/creatable_vgpu_types
        grep -c 8Q virtfn0/nvidia/creatable_vgpu_types
        grep -c -e -4Q virtfn0/nvidia/creatable_vgpu_types || true
        echo frame_rate_limiter=0 > virtfn3/nvidia/vgpu_params
        cat virtfn3/nvidia/vgpu_params
        echo 0 > virtfn3/nvidia/current_vgpu_type
        cat virtfn3/nvidia/current_vgpu_type
        grep -c -e -4Q virtfn0/nvidia/creatable_vgpu_types
        """,
    )
    assert said.splitlines() == [
        HEADER,
        "1301  : NVIDIA LABA48-1Q",
        "1306",
        HEADER,
        "1",
        "0",
        "frame_rate_limiter=0",
        "0",
        "1",
    ]


def test_the_card_is_full_after_as_many_as_it_has_room_for(host: MountedLab) -> None:
    created = []
    for index in range(VFS):
        if "LABA48-8Q" not in file(host, index, "creatable_vgpu_types").read_text():
            break
        file(host, index, "current_vgpu_type").write_text("1306")
        created.append(index)
    assert len(created) == 6
    assert file(host, 31, "creatable_vgpu_types").read_text() == f"{HEADER}\n"
    with pytest.raises(OSError, match="Input/output error"):
        file(host, 31, "current_vgpu_type").write_text("1306")
    for index in created:
        file(host, index, "current_vgpu_type").write_text("0")
    assert "LABA48-48Q" in file(host, 31, "creatable_vgpu_types").read_text()


@can_pin
@pytest.mark.qemu
def test_a_guest_draws_on_such_a_vgpu(host: MountedLab) -> None:
    """QEMU boots with the virtual function as its host driver has it, and the guest's own driver draws on it.
    Meanwhile its type stays; afterwards it is cleared."""
    file(host, 2, "current_vgpu_type").write_text("1304")
    name = virtual(host, 2)
    device = ["-device", f"vfio-pci,host={name},addr={SLOT:#x}"]
    with Machine(in_lab(host), device, build(), SMALL) as machine:
        machine.console.wait_up()
        found = f"/sys/bus/pci/devices/0000:00:{SLOT:02x}.0"
        ids = machine.console.check(
            f"cd {found}; cat vendor device subsystem_vendor subsystem_device"
        ).split()
        assert ids == ["0x1234", "0x1111", "0x10de", f"{1304:#06x}"]
        framebuffer = drivers.framebuffer(machine.console, SLOT)
        drivers.assert_picture(
            function_dir(host, name) / "screen.png",
            drivers.draw_pattern(machine.console, framebuffer, seed=1),
        )
        with pytest.raises(OSError, match="busy"):
            file(host, 2, "current_vgpu_type").write_text("0")
        assert file(host, 2, "current_vgpu_type").read_text() == "1304\n"
        drivers.assert_healthy(machine.console)
        machine.kill()
    file(host, 2, "current_vgpu_type").write_text("0")
