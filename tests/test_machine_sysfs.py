# SPDX-License-Identifier: Apache-2.0
"""The machine's own sysfs as an oracle: files that it has too are of the same type and mode in a lab."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.labs import MountedLab, described

LAB = """
[parents."0000:00:05.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
types.one = { memory = "16M", description = "a share" }

[parents."0000:86:00.0"]
kind = "gpu"
driver = "vgpu"
memory = "64M"
types.one = { memory = "16M", description = "a share" }
"""
PLACES: Mapping[str, tuple[str, str]] = {
    "function": ("bus/pci/devices/0000:[0-9a-f]*", "bus/pci/devices/0000:86:00.0"),
    "power of a function": ("bus/pci/devices/0000:[0-9a-f]*/power", "bus/pci/devices/0000:86:00.0/power"),
    "host bridge": ("devices/pci0000:00", "devices/pci0000:00"),
    "bus": ("class/pci_bus/*", "class/pci_bus/0000:86"),
    "bus type": ("bus/pci", "bus/pci"),
    "driver": ("bus/pci/drivers/*", "bus/pci/drivers/vgpu"),
    "misc device": ("class/misc/*", "class/misc/vfio"),
    "power of a misc device": ("class/misc/*/power", "class/misc/vfio/power"),
    "module": ("module/*", "module/vfio_pci"),
}
"""Directories: a pattern below the machine's /sys, and a path below the lab's."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("lab"), LAB) as made:
        yield made


def kinds(folder: Path) -> dict[str, tuple[str, int | None]]:
    """The type and mode of each file in a directory, and the size of a symlink."""
    found = ((each.name, each.lstat()) for each in folder.iterdir())
    return {
        name: (stat.filemode(each.st_mode), each.st_size if stat.S_ISLNK(each.st_mode) else None)
        for name, each in found
    }


@pytest.mark.parametrize("what", PLACES)
def test_files_that_the_machine_has_too_are_as_there(lab: MountedLab, what: str) -> None:
    pattern, place = PLACES[what]
    own = kinds(lab.path / "sys" / place)
    folders = [folder for folder in Path("/sys").glob(pattern) if folder.is_dir()]
    if not folders:
        pytest.skip(f"this machine has no /sys/{pattern}")
    compared = 0
    for folder in folders:
        machines = kinds(folder)
        common = own.keys() & machines.keys()
        assert {name: own[name] for name in common} == {name: machines[name] for name in common}, folder
        compared += len(common)
    assert compared
