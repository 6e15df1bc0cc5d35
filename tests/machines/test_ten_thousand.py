# SPDX-License-Identifier: Apache-2.0
"""A lab of 10,000 functions on 40 buses: it mounts, and each function is found by every way that there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import MountedLab, described
from tests.machines.machine import function_dir, lspci

LAB = """
[functions."0000:{10-36}:{00-1f}.{0-7}"]
vendor = 0x8086
device = 0x18fe
class = 0x020000
driver = "ice"
bars.0 = { size = "4K" }
capabilities = ["pm", "express"]

[functions."0000:37:{00-01}.{0-7}"]
vendor = 0x144d
device = 0xa8ff
class = 0x010802
"""


def functions(buses: range, slots: int) -> list[str]:
    """The addresses of all functions in the first slots of some buses."""
    return [
        f"0000:{bus:02x}:{slot:02x}.{number}" for bus in buses for slot in range(slots) for number in range(8)
    ]


NICS = functions(range(0x10, 0x37), 32)
DISKS = functions(range(0x37, 0x38), 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedLab]:
    with described(tmp_path_factory.mktemp("many"), LAB) as made:
        yield made


def test_there_are_as_many_as_the_lab_file_says(many: MountedLab) -> None:
    found = {name for name in os.listdir(many.path / "sys/bus/pci/devices") if name[5:7] != "00"}
    assert found == {*NICS, *DISKS} and len(found) == 10_000


def test_each_is_found_by_name(many: MountedLab) -> None:
    for name, identity in ((NICS, "0x18fe\n"), (DISKS, "0xa8ff\n")):
        assert {(function_dir(many, each) / "device").read_text() for each in name} == {identity}
    drivers = many.path / "sys/bus/pci/drivers/ice"
    assert sorted(each for each in os.listdir(drivers) if each.startswith("0000:")) == NICS


def test_each_is_in_a_group(many: MountedLab) -> None:
    groups = many.path / "sys/kernel/iommu_groups"
    found = [name for group in os.listdir(groups) for name in os.listdir(groups / group / "devices")]
    assert {*NICS, *DISKS} <= set(found) and len(found) == len(set(found))


def test_lspci_lists_all(many: MountedLab) -> None:
    shown = lspci(many, "-D", "-n").splitlines()
    assert sum(" 0200: 8086:18fe" in line for line in shown) == len(NICS)
    assert sum(" 0108: 144d:a8ff" in line for line in shown) == len(DISKS)


def test_one_of_them_comes_and_goes(many: MountedLab) -> None:
    name = NICS[5000]
    (function_dir(many, name) / "remove").write_text("1")
    assert not function_dir(many, name).exists()
    assert len([each for each in os.listdir(many.path / "sys/bus/pci/devices") if each[5:7] != "00"]) == 9_999
    (many.path / "sys/bus/pci/rescan").write_text("1")
    assert (function_dir(many, name) / "device").read_text() == "0x18fe\n"


def test_each_costs_little_while_nobody_uses_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    with described(tmp_path_factory.mktemp("idle"), LAB) as lab:
        kib = resident(lab)
    with described(tmp_path_factory.mktemp("small"), LAB.split("\n\n")[1]) as lab:
        few = resident(lab)
    assert (kib - few) / len(NICS) < 4


def resident(lab: MountedLab) -> int:
    """KiB of memory of the server."""
    lines = Path(f"/proc/{lab.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))
